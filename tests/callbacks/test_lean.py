"""What is left out of a step changes nothing that is trained."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medkit.callbacks.lean import NoProfiler, lighten


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
    trainer = pl.Trainer(max_epochs=2, profiler=NoProfiler() if lean else None, **quiet)
    if lean:
        lighten(trainer)
        pickle.loads(pickle.dumps(trainer))  # as processes that are spawned get it
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

    trainer = pl.Trainer(max_epochs=2, callbacks=[Swap()], profiler=NoProfiler(), **quiet)
    lighten(trainer)
    trainer.fit(module)
    assert module.seen == [(2, 0), (2, 1), (2,), (2,)]


def kept_batches() -> Any:
    """The same object each time: a step that changes its batch must not change the data."""
    kept = {"x": torch.ones(2, 3)}
    return DataLoader([kept, kept], batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]


class OnItsWay(Seen):
    """Takes batches that say which hooks they have been through."""

    def training_step(self, batch: dict[str, Any], number: int) -> Tensor:
        self.seen.append((sorted(batch), type(batch["x"]).__name__))
        batch.pop("x")  # its own: the dataset's stays whole
        return self.net.weight.sum()

    def validation_step(self, batch: dict[str, Any], number: int) -> None:
        self.seen.append((sorted(batch), type(batch["x"]).__name__))

    def train_dataloader(self) -> Any:
        return kept_batches()

    val_dataloader = train_dataloader


class HooksOfItsOwn(OnItsWay):
    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch | {f"to {device}": 1}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch | {f"after {dataloader_idx}": 1}


class HooksInTheData(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return kept_batches()

    val_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch | {"data": 1}


def put_in_place(module: pl.LightningModule) -> pl.LightningModule:
    module.on_after_batch_transfer = lambda batch, dataloader_idx: batch | {"patched": 1}  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (OnItsWay, None),
        (HooksOfItsOwn, None),
        (OnItsWay, HooksInTheData),
        (lambda: put_in_place(OnItsWay()), None),
    ],
    ids=["no hooks", "of the module", "of the data", "put in place"],
)
def test_a_batch_goes_through_the_hooks_that_lightning_calls(
    make: Any, data: Any, quiet: dict[str, Any]
) -> None:
    ways = []
    for profiler in (NoProfiler(), None):
        module = make()
        trainer = pl.Trainer(max_epochs=1, profiler=profiler, **quiet)
        lighten(trainer)
        trainer.fit(module, *([data()] if data else []))
        ways.append(module.seen)
    assert ways[0] == ways[1]
    assert len(ways[0]) == 2 + 2 + 2  # a sanity check, a validation and the training


HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


def noted(owner: Any, seen: list[tuple[Any, ...]], *names: str) -> Any:
    """Give an object hooks that note when they are called, and with what."""
    for name in names:

        def hook(*args: Any, name: str = name) -> None:
            tensors = [float(a) for a in args if isinstance(a, Tensor)]
            seen.append((type(owner).__name__, name, *tensors))

        setattr(owner, name, hook)
    return owner


class Clips(WithNumber):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.seen.append(("clips", gradient_clip_val, gradient_clip_algorithm))
        self.clip_gradients(optimizer, 0.25, "value")


class Late(pl.Callback):
    """Gets its hooks after the first epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        noted(self, pl_module.seen, *HOOKS)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["none", "module", "callback", "both", "late", *HOOKS])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("kind", [WithNumber, Clips])
def test_a_step_goes_through_the_hooks_that_lightning_calls(
    case: str, clip: float | None, kind: type[Seen], quiet: dict[str, Any]
) -> None:
    ways = []
    for profiler in (NoProfiler(), None):
        torch.manual_seed(0)
        module = kind()
        callback = Late() if case == "late" else pl.Callback()
        if case in {"module", "both"}:
            noted(module, module.seen, *HOOKS)
        if case in {"callback", "both", *HOOKS}:
            noted(callback, module.seen, *([case] if case in HOOKS else HOOKS))
        options = quiet | {"callbacks": [callback], "profiler": profiler}
        if kind is not Clips:  # it clips by itself, and Lightning refuses to have both
            options |= {"gradient_clip_val": clip}
        trainer = pl.Trainer(max_epochs=2, **options)
        lighten(trainer)
        trainer.fit(module)
        ways.append((module.seen, module.net.weight.tolist()))
    assert ways[0] == ways[1]


class Validated(WithNumber):
    def val_dataloader(self) -> DataLoader[Tensor]:
        return self.train_dataloader()

    def validation_step(self, batch: Tensor, number: int) -> None:
        self.log("val/loss", self.net(batch).sum())


class Logs(Validated):
    """Logs in steps and at ends, by mean and by maximum."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log(
            "train/most", loss.detach().double(), on_step=False, on_epoch=True, reduce_fx="max"
        )
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/epoch", float(self.current_epoch))
        self.log("val/seen", torch.tensor(float(len(self.seen))))


def test_what_is_logged_is_what_lightning_logs(quiet: dict[str, Any]) -> None:
    ways = []
    for profiler in (NoProfiler(), None):
        torch.manual_seed(0)
        trainer = pl.Trainer(max_epochs=3, profiler=profiler, **quiet)
        lighten(trainer)
        trainer.fit(Logs())
        ways.append({name: float(value) for name, value in trainer.logged_metrics.items()})
    assert ways[0] == ways[1]
    assert {"train/loss_epoch", "train/most", "val/loss", "val/epoch"} <= ways[0].keys()


@pytest.mark.gpu
def test_what_is_logged_may_be_on_either_device(quiet: dict[str, Any]) -> None:
    class Mixed(Validated):
        def on_validation_epoch_end(self) -> None:
            self.log("val/here", torch.tensor(2.0))
            self.log("val/there", torch.tensor(3.0, device=self.device))

    trainer = pl.Trainer(max_epochs=2, profiler=NoProfiler(), **(quiet | {"accelerator": "auto"}))
    lighten(trainer)
    trainer.fit(Mixed())
    assert [float(trainer.logged_metrics[f"val/{n}"]) for n in ("here", "there")] == [2.0, 3.0]


def test_a_profiler_of_ones_own_sees_what_lightning_does(quiet: dict[str, Any]) -> None:
    trainer = pl.Trainer(max_epochs=1, profiler="simple", **quiet)
    places = (trainer.strategy, trainer.fit_loop.epoch_loop, trainer.precision_plugin)
    before = [set(vars(place)) for place in places]
    lighten(trainer)
    assert [set(vars(place)) for place in places] == before
