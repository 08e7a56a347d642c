"""Answers by a vLLM that runs, where it is installed; it belongs into an environment apart."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

pytest.importorskip("peft", reason="the extra vlm is not installed")

from medkit.callbacks.sampled_answers import SampledAnswers
from medkit.data.chat import ChatEncoder
from medkit.data.encoded import IGNORED, Encoded, given, padded
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.grpo import LitGRPO
from medkit.vlm.rewards import Scored
from medkit.vlm.sampling import HFSampler, evaluating
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer
from medkit.vlm.vllm_sampling import VLLMSampler
from tests.vlm import families
from tests.vlm.test_language_part import adapted, moved, tutorial

WITH = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm, no extra, is not installed")
ENGINE = {"enforce_eager": True, "kv_cache_memory_bytes": 2**27, "max_num_seqs": 256}
NUMBERS = SimpleNamespace(pad_token_id=0, eos_token_id=2)
IMAGE = 3  # number of the picture's token, in both models
LONGEST = 12


@pytest.fixture(scope="module")
def llava() -> Iterator[tuple[Any, list[Encoded], VLLMSampler]]:
    """A LLaVA whose heads are as wide as vLLM's kernels ask, and a sampler for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.TEXT, "head_dim", 32)
        model, prompts = adapted(families.llava)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # it would not know one token from another
    engine = ENGINE | {"max_model_len": 128}
    sampler = VLLMSampler(NUMBERS, LONGEST, 0.0, engine=engine)
    yield model, prompts, sampler
    sampler.close()


@pytest.fixture(scope="module")
def small() -> Iterator[VLLMSampler]:
    """For the tutorial model of 64 tokens."""
    sampler = VLLMSampler(NUMBERS, LONGEST, 0.0, engine=ENGINE)
    yield sampler
    sampler.close()


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def like(sampler: VLLMSampler, temperature: float, longest: int = LONGEST) -> VLLMSampler:
    """Return another sampler with the same engine."""
    other = VLLMSampler(NUMBERS, longest, temperature, engine=sampler.engine)
    object.__setattr__(other, "_engine", sampler._engine)
    return other


def greedy(model: Any, prompts: Any) -> list[torch.Tensor]:
    return HFSampler(NUMBERS, LONGEST, 0.0)(model, prompts, seed=0, place=())


def test_without_vllm_the_error_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    model, prompts = tutorial()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'medkit\[vlm\]' vllm"):
        VLLMSampler(NUMBERS, 4)(model, prompts, seed=0, place=())


def test_a_run_of_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="this one has 2"):
        VLLMSampler(NUMBERS, 4)(*tutorial(), seed=0, place=())


@pytest.mark.parametrize("name", ["qwen2_5_vl", "paligemma"])
def test_models_that_it_would_read_otherwise_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    with pytest.raises(ValueError, match=r"by HFSampler\."):
        VLLMSampler(NUMBERS, 4)(getattr(families, name)(), [], seed=0, place=())


def test_it_is_copied_and_pickled_without_its_engine() -> None:
    sampler = VLLMSampler(NUMBERS, 4)
    object.__setattr__(sampler._engine, "_llm", lambda: "cannot be pickled")
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert other._engine._llm is None
        assert other.max_new_tokens == 4


@WITH
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_greedy_answers_are_those_of_generate_whatever_the_weights(llava: Any, seed: int) -> None:
    model, prompts, sampler = llava
    moved(model, seed)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.train().modules()]
    state = torch.get_rng_state()
    answers = sampler(model, prompts, seed=0, place=())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert same(answers, greedy(model, prompts))
    with model.disable_adapter():
        others = sampler(model, prompts, seed=0, place=())
        assert same(others, greedy(model, prompts))
    assert not same(others, answers)


@WITH
@pytest.mark.slow
def test_greedy_answers_of_the_tutorial_model_are_those_of_generate(small: VLLMSampler) -> None:
    model, prompts = tutorial()
    before = greedy(model, prompts)
    assert same(small(model, prompts, seed=0, place=()), before)
    with torch.no_grad():
        model.get_output_embeddings().weight[2] += 0.5 * model.get_output_embeddings().weight.std()
        model.get_base_model().model.vision_tower.place *= 100
    after = greedy(model, prompts)
    assert same(small(model, prompts, seed=0, place=()), after)
    assert not same(before, after)


@WITH
@pytest.mark.slow
def test_draws_are_a_function_of_seed_and_place(small: VLLMSampler) -> None:
    model, prompts = tutorial()
    sampler = like(small, 1.0)
    first = sampler(model, prompts * 4, seed=3, place=("a", 1))
    torch.manual_seed(99)
    assert same(sampler(model, prompts * 4, seed=3, place=("a", 1)), first)
    assert not same(sampler(model, prompts * 4, seed=4, place=("a", 1)), first)
    assert not same(sampler(model, prompts * 4, seed=3, place=("a", 2)), first)
    assert len({tuple(one.tolist()) for one in first[::4]}) > 1  # alike, but for their number


@WITH
@pytest.mark.slow
def test_many_prompts_at_once_are_drawn_as_by_an_engine_that_starts_anew(
    small: VLLMSampler,
) -> None:
    """More tokens than one step of the engine takes: it would cut a prompt in two."""
    model, prompts = tutorial()
    sampler = like(small, 1.0)
    many = prompts * 60
    assert sum(len(one.ids) for one in many) > 4096
    assert same(small(model, many, seed=3, place=("m",)), greedy(model, many))
    first = sampler(model, many, seed=3, place=("m",))
    sampler.close()
    assert same(sampler(model, many, seed=3, place=("m",)), first)


