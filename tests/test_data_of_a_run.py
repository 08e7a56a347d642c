"""A run knows what its datamodule has read, and is not gone on with under other data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from medkit.callbacks.fingerprint import SettingsChangedError
from medkit.data.ct_nodules import NoduleDataModule
from medkit.data.ehr import EHRDataModule
from medkit.models.classifier import LitClassifier
from medkit.synth.chest_ct import write_candidates
from medkit.trainer import keyed, stable_trainer, start_run

pytestmark = [
    pytest.mark.usefixtures("_as_before_a_run"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class CutError(Exception):
    """The power fails."""


class Cut(pl.Callback):
    """Ends the fit at its second step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 2:
            raise CutError


def patches(folder: Path) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
    write_candidates(folder, seed=1, sites={"A": 400})

    def change() -> None:  # neither the first nor the last batch need hold this row
        volumes = np.load(folder / "volume_hu.npy", mmap_mode="r+")
        volumes[200] = volumes[200, ::-1]
        volumes.flush()

    net = {"net": "medkit.models.ct_net:CandidateNet"}
    return lambda: NoduleDataModule(str(folder), batch_size=32), change, net


def table(folder: Path) -> tuple[Callable[[], Any], Callable[[], None], dict[str, Any]]:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(draw.normal(size=(400, 3)), columns=list("abc"))
    frame["y"] = (frame["a"] > 0).astype(int)
    folder.mkdir(exist_ok=True)
    path = folder / "table.csv"
    frame.to_csv(path, index=False)

    def change() -> None:
        frame.loc[200, "a"] = 0.5 * frame["a"].max()
        frame.to_csv(path, index=False)

    net = {"net": "medkit.models.nets:mlp", "net_args": {"inputs": 3, "hidden": [4]}}
    made = lambda: EHRDataModule(str(path), target="y", patient=None, batch_size=32)  # noqa: E731
    return made, change, net


def fit(
    path: Path, made: Callable[[], Any], net: dict[str, Any], *, cut: bool, allowed: bool = False
) -> dict[str, Any]:
    run = start_run(path, seed=3, threads=1, allow_inexact=allowed)
    with run.init("net"):
        module = LitClassifier(**net)
    trainer = stable_trainer(
        run, max_epochs=1, limit_val_batches=0, checkpoint_every_n_steps=1, accelerator="cpu",
        enable_progress_bar=False, callbacks=[Cut()] if cut else [],
    )  # fmt: skip
    trainer.fit(module, keyed(made()), ckpt_path=run.resume("fit"))
    run.finish()
    return json.loads((path / "run.json").read_text())


@pytest.mark.parametrize("form", [patches, table])
def test_a_resume_under_other_data_is_refused_or_said(tmp_path: Path, form: Any) -> None:
    made, change, net = form(tmp_path / "data")
    with pytest.raises(CutError):
        fit(tmp_path / "run", made, net, cut=True)
    noted = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert len(noted["fit"]) == 64
    change()
    with pytest.raises(SettingsChangedError, match="data"):
        fit(tmp_path / "run", made, net, cut=False)
    end = fit(tmp_path / "run", made, net, cut=False, allowed=True)
    assert end["exact"] is False
    assert [reason for reason in end["inexact_reasons"] if "data" in reason]


def test_a_resume_under_the_same_data_is_exact(tmp_path: Path) -> None:
    made, _, net = patches(tmp_path / "data")
    whole = fit(tmp_path / "whole", made, net, cut=False)
    with pytest.raises(CutError):
        fit(tmp_path / "run", made, net, cut=True)
    end = fit(tmp_path / "run", made, net, cut=False)
    assert end["exact"] is True
    assert end["weights_sha256"] == whole["weights_sha256"]
