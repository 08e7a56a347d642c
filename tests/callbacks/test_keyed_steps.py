"""Draws inside a step are functions of its place, and what cannot be is reported."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.data.loader import keyed
from tests.callbacks.small import BATCHES, Data, Films, Net


class Draws(Net):
    """Notes one draw of each kind in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = random.Random()
        self.drawn: list[tuple[float, ...]] = []

    def draw(self) -> tuple[float, ...]:
        numpy = float(np.random.rand())  # noqa: NPY002
        return random.random(), numpy, float(torch.rand(())), self.rng.random()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.drawn.append(self.draw())
        return self.loss(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.dropout(torch.ones(8), 0.5, training=True)


@pytest.fixture
def fit(quiet: dict[str, Any]) -> Any:
    def run(
        module: Any = None,
        data: Any = None,
        *,
        seed: int = 7,
        reasons: list[str] | None = None,
        callbacks: tuple[pl.Callback, ...] = (),
        **options: Any,
    ) -> Any:
        module = module or Draws()
        report = reasons.append if reasons is not None else None
        trainer = pl.Trainer(
            callbacks=[KeyedSteps(seed=seed, on_inexact=report), *callbacks],
            use_distributed_sampler=False,
            **quiet | {"max_epochs": 2} | options,
        )
        trainer.fit(module, data if data is not None else keyed(Data(), seed=7))
        return module

    return run


def test_draws_do_not_depend_on_what_was_drawn_before(fit: Any) -> None:
    torch.manual_seed(1)
    first = fit().drawn
    torch.manual_seed(2)
    assert fit().drawn == first


def test_another_seed_draws_otherwise(fit: Any) -> None:
    pairs = zip(fit(seed=7).drawn, fit(seed=8).drawn, strict=True)
    assert all(a != b for one, other in pairs for a, b in zip(one, other, strict=True))


def test_every_micro_batch_of_every_epoch_draws_anew(fit: Any) -> None:
    drawn = fit(accumulate_grad_batches=3).drawn
    assert len(drawn) == 2 * BATCHES
    for kind in zip(*drawn, strict=True):
        assert len(set(kind)) == 2 * BATCHES


def test_a_retried_batch_draws_otherwise(fit: Any) -> None:
    class Again(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.callbacks[0].attempt = 1  # type: ignore[attr-defined]

    assert fit(callbacks=(Again(),)).drawn[0] != fit().drawn[0]


def test_predictions_with_dropout_are_the_same_each_time(fit: Any, quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(callbacks=[KeyedSteps(seed=7)], **quiet)
    loader = DataLoader(Films(16), batch_size=8)
    first, again = (trainer.predict(Draws(), loader) for _ in range(2))
    assert first is not None
    assert again is not None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))  # type: ignore[arg-type]
    assert not torch.equal(first[0], first[1])  # type: ignore[arg-type]


def test_layers_made_late_depend_on_the_seed_and_not_on_earlier_cells(fit: Any) -> None:
    class Late(Draws):
        def configure_model(self) -> None:
            if not hasattr(self, "late"):
                self.late = nn.Linear(2, 2)
                self.first = self.late.weight.detach().clone()

    torch.manual_seed(1)
    one = fit(Late()).first
    torch.manual_seed(2)
    assert torch.equal(fit(Late()).first, one)
    assert not torch.equal(fit(Late(), seed=8).first, one)


def test_nothing_is_reported_of_a_training_that_can_be_exact(fit: Any) -> None:
    reasons: list[str] = []
    fit(reasons=reasons)
    assert reasons == []


def test_loaders_passed_to_fit_are_told_to_follow_its_loops(fit: Any) -> None:
    def rows(loader: Any) -> list[list[Any]]:
        class Seen(Draws):
            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                self.drawn.append(tuple(batch[0].sum(dim=(1, 2, 3)).tolist()))
                return self.loss(batch)

        return fit(Seen(), loader).drawn

    loader = keyed(DataLoader(Films(), batch_size=8, shuffle=True), seed=7)
    seen = rows(loader)
    assert len({row for batch in seen for row in batch}) == 2 * 8 * BATCHES  # no epoch is repeated
    assert rows(loader) == seen


def test_a_loader_that_is_not_keyed_is_reported(fit: Any) -> None:
    reasons: list[str] = []
    fit(data=DataLoader(Films(), batch_size=8), reasons=reasons)
    assert reasons == [
        "the training data come from a DataLoader that is not keyed; wrap it: keyed(datamodule)"
    ]


def test_a_loader_with_another_seed_is_reported(fit: Any) -> None:
    reasons: list[str] = []
    fit(data=keyed(Data(), seed=8), reasons=reasons)
    assert reasons == ["the training loader is keyed by seed 8, the steps by 7"]


def test_a_generator_made_in_the_first_step_is_reported(fit: Any) -> None:
    class MakesIt(Draws):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if not hasattr(self, "late"):
                self.late = np.random.default_rng(0)
            return super().training_step(batch, batch_idx)

    reasons: list[str] = []
    fit(MakesIt(), reasons=reasons)
    assert len(reasons) == 1
    assert "make it in __init__" in reasons[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_time": "00:01:00:00"}, "wall time"),
        ({"val_check_interval": "00:00:30:00"}, "wall time"),
        ({"callbacks": (StochasticWeightAveraging(1e-2),)}, "EMAWeightAveraging"),
    ],
)
def test_what_depends_on_the_clock_or_on_history_is_reported(
    fit: Any, options: dict[str, Any], said: str
) -> None:
    reasons: list[str] = []
    fit(reasons=reasons, **options)
    assert len(reasons) == 1
    assert said in reasons[0]
