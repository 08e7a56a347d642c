"""Is an answer right? One judge a task: fields, questions, free reports.

A judge turns answers into scores. Each is a hit among what was asked, so that shares, intervals
over patients and the comparison with other studies' pictures are the same for all
(:mod:`medkit.vlm.evaluation`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medkit.data.conversations import MARK, Conversation, place_of
from medkit.data.report_schema import ReportSchema
from medkit.metrics.checks import Floats
from medkit.vlm.answers import score_fields
from medkit.vlm.finding_terms import FINDINGS
from medkit.vlm.labeller import label, places, sizes_mm

__all__ = ["FieldJudge", "Judge", "QuestionJudge", "ReportJudge", "Score"]


@dataclass(frozen=True, eq=False)
class Score:
    """A share, or a mean of shares, of which each conversation has a part.

    Attributes:
        hits: What each adds above the line, ``(N,)``, or ``(N, F)`` for a mean over F shares.
        asked: What it adds below it.
        error: Whether less of it is better.
    """

    hits: Floats
    asked: Floats
    error: bool = False


class Judge(Protocol):
    """Gives the scores of answers."""

    main: str
    """The score that says most, by which it is decided whether a model looks."""

    def __call__(
        self, texts: Sequence[str], conversations: Sequence[Conversation]
    ) -> Mapping[str, Score]:
        """Return name -> score of one answer to each conversation; names without spaces."""
        ...


@dataclass(frozen=True)
class FieldJudge:
    """Structured fields: ``accuracy`` (share of a report's fields), ``exact``, and each field.

    Also ``valid``, and errors: ``invented``, of reports with nothing, and ``missed``, of those with
    something.

    Attributes:
        schema: Of answers.
        column: Where a conversation has its true fields.
    """

    schema: ReportSchema
    column: str = "fields"
    main: str = "accuracy"

    def __call__(
        self, texts: Sequence[str], conversations: Sequence[Conversation]
    ) -> Mapping[str, Score]:
        """Return the scores."""
        missing = [n for n, one in enumerate(conversations) if self.column not in one.columns]
        if missing:
            raise ValueError(
                f"each conversation must have its true fields as column {self.column!r}; "
                f"{len(missing)} of {len(conversations)} have none, the first is "
                f"{place_of(conversations, missing[0])}. Name another column, or judge free text "
                "by ReportJudge()."
            )
        true = [one.columns[self.column] for one in conversations]
        found = score_fields(self.schema, texts, true)
        there = np.array([float(bool(one[self.schema.head])) for one in true])
        out = {name: _of_all(of) for name, of in (("valid", found.valid), ("exact", found.exact))}
        out = {"accuracy": _of_all(found.accuracy), **out}
        for name, right in found.right.items():
            out[name] = Score(np.nan_to_num(right), np.isfinite(right).astype(float))
        out["invented"] = Score(found.invented.astype(float), 1 - there, error=True)
        out["missed"] = Score(found.missed.astype(float), there, error=True)
        return out


@dataclass(frozen=True)
class QuestionJudge:
    """Questions with short answers: ``exact``, and the same of each question.

    Case, spaces and a last full stop do not count. ``valid`` are answers that some conversation
    has to this question. ``invented`` and ``missed`` are errors, as for fields.

    Attributes:
        nothing: Answers that say that there is nothing.
    """

    nothing: Collection[str] = ("no", "none", "there is no nodule")
    main: str = "exact"

    def __call__(
        self, texts: Sequence[str], conversations: Sequence[Conversation]
    ) -> Mapping[str, Score]:
        """Return the scores."""
        said, true = ([_plain(t) for t in of] for of in (texts, [c.answer for c in conversations]))
        asked = [_plain(one.asked[-1].content.replace(MARK, "")) for one in conversations]
        known: dict[str, set[str]] = {}
        for question, answer in zip(asked, true, strict=True):
            known.setdefault(question, set()).add(answer)
        exact = np.array([a == b for a, b in zip(said, true, strict=True)], float)
        valid = np.array([a in known[q] for a, q in zip(said, asked, strict=True)], float)
        out = {"exact": _of_all(exact), "valid": _of_all(valid)}
        for question in known:
            of = np.array([one == question for one in asked], float)
            out[re.sub(r"\W+", "_", question)] = Score(exact * of, of)
        empty, spoken = (np.array([one in self.nothing for one in of]) for of in (true, said))
        out["invented"] = Score((empty & ~spoken).astype(float), empty.astype(float), error=True)
        out["missed"] = Score((~empty & spoken).astype(float), (~empty).astype(float), error=True)
        return out


@dataclass(frozen=True)
class ReportJudge:
    """Free reports, read by the rule labeller: ``macro_f1`` over the findings that there are.

    ``place``: of reports that place a finding, those with the same on the same sides and levels;
    ``size``: of those with a measure, those that have as many, each near enough; ``valid``: speaks
    of any finding at all, as there or not. Errors: ``invented`` and ``missed``, reports that say a
    finding too many, or leave one out. What is only possible ("may be") is not said to be there.

    Attributes:
        column: Where a conversation has what is true, finding -> whether it is there; where it has
            none, its own answer is read by the labeller, too.
        tolerance_mm: Of sizes.
    """

    column: str = "findings"
    tolerance_mm: float = 2.0
    main: str = "macro_f1"

    def __call__(
        self, texts: Sequence[str], conversations: Sequence[Conversation]
    ) -> Mapping[str, Score]:
        """Return the scores."""
        found = _present(texts)
        true = _present([one.answer for one in conversations])
        for row, one in enumerate(conversations):
            coded = one.columns.get(self.column)
            if coded is not None:
                true[row] = [bool(coded.get(name, False)) for name in FINDINGS]
        there = true.any(0)  # the others have no F1; saying one of them is inventing it
        both, any_of = 2.0 * (found & true), 1.0 * found + true
        some = true.any(1).astype(float)
        out = {"macro_f1": Score(both[:, there], any_of[:, there])}
        out["valid"] = _of_all(np.array([set(label(t).values()) != _SILENT for t in texts]))
        pairs = list(zip(texts, conversations, strict=True))
        placed = np.array([bool(_where(c.answer)) for _, c in pairs], float)
        same = np.array([_where(t) == _where(c.answer) for t, c in pairs], float)
        out["place"] = Score(same * placed, placed)
        sized = np.array([bool(sizes_mm(c.answer)) for _, c in pairs], float)
        near = np.array([self._near(t, c.answer) for t, c in pairs], float)
        out["size"] = Score(near * sized, sized)
        out["invented"] = _of_all((found & ~true).any(1), error=True)
        missed = (true & ~found).any(1).astype(float)
        out["missed"] = Score(missed, some, error=True)
        return out

    def _near(self, text: str, other: str) -> bool:
        one, two = (sorted(size[0] for size in sizes_mm(t)) for t in (text, other))
        off = [abs(a - b) for a, b in zip(one, two, strict=False)]
        return len(one) == len(two) and max(off, default=0.0) <= self.tolerance_mm


_SILENT = {"not mentioned"}
_PLACES = {"left", "right", "upper", "middle", "lower"}  # not "lung", which is wording


def _where(text: str) -> set[tuple[str, str]]:
    return {(finding, place) for finding, place in places(text) if place in _PLACES}


def _of_all(hits: np.ndarray, *, error: bool = False) -> Score:
    return Score(np.asarray(hits, float), np.ones(len(hits)), error)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def _present(texts: Sequence[str]) -> np.ndarray:
    said = [label(text) for text in texts]
    return np.array([[one[name] == "present" for name in FINDINGS] for one in said])
