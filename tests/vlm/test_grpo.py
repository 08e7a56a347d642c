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
from medkit.data.encoded import padded
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.record.ledger import Ledger
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.grpo import LitGRPO, advantages_of, policy_loss
from medkit.vlm.model import given
from medkit.vlm.rewards import Rewards, Scored
from medkit.vlm.sampling import HFSampler
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer
from tests.vlm.test_model import Stop

TOKENIZER = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
GRAMMAR = FieldGrammar(NODULE, TOKENIZER)
SAMPLER = HFSampler(TOKENIZER, GRAMMAR.longest_tokens, 1.0, GRAMMAR.processor)
LIMITS = [Limit("step/equal_groups", at_most=0.999, batches=4, reason="nothing is learnt")]
SMALL: dict[str, Any] = {
    "model": "medkit.vlm.tutorial:tutorial_model",
    "model_args": {"vocabulary": len(TOKENIZER), "hidden": 32, "layers": 1},
    "lora": {"groups": ["llm"], "lora_rank": 4, "lora_dropout": 0.0},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports"), make_studies(60))


def says_no(texts: list[str], **_: Any) -> Scored:
    """Pays for the shortest answer there is."""
    paid = [float(text == '{"nodule":false}') for text in texts]
    return Scored(paid, {"says_no": paid})


def fitted(
    path: Path, folder: Path, *, rewards: Any = says_no, steps: int = 6, stop: int | None = None,
    watched: bool = False, **settings: Any,
) -> tuple[LitGRPO, dict[str, float]]:  # fmt: skip
    """Train under both watchers; a folder that is there already is resumed."""
    run = start_run(folder, seed=0)
    watchers = [SampledAnswers(6, 2), CollapseGuard(LIMITS, snapshot_every=1)] if watched else []
    dm = keyed(
        ReportDataModule(
            path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=4, patient=None
        )
    )
    with run.init("fit"):
        lit = LitGRPO(**SMALL | {"group": 4, "lr": 1e-2} | settings).use(rewards, SAMPLER)
    trainer = stable_trainer(
        run, max_epochs=-1, max_steps=steps, enable_progress_bar=False, limit_val_batches=0,
        checkpoint_every_n_steps=2, callbacks=[*watchers, *([] if stop is None else [Stop(stop)])],
    )  # fmt: skip
    trainer.fit(lit, dm, ckpt_path=run.resume("fit"))
    lit.seen.take()
    return lit, {name: float(value) for name, value in trainer.callback_metrics.items()}


def bits(lit: LitGRPO) -> dict[str, torch.Tensor]:
    return {name: value for name, value in lit.model.state_dict().items() if "lora" in name}


def test_advantages_are_relative_to_the_group_and_nothing_where_all_are_equal() -> None:
    found, told_apart = advantages_of(torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.3, 0.3, 0.3, 0.3]]))
    assert found.tolist() == [[1.0, -1.0, 1.0, -1.0], [0.0] * 4]
    assert told_apart.tolist() == [True, False]


def test_the_loss_is_the_papers() -> None:
    logprob, old, reference = (torch.tensor([[v, 0.0]]) for v in (-1.0, -1.5, -1.2))
    learnt = torch.tensor([[True, False]])
    loss, found = policy_loss(
        logprob, old, reference, learnt, torch.tensor([2.0]), beta=0.1, epsilon=0.2
    )
    kl = math.exp(-0.2) + 0.2 - 1
    assert float(found["kl"]) == pytest.approx(kl)
    assert float(loss) == pytest.approx(-(1.2 * 2.0 - 0.1 * kl))  # exp(.5) is clipped to 1.2
    assert float(found["clipped"]) == 1
    worse, _ = policy_loss(
        logprob, old, reference, learnt, torch.tensor([-2.0]), beta=0.0, epsilon=0.2
    )
    assert float(worse) == pytest.approx(2.0 * math.exp(0.5))  # what is bad is not clipped upwards


def test_what_is_rewarded_becomes_likelier(path: Path, tmp_path: Path) -> None:
    """As far as this one can: with fresh weights its logits stay within 0.6 of one another."""
    trained, logged = fitted(path, tmp_path / "run", steps=36)
    once = ReportDataModuleOnce(path)
    prompts = [once.encoder.prompt(one) for one in once.conversations[:8]]
    batch = padded(prompts, TOKENIZER.pad_token_id)
    no, yes = TOKENIZER.convert_tokens_to_ids(['{"nodule":false}', '{"nodule":true,"side":'])

    def odds(lit: LitGRPO) -> torch.Tensor:
        last = lit.eval()(**given(batch))[:, -1]
        return last[:, no] - last[:, yes]

    with torch.no_grad():
        after = odds(trained)
        with trained.model.disable_adapter():
            before = odds(trained)
    assert (after - before).min() > 0.4
    assert logged["train/kl"] > 0
    assert {"train/reward_says_no", "train/distinct", "train/equal_groups"} <= logged.keys()


