"""All scores of a model's answers at once: intervals over patients, hospitals, and other pictures.

Beside every score stands the one that the same model has with the pictures of another study of the
same hospital, because a model that never looks writes valid text, and often the right one::

    write = partial(write_answers, model, encoder, max_new_tokens=grammar.longest_tokens,
                    processor=grammar.processor)
    found = evaluate(write, conversations, FieldJudge(NODULE))
    found.table()
    str(found)  # "looks at the pictures: ..." or "not known to look: ..."
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medkit import keyed
from medkit.data.conversations import Conversation, patients_of
from medkit.metrics.checks import Codes, Floats, codes
from medkit.metrics.intervals import over, share
from medkit.metrics.resample import interval
from medkit.metrics.spread import mean_over_seeds, sd_over_seeds
from medkit.record.results import Metric
from medkit.vlm.answers import swapped
from medkit.vlm.judges import Judge, Score

__all__ = ["Evaluation", "evaluate", "over_seeds"]

Write = Callable[[Sequence[Conversation]], list[str]]
ALL = "all"
_DRAWS = 999
_SURE = 0.05


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found.

    Attributes:
        metrics: ``<place>/<score>/own/share``, the same of ``shuffled`` (pictures of others), and
            ``<place>/<score>/fall/share`` (own less shuffled; of errors shuffled less own) and
            ``.../fall/p``. A place is a hospital, or "all".
        texts: The answers.
        shuffled: Those with other pictures.
        main: The score that says most.
    """

    metrics: Mapping[str, Metric]
    texts: Sequence[str]
    shuffled: Sequence[str]
    main: str

    @property
    def looks(self) -> bool:
        """Whether the main score is shown to depend on the pictures, over all hospitals."""
        fall, p = (self.metrics[f"{ALL}/{self.main}/fall/{of}"] for of in ("share", "p"))
        return fall.low is not None and fall.low > 0 and p.value < _SURE

    def __str__(self) -> str:
        own, other, fall = (
            self.metrics[f"{ALL}/{self.main}/{of}/share"] for of in ("own", "shuffled", "fall")
        )
        p = self.metrics[f"{ALL}/{self.main}/fall/p"].value
        said = "looks at the pictures" if self.looks else "not known to look at the pictures"
        limits = "" if fall.low is None else f" [{fall.low:.3f}, {fall.high:.3f}]"
        return (
            f"{said}: {self.main} {own.value:.3f}, {other.value:.3f} with those of other studies "
            f"(fall {fall.value:.3f}{limits}, permutation p = {p:.3f}, n = {own.n})"
        )

    def table(self) -> pd.DataFrame:
        """Return a row a hospital and score, and beside each what other pictures leave of it."""
        rows = []
        for key, own in self.metrics.items():
            place, name, of, _ = key.split("/")
            if of != "own":
                continue
            rest = f"{place}/{name}"
            other, fall = (self.metrics[f"{rest}/{of}/share"] for of in ("shuffled", "fall"))
            row = {"place": place, "score": name, "own": own.value, "low": own.low}
            row |= {"high": own.high, "n": own.n, "shuffled": other.value, "fall": fall.value}
            row |= {"fall_low": fall.low, "fall_high": fall.high}
            rows.append(row | {"p": self.metrics[f"{rest}/fall/p"].value})
        return pd.DataFrame(rows).set_index(["place", "score"])


def evaluate(
    write: Write,
    conversations: Sequence[Conversation],
    judge: Judge,
    *,
    patient: str = "patient",
    site: str = "site",
    seed: int = 0,
    level: float = 0.95,
) -> Evaluation:
    """Have conversations answered, with their own pictures and with those of others, and judge.

    Intervals of shares are Wilson's with the design effect of patients; of F1 and of falls
    bootstrap ones over patients. ``p`` is that of a permutation test: own and shuffled answers
    change places, patient by patient, 999 times.

    Args:
        write: Conversations -> answers, such as a ``partial`` of
            :func:`~medkit.vlm.answers.write_answers`; an endpoint will do.
        conversations: Of one task, with pictures.
        judge: Of this task.
        patient: Column of who it is.
        site: Column of the hospital; where there are several, each has its own scores.
        seed: Of the pictures' new order, of permutations and bootstrap.
        level: Nominal coverage.

    Raises:
        ValueError: For conversations without patients (no column, or empty), or where pictures
            cannot be dealt anew.
    """
    remedy = "Name the column by patient=, or write a patient in each."
    whose = patients_of(conversations, patient, remedy=remedy)
    others = swapped(conversations, seed=seed, within=site)
    texts, shuffled = write(conversations), write(others)
    own, other = judge(texts, conversations), judge(shuffled, conversations)
    owner = codes(whose, len(texts), "patient")
    where = np.array([str(one.columns.get(site, "")) for one in conversations])
    names = sorted(set(where.tolist()))
    parts = {ALL: np.ones(len(texts), bool)}
    if len(names) > 1:
        parts |= {re.sub(r"[^\w.-]", "_", name) or "_": where == name for name in names}
    metrics: dict[str, Metric] = {}
    for place, rows in parts.items():
        here = codes(owner[rows], int(rows.sum()), "patient")
        for name, score in own.items():
            pair = _cut(score, rows), _cut(other[name], rows)
            for of, metric in _both(name, pair, here, seed, level).items():
                metrics[f"{place}/{name}/{of}"] = metric
    return Evaluation(metrics, texts, shuffled, judge.main)