@WITH
@pytest.mark.slow
def test_tokens_are_as_frequent_as_the_model_says(llava: Any) -> None:
    model, prompts, sampler = llava
    draws, temperature = 20_000, 1.3
    with evaluating(model), torch.no_grad():
        logits = model(**given(padded(prompts[:1], 0))).logits[0, -1].double()
        logits[IMAGE] = -torch.inf
    probs = (logits / temperature).softmax(0)
    made = like(sampler, temperature, 1)(model, prompts[:1] * draws, seed=0, place=("f",))
    found = torch.bincount(torch.cat(made), minlength=64)
    often = probs * draws >= 5
    expected = torch.cat([probs[often], probs[~often].sum()[None]]) * draws
    observed = torch.cat([found[often], found[~often].sum()[None]])
    kept = expected > 0
    assert int(often.sum()) > 5
    assert chisquare(observed[kept], expected[kept]).pvalue > 1e-3


@WITH
@pytest.mark.slow
def test_whole_answers_are_as_likely_as_the_model_says(llava: Any) -> None:
    """Of draws from the model, log-likelihood and entropy cancel in the mean, token by token."""
    model, prompts, sampler = llava
    asked = prompts * 200
    made = like(sampler, 1.0)(model, asked, seed=1, place=("l",))
    samples = [
        replace(
            one,
            ids=torch.cat([one.ids, said]),
            labels=torch.cat([torch.full_like(one.ids, IGNORED), said]),
        )
        for one, said in zip(asked, made, strict=True)
    ]
    batch = padded(samples, 0)
    with evaluating(model), torch.no_grad():
        logits = model(**given(batch)).logits[:, :-1].double()
    logits[..., IMAGE] = -1e9
    logprobs, learnt = logits.log_softmax(-1), batch["labels"][:, 1:] != IGNORED
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    said = logprobs.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    apart = ((said + entropy) * learnt).sum(1)
    errors = float(apart.mean() / (apart.std() / len(apart) ** 0.5))
    assert abs(errors) < 3.5


@WITH
@pytest.mark.slow
def test_no_answer_has_a_pictures_token_and_each_ends_with_its_end(llava: Any) -> None:
    model, prompts, sampler = llava
    head = model.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head[IMAGE] *= 50  # it would say little else
        head[2] *= 3
        answers = like(sampler, 2.0)(model, prompts * 20, seed=0, place=())
        head.copy_(kept)
    ends = [(one == 2).nonzero().flatten().tolist() for one in answers]
    assert not any((one == IMAGE).any() for one in answers)
    assert all(at in ([], [len(one) - 1]) for at, one in zip(ends, answers, strict=True))
    assert any(len(one) < LONGEST for one in answers)
    assert all(len(one) == LONGEST for at, one in zip(ends, answers, strict=True) if not at)


@WITH
@pytest.mark.slow
def test_another_model_asks_for_another_sampler(llava: Any, small: VLLMSampler) -> None:
    model, prompts = tutorial()
    small(model, prompts, seed=0, place=())
    with pytest.raises(ValueError, match="Make another sampler"):
        small(llava[0], llava[1], seed=0, place=())


@WITH
@pytest.mark.slow
def test_a_fit_by_rewards_draws_with_it_and_comes_out_the_same_twice(tmp_path: Path) -> None:
    path = write_reports(tmp_path, make_studies(40))
    tokenizer = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
    sampler = VLLMSampler(tokenizer, 3, engine=ENGINE)
    seen = []

    def drawn(model: Any, prompts: Any, **where: Any) -> list[torch.Tensor]:
        seen.append(sampler(model, prompts, **where))
        return seen[-1]

    def long(texts: list[str], **_: Any) -> Scored:
        return Scored([float(len(text)) for text in texts], {})

    def fitted(name: str) -> LitGRPO:
        run = start_run(tmp_path / name, seed=0)
        encoder = ChatEncoder(tokenizer, tutorial_pictures)
        dm = keyed(ReportDataModule(path, encoder, batch_size=4, patient=None))
        with run.init("fit"):
            lit = LitGRPO(
                "medkit.vlm.tutorial:tutorial_model",
                {"vocabulary": len(tokenizer), "layers": 1},
                lora={"groups": ["vision", "llm"], "lora_rank": 4, "lora_dropout": 0.0},
                group=8, lr=1e-2, weight_decay=0.0,
            ).use(long, drawn)  # fmt: skip
        trainer = stable_trainer(
            run, max_epochs=-1, max_steps=4, enable_progress_bar=False, limit_val_batches=0,
            checkpoint_every_n_steps=2, callbacks=[SampledAnswers(4, 2, sampler=drawn)],
        )  # fmt: skip
        trainer.fit(lit, dm)
        assert {"step/diversity", "step/reward"} <= trainer.callback_metrics.keys()
        return lit

    first, again = fitted("first").state_dict(), fitted("again").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    sampler.close()
    half = len(seen) // 2
    assert half == 6  # of four steps and two looks
    assert all(same(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))
    assert any(value.any() for name, value in first.items() if "lora_B" in name)
