"""MONAI's 3-D nets at sizes that small data bear, for :class:`LitClassifier`.

    LitClassifier("medkit.models.monai_nets:resnet", {"channels": (16, 32, 64, 128)})

As MONAI has them, ``resnet10()`` takes 2.8 s a batch of 32 patches of 24^3 on one core, where the
ResNet here takes 0.08 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["densenet", "refuse_norm_under_mean", "resnet", "vit"]

_PER_SAMPLE = (nn.GroupNorm, nn.InstanceNorm3d, nn.InstanceNorm2d, nn.LayerNorm)


def resnet(
    *,
    channels: Sequence[int] = (8, 16, 32, 64),
    blocks: Sequence[int] = (1, 1, 1, 1),
    outputs: int = 1,
) -> nn.Module:
    """Return a ResNet whose first convolution has stride 2: ``(B, 1, H, W, D)`` to logits."""
    from monai.networks.nets.resnet import ResNet

    return ResNet(
        "basic", list(blocks), list(channels), n_input_channels=1, num_classes=outputs,
        conv1_t_stride=2, no_max_pool=True,
    )  # fmt: skip


def densenet(
    *,
    init_features: int = 16,
    growth_rate: int = 8,
    blocks: Sequence[int] = (2, 2, 2),
    norm: str = "batch",
    outputs: int = 1,
) -> nn.Module:
    """Return a DenseNet: ``(B, 1, H, W, D)`` to logits.

    Raises:
        ValueError: For norms under which it learns nothing.
    """
    from monai.networks.nets.densenet import DenseNet

    net = DenseNet(
        3, 1, outputs, init_features=init_features, growth_rate=growth_rate,
        block_config=tuple(blocks), norm=norm,
    )  # fmt: skip
    return refuse_norm_under_mean(net)


def vit(
    *, size: int = 24, patch: int = 8, hidden: int = 96, layers: int = 4, heads: int = 4,
    outputs: int = 1,
) -> nn.Module:  # fmt: skip
    """Return a vision transformer that keeps its attention: ``(B, 1, S, S, S)`` to logits."""
    return _ViT(size, patch, hidden, layers, heads, outputs)


class _ViT(nn.Module):
    """MONAI's, without what it returns beside the logits."""

    def __init__(
        self, size: int, patch: int, hidden: int, layers: int, heads: int, outputs: int
    ) -> None:
        super().__init__()
        from monai.networks.nets.vit import ViT

        self.vit = ViT(
            1, (size,) * 3, (patch,) * 3, hidden_size=hidden, mlp_dim=4 * hidden,
            num_layers=layers, num_heads=heads, classification=True, num_classes=outputs,
            post_activation="", save_attn=True,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.vit(x)[0]
        return logits


def refuse_norm_under_mean(net: nn.Module, *, size: int = 48) -> nn.Module:
    """Return the net; refuse one that takes a mean over space of what is normalised over space.

    GroupNorm and InstanceNorm bring each sample's features to mean 0; the mean over space that
    follows is then next to nothing, and the net learns next to nothing: AUROC .55 where BatchNorm
    has .88.

    Args:
        net: Maps ``(B, 1, S, S, S)`` to logits.
        size: S of the patch that it is tried with.

    Raises:
        ValueError: Where the last normalisation before such a mean is per sample.
    """
    order: list[tuple[str, nn.Module]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _, name=name: order.append((name, layer)))
        for name, layer in net.named_modules()
        if not list(layer.children())
    ]
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 1, size, size, size))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    last: tuple[str, nn.Module] | None = None
    for name, layer in order:
        if isinstance(layer, (*_PER_SAMPLE, nn.modules.batchnorm._BatchNorm)):
            last = name, layer
        mean = isinstance(layer, nn.AdaptiveAvgPool3d | nn.AdaptiveAvgPool2d)
        if mean and last is not None and isinstance(last[1], _PER_SAMPLE):
            raise ValueError(
                f"a mean over space ({name}) must not follow a norm over space: {last[0]} is "
                f"{type(last[1]).__name__}, which brings each sample's features to mean 0, and the "
                "net would learn next to nothing. Take norm='batch', or a head that sees a place: "
                "CandidateNet(head='mean and centre')."
            )
    return net