def over_seeds(found: Sequence[Evaluation]) -> pd.DataFrame:
    """Return how scores spread over models that differ in their seed.

    Returns:
        By place and score: ``mean`` with its t interval (``low``, ``high``), ``sd`` with its
        chi-square interval, ``least``, ``most``, ``n``; ``shuffled``, the mean with other pictures.

    Raises:
        ValueError: For evaluations of different scores, or none.
    """
    keys = [set(one.metrics) for one in found]
    if not keys or any(one != keys[0] for one in keys):
        raise ValueError(
            f"seeds are compared by the same scores, at least one of them; got {len(found)} "
            "evaluations with different ones. Evaluate each on the same conversations."
        )
    rows = []
    for key in found[0].metrics:
        place, name, of, _ = key.split("/")
        values = [one.metrics[key].value for one in found]
        if of != "own" or not np.isfinite(values).all():
            continue
        mean, sd = mean_over_seeds(values), sd_over_seeds(values)
        row = {"place": place, "score": name, "mean": mean.value, "low": mean.low}
        row |= {"high": mean.high, "sd": sd.value, "sd_low": sd.low, "sd_high": sd.high}
        row |= {"least": min(values), "most": max(values), "n": len(values)}
        other = [one.metrics[f"{place}/{name}/shuffled/share"].value for one in found]
        rows.append(row | {"shuffled": float(np.mean(other))})
    return pd.DataFrame(rows).set_index(["place", "score"])


def _cut(score: Score, rows: np.ndarray) -> Score:
    return Score(score.hits[rows], score.asked[rows], score.error)


def _both(
    name: str, pair: tuple[Score, Score], owner: Codes, seed: int, level: float
) -> dict[str, Metric]:
    """Return one score with either pictures, and what it loses by other ones."""
    own, other = pair
    there = own.asked.sum() > 0 and other.asked.sum() > 0
    if not there:
        none = Metric(float("nan"), n=0, method=f"{name}; no value: no such row")
        return dict.fromkeys(("own/share", "shuffled/share", "fall/share", "fall/p"), none)
    out = {
        f"{of}/share": _share(name, one, owner, seed, level)
        for of, one in (("own", own), ("shuffled", other))
    }
    sign = -1.0 if own.error else 1.0

    def fall(weights: Floats) -> Floats:
        return sign * (_value(own, weights) - _value(other, weights))

    n = int((own.asked.reshape(len(owner), -1).sum(1) > 0).sum())
    if owner.max() == 0:
        value = float(fall(np.ones((1, len(owner))))[0])
        none = Metric(float("nan"), n=n, method="no test of one patient")
        return out | {"fall/share": Metric(value, n=n, method="one patient"), "fall/p": none}
    limits = interval(fall, len(owner), groups=owner, seed=seed, level=level)
    how = f"own less another study's pictures, bootstrap{over(owner)}"
    out["fall/share"] = Metric(*limits, level, n, method=how)
    kept = keyed.generator(seed, "permutation").random((_DRAWS, int(owner.max()) + 1)) < 0.5
    keep = kept[:, owner].astype(float)
    mixed = sign * (_value(own, keep, other, 1 - keep) - _value(other, keep, own, 1 - keep))
    more = int((mixed >= limits[0] - 1e-12).sum())
    p = (1 + more) / (1 + _DRAWS)
    return out | {"fall/p": Metric(p, n=n, method=f"permutation{over(owner)}, {_DRAWS} draws")}


def _share(name: str, score: Score, owner: Codes, seed: int, level: float) -> Metric:
    if score.hits.ndim == 1:
        return share(score.hits, score.asked, name, level=level, owner=owner)
    value = float(_value(score, np.ones((1, len(owner))))[0])
    n = len(owner)
    if owner.max() == 0:
        return Metric(value, n=n, method=f"{name}, one patient")
    value, low, high = interval(
        lambda weights: _value(score, weights), n, groups=owner, seed=seed, level=level
    )
    return Metric(value, low, high, level, n, method=f"{name}, bootstrap{over(owner)}")


def _value(
    score: Score, weights: Floats, other: Score | None = None, rest: Floats | None = None
) -> Floats:
    """Return the score under weights ``(B, N)``; rows of another one may be mixed in."""
    hits, asked = weights @ _wide(score.hits), weights @ _wide(score.asked)
    if other is not None and rest is not None:
        hits, asked = hits + rest @ _wide(other.hits), asked + rest @ _wide(other.asked)
    shares = np.divide(hits, asked, out=np.zeros_like(hits), where=asked > 0)
    count = (asked > 0).sum(1)  # a finding that none of these has, has no share
    return np.where(count > 0, shares.sum(1) / np.maximum(count, 1), np.nan)


def _wide(values: Floats) -> Floats:
    return values.reshape(len(values), -1)
