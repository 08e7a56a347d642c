from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="the extra vlm is not installed")

import pytorch_lightning as pl

from medkit.data.chat import ChatEncoder
from medkit.data.encoded import IGNORED
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.model import LitVLM, loss_sum
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

TOKENIZER = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
SMALL: dict[str, Any] = {
    "model": "medkit.vlm.tutorial:tutorial_model",
    "model_args": {"vocabulary": len(TOKENIZER), "hidden": 32, "layers": 1},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports"), make_studies(80))


class Stop(pl.Callback):
    """Ends the process's fit in the middle, as a crash would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            raise RuntimeError("crashed")


def fitted(path: Path, folder: Path, *, stop: int | None = None, **settings: Any) -> LitVLM:
    """Train under the kit's Trainer; a folder that is there already is resumed."""
    run = start_run(folder, seed=0)
    dm = keyed(ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8))
    with run.init("fit"):
        lit = LitVLM(**{**SMALL, "total_steps": 12, **settings})
    trainer = stable_trainer(
        run, max_epochs=-1, max_steps=9, enable_progress_bar=False, gradient_clip_val=1.0,
        checkpoint_every_n_steps=3, callbacks=[] if stop is None else [Stop(stop)],
    )  # fmt: skip
    trainer.fit(lit, dm, ckpt_path=run.resume("fit"))
    return lit


def bits(lit: LitVLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in lit.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in a.items() if torch.equal(value, b[name])}


def test_what_is_frozen_is_the_same_to_the_bit_and_the_rest_is_not(
    path: Path, tmp_path: Path
) -> None:
    lit = fitted(path, tmp_path / "run", freeze={"freeze_vit": True})
    with start_run(tmp_path / "other", seed=0).init("fit"):
        fresh = LitVLM(**SMALL, freeze={"freeze_vit": True})
    kept = same(bits(lit), bits(fresh))
    vision = {name for name in bits(lit) if name.startswith("model.vision_tower")}
    assert kept == vision
    assert any("running_mean" in name for name in vision)  # BatchNorm's statistics too
    assert not lit.model.model.vision_tower.training
    assert lit.model.model.language_model.training


def test_a_fit_that_is_resumed_is_the_same_to_the_bit(path: Path, tmp_path: Path) -> None:
    whole = bits(fitted(path, tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="crashed"):
        fitted(path, tmp_path / "parts", stop=5)
    assert same(bits(fitted(path, tmp_path / "parts")), whole) == set(whole)


def test_a_checkpoint_holds_what_is_trained_alone(path: Path, tmp_path: Path) -> None:
    freeze = {"freeze_vit": True, "freeze_llm": True}
    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8)
    lit = LitVLM(**SMALL, freeze=freeze)
    trainer = pl.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(lit, dm)
    trainer.save_checkpoint(tmp_path / "small.ckpt")
    state = torch.load(tmp_path / "small.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[2] for name in state} == {"multi_modal_projector"}
    other = LitVLM(**SMALL, freeze=freeze)  # of other random weights
    with pytest.raises(ValueError, match=r"names or values differ. Load it with the same model"):
        trainer.fit(other, dm, ckpt_path=tmp_path / "small.ckpt")
    again = LitVLM(**SMALL, freeze=freeze)
    again.load_state_dict(lit.state_dict())
    with torch.no_grad():
        again.model.model.multi_modal_projector.linear_1.weight.zero_()
    trainer.validate(again, dm, ckpt_path=tmp_path / "small.ckpt", verbose=False)
    assert same(bits(again), bits(lit)) == set(bits(lit))


def test_the_loss_is_of_the_answer_alone() -> None:
    logits = torch.randn(2, 5, 7)
    labels = torch.tensor([[IGNORED, IGNORED, 3, 4, IGNORED], [IGNORED] * 5])
    total, count = loss_sum(logits, labels)
    by_hand = -(logits[0, 1].log_softmax(0)[3] + logits[0, 2].log_softmax(0)[4])
    torch.testing.assert_close(total, by_hand)
    assert count == 2


def test_a_fit_that_moves_what_is_frozen_is_refused(path: Path, tmp_path: Path) -> None:
    class Meddler(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, lit: Any, *_: Any) -> None:
            next(lit.model.model.vision_tower.parameters()).data += 1

    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8)
    trainer = pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Meddler()], limit_val_batches=0,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="what is frozen must not change"):
        trainer.fit(LitVLM(**SMALL, freeze={"freeze_vit": True}), dm)


def test_each_group_has_its_rate_and_a_wrong_key_is_refused() -> None:
    lit = LitVLM(**SMALL, lr=1e-3, vit_lr=1e-4)
    optimizer = lit.configure_optimizers()
    rates = {group["lr"] for group in optimizer.param_groups}  # type: ignore[union-attr]
    assert rates == {1e-3, 1e-4}
    with pytest.raises(ValueError, match=r"freeze has the keys .*found \['freeze_vision'\]"):
        LitVLM(**SMALL, freeze={"freeze_vision": True})


@pytest.mark.parametrize("wrong", [{"freeze": ["freeze_vit"]}, {"lora": ["llm"]}])
def test_settings_that_are_no_mapping_are_refused(wrong: dict[str, Any]) -> None:
    ((name, found),) = wrong.items()
    said = rf"{name} must be a mapping of keys to values, got \['{found[0]}'\]\. Write {name}={{"
    with pytest.raises(ValueError, match=said):
        LitVLM(**SMALL, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"freeze": {"freeze_vit": "false"}},
        {"lora": {"use_dora": "false"}},
        {"lora": {"convolutions": 0}},
        {"lora": {"bnb_4bit_use_double_quant": "no"}},
    ],
)
def test_a_flag_that_is_neither_true_nor_false_is_refused(wrong: dict[str, Any]) -> None:
    (((key, value),),) = (settings.items() for settings in wrong.values())
    with pytest.raises(ValueError, match=f"{key} must be True or False, got {value!r}. Write it"):
        LitVLM(**SMALL, **wrong)
