"""What of a fit must be as it was when a resume point was taken: settings, module and data."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from medkit.callbacks.bits import bits
from medkit.data.fetching import PlaceBatch
from medkit.data.loader import KeyedLoader
from medkit.record.files import sha256_file
from medkit.record.identity import difference

_LENGTH = {"max_epochs", "max_steps", "min_epochs", "min_steps"}


class SettingsChangedError(ValueError):
    """A run was to be resumed under other settings than it was started with."""


def compare(
    was: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    finished: bool,
    on_changed: Callable[[dict[str, Any]], None] | None,
) -> None:
    """Refuse, or report, settings of a fit that differ from its resume point's.

    Args:
        was: The point's.
        now: The fit's; what the point knows nothing of is not compared.
        finished: Whether the point ends its stage.
        on_changed: Called with the differences; None refuses.
    """
    found = {
        key: {"was": was[key], "is": value}
        for key, value in now.items()
        if key in was and was[key] != value
    }
    longer = [f"{key} was {found[key]['was']}, is {found[key]['is']}" for key in _LENGTH & {*found}]
    if finished and longer:  # allowed or not: nothing would be trained
        raise SettingsChangedError(
            "a finished stage is loaded and not trained again, but "
            f"{'; '.join(sorted(longer))}. Set it back, start a new run, or train on in a "
            "stage of another name."
        )
    if found and on_changed is None:
        raise SettingsChangedError(describe_changes(found))
    if found and on_changed is not None:
        on_changed(found)


def describe_changes(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Say which settings differ, and what can be done."""
    plainly = sorted(found, key=lambda key: key.endswith("_sha256"))  # what can be read comes first
    lines = [difference(key, found[key]["was"], found[key]["is"]) for key in plainly]
    return (
        "a run is resumed under the settings it was started with, but "
        + "; ".join(lines)
        + ". Set them back, start a new run, or pass allow_inexact=True to start_run (a job: "
        "--allow-inexact): the run then goes on and is marked exact: false with these reasons."
    )


def settings(trainer: pl.Trainer, deterministic: object) -> dict[str, Any]:
    """Return what of the Trainer changes a result, as plain values; a default counts as given."""
    names = [
        *("max_epochs", "max_steps", "min_epochs", "min_steps", "precision", "num_nodes"),
        *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
        *("limit_train_batches", "limit_val_batches", "overfit_batches"),
        *("val_check_interval", "check_val_every_n_epoch", "reload_dataloaders_every_n_epochs"),
    ]
    found = {name: getattr(trainer, name) for name in names}
    found = {name: getattr(value, "value", value) for name, value in found.items()}  # of an enum
    found |= {"devices": trainer.num_devices, "deterministic": deterministic}
    return {
        name: value if isinstance(value, int | float | str | None) else repr(value)
        for name, value in found.items()
    }


def fingerprint(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what a stranger's data and module look like: known once the loaders are there."""
    combined = trainer.fit_loop._combined_loader
    loaders = combined.flattened if combined is not None else []
    keyed_ones = [loader for loader in loaders if isinstance(loader, KeyedLoader)]
    if getattr(
        trainer, "reload_dataloaders_every_n_epochs", 0
    ):  # made to differ from epoch to epoch
        return of_module(trainer.lightning_module) | of_optimizers(trainer)
    return (
        of_module(trainer.lightning_module)
        | of_optimizers(trainer)
        | {
            "batches": trainer.num_training_batches,
            "rows": [len(loader.dataset) for loader in keyed_ones],  # type: ignore[arg-type]
            "batch_size": [loader.batch_size for loader in keyed_ones],
            "samples_sha256": [_sample_digest(loader) for loader in keyed_ones],
        }
    )


def of_module(module: pl.LightningModule) -> dict[str, Any]:
    """Return the digest of a module's source, and its hyper-parameters as far as they are plain."""
    found: dict[str, Any] = {"module_sha256": _source_digest(type(module))}
    for name, value in module.hparams_initial.items():
        if _is_choice(value):
            found[f"hyper-parameter {name}"] = value
    return found


def of_optimizers(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what the optimizers were made with.

    Lightning restores an optimizer's rate from the point: another one, given on the command line of
    a script, would be ignored in silence.
    """
    found: dict[str, Any] = {}
    for number, optimizer in enumerate(trainer.optimizers):
        who = f"optimizer {number}" if len(trainer.optimizers) > 1 else "optimizer"
        found[who] = type(optimizer).__qualname__
        for name, value in getattr(optimizer, "defaults", {}).items():  # as made, not as restored
            if _is_choice(value):
                found[f"{who} {name}"] = value
    return found


def _is_choice(value: Any) -> bool:
    """Whether it is a plain value that says how to train, and not where files lie."""
    if isinstance(value, list | tuple):
        return all(_is_choice(part) for part in value)
    if isinstance(value, str):
        return os.sep not in value
    return isinstance(value, bool | int | float | None)


def _sample_digest(loader: KeyedLoader) -> str:
    """Digest the first row of the first and of the last batch of epoch 0, augmentation included."""
    places = loader.places(0)
    digest = hashlib.sha256()
    for place in (places[0], places[-1]) if places else ():
        one = place
        if loader.batch_size is not None or hasattr(place.rows, "__len__"):
            one = PlaceBatch(place.epoch, place.batch, place.start, place.rows[:1])
        feed(digest, loader.fetch(one))
    return digest.hexdigest()


def feed(digest: Any, value: Any) -> None:
    """Feed the bits of tensors, arrays and plain values, containers included, to a hash."""
    if isinstance(value, torch.Tensor):
        for part in bits(value):
            digest.update(part.numpy().data)
    elif isinstance(value, np.ndarray):
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            digest.update(str(key).encode())
            feed(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            feed(digest, item)
    elif isinstance(value, int | float | str | bool):
        digest.update(repr(value).encode())


def _source_digest(kind: type) -> str:
    """Digest the file a module's class is written in; empty for one typed into a notebook."""
    try:
        return sha256_file(inspect.getfile(kind))
    except (TypeError, OSError):
        return ""
