"""Each unit's gradient is clipped by the norm of its weights."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medkit.callbacks.adaptive_clipping import AdaptiveGradientClipping


class Steep(pl.LightningModule):
    """Weights of known norms, and gradients that are given."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)
        self.fused = fused
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
            self.body.bias.copy_(torch.tensor([6.0, 8.0]))
        self.slopes = torch.tensor([[30.0, 40.0], [0.6, 0.8]])
        self.seen: dict[str, Tensor] = {}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.body.weight * self.slopes).sum() + 0.05 * self.body.bias[0]
        return loss + 70 * self.head.weight.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        named = self.named_parameters()
        self.seen = {name: p.grad.clone() for name, p in named if p.grad is not None}

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, fused=self.fused)


def fit(net: Steep, quiet: dict[str, Any], callback: pl.Callback, **options: Any) -> None:
    trainer = pl.Trainer(
        **quiet, max_steps=1, enable_checkpointing=False, callbacks=[callback], **options
    )
    trainer.fit(net, DataLoader(torch.zeros(1, 1)))


def test_a_units_gradient_is_clipped_by_the_norm_of_its_weights(quiet: dict[str, Any]) -> None:
    net = Steep()
    fit(net, quiet, AdaptiveGradientClipping(0.1, leave_out=("head.",)))
    # 5 * 0.1 of 50 is left, and 0.001 * 0.1 of 1 where the weights are zero
    expected = torch.tensor([[0.3, 0.4], [0.6e-4, 0.8e-4]])
    torch.testing.assert_close(net.seen["body.weight"], expected)


def test_a_gradient_within_its_limit_keeps_its_bits(quiet: dict[str, Any]) -> None:
    net = Steep()
    fit(net, quiet, AdaptiveGradientClipping(0.1, leave_out="head."))
    assert net.seen["body.bias"].tolist() == torch.tensor([0.05, 0.0]).tolist()
    assert net.seen["head.weight"].tolist() == [[70.0, 70.0]]


def test_filters_of_a_convolution_are_units(quiet: dict[str, Any]) -> None:
    """Against the definition, filter by filter."""
    convolution = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(convolution.parameters(), 0.1)
    convolution.weight.grad = torch.randn(4, 3, 3, 3)
    expected = []
    for weight, gradient in zip(convolution.weight, convolution.weight.grad, strict=True):
        most = 0.02 * max(float(weight.norm()), 1e-3)
        expected.append(gradient * min(1.0, most / float(gradient.norm())))
    callback = AdaptiveGradientClipping(0.02)
    callback.on_before_optimizer_step(pl.Trainer(**quiet), Steep(), optimizer)
    torch.testing.assert_close(convolution.weight.grad, torch.stack(expected))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"above 0, got 0\.0 and 0\.001.*paper's are"):
        AdaptiveGradientClipping(0.0)


def test_a_name_that_no_parameter_has_is_refused(quiet: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"none begins with \['tail'\].*spelling"):
        fit(Steep(), quiet, AdaptiveGradientClipping(leave_out=("tail",)))


def test_scaled_gradients_are_refused(quiet: dict[str, Any]) -> None:
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"must be unscaled.*fused.*fused=False"):
        fit(Steep(fused=True), quiet, AdaptiveGradientClipping(), plugins=[half])
