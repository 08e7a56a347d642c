"""Group-relative policy optimization (Shao et al. 2024): several answers, the better ones rewarded.

What is rewarded is learnt, and not what was meant: watch the rewards apart, fields on held-out
studies and the diversity of answers. A group whose answers all have one reward teaches nothing;
its share is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medkit.data.encoded import IGNORED, Encoded, padded
from medkit.vlm.means import Means
from medkit.vlm.model import LitVLM, given, token_logprobs
from medkit.vlm.sampling import Sampler
from medkit.vlm.settings import adapters_alone

__all__ = ["LitGRPO", "advantages_of", "policy_loss"]

Reward = Callable[..., Any]  # a Rewards: completions and columns -> Scored


def advantages_of(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return rewards relative to their group, and which groups have several rewards at all.

    Args:
        rewards: ``(groups, G)``.

    Returns:
        ``(groups, G)``, of mean 0 and sd 1 in each group, 0 where all are equal; and bool
        ``(groups,)``.
    """
    sd = rewards.std(dim=1, keepdim=True, unbiased=False)
    told_apart = sd > 1e-6 * rewards.abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    found = torch.where(told_apart, centred / sd.clamp_min(1e-12), torch.zeros_like(centred))
    return found, told_apart[:, 0]


def policy_loss(
    logprob: Tensor,
    old: Tensor,
    reference: Tensor,
    learnt: Tensor,
    advantage: Tensor,
    *,
    beta: float,
    epsilon: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return each answer's loss, ``(B,)``, and its ``kl`` and ``clipped`` shares, ``(B,)``.

    Args:
        logprob: Of each token under the present weights, ``(B, T)``.
        old: Under those that drew the answer.
        reference: Under the model without adapters.
        learnt: Which tokens are the answer's, bool.
        advantage: Of each answer, ``(B,)``.
        beta: Weight of the distance from the reference, by the estimator k3 (Schulman 2020).
        epsilon: What the ratio to the old weights may differ from 1 by before it is clipped.
    """
    ratio = (logprob - old).exp()
    kept = ratio.clamp(1 - epsilon, 1 + epsilon)
    worth = advantage[:, None]
    gain = torch.minimum(ratio * worth, kept * worth)
    apart = reference - logprob
    kl = apart.exp() - apart - 1
    tokens = learnt.sum(1).clamp_min(1)
    loss = (-(gain - beta * kl) * learnt).sum(1) / tokens
    clipped = ((ratio * worth > kept * worth) & learnt).sum(1) / tokens
    return loss, {"kl": (kl * learnt).sum(1) / tokens, "clipped": clipped}


class LitGRPO(LitVLM):
    """Train adapters by rewards; the model without them is the reference.

    Each batch of questions is answered ``group`` times, and the answers are used for ``reuse``
    steps: the questions of the batches between are passed over. Draws are keyed by epoch and batch,
    and answers in use are in the checkpoint, so a resumed run goes on to the bit.

    Logs under ``train/`` once an epoch: ``loss``, ``reward``, ``reward_<name>`` of each part,
    ``reward_sd`` within groups, ``equal_groups`` (their share), ``kl``, ``clipped``, ``length`` in
    tokens and ``distinct``, the share of answers of a batch that differ; at each drawing
    ``step/reward`` and ``step/equal_groups``. Validation is that of LitVLM, on the true answers.

    The questions come from ``trainer.datamodule``, a
    :class:`~medkit.data.reports.ReportDataModule`.

    What answers are worth, and how they are drawn (here of at most 14 tokens), is said before the
    fit::

        lit = LitGRPO("my_package.models:make", lora={"groups": ["llm"]})
        lit.use(Rewards({"validity": 1.0, "fields": 2.0}), HFSampler(tokenizer, 14))

    Args:
        model: As LitVLM's.
        model_args: As LitVLM's.
        lora: As LitDPO's.
        group: Answers a question.
        beta: Weight of the distance from the reference.
        epsilon: Of the clipping.
        reuse: Steps that answers are used for.
        prefixes: This and all below as LitVLM's.
        total_steps: See there.
        lr: See there.
        vit_lr: See there.
        aligner_lr: See there.
        weight_decay: See there.
        warmup: See there.
    """

    rewards: Reward
    sampler: Sampler

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any] | None = None,
        *,
        lora: Mapping[str, Any] | None = None,
        group: int = 8,
        beta: float = 0.04,
        epsilon: float = 0.2,
        reuse: int = 1,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        total_steps: int | None = None,
        lr: float = 1e-3,
        vit_lr: float | None = None,
        aligner_lr: float | None = None,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        lora = adapters_alone(lora)
        if group < 2 or reuse < 1 or beta < 0 or not 0 < epsilon < 1:
            raise ValueError(
                "a group needs 2 answers or more, reuse 1 step or more, beta 0 or more and epsilon "
                f"a share; got {group}, {reuse}, {beta} and {epsilon}."
            )
        super().__init__(
            model, model_args, lora=lora, prefixes=prefixes, total_steps=total_steps,
            lr=lr, vit_lr=vit_lr, aligner_lr=aligner_lr, weight_decay=weight_decay, warmup=warmup,
        )  # fmt: skip
        self.save_hyperparameters()
        self.group, self.beta, self.epsilon, self.reuse = group, beta, epsilon, reuse
        self.seen = Means()
        self._kept: dict[str, Any] | None = None  # answers that are in use

    def use(self, rewards: Reward, sampler: Sampler) -> LitGRPO:
        """Set what answers are worth and how they are drawn; to be called before the fit."""
        self.rewards, self.sampler = rewards, sampler
        return self

    def on_fit_start(self) -> None:
        """Refuse a fit without rewards or a sampler.

        Raises:
            RuntimeError: Where :meth:`use` was not called.
        """
        if not hasattr(self, "sampler"):
            raise RuntimeError(
                "answers must have rewards and a sampler before the fit, and this model was given "
                "none (a checkpoint does not keep them). Call "
                'lit.use(Rewards({"fields": 1.0}), HFSampler(tokenizer, 14)) first.'
            )
        super().on_fit_start()

    def loss_terms(self, batch: Mapping[str, Any]) -> tuple[Tensor, float]:
        """Return the sum of the answers' losses, and how many there are."""
        losses = self._losses(batch)
        return losses.sum(), float(len(losses))

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Draw answers, or take those in use, and return their mean loss."""
        if self._kept is None or self._kept["used"] >= self.reuse:
            self._kept = self._drawn(batch, batch_idx)
        self._kept["used"] += 1
        loss = self._losses(self._kept).mean()
        self.seen.add("loss", loss.detach()[None])
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self.log_dict({f"train/{name}": value for name, value in self.seen.take().items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the answers in use."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["answers"], checkpoint["seen"] = self._kept, self.seen.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        self._kept = checkpoint.get("answers")
        self.seen.load_state_dict(checkpoint.get("seen", {}))

    def _drawn(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        dm = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = batch["row"].tolist()
        some = [dm.conversations[row] for row in rows for _ in range(self.group)]
        prompts = [dm.encoder.prompt(one) for one in some]
        place = ("train", self.trainer.current_epoch, batch_idx, self.trainer.global_rank)
        answers = self.sampler(self.model, prompts, seed=self._seed(), place=place)
        texts = dm.encoder.tokenizer.batch_decode(answers, skip_special_tokens=True)
        names = dict.fromkeys(name for one in some for name in one.columns)
        columns = {name: [one.columns.get(name) for one in some] for name in names}
        scored = self.rewards(texts, **{"reference": [one.answer for one in some]} | columns)
        total = torch.tensor(scored.total, dtype=torch.float32).view(len(rows), self.group)
        advantage, told_apart = advantages_of(total)
        samples = [_answered(*both) for both in zip(prompts, answers, strict=True)]
        inputs = padded(samples, dm.encoder.tokenizer.pad_token_id)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        with torch.no_grad():
            old, _ = token_logprobs(self(**given(inputs)), inputs["labels"])
        self.seen.add("reward", total)
        self.seen.add("reward_sd", total.std(dim=1, unbiased=False))
        equal = (~told_apart).float()
        self.seen.add("equal_groups", equal)
        now = {"step/reward": total.mean(), "step/equal_groups": equal.mean()}
        self.log_dict(now, on_step=True, on_epoch=False)
        self.seen.add("length", torch.tensor([float(len(one)) for one in answers]))
        self.seen.add("distinct", torch.tensor([len(set(texts)) / len(texts)]))
        for name, part in scored.parts.items():
            self.seen.add(f"reward_{name}", torch.tensor(part, dtype=torch.float32))
        advantage = advantage.flatten().to(self.device)
        return {"inputs": inputs, "advantage": advantage, "old": old, "used": 0}

    def _losses(self, kept: Mapping[str, Any]) -> Tensor:
        inputs = kept["inputs"]
        logprob, learnt = token_logprobs(self(**given(inputs)), inputs["labels"])
        with torch.no_grad(), self.model.disable_adapter():
            reference, _ = token_logprobs(self(**given(inputs)), inputs["labels"])
        losses, found = policy_loss(
            logprob, kept["old"], reference, learnt, kept["advantage"],
            beta=self.beta, epsilon=self.epsilon,
        )  # fmt: skip
        for name, value in found.items():
            self.seen.add(name, value.detach())
        return losses

    def _seed(self) -> int:
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            seed = getattr(callback, "seed", None)
            if isinstance(seed, int):
                return seed
        return 0


def _answered(prompt: Encoded, answer: Tensor) -> Encoded:
    labels = torch.cat([torch.full_like(prompt.ids, IGNORED), answer])
    return replace(prompt, ids=torch.cat([prompt.ids, answer]), labels=labels)
