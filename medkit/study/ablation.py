"""Which practice bought what: a recipe with each practice left out, a start with each put in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from medkit.record.results import Metric
from medkit.study.contrast import Contrast, Spread
from medkit.study.effects import MORE, Effect, Effects
from medkit.study.outcomes import Outcome
from medkit.study.study import Study

RECIPE, START, NOTHING = "recipe", "start", "nothing"
WAYS = ("left out", "tried", "added", "pairs")


@dataclass(frozen=True)
class Practice:
    """One thing that a recipe does or does not do.

    Attributes:
        name: In the field's words; it names folders too.
        on: What it sets in the recipe.
        off: What is set without it; empty: what the others leave.
        used: Whether it is part of the recipe, or only tried.
    """

    name: str
    on: Mapping[str, Any]
    off: Mapping[str, Any] = field(default_factory=dict)
    used: bool = True


def without(practices: Sequence[Practice], names: Sequence[str]) -> list[Practice]:
    """Return the practices but for those named: an ablation leaves these as they are.

    Raises:
        ValueError: For a name that none of them has.
    """
    known = [practice.name for practice in practices]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ValueError(f"leave_out must name some of {known}; got {wrong}. Spell them alike.")
    return [practice for practice in practices if practice.name not in names]


class Ablation:
    """The arms of a study that says which practice buys what.

    ::

        ablation = Ablation([Practice("cosine", {"cosine": True}, {"cosine": False}), ...])
        study = ablation.study("studies/ablation", seeds=range(12))
        study.run(train)                       # train(recipe, seeds, split_seed, site)
        print(ablation.effects(study.outcomes))

    Arms are "recipe" (all practices that are used), "start" (none, or the few named), and by the
    ways asked for:

    - "left out": the recipe without each of them. What does not show here is not needed.
    - "tried": the recipe with each that is not used.
    - "added": the start with each, used or not. Alone it misleads where practices need each other.
    - "pairs": both of a pair left out, and both added: 2 x 2, with what is more than their sum.

    Args:
        practices: In the order they are set: a later one has the last word.
        common: Settings of all arms.
        pairs: Names of practices to be looked at together.
        start: Practices that the start has too, such as the data contract: on broken data nothing
            else shows. Then "nothing" is an arm of its own.
        fixed: Name -> settings of arms that draw nothing, such as logistic regression, for the
            table of arms.
        ways: See above.

    Raises:
        ValueError: For names that are there twice, or that are not known.
    """

    def __init__(
        self,
        practices: Sequence[Practice],
        *,
        common: Mapping[str, Any] | None = None,
        pairs: Sequence[tuple[str, str]] = (),
        start: Sequence[str] = (),
        fixed: Mapping[str, Mapping[str, Any]] | None = None,
        ways: Sequence[str] = WAYS,
    ) -> None:
        self.practices, self.common = tuple(practices), dict(common or {})
        self.pairs, self.start, self.ways = tuple(pairs), tuple(start), tuple(ways)
        self.fixed = dict(fixed or {})
        names = [practice.name for practice in practices]
        used = [practice.name for practice in practices if practice.used]
        unknown = [name for name in (*start, *sum(pairs, ())) if name not in used]
        strange = [way for way in ways if way not in WAYS]
        if not names or len(set(names)) < len(names) or unknown or strange:
            raise ValueError(
                "an ablation needs practices with a name each, a start and pairs of used ones, and "
                f"ways among {list(WAYS)}; got names {names}, unknown {[*unknown, *strange]}. "
                "Spell them alike, and leave out what is there twice."
            )

    def settings(self, on: Iterable[str]) -> dict[str, Any]:
        """Return the recipe that does these practices and no others."""
        doing, found = set(on), dict(self.common)
        for practice in self.practices:
            found |= practice.on if practice.name in doing else practice.off
        return found

    def arms(self) -> dict[str, dict[str, Any]]:
        """Return name -> recipe, for a study; those that change nothing are left out."""
        found = {name: self.settings(on) for name, on in self._arms().items()}
        kept = {
            name: one
            for name, one in found.items()
            if (base := name.split(" ")[0]) == name or one != found[base]
        }
        return kept | {name: self.settings(self._used) | dict(s) for name, s in self.fixed.items()}

    def study(
        self,
        path: Path | str,
        *,
        seeds: Sequence[int],
        split_seeds: Sequence[int] = (0,),
        sites: Sequence[str] = ("",),
    ) -> Study:
        """Return the study of all arms; 12 seeds show a practice that halves the band."""
        return Study(
            path,
            self.arms(),
            seeds=seeds,
            split_seeds=split_seeds,
            sites=sites,
            fixed=list(self.fixed),
        )

    def effects(
        self,
        outcomes: Iterable[Outcome],
        *,
        metric: str = "test/auroc",
        curve: str = "",
        spread: Spread = "band",
    ) -> Effects:
        """Return what each practice did to ``metric`` and to the spread of ``curve`` over seeds.

        Args:
            outcomes: Of the study; arms without any are left out.
            metric: What is to be high. "test/auroc" is taken from the predictions, where all have
                them: its interval is then for other patients too (two-level t); any other is for
                these patients (t over paired seeds).
            curve: Empty: "monitor/loss" where all have it, rows that all arms share; else
                "val/loss".
            spread: "band": ``convergence_band`` of a loss; "late": ``late_spread`` of an AUROC.
        """
        contrast = Contrast(outcomes, metric=metric, curve=curve, spread=spread)
        there = [name for name in self.arms() if name in contrast.arms]
        return Effects(
            tuple(self._rows(contrast)), {name: contrast.arm(name) for name in there}, metric
        )

    @property
    def _used(self) -> list[str]:
        return [practice.name for practice in self.practices if practice.used]

    def _arms(self) -> dict[str, list[str]]:
        used = self._used
        start = list(self.start)
        found: dict[str, list[str]] = {RECIPE: used, START: start}
        if start:
            found[NOTHING] = []
        for one in self.practices:
            if one.used and "left out" in self.ways:
                found[_without(one.name)] = [name for name in used if name != one.name]
            if not one.used and "tried" in self.ways:
                found[_with(RECIPE, one.name)] = [*used, one.name]
            if "added" in self.ways or ("pairs" in self.ways and self._paired(one.name)):
                found[_with(START, one.name)] = [*start, one.name]
        for a, b in self.pairs if "pairs" in self.ways else ():
            found[_without(a, b)] = [name for name in used if name not in (a, b)]
            found[_with(START, a, b)] = [*start, a, b]
        return found

    def _paired(self, name: str) -> bool:
        return any(name in pair for pair in self.pairs)

    def _rows(self, contrast: Contrast) -> Iterator[Effect]:
        for one in self.practices:
            if one.used:
                yield from _effect(contrast, one.name, "left out", RECIPE, _without(one.name))
            else:
                yield from _effect(contrast, one.name, "tried", _with(RECIPE, one.name), RECIPE)
            if "added" in self.ways:
                yield from _effect(contrast, one.name, "added", _with(START, one.name), START)
        for a, b in self.pairs if "pairs" in self.ways else ():
            name, both = f"{a} and {b}", _with(START, a, b)
            yield from _effect(contrast, name, "left out", RECIPE, _without(a, b))
            yield from _effect(contrast, name, "added", both, START)
            alone = [_with(START, one) for one in (a, b)]
            if contrast.arms.keys() >= {both, *alone, START}:
                more = contrast.gain({both: 1, START: 1} | dict.fromkeys(alone, -1))
                yield Effect(name, MORE, more, Metric(nan, method="no ratio of four arms"))


def _effect(
    contrast: Contrast, practice: str, way: str, doing: str, not_doing: str
) -> Iterator[Effect]:
    """Yield the effect, where both arms have been trained."""
    if contrast.arms.keys() >= {doing, not_doing}:
        yield Effect(
            practice,
            way,
            gain=contrast.gain({doing: 1, not_doing: -1}),
            wider=contrast.wider(not_doing, doing),
            failed_with=contrast.failed(doing),
            failed_without=contrast.failed(not_doing),
            same=contrast.same(doing, not_doing),
        )


def _without(*names: str) -> str:
    return f"{RECIPE} without {' and '.join(names)}"


def _with(base: str, *names: str) -> str:
    return f"{base} with {' and '.join(names)}"
