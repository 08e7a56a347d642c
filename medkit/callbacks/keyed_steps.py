"""Every draw of a training step is a function of the step's place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import StochasticWeightAveraging, Timer
from pytorch_lightning.utilities.model_helpers import is_overridden

from medkit import keyed as keys
from medkit.data.generators import Generator, find_generators, rekey
from medkit.data.loader import KeyedLoader

_log = logging.getLogger(__name__)
_TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
_INEXACT_CALLBACKS: dict[type[pl.Callback], str] = {
    Timer: "max_time ends the fit by wall time, which does not repeat",
    StochasticWeightAveraging: "StochasticWeightAveraging swaps schedulers as an epoch begins, "
    "and not on a resume; EMAWeightAveraging and WeightAveraging resume exactly",
}


class KeyedSteps(pl.Callback):
    """Set every generator before each batch from ``seed, "step", epoch, batch, rank, attempt``.

    Put it first in the Trainer's list: hooks of later callbacks then draw from the key as well.
    Private generators that the module and callbacks keep are found and keyed too. Keyed loaders are
    told to follow this Trainer's loops; what cannot repeat is reported to ``on_inexact``.

    Args:
        seed: The run's seed.
        name: The stage; layers made in ``setup`` or ``configure_model`` draw from its "init" key.
        on_inexact: Called with a reason when something here cannot be exact; None logs it.
    """

    def __init__(
        self, *, seed: int, name: str = "fit", on_inexact: Callable[[str], None] | None = None
    ) -> None:
        self.seed = int(seed)
        self.name = name
        self.attempt = 0  # raised by a guard that retries a batch after a rollback
        self.on_inexact = on_inexact or (lambda reason: _log.warning("not exact: %s", reason))
        self._private: list[Generator] = []
        self._begun = 0  # batches of this process, up to 2
        self._device: torch.device | None = None
        self._rank = 0

    # Lightning enters a profiler for every callback at every hook, 5 us each and six hooks a step;
    # a hook that is not callable is passed over
    on_train_batch_end = on_before_zero_grad = on_before_backward = None  # type: ignore[assignment]
    on_after_backward = on_before_optimizer_step = None  # type: ignore[assignment]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Key layers that are made late."""
        if stage != "fit":
            return
        keys.set_globals(keys.seed_of(self.seed, "init", self.name))
        source = trainer.fit_loop._data_source
        if source.is_defined() and not source.is_module():  # loaders passed to fit: bound before
            apply_to_collection(source.instance, KeyedLoader, _bind, trainer)  # their length counts

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Key what is drawn after: the same whether the stage was trained here or only loaded."""
        keys.set_globals(keys.seed_of(self.seed, "after", self.name, stage))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bind the loaders and find the generators of module and callbacks."""
        self._private = find_generators(_owners(trainer))
        self._device = pl_module.device
        self._rank = trainer.global_rank
        self._begun = 0
        self._adopt_loaders(trainer)
        if getattr(trainer, "_val_check_time_interval", None) is not None:
            self.on_inexact("validation by wall time (val_check_interval) does not repeat")
        for kind, reason in _INEXACT_CALLBACKS.items():
            if any(isinstance(callback, kind) for callback in _callbacks(trainer)):
                self.on_inexact(reason)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Key what is drawn once an epoch."""
        self._set(pl_module, "epoch", trainer.current_epoch, self._rank)
        if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
            self._adopt_loaders(trainer)

    def _adopt_loaders(self, trainer: pl.Trainer) -> None:
        combined = trainer.fit_loop._combined_loader
        for loader in combined.flattened if combined is not None else ():
            if not isinstance(loader, KeyedLoader):
                self.on_inexact(
                    f"the training data come from a {type(loader).__name__} that is not keyed; "
                    "wrap it: keyed(datamodule)"
                )
                continue
            loader.bind(trainer)
            loader.on_transfer = self._key_transfer if moves_by_hand(trainer) else None
            if loader.seed != self.seed:
                self.on_inexact(
                    f"the training loader is keyed by seed {loader.seed}, the steps by {self.seed}"
                )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Key dropout and whatever else the step draws."""
        self._set(pl_module, "step", trainer.current_epoch, batch_idx, self._rank, self.attempt)
        if self._begun < 2:
            self._begun += 1
            if self._begun == 2:
                self._look_again(trainer)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Key what validation draws; the epoch is left out, so epochs can be compared."""
        self._set(pl_module, "validate", batch_idx, dataloader_idx, trainer.global_rank)

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Key what testing draws."""
        self._set(pl_module, "test", batch_idx, dataloader_idx, trainer.global_rank)

    def on_predict_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Key what prediction draws (Monte Carlo dropout)."""
        self._set(pl_module, "predict", batch_idx, dataloader_idx, trainer.global_rank)

    def _look_again(self, trainer: pl.Trainer) -> None:
        found = find_generators(_owners(trainer))
        if len(found) > len(self._private):
            self._private = found
            self.on_inexact(
                "a random generator was made in the first step, where no key reaches it; "
                "make it in __init__"
            )

    def _key_transfer(self, key: int) -> None:
        keys.set_globals(key, device=self._device)
        rekey(self._private, key)

    def _set(self, pl_module: pl.LightningModule, purpose: str, *place: keys.Place) -> None:
        key = keys.seed_of(self.seed, purpose, *place)
        keys.set_globals(key, device=self._device or pl_module.device)
        if self._private:
            rekey(self._private, key)


def _bind(loader: KeyedLoader, trainer: pl.Trainer) -> KeyedLoader:
    loader.bind(trainer)
    return loader


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def _owners(trainer: pl.Trainer) -> list[object]:
    """Return what draws in a step: the module, other people's callbacks, a DataModule's hooks."""
    owners: list[object] = [trainer.lightning_module]
    owners += [c for c in _callbacks(trainer) if not type(c).__module__.startswith("medkit.")]
    data = getattr(trainer, "datamodule", None)
    if data is not None and any(is_overridden(hook, data) for hook in _TRANSFER_HOOKS):
        owners.append(data)
    return owners


def moves_by_hand(trainer: pl.Trainer) -> bool:
    """Whether moving a batch runs somebody's code, which may augment it there.

    Those hooks run before ``on_train_batch_start``, so the loader has their key set.
    """
    data = getattr(trainer, "datamodule", None)
    owners = [trainer.lightning_module] if data is None else [trainer.lightning_module, data]
    return any(is_overridden(hook, owner) for hook in _TRANSFER_HOOKS for owner in owners)
