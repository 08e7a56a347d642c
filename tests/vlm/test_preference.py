from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft", reason="the extra vlm is not installed")

import pytorch_lightning as pl

from medkit import keyed as keys
from medkit.callbacks.collapse_guard import CollapseGuard, Limit
from medkit.callbacks.sampled_answers import SampledAnswers
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, Turn
from medkit.data.encoded import IGNORED
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.record.ledger import Ledger
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.model import LitVLM
from medkit.vlm.preference import LitDPO, answer_logprobs, dpo_losses
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer
from tests.vlm.test_model import Stop

TOKENIZER = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
LOW = [Limit("step/accuracy", at_most=0.5, batches=6, reason="so said the test")]
SMALL: dict[str, Any] = {
    "model": "medkit.vlm.tutorial:tutorial_model",
    "model_args": {"vocabulary": len(TOKENIZER), "hidden": 32, "layers": 1},
}


@pytest.fixture(scope="module")
def dm(tmp_path_factory: pytest.TempPathFactory) -> ReportDataModule:
    path = write_reports(tmp_path_factory.mktemp("reports"), make_studies(60))
    found = ReportDataModule(
        path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8, pairs=True
    )
    found.setup()
    return found


def made(**settings: Any) -> LitDPO:
    with keys.globals_keyed(0, "init", "fit"):
        return LitDPO(**SMALL, **settings)


def fitted(dm: ReportDataModule, steps: int, **settings: Any) -> tuple[LitDPO, dict[str, float]]:
    lit = made(**settings)
    trainer = pl.Trainer(
        max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with keys.globals_keyed(0, "order"):
        trainer.fit(lit, dm)
    trainer.validate(lit, dm, verbose=False)
    return lit, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_the_first_loss_is_ln_2(dm: ReportDataModule) -> None:
    lit = made(rpo_alpha=0.0)
    lit.frozen.set_modes()
    for batch in dm.train_dataloader():
        total, pairs = lit.loss_terms(batch)
        assert float(total) / pairs == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_is_the_papers() -> None:
    policy = torch.tensor([-3.0, -1.0]), torch.tensor([-4.0, -0.5])
    reference = torch.tensor([-3.5, -1.0]), torch.tensor([-3.0, -0.5])
    losses, margin = dpo_losses(policy, reference, beta=0.5)
    by_hand = 0.5 * ((-3.0 + 3.5) - (-4.0 + 3.0))
    assert margin.tolist() == pytest.approx([by_hand, 0.0])
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-by_hand)), math.log(2)])
    smooth, _ = dpo_losses(policy, reference, beta=0.5, label_smoothing=0.1)
    other = math.log1p(math.exp(by_hand))
    assert float(smooth[0]) == pytest.approx(0.9 * float(losses[0]) + 0.1 * other)


def test_likelihoods_are_of_the_answer_alone() -> None:
    logits = torch.randn(2, 4, 5)
    labels = torch.tensor([[IGNORED, 1, 2, IGNORED], [IGNORED, IGNORED, 3, 4]])
    found, tokens = answer_logprobs(logits, labels)
    log = logits.log_softmax(-1)
    by_hand = [log[0, 0, 1] + log[0, 1, 2], log[1, 1, 3] + log[1, 2, 4]]
    torch.testing.assert_close(found, torch.stack(by_hand))
    assert tokens.tolist() == [2, 2]


def test_the_margin_rises_and_the_anchor_holds_what_is_chosen(dm: ReportDataModule) -> None:
    lora = {"lora_rank": 4, "lora_dropout": 0.0}
    before = {n: v.clone() for n, v in made(lora=lora).model.named_parameters() if "lora" not in n}
    lit, free = fitted(dm, 25, lr=3e-3, rpo_alpha=0.0, lora=lora)
    _, held = fitted(dm, 25, lr=3e-3, rpo_alpha=1.0, lora=lora)
    assert free["val/margin"] > 0
    assert free["val/accuracy"] > 0.6
    assert held["val/chosen_logprob"] > free["val/chosen_logprob"]
    assert held["val/chosen_logprob"] > 0
    for name, value in lit.model.named_parameters():
        assert "lora" in name or torch.equal(value, before[name])


