"""Direct preference optimization (Rafailov et al. 2023): rather this answer than that one.

The margin between the two can rise while both become unlikely: on the tutorial's task accuracy of
pairs reached .97 while exact answers fell from .73 to .30. So the chosen answer's own likelihood is
logged, and held by a term of its own (``rpo_alpha``, Pang et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from medkit.vlm.means import Means
from medkit.vlm.model import LitVLM, given, token_logprobs
from medkit.vlm.settings import adapters_alone

__all__ = ["LitDPO", "answer_logprobs", "dpo_losses"]

Pairs = Mapping[str, Any]


def dpo_losses(
    policy: tuple[Tensor, Tensor],
    reference: tuple[Tensor, Tensor],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    rpo_alpha: float = 0.0,
    tokens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each pair's loss and margin, ``(B,)``.

    Args:
        policy: Log-likelihood of the chosen and of the rejected answers, ``(B,)`` each.
        reference: The same under the model as it was.
        beta: How dear it is to move away from that.
        label_smoothing: Share of pairs that may be the wrong way round (Mitchell 2023).
        rpo_alpha: Weight of the chosen answers' own loss per token.
        tokens: Of the chosen answers, ``(B,)``; one each where it is left out.
    """
    margin = beta * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
    kept = (1 - label_smoothing) * F.logsigmoid(margin)
    losses = -(kept + label_smoothing * F.logsigmoid(-margin))
    own = policy[0] if tokens is None else policy[0] / tokens
    return losses - rpo_alpha * own if rpo_alpha else losses, margin


def answer_logprobs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-likelihood of what is learnt, summed by row, and its tokens, ``(B,)``.

    Args:
        logits: ``(B, L, vocabulary)``.
        labels: ``(B, L)``, ``IGNORED`` where nothing is learnt.
    """
    each, learnt = token_logprobs(logits, labels)
    return each.sum(1), learnt.sum(1)


class LitDPO(LitVLM):
    """Train adapters on pairs; the model without them is the reference.

    Logs under ``train/`` once an epoch and under ``val/``: ``loss``; ``accuracy``, the share of
    pairs with a positive margin; ``margin``; ``chosen_logprob`` and ``rejected_logprob``, a
    token's mean log-likelihood less the reference's: a chosen one below 0 is less likely than it
    was. At each step the batch's ``step/chosen_logprob``, ``step/accuracy`` and ``step/margin``:
    see :class:`~medkit.callbacks.collapse_guard.CollapseGuard`.

    Args:
        model: As LitVLM's.
        model_args: As LitVLM's.
        lora: Keys of :class:`~medkit.vlm.adapters.Adapters`, without ``full`` and ``norms``, which
            would move the reference; no dropout unless ``lora_dropout`` says so.
        beta: Of the loss.
        rpo_alpha: Weight of the chosen answers' own loss per token; 0: none. With 1, answers of a
            few tokens are held only just, and ``CollapseGuard``'s default limit ends such runs.
        label_smoothing: Of the loss.
        prefixes: This and all below as LitVLM's.
        total_steps: See there.
        lr: See there.
        vit_lr: See there.
        aligner_lr: See there.
        weight_decay: See there.
        warmup: See there.

    Raises:
        ValueError: For adapters beside which parts are trained in full.
    """

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any] | None = None,
        *,
        lora: Mapping[str, Any] | None = None,
        beta: float = 0.1,
        rpo_alpha: float = 5.0,
        label_smoothing: float = 0.0,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        total_steps: int | None = None,
        lr: float = 1e-3,
        vit_lr: float | None = None,
        aligner_lr: float | None = None,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        lora = adapters_alone(lora)
        if not beta > 0 or not 0 <= label_smoothing < 0.5 or rpo_alpha < 0:
            raise ValueError(
                "beta must be above 0, rpo_alpha not below, label_smoothing from 0 to below 0.5; "
                f"got {beta}, {rpo_alpha} and {label_smoothing}."
            )
        super().__init__(
            model, model_args, lora=lora, prefixes=prefixes, total_steps=total_steps,
            lr=lr, vit_lr=vit_lr, aligner_lr=aligner_lr, weight_decay=weight_decay, warmup=warmup,
        )  # fmt: skip
        self.save_hyperparameters()
        self.beta, self.rpo_alpha, self.label_smoothing = beta, rpo_alpha, label_smoothing
        self.seen = {"train": Means(), "val": Means()}

    def loss_terms(self, batch: Pairs) -> tuple[Tensor, float]:
        """Return the sum of the pairs' losses, and how many there are."""
        losses, _ = self._judged(batch)
        return losses.sum(), float(len(losses))

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """Return the pairs' mean loss."""
        losses, found = self._judged(batch)
        self._collect("train", losses, found)
        for name in ("chosen_logprob", "accuracy", "margin"):
            self.log(f"step/{name}", found[name].mean(), on_step=True, on_epoch=False)
        return losses.mean()

    def validation_step(self, batch: Pairs, batch_idx: int) -> None:
        """Collect the validation pairs."""
        self._collect("val", *self._judged(batch))

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self._report("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation pairs' means."""
        self._report("val")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running epoch's means."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["seen"] = self.seen["train"].state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        super().on_load_checkpoint(checkpoint)
        self.seen["train"].load_state_dict(checkpoint.get("seen", {}))

    def _judged(self, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        policy, tokens = self._of_both(batch)
        with torch.no_grad(), self.model.disable_adapter():
            reference, _ = self._of_both(batch)
        losses, margin = dpo_losses(
            policy, reference, beta=self.beta, label_smoothing=self.label_smoothing,
            rpo_alpha=self.rpo_alpha, tokens=tokens[0],
        )  # fmt: skip
        moved = [(p - r) / n for p, r, n in zip(policy, reference, tokens, strict=True)]
        found = {"accuracy": (margin > 0).float(), "margin": margin}
        found |= {"chosen_logprob": moved[0], "rejected_logprob": moved[1]}
        return losses, {name: value.detach() for name, value in found.items()}

    def _of_both(self, batch: Pairs) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if "chosen" not in batch:
            raise ValueError(
                "LitDPO's batches must be pairs, of a chosen and a rejected answer; got one with "
                f"{list(batch)}. Make them by ReportDataModule(..., pairs=True)."
            )
        (chosen, n), (rejected, m) = (
            answer_logprobs(self(**given(batch[which])), batch[which]["labels"])
            for which in ("chosen", "rejected")
        )
        return (chosen, rejected), (n, m)

    def _collect(self, stage: str, losses: Tensor, found: Mapping[str, Tensor]) -> None:
        for name, value in {"loss": losses, **found}.items():
            self.seen[stage].add(name, value)

    def _report(self, stage: str) -> None:
        means = self.seen[stage].take()
        if not self.trainer.sanity_checking:
            self.log_dict({f"{stage}/{name}": value for name, value in means.items()})
