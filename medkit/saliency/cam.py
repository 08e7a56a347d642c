"""Coarse maps from inside a 3-D net: Grad-CAM by Captum, and a transformer's attention."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from medkit.saliency.volume_maps import VolumeMaps
from medkit.saliency.volume_net import Part, VolumeNet, mapped

with warnings.catch_warnings():  # tqdm, which Captum imports, asks for JupyterLab's widgets
    warnings.simplefilter("ignore")
    from captum.attr import LayerGradCam

WAYS = ("rollout", "last")


def grad_cam(
    of: VolumeNet, volume_hu: ArrayLike | Tensor, *, layer: str | None = None, relu: bool = True
) -> VolumeMaps:
    """Weigh a layer's channels by their mean gradient and add them up (Selvaraju 2017).

    It is as coarse as the layer, 3^3 cells for a patch of 24^3 in the kit's net, and is drawn
    smooth between them: no outline in it is the net's. Without any evidence for the logit it is 0
    everywhere.

    Args:
        of: The net.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        layer: Name of a module of the net that returns ``(B, C, h, w, d)``; None: the last one
            that has more than one cell.
        relu: Leave out what speaks against, as the paper does.

    Raises:
        ValueError: For a layer that is not there, or where no layer has cells.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    known = dict(of.net.named_modules())
    if layer is not None and layer not in known:
        raise ValueError(
            f"layer must be a module of the net, got {layer!r}. It has "
            f"{[name for name in known if name][-8:]}; name the one that ends the convolutions."
        )
    chosen: list[nn.Module] = [] if layer is None else [known[layer]]

    def part(hu: Tensor, _: int) -> Part:
        x = of.seen(hu)
        if not chosen:
            chosen.append(_last_map(of, x[:1]))
        explain = LayerGradCam(of.logit, chosen[0])
        cells = explain.attribute(x.requires_grad_(), relu_attributions=relu)
        if not isinstance(cells, Tensor) or cells.ndim != 5:
            raise ValueError(
                f"Grad-CAM needs a layer that returns (B, C, h, w, d); {layer!r} does not. Name "
                "the last one before the mean over space."
            )
        return Part(_as_large(cells[:, 0].detach(), hu))

    return mapped(of, volume_hu, part, method="Grad-CAM", unit="arbitrary", signed=not relu)


def attention(of: VolumeNet, volume_hu: ArrayLike | Tensor, *, way: str = "rollout") -> VolumeMaps:
    """Show where a MONAI ViT's tokens look, which is not an attribution.

    Attention says which tokens were mixed, not what they did to the logit: it has no sign, knows
    no class, and can be changed without changing the answer (Jain and Wallace 2019). Values add
    up to 1 over the tokens.

    Args:
        of: The net: MONAI's ``ViT``, or one that has ``blocks`` and ``patch_embedding`` as it has.
        volume_hu: ``(B, 1, H, W, D)`` [HU].
        way: "rollout" multiplies the layers' attention, half of it the residual path (Abnar and
            Zuidema 2020); "last" shows the last layer's. Heads are averaged. From the class token
            where there is one, else from all tokens.

    Raises:
        ValueError: For another way, or a net whose attention can't be read.
        Interrupted: On Ctrl-C, with the maps that are done.
    """
    if way not in WAYS:
        raise ValueError(f"way must be one of {WAYS}, got {way!r}. 'rollout' is usual.")
    layers: list[Any] = [getattr(b, "attn", None) for b in getattr(of.net, "blocks", ())]
    embedding: Any = getattr(of.net, "patch_embedding", None)
    flash = any(getattr(one, "use_flash_attention", False) for one in layers)
    if not layers or embedding is None or flash or not all(hasattr(a, "att_mat") for a in layers):
        raise ValueError(
            "attention is read from the blocks of MONAI's ViT, without flash attention; found "
            f"{len(layers)} blocks in {type(of.net).__name__}{', with flash' if flash else ''}. "
            "Use integrated_gradients, which takes any net."
        )

    def part(hu: Tensor, _: int) -> Part:
        x = of.seen(hu)
        with _kept(layers), torch.no_grad():
            of.logit(x)
            mixed = [one.att_mat.mean(1) for one in layers]  # (B, tokens, tokens)
        looked, sides = mixed[-1], _cells(embedding, x)
        if way == "rollout":
            eye = torch.eye(looked.shape[-1]).to(looked)
            looked = eye
            for one in mixed:
                looked = (one + eye) / 2 @ looked
        count = sides.numel()
        row = looked.mean(1) if looked.shape[-1] == count else looked[:, 0, -count:]
        return Part(_as_large((row / row.sum(1, keepdim=True)).view(-1, *sides), hu))

    return mapped(
        of, volume_hu, part, method=f"attention ({way})", unit="share per token", signed=False
    )


def _as_large(cells: Tensor, hu: Tensor) -> Tensor:
    """Enlarge maps ``(B, h, w, d)`` to the volumes' sides, linearly between cells' middles."""
    return F.interpolate(cells[:, None], size=hu.shape[2:], mode="trilinear")[:, 0]


def _last_map(of: VolumeNet, x: Tensor) -> nn.Module:
    """Return the module that was last to return a map of more than one cell."""
    last: list[nn.Module] = []

    def look(module: nn.Module, _: Any, found: Any) -> None:
        if isinstance(found, Tensor) and found.ndim == 5 and found.shape[2:].numel() > 1:
            last.append(module)

    hooks = [module.register_forward_hook(look) for module in of.net.modules()]
    try:
        with torch.no_grad():
            of.logit(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not last or last[-1] is of.net:
        raise ValueError(
            "Grad-CAM needs a module that returns (B, C, h, w, d) with more than one cell; "
            f"{type(of.net).__name__} has none on volumes of {tuple(x.shape[2:])}. Pass larger "
            "volumes, or use integrated_gradients, which takes any net."
        )
    return last[-1]


@contextmanager
def _kept(layers: list[Any]) -> Iterator[None]:
    """Have attention layers keep their attention for a while, and forget it then."""
    was = [one.save_attn for one in layers]
    for one in layers:
        one.save_attn = True
    try:
        yield
    finally:
        for one, before in zip(layers, was, strict=True):
            one.save_attn = before
            one.att_mat = torch.Tensor()


def _cells(embedding: Any, x: Tensor) -> torch.Size:
    """Return how many tokens lie along each axis of the volumes."""
    kernel = getattr(embedding.patch_embeddings, "kernel_size", None)
    count = int(embedding.n_patches)
    if kernel is None:  # patches are cut by a rearrangement that keeps no record of their sides
        edge = round((x.shape[2:].numel() / count) ** (1 / 3))
        kernel = (edge, edge, edge)
    sides = torch.Size(whole // edge for whole, edge in zip(x.shape[2:], kernel, strict=True))
    if sides.numel() != count:
        raise ValueError(
            f"tokens must tile the volume: {count} of them in {tuple(x.shape[2:])} voxels do not, "
            f"by cubes of {kernel}. Build the ViT with proj_type='conv'."
        )
    return sides
