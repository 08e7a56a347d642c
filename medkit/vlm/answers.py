"""What a model writes, how right its fields are, and whether it looked at the picture at all.

A blind model can have a low loss and valid JSON: the text alone says much. So every score stands
beside the one that it has when the pictures are dealt to other studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation
from medkit.data.report_schema import ReportSchema
from medkit.metrics.checks import codes
from medkit.metrics.intervals import mean, share
from medkit.record.results import Metric
from medkit.vlm.sampling import HFSampler

__all__ = ["FieldScores", "looked", "score_fields", "swapped", "write_answers"]


def write_answers(
    model: Any,
    encoder: ChatEncoder,
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    processor: Callable[[], Any] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Let a model answer the last question of each conversation.

    Args:
        model: Of Hugging Face's (``lit.model``); it runs where it is, in evaluation mode.
        encoder: As in training.
        conversations: Their last answers are not shown.
        max_new_tokens: Of an answer; ``grammar.longest_tokens`` where a schema is enforced.
        batch_size: Conversations at once.
        processor: Makes a logits processor for each batch: ``grammar.processor``.
        temperature: 0 takes the likeliest token; above it draws are keyed by ``seed`` and batch.
        seed: See ``temperature``.

    Returns:
        Text of each, special tokens left out.
    """
    tokenizer = encoder.tokenizer
    sampler = HFSampler(tokenizer, max_new_tokens, temperature, processor, batch_size)
    found: list[str] = []
    with tqdm(total=len(conversations), unit="answer", leave=False, disable=None) as bar:
        for first in range(0, len(conversations), batch_size):
            some = [encoder.prompt(one) for one in conversations[first : first + batch_size]]
            made = sampler(model, some, seed=seed, place=("answers", first))
            found += tokenizer.batch_decode(made, skip_special_tokens=True)
            bar.update(len(some))
    return found


def swapped(
    conversations: Sequence[Conversation], *, seed: int = 0, within: str | None = None
) -> list[Conversation]:
    """Return conversations with the pictures of others: each set goes one on in a keyed order.

    Conversations about the same pictures, such as several questions, get the same others.

    Args:
        conversations: With as many pictures each.
        seed: Of the order.
        within: A column, such as "site": pictures stay among those with the same value there.
            Else a model that knows the hospital by its pictures loses by theirs alone.

    Raises:
        ValueError: For one set of pictures, or sets of different numbers of pictures.
    """
    groups: dict[str, dict[tuple[str, ...], None]] = {}
    for one in conversations:
        place = "" if within is None else str(one.columns.get(within, ""))
        groups.setdefault(place, {})[one.images] = None
    numbers = {len(one.images) for one in conversations}
    fewest = min((len(sets) for sets in groups.values()), default=0)
    if fewest < 2 or len(numbers) != 1 or numbers == {0}:
        raise ValueError(
            "pictures are dealt anew among two or more sets with as many pictures each; got "
            f"{fewest} or more{' at each ' + within if within else ''}, with {sorted(numbers)}. "
            "Ask about those with one number."
        )
    dealt: dict[tuple[str, tuple[str, ...]], tuple[str, ...]] = {}
    for place, found in groups.items():
        sets = list(found)
        order = keyed.generator(seed, "swap", *([place] if place else [])).permutation(len(sets))
        for here, there in zip(order, np.roll(order, 1), strict=True):
            dealt[place, sets[here]] = sets[there]
    out = []
    for one in conversations:
        place = "" if within is None else str(one.columns.get(within, ""))
        out.append(replace(one, images=dealt[place, one.images]))
    return out


@dataclass(frozen=True, eq=False)
class FieldScores:
    """How right answers are.

    Attributes:
        valid: Which are of the schema, bool ``(N,)``.
        right: By field, 1 right, 0 wrong, NaN where the true report has no such field, ``(N,)``.
        exact: Which have all fields right and no other, bool ``(N,)``.
        invented: Which say that there is something where there is nothing.
        missed: Which say that there is nothing, or nothing valid, where there is something.
        patient: Whose each is.
    """

    valid: NDArray[np.bool_]
    right: Mapping[str, NDArray[np.float64]]
    exact: NDArray[np.bool_]
    invented: NDArray[np.bool_]
    missed: NDArray[np.bool_]
    patient: NDArray[np.int64]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each report's fields that are right, ``(N,)``."""
        return np.nanmean(np.stack(list(self.right.values())), axis=0)

    def metrics(self, *, level: float = 0.95) -> dict[str, Metric]:
        """Return ``valid``, ``exact`` and each field, with intervals over patients.

        Also ``invented``, of those with nothing, and ``missed``, of those with something.
        """
        whole = np.ones(len(self.valid))
        head = next(iter(self.right))
        rest = np.stack([self.right[k] for k in self.right if k != head])
        there = np.asarray(np.isfinite(rest).any(axis=0))
        asked: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
            "valid": (self.valid, whole),
            "exact": (self.exact, whole),
        }
        for name, values in self.right.items():
            asked[name] = np.nan_to_num(values), np.isfinite(values)
        asked["invented"] = self.invented, np.logical_not(there)
        asked["missed"] = self.missed, there
        return {
            name: share(hit.astype(float), of.astype(float), name, level=level, owner=self.patient)
            for name, (hit, of) in asked.items()
        }


def score_fields(
    schema: ReportSchema,
    texts: Sequence[str],
    true: Sequence[Mapping[str, Any]],
    *,
    patient: ArrayLike | None = None,
) -> FieldScores:
    """Hold answers against the true fields.

    Args:
        schema: Of both.
        texts: Answers.
        true: Fields of each.
        patient: Whose each is; None: each another's.

    Raises:
        ValueError: For other numbers of answers and truths, and a truth that the schema does not
            allow.
    """
    if len(texts) != len(true) or not len(texts):
        raise ValueError(
            f"each answer needs its true fields, at least one; got {len(texts)} and {len(true)}."
        )
    schema.require(true, "pass the schema that it has, to FieldJudge(...) or score_fields(...)")
    read = [schema.parse(text) for text in texts]
    scores = [schema.score(one, truth) for one, truth in zip(read, true, strict=True)]
    right = {n: np.array([float(s.get(n, np.nan)) for s in scores]) for n in schema.names}
    something = np.array([bool(truth[schema.head]) for truth in true])
    said = np.array([one is not None and bool(one[schema.head]) for one in read])
    owner = np.arange(len(texts)) if patient is None else patient
    return FieldScores(
        valid=np.array([one is not None for one in read]),
        right=right,
        exact=np.array([one == dict(truth) for one, truth in zip(read, true, strict=True)]),
        invented=said & ~something,
        missed=~said & something,
        patient=codes(owner, len(texts), "patient"),
    )


def looked(true: FieldScores, others: FieldScores, *, level: float = 0.95) -> Metric:
    """Return by how much the share of right fields falls when pictures are another study's.

    A model whose lower limit is not above 0 is not known to look at its pictures at all.

    Args:
        true: Scores with each study's own pictures.
        others: Of the same conversations with those of others (:func:`swapped`).
        level: Nominal coverage, over patients.
    """
    fall = true.accuracy - others.accuracy
    value, low, high = mean(fall, level=level, owner=true.patient)
    return Metric(
        value, low=low, high=high, level=level, n=len(fall),
        method="share of right fields, own pictures less another's, over patients",
    )  # fmt: skip
