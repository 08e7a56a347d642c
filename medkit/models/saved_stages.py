"""Which stage of a run folder is meant, and what its final checkpoint holds."""

from __future__ import annotations

import difflib
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from medkit.record.checkpoints import FINISHED, checkpoints, newest_sound

_NUMBERED = re.compile(r"(.*\D)\d+")


def groups_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what can be asked for -> its stages: members of one model stand under one name."""
    stages = sorted(path.name for path in folder.glob("*") if any(path.glob("*.ckpt")))
    groups: dict[str, list[str]] = {}
    for stage in stages:
        prefix = found[1] if (found := _NUMBERED.fullmatch(stage)) else ""
        # other numbers may be steps one after the other: those are not averaged
        together = prefix in {"fold", "seed"} or (prefix and (folder / f"{prefix}.json").is_file())
        groups.setdefault(prefix if together else stage, []).append(stage)
    number = re.compile(r"\d+$")
    return {
        name: tuple(sorted(found, key=lambda s: int((number.search(s) or ["0"])[0])))
        for name, found in groups.items()
    }


def chosen(groups: dict[str, tuple[str, ...]], stage: str | None, folder: Path) -> str:
    """Return the name of the model that is meant; refused where several could be."""
    if not groups:
        raise FileNotFoundError(
            f"a run must have a trained model to predict with, and {folder} holds no checkpoint. "
            "Train with stable_trainer(run, ...) in a run folder, or resume the run."
        )
    single = {each for found in groups.values() for each in found}
    if stage is None:
        if len(groups) == 1:
            return next(iter(groups))
        if "best" in groups and single == set(groups):
            return "best"
        raise ValueError(
            f"a run with several models needs to know which is meant; it has {sorted(groups)}"
            + _left_out(groups, folder)
            + ". Name one with --stage."
        )
    if stage not in groups and stage not in single:
        close = difflib.get_close_matches(stage, [*groups, *single], n=1)
        raise FileNotFoundError(
            f"a stage must be one that the run has trained, got {stage!r}. "
            + (f"Did you mean {close[0]!r}? " if close else "")
            + f"It has {sorted(groups)}."
        )
    return stage


def _left_out(groups: dict[str, tuple[str, ...]], folder: Path) -> str:
    """Say which hospital each model has not seen, where that differs."""
    sites = {}
    for name, stages in sorted(groups.items()):
        try:
            content = content_of(checkpoint_in(folder / stages[0]))
        except (OSError, ValueError):  # it says why once it is named
            continue
        sites[name] = (content.get("datamodule_hyper_parameters") or {}).get("test_site")
    if len(set(sites.values())) < 2 or not all(sites.values()):
        return ""
    each = ", ".join(f"{name!r} without {site!r}" for name, site in sites.items())
    return f", each trained without one hospital ({each}) and none on all of them"


def checkpoint_in(folder: Path) -> Path:
    """Return a stage's final weights."""
    if checkpoints(folder):
        path = newest_sound(folder)
        if path is None or path.name != FINISHED:
            raise FileNotFoundError(
                f"a model must be trained to its end to predict, and stage {folder.name!r} has "
                f"{'only a resume point' if path else 'no undamaged checkpoint'}. Resume the run."
            )
        return path
    found = sorted(folder.glob("*.ckpt"))  # of a ModelCheckpoint, without a digest
    if len(found) > 1:
        raise ValueError(
            f"a stage must have one set of weights, and {folder} has {[p.name for p in found]}. "
            "Keep the one that is meant."
        )
    return found[0]


def content_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; code in it is never run."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path} must be a checkpoint of weights and plain settings, and it can't be read "
            f"({reason}). Is it damaged, or does it hold Python objects? Those are never loaded."
        ) from error
    return content
