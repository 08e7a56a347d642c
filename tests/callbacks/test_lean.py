"""What is left out of a step changes nothing that is trained."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medkit.callbacks.lean import NoProfiler, ask_signature_once


class Seen(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)
        self.seen: list[tuple[Any, ...]] = []

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(4, 3), batch_size=2)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithNumber(Seen):
    def training_step(self, batch: Tensor, number: int) -> Tensor:
        self.seen.append((len(batch), number))
        return self.net(batch).sum()


class WithoutNumber(Seen):
    def training_step(self, batch: Tensor) -> Tensor:
        self.seen.append((len(batch),))
        return self.net(batch).sum()


class WithAny(Seen):
    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.seen.append((len(args), sorted(kwargs)))
        return self.net(args[0] if args else kwargs["batch"]).sum()


def trained(module: Seen, quiet: dict[str, Any], *, lean: bool) -> list[tuple[Any, ...]]:
    trainer = pl.Trainer(max_epochs=2, **quiet | {"profiler": NoProfiler() if lean else None})
    if lean:
        ask_signature_once(trainer)
        pickle.loads(pickle.dumps(trainer.fit_loop.epoch_loop._build_kwargs))  # processes spawn
    trainer.fit(module)
    return module.seen


@pytest.mark.parametrize("kind", [WithNumber, WithoutNumber, WithAny])
def test_a_step_is_called_as_lightning_calls_it(kind: type[Seen], quiet: dict[str, Any]) -> None:
    assert trained(kind(), quiet, lean=True) == trained(kind(), quiet, lean=False)


def test_a_step_that_is_replaced_on_the_way_is_asked_again(quiet: dict[str, Any]) -> None:
    module = WithNumber()

    def without(batch: Tensor) -> Tensor:
        module.seen.append((len(batch),))
        return module.net(batch).sum()

    class Swap(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            pl_module.training_step = without  # type: ignore[assignment,method-assign]

    trainer = pl.Trainer(max_epochs=2, callbacks=[Swap()], **quiet)
    ask_signature_once(trainer)
    trainer.fit(module)
    assert module.seen == [(2, 0), (2, 1), (2,), (2,)]