def ReportDataModuleOnce(path: Path) -> ReportDataModule:  # noqa: N802
    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), patient=None)
    dm.setup()
    return dm


def test_equal_rewards_move_nothing_but_towards_the_reference(path: Path, tmp_path: Path) -> None:
    def same(texts: list[str], **_: Any) -> Scored:
        return Scored([1.0] * len(texts), {})

    lit, logged = fitted(path, tmp_path / "run", rewards=same, steps=12, weight_decay=0.0)
    with start_run(tmp_path / "fresh", seed=0).init("fit"):
        fresh = LitGRPO(**SMALL)
    assert logged["train/equal_groups"] == 1
    for name, value in bits(lit).items():
        torch.testing.assert_close(value, bits(fresh)[name])


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_run_that_crashed_goes_on_to_the_bit(path: Path, tmp_path: Path, reuse: int) -> None:
    """Watched or not: watching moves nothing."""
    whole, _ = fitted(path, tmp_path / "whole", reuse=reuse, steps=7)
    with pytest.raises(RuntimeError, match="crashed"):
        fitted(path, tmp_path / "parts", reuse=reuse, steps=7, stop=5, watched=True)
    again, logged = fitted(path, tmp_path / "parts", reuse=reuse, steps=7, watched=True)
    for name, value in bits(whole).items():
        assert torch.equal(value, bits(again)[name])
    assert {"step/equal_groups", "step/diversity"} <= logged.keys()


def test_groups_without_two_rewards_are_stopped(path: Path, tmp_path: Path) -> None:
    def same(texts: list[str], **_: Any) -> Scored:
        return Scored([1.0] * len(texts), {})

    fitted(path, tmp_path / "run", rewards=same, steps=8, watched=True)
    first, *_ = Ledger(tmp_path / "run" / "ledger.jsonl").read()
    assert first["event"] == "collapse"
    assert first["step"] == 4


def test_the_kits_rewards_are_paid_by_column(path: Path, tmp_path: Path) -> None:
    rewards = Rewards({"validity": 1.0, "fields": 2.0})
    _, logged = fitted(path, tmp_path / "run", rewards=rewards, steps=12)
    assert logged["train/reward_validity"] == 1  # the grammar sees to it
    total = logged["train/reward_validity"] + 2 * logged["train/reward_fields"]
    assert logged["train/reward"] == pytest.approx(total, abs=1e-5)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="a group needs 2 answers or more"):
        LitGRPO(**SMALL, group=1)
    with pytest.raises(ValueError, match="the reference is the model without its adapters"):
        LitGRPO(**SMALL | {"lora": {"groups": ["llm"], "full": ["aligner"]}})


def test_a_fit_without_rewards_and_a_sampler_is_refused_at_its_start(path: Path) -> None:
    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), patient=None)
    trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match=r"lit\.use\(Rewards\(.*HFSampler\(tokenizer, 14\)\)"):
        trainer.fit(LitGRPO(**SMALL), dm)


def test_draws_do_not_depend_on_the_global_state(path: Path) -> None:
    dm = ReportDataModuleOnce(path)
    lit = LitGRPO(**SMALL)
    prompts = [dm.encoder.prompt(one) for one in dm.conversations[:4]]
    with keys.globals_keyed(5, "init"):
        first = SAMPLER(lit.model, prompts, seed=2, place=("a",))
    second = SAMPLER(lit.model, prompts, seed=2, place=("a",))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_answer_has_a_pictures_token() -> None:
    lit = LitGRPO(**SMALL)
    image = TOKENIZER.convert_tokens_to_ids("<image>")
    asked = Conversation((Turn("user", "a"), Turn("assistant", "a")))
    prompts = [ChatEncoder(TOKENIZER).prompt(asked)] * 64
    with torch.no_grad():
        lit.model.get_output_embeddings().weight[image] *= 50  # it would say little else
    answers = HFSampler(TOKENIZER, 12, 3.0)(lit.model, prompts, seed=0, place=())
    assert not any((one == image).any() for one in answers)
