"""What a generated report earns: each reward's range, what it pays for, and what fools it.

Every one is ``fn(completions, **columns) -> list[float]`` as in ms-swift: columns are as long as
``completions``, and those it does not name are ignored. None of them sees the image, so each has a
constant text that earns much; put them together with :class:`medkit.vlm.rewards.Rewards`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medkit.data.report_schema import NODULE, ReportSchema
from medkit.vlm.finding_terms import FINDINGS
from medkit.vlm.labeller import label, places, sizes_mm

__all__ = [
    *("anatomy", "fields", "findings", "length", "negatives", "restraint", "size", "validity"),
]

MISSED, INVENTED = -1.0, -0.5  # a missed finding costs a patient more than one to be looked for


def validity(completions: Sequence[str], *, schema: ReportSchema = NODULE, **_: Any) -> list[float]:
    """Reward text that is the schema's JSON and nothing else: 1, else 0.

    Fooled by any constant allowed object: 1 always. Constrained decoding makes it 1 as well, so
    that it then only adds a constant.
    """
    return [float(schema.parse(text) is not None) for text in completions]


def fields(
    completions: Sequence[str],
    *,
    fields: Sequence[Mapping[str, Any]],
    schema: ReportSchema = NODULE,
    **_: Any,
) -> list[float]:
    """Reward the share of right fields, in [-1, 1]; a finding invented is -0.5, one missed -1.

    What the schema does not allow is -1 too: else silence would be dearer than nonsense. Fooled by
    the commonest finding with its commonest fields where nearly all studies have one, and by
    "nothing there" where nearly none have.

    Raises:
        ValueError: For true fields of another schema, which every right answer would miss.
    """
    schema.require(fields, 'name its schema: Rewards(..., settings={"schema": ...})')
    return [_fields(schema, text, true) for text, true in zip(completions, fields, strict=True)]


def findings(
    completions: Sequence[str], *, findings: Sequence[Mapping[str, bool]], **_: Any
) -> list[float]:
    """Reward a report that asserts what people coded, and only that, in [-1, 1].

    Right findings less missed ones less half the invented ones, over the coded; 1 less half the
    invented where none is coded. A hedged one counts as half said: 0 where it is there, -0.25 where
    it is not (free hedges would be the best constant text). Fooled by a normal report where most
    are normal, and by words the labeller misreads.

    Raises:
        ValueError: For a finding that the labeller does not know.
    """
    return [_findings(text, coded) for text, coded in zip(completions, findings, strict=True)]


def anatomy(completions: Sequence[str], *, reference: Sequence[str], **_: Any) -> list[float]:
    """Reward findings at the reference's places: F1 of (finding, place) pairs, in [0, 1].

    1 where neither has any. Naming every place is paid for in precision. Fooled by saying nothing
    where most references assert nothing, and by a sentence that holds several findings.
    """
    return [
        _f1(places(text), places(true)) for text, true in zip(completions, reference, strict=True)
    ]


def negatives(completions: Sequence[str], *, reference: Sequence[str], **_: Any) -> list[float]:
    """Reward denying what the reference denies, and not what it asserts, in [-1, 1].

    The share of the reference's denied findings that are denied here, all where there are none,
    less the share of its asserted ones that are. Fooled by what most reports deny; denying
    everything loses no more than the second share.
    """
    scores = []
    for text, true in zip(completions, reference, strict=True):
        denied, key = _said(text, "absent"), _said(true, "absent")
        there = _said(true, "present")
        kept = len(denied & key) / len(key) if key else 1.0
        scores.append(kept - (len(denied & there) / len(there) if there else 0.0))
    return scores


def restraint(completions: Sequence[str], *, reference: Sequence[str], **_: Any) -> list[float]:
    """Punish findings that the reference does not have, and hedges, in [-1, 0].

    Invented findings, and half of those hedged without the reference's hedging, over all that are
    asserted or hedged. What the reference holds possible may be asserted or hedged. Fooled by
    saying nothing: never use it alone.
    """
    scores = []
    for text, true in zip(completions, reference, strict=True):
        sure, hedged = _said(text, "present"), _said(text, "uncertain")
        possible = _said(true, "uncertain")
        invented = sure - _said(true, "present") - possible
        lost = len(invented) + 0.5 * len(hedged - possible)
        scores.append(-lost / max(1, len(sure | hedged)))
    return scores


def size(
    completions: Sequence[str], *, reference: Sequence[str], tolerance_mm: float = 2.0, **_: Any
) -> list[float]:
    """Reward measurements within a tolerance of the reference's, in [0, 1].

    Matched one to one, all dimensions that both give within ``tolerance_mm`` [mm], over the larger
    number of different measurements; 1 where neither measures. Listing many sizes is paid for.
    Fooled by saying none where most references have none, and by the commonest size.
    """
    return [
        _sizes(sizes_mm(text), sizes_mm(true), tolerance_mm)
        for text, true in zip(completions, reference, strict=True)
    ]


def length(completions: Sequence[str], *, reference: Sequence[str], **_: Any) -> list[float]:
    """Reward as many words as the reference has: the smaller number over the larger, in [0, 1].

    Fooled by any words at all, as many as usual.
    """
    scores = []
    for text, true in zip(completions, reference, strict=True):
        counts = sorted((len(text.split()), len(true.split())))
        scores.append(counts[0] / counts[1] if counts[1] else 1.0)
    return scores


def _said(report: str, status: str) -> set[str]:
    return {name for name, said in label(report).items() if said == status}


def _fields(schema: ReportSchema, text: str, true: Mapping[str, Any]) -> float:
    found = schema.parse(text)
    if found is None:
        return -1.0
    if found[schema.head] != true[schema.head]:
        return MISSED if true[schema.head] else INVENTED
    right = schema.score(found, true).values()
    return sum(right) / len(right)


def _findings(text: str, coded: Mapping[str, bool]) -> float:
    unknown = sorted(set(coded) - set(FINDINGS))
    if unknown:
        raise ValueError(
            f"findings must be among {list(FINDINGS)}, got {unknown}. Rename or leave them out."
        )
    true = {name for name, there in coded.items() if there}
    said = label(text)
    sure = {name for name in coded if said[name] == "present"}
    missed = {name for name in true if said[name] in ("absent", "not mentioned")}
    hedged = {name for name in coded if said[name] == "uncertain"}
    points = len(sure & true) + MISSED * len(missed)
    points += INVENTED * (len(sure - true) + len(hedged - true) / 2)
    return max(-1.0, points / len(true) if true else 1.0 + points)


def _f1(found: set[tuple[str, str]], true: set[tuple[str, str]]) -> float:
    both = len(found) + len(true)
    return 2 * len(found & true) / both if both else 1.0


def _sizes(
    found: Sequence[tuple[float, ...]], true: Sequence[tuple[float, ...]], tolerance_mm: float
) -> float:
    left, said = sorted(set(true)), sorted(set(found))
    most = max(len(left), len(said))
    hits = 0
    for one in said:
        off = {other: _furthest(one, other) for other in left}
        near = [(far, other) for other, far in off.items() if far <= tolerance_mm]
        if near:
            hits += 1
            left.remove(min(near)[1])
    return hits / most if most else 1.0


def _furthest(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest difference of the dimensions that both have."""
    return max(abs(a - b) for a, b in zip(one, other, strict=False))
