"""What an audit for leaks says, and how sure it must be before it says it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import erfc, exp, lgamma, log, sqrt
from typing import Any

from medkit.record.ledger import Ledger

SEVERITIES = ("leak", "suspicious", "note")
ALPHA = 1e-5  # of each check that rests on chance, whatever the number of columns or pairs


@dataclass(frozen=True)
class Finding:
    """One thing an audit found.

    Attributes:
        severity: "leak": results on held-out rows are not to be believed. "suspicious": look at
            it before you believe them. "note": good to know.
        check: Which check found it, such as "exact duplicates".
        sentence: What was found, with numbers; rows by their number, never patients by their id.
        evidence: The numbers, in plain types.
        remedy: What to do.
    """

    severity: str
    check: str
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(
                f"a finding's severity must be one of {list(SEVERITIES)}, got "
                f"{self.severity!r}. 'note' is the mildest."
            )

    def __str__(self) -> str:
        return f"{self.severity}: {self.check}: {self.sentence} {self.remedy}".strip()


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Sort by severity; within one, in the order they were found."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def report(findings: Sequence[Finding]) -> str:
    """Return the findings as text, worst first, one paragraph each."""
    counts = {s: sum(f.severity == s for f in findings) for s in SEVERITIES}
    plural = {"leak": "leaks", "suspicious": "suspicious", "note": "notes"}
    lines = [", ".join(f"{n} {s if n == 1 else plural[s]}" for s, n in counts.items())]
    lines += [str(finding) for finding in worst_first(findings)]
    return "\n".join(lines) + "\n"


def grouped(found: Sequence[tuple[Sequence[str], Finding]], count: int) -> list[Finding]:
    """Return each finding once, with how many of the ``count`` stages have it, and which.

    Notes that differ in their decimals alone are one, with the numbers of the first.

    Args:
        found: Stages, and what was found in them.
        count: How many there are; of one alone nothing is said.
    """
    same: dict[tuple[str, str, str], tuple[Finding, list[str], set[str]]] = {}
    for stages, finding in found:
        note = finding.severity == "note"
        said = re.sub(r"\d+\.\d+", "", finding.sentence) if note else finding.sentence
        first = same.setdefault((finding.severity, finding.check, said), (finding, [], set()))
        first[1].extend(stages)
        first[2].add(finding.sentence)
    if count == 1:
        return [finding for finding, _, _ in same.values()]
    return [
        replace(finding, sentence=f"{finding.sentence} ({_in(stages, count, len(said) > 1)})")
        for finding, stages, said in same.values()
    ]


def _in(stages: Sequence[str], count: int, differ: bool) -> str:
    numbers = f"; numbers of {stages[0]}" if differ else ""
    if len(stages) == count:
        return f"in all {count} stages{numbers}"
    more = ", ..." if len(stages) > 3 else ""
    return f"in {len(stages)} of {count} stages: {', '.join(stages[:3])}{more}{numbers}"


def to_ledger(findings: Sequence[Finding], ledger: Ledger) -> None:
    """Write a line per finding but notes; lines that are there already are not written again."""
    there = {(line["event"], line["detail"]) for line in ledger.read()}
    for found in worst_first(findings):
        event = f"{found.severity}: {found.check}"
        if found.severity == "note" or (event, found.sentence) in there:
            continue  # a resumed run sets its data up again
        ledger.append(
            event,
            action="warned",
            detail=found.sentence,
            facts={
                "severity": found.severity,
                "check": found.check,
                "evidence": found.evidence,
                "remedy": found.remedy,
            },
        )


def two_sided(z: float) -> float:
    """Return the p-value of a standard normal."""
    return erfc(abs(z) / sqrt(2))


def more_than_chance(bits: Sequence[float], pairs: int, *, margin: float) -> tuple[int, float]:
    """Say how many of these coincidences are beyond chance.

    A coincidence of ``b`` bits happens by chance in one pair of 2^b, so among ``pairs`` the number
    of that size is at most Poisson; the smallest tail over the 1, 2, 3, ... most surprising ones
    counts, corrected for that choice.

    Args:
        bits: Surprise of each coincidence, no row in two of them.
        pairs: Pairs among which they were found.
        margin: Bits taken off each, since columns that hang together surprise less than their sum.

    Returns:
        How many of the most surprising ones are too many (0: none), and the p-value.
    """
    found, best = 0, 1.0
    for count, surprise in enumerate(sorted(bits, reverse=True), start=1):
        rate = log(max(pairs, 1)) - (surprise - margin) * log(2)
        if rate >= 0:  # the tail's bound below holds for fewer than one expected
            break
        tail = count * rate - lgamma(count + 1) + log(count * (count + 1))
        best = min(best, exp(max(tail, -700.0)))
        if tail < log(ALPHA):
            found = count
    return found, best
