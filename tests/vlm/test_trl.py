"""TRL as an oracle: its own loss methods, called on the log-probabilities that ours are given.

Its trainers' constructors are passed by, since they load models and make loops of their own; what
is called is the code that a training of TRL's runs at each step.
"""

from __future__ import annotations

import importlib
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra vlm is not installed")
pytest.importorskip("trl", reason="trl, a test oracle that nothing else needs, is not installed")

from medkit.vlm.grpo import advantages_of, policy_loss
from medkit.vlm.preference import dpo_losses

PAIRS, LENGTH, PROMPT = 6, 9, 3
ALONE = SimpleNamespace(
    device=torch.device("cpu"), num_processes=1,
    gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x,
)  # fmt: skip


def bare(module: str, name: str, **attributes: Any) -> Any:
    """Return a trainer of TRL's that was never set up, with what its loss looks at."""
    kind = getattr(importlib.import_module(f"trl.trainer.{module}"), name)
    trainer = object.__new__(kind)
    common = {"accelerator": ALONE, "_metrics": defaultdict(lambda: defaultdict(list))}
    vars(trainer).update(common | {"aux_loss_enabled": False} | attributes)
    return trainer


def logprobs(seed: int, rows: int) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return -3 * torch.rand(rows, LENGTH, generator=made, dtype=torch.float64)


def answers(seed: int, rows: int) -> Tensor:
    """Return which tokens are an answer's: of different lengths, behind the question."""
    made = torch.Generator().manual_seed(seed)
    ends = torch.randint(PROMPT + 1, LENGTH + 1, (rows, 1), generator=made)
    at = torch.arange(LENGTH)
    return (at >= PROMPT) & (at < ends)


def trl_dpo(
    policy: Tensor, reference: Tensor, learnt: Tensor, beta: float, **settings: Any
) -> Tensor:
    """Return TRL's loss of pairs, chosen ones first, ``(2 B, T)``."""
    trainer = bare(
        "dpo_trainer", "DPOTrainer",
        **{"beta": beta, "label_smoothing": 0.0, "loss_types": ["sigmoid"], "loss_weights": [1.0]}
        | settings,
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl",
        use_weighting=False, _total_train_tokens=0, _tp_size=1,
        model=SimpleNamespace(training=True),
    )  # fmt: skip

    def model(**_: Any) -> Any:
        flat = torch.zeros_like(policy)
        return SimpleNamespace(log_probs=policy, entropy=flat, mean_logits=flat, is_top1=flat > 0)

    whole = torch.nn.functional.pad(learnt.long(), (1, 0))  # the first token has no likelihood
    chosen, rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.ones_like(whole), "attention_mask": torch.ones_like(whole),
        "completion_mask": whole, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected,
    }  # fmt: skip
    found: Tensor = trainer._compute_loss(model, inputs, return_outputs=False)
    return found


def of_both(logprob: Tensor) -> tuple[Tensor, Tensor]:
    chosen, rejected = logprob.sum(1).chunk(2)
    return chosen, rejected


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    learnt = answers(2, 2 * PAIRS)
    return (
        (logprobs(0, 2 * PAIRS) * learnt).requires_grad_(),
        logprobs(1, 2 * PAIRS) * learnt,
        learnt,
    )


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_the_loss_of_pairs_and_its_gradient_are_trls(beta: float) -> None:
    policy, reference, learnt = pairs()
    ours, _ = dpo_losses(of_both(policy), of_both(reference), beta=beta)
    theirs = trl_dpo(policy, reference, learnt, beta)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=1e-12)
    (mine,), (trl,) = (torch.autograd.grad(one, policy) for one in (ours.mean(), theirs))
    torch.testing.assert_close(mine, trl, rtol=1e-12, atol=1e-12)


def test_smoothed_labels_are_trls() -> None:
    """TRL smooths in its AOT losses, which of a single pair are the logistic one."""
    policy, reference, learnt = pairs()
    ours, _ = dpo_losses(of_both(policy), of_both(reference), beta=0.3, label_smoothing=0.2)
    for pair in range(PAIRS):
        both = [pair, pair + PAIRS]
        theirs = trl_dpo(
            policy[both], reference[both], learnt[both], 0.3,
            label_smoothing=0.2, loss_types=["aot"],
        )  # fmt: skip
        torch.testing.assert_close(ours[pair], theirs, rtol=1e-12, atol=1e-12)


def test_the_term_of_the_chosen_answers_is_trls() -> None:
    """Of a single pair: TRL takes its mean over a batch's tokens, ours over answers of tokens."""
    policy, reference, learnt = pairs()
    tokens = learnt[:PAIRS].sum(1)
    ours, _ = dpo_losses(
        of_both(policy), of_both(reference), beta=0.1, rpo_alpha=0.7, tokens=tokens
    )
    for pair in range(PAIRS):
        both = [pair, pair + PAIRS]
        theirs = trl_dpo(
            policy[both], reference[both], learnt[both], 0.1,
            loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.7],
        )  # fmt: skip
        torch.testing.assert_close(ours[pair], theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_loss_of_groups_and_its_gradient_are_trls(beta: float) -> None:
    rows, epsilon = 8, 0.2
    learnt = answers(3, rows)
    logprob, old, reference = (logprobs(seed, rows) * learnt for seed in (4, 5, 6))
    logprob.requires_grad_()
    advantage, _ = advantages_of(logprobs(7, 2)[:, :4])
    ours, found = policy_loss(
        logprob, old, reference, learnt, advantage.flatten(), beta=beta, epsilon=epsilon
    )
    trainer = bare(
        "grpo_trainer", "GRPOTrainer",
        beta=beta, epsilon_low=epsilon, epsilon_high=epsilon, loss_type="grpo",
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
        importance_sampling_level="token", current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False, model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, 0 * logprob, None),
    )  # fmt: skip
    ones = torch.ones(rows, PROMPT, dtype=torch.int64)
    inputs = {
        "prompt_ids": ones, "prompt_mask": ones, "completion_ids": learnt.long(),
        "completion_mask": learnt.long(), "advantages": advantage.flatten(),
        "old_per_token_logps": old, "ref_per_token_logps": reference,
    }  # fmt: skip
    theirs = trainer._compute_loss(None, inputs)
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-12, atol=1e-12)
    (mine,), (trl,) = (torch.autograd.grad(one, logprob) for one in (ours.mean(), theirs))
    torch.testing.assert_close(mine, trl, rtol=1e-12, atol=1e-12)
    counted = trainer._metrics["train"]["clip_ratio/region_mean"][0]
    tokens = learnt.sum(1)
    assert float((found["clipped"] * tokens).sum() / tokens.sum()) == pytest.approx(counted)
    assert float(found["clipped"].max()) > 0