def watched(path: Path, folder: Path, *, stop: int | None = None, free: bool = False) -> LitDPO:
    """Train in a run under both watchers; a folder that is there already is resumed."""
    run = start_run(folder, seed=0)
    source = ReportDataModule(
        path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8, pairs=True
    )
    guard = [] if free else [SampledAnswers(6, 2), CollapseGuard(LOW, snapshot_every=1)]
    with run.init("fit"):
        lit = LitDPO(**SMALL, lora={"lora_rank": 4}, rpo_alpha=0.0, lr=1e-2)
    trainer = stable_trainer(
        run, max_epochs=-1, max_steps=12, enable_progress_bar=False, limit_val_batches=0,
        checkpoint_every_n_steps=2, callbacks=[*guard, *([] if stop is None else [Stop(stop)])],
    )  # fmt: skip
    trainer.fit(lit, keyed(source), ckpt_path=run.resume("fit"))
    return lit


def test_watched_and_crashed_it_goes_on_to_the_bit_until_it_is_stopped(
    dm: ReportDataModule, tmp_path: Path
) -> None:
    path = Path(str(dm.source))
    whole = watched(path, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="crashed"):
        watched(path, tmp_path / "parts", stop=5)
    again = watched(path, tmp_path / "parts")
    lines = [Ledger(tmp_path / name / "ledger.jsonl").read() for name in ("whole", "parts")]
    assert [line["action"] for line in lines[0]] == [line["action"] for line in lines[1]]
    assert lines[0][0]["detail"] == lines[1][0]["detail"]
    assert lines[0][0]["step"] > 5
    unwatched = watched(path, tmp_path / "free", free=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    lora = [name for name in whole.model.state_dict() if "lora_B" in name]
    assert not all(
        torch.equal(whole.model.state_dict()[n], unwatched.model.state_dict()[n]) for n in lora
    )


def test_a_conversation_without_a_rejected_answer_is_refused() -> None:
    bare = Conversation((Turn("user", "?"), Turn("assistant", "!")))
    dm = ReportDataModule([bare] * 9, ChatEncoder(TOKENIZER), patient=None, pairs=True)
    with pytest.raises(ValueError, match="need a rejected_response in each"):
        dm.setup()


@pytest.mark.parametrize("share", [None, 0.1])
def test_adapters_have_no_dropout_unless_it_is_asked_for(share: float | None) -> None:
    lit = made(lora={"groups": ["llm"]} | ({} if share is None else {"lora_dropout": share}))
    assert lit.model.peft_config["default"].lora_dropout == (share or 0.0)


def test_what_would_move_the_reference_is_refused(tmp_path: Path) -> None:
    for beside in ({"full": ["aligner"]}, {"norms": True}):
        with pytest.raises(ValueError, match=r"the reference is the model without its adapters"):
            made(lora={"groups": ["llm"], **beside})
    with pytest.raises(ValueError, match="beta must be above 0"):
        made(beta=0.0)


def test_batches_of_the_other_kind_are_refused_and_the_argument_named(
    dm: ReportDataModule,
) -> None:
    plain = ReportDataModule(dm.source, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8)
    plain.setup()
    pairs, one = (next(iter(of.train_dataloader())) for of in (dm, plain))
    with pytest.raises(ValueError, match=r"must be pairs.*got one with .*pairs=True"):
        made().training_step(one, 0)
    with keys.globals_keyed(0, "init", "fit"):
        lit = LitVLM(**SMALL)
    for step in (lit.training_step, lit.validation_step):
        with pytest.raises(ValueError, match=r"LitVLM learns from .*got a batch of.*pairs=False"):
            step(pairs, 0)
