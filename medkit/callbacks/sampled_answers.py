"""A few questions answered again and again as a model is trained, and what the answers are like."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from medkit import keyed
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.data.conversations import Conversation
from medkit.vlm.sampling import HFSampler, Sampler
from medkit.vlm.variety import answer_figures, words_of

__all__ = ["SampledAnswers"]


class SampledAnswers(pl.Callback):
    """Log how varied and how odd a model's answers are, for a guard and for the eye.

    The same training questions with the same draws each time, so that figures differ by the weights
    alone; the training itself is not changed by a bit. Logs ``step/diversity``, ``step/dominance``
    and ``step/odd_words`` (:func:`~medkit.vlm.variety.answer_figures`) before every ``every``-th
    step. Works with whatever has ``module.model.generate`` and a ``trainer.datamodule`` like
    :class:`~medkit.data.reports.ReportDataModule`.

    Args:
        questions: How many, drawn once from the training rows.
        every: Optimizer steps from one look to the next.
        sampler: How answers are drawn; None: Hugging Face's ``generate`` at temperature 1, half as
            long again as the longest true answer.
        seed: Of questions and draws; None takes that of the Trainer's ``KeyedSteps``, or 0.
    """

    def __init__(
        self,
        questions: int = 32,
        every: int = 10,
        *,
        sampler: Sampler | None = None,
        seed: int | None = None,
    ) -> None:
        if questions < 2 or every < 1:
            raise ValueError(
                "answers are compared with one another, so 2 questions or more, every 1 step or "
                f"more; got {questions} and {every}."
            )
        self.questions, self.every, self.sampler = questions, every, sampler
        self.seed = seed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Choose the questions."""
        dm = trainer.datamodule  # type: ignore[attr-defined]
        dm.setup()
        rows = dm.rows("train")
        seeds = [c.seed for c in trainer.callbacks if isinstance(c, KeyedSteps)]  # type: ignore[attr-defined]
        self._seed = self.seed if self.seed is not None else [*seeds, 0][0]
        draw = keyed.generator(self._seed, "questions")
        chosen = draw.permutation(len(rows))[: self.questions]
        some: list[Conversation] = [dm.conversations[rows[at]] for at in sorted(chosen.tolist())]
        self._true = [one.answer for one in some]
        self._prompts = [dm.encoder.prompt(one) for one in some]
        self._known = {word for row in rows for word in words_of(dm.conversations[row].answer)}
        self._tokenizer = tokenizer = dm.encoder.tokenizer
        longest = max(len(ids) for ids in tokenizer(self._true)["input_ids"])
        self._draw = self.sampler or HFSampler(tokenizer, longest + longest // 2 + 1)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Have the questions answered."""
        if trainer.global_step % self.every or batch_idx % trainer.accumulate_grad_batches:
            return
        model: Any = pl_module.model
        made = self._draw(model, self._prompts, seed=self._seed, place=("questions",))
        texts = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        found = answer_figures(texts, self._true, self._known)
        pl_module.log_dict(
            {f"step/{name}": value for name, value in found.items()}, on_step=True, on_epoch=False
        )
