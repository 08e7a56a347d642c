"""What a chest report says of each finding: present, uncertain, absent, or nothing.

Rules, sentence by sentence, as in NegEx (Chapman 2001): a cue reaches over its clause, "no" and
"may represent" to the right, "has resolved" and "not excluded" to the left. It reads English of
chest radiographs and simple CT reports, and nothing else; what it gets wrong most is a list whose
"no" is meant for its first item alone.

    label("Small left effusion. No pneumothorax.")["Pneumothorax"]  # "absent"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from medkit.vlm.finding_terms import (
    ANATOMY,
    CUES,
    FINDINGS,
    LOOKALIKES,
    NORMAL_SIGNS,
    OTHER_ABNORMAL,
)

__all__ = ["STATUSES", "Mention", "is_normal", "label", "mentions", "places", "sizes_mm"]

STATUSES = ("present", "uncertain", "absent", "not mentioned")  # the first that is said, counts

_Cue = tuple[str, int, int]  # kind, start, end


@dataclass(frozen=True)
class Mention:
    """One place where a finding is spoken of.

    Attributes:
        finding: One of :data:`FINDINGS`.
        status: "present", "uncertain", "absent", or "not mentioned" (of the past alone).
        words: What named it, in lower case.
        sentence: Where, in lower case.
    """

    finding: str
    status: str
    words: str
    sentence: str


def mentions(report: str) -> list[Mention]:
    """Return every mention of a finding, in the order of the sentences."""
    return list(_mentions(report))


def label(report: str) -> dict[str, str]:
    """Return the status of each of :data:`FINDINGS`; what is asserted once, is present."""
    said = {name: STATUSES[-1] for name in FINDINGS}
    for one in mentions(report):
        said[one.finding] = min(said[one.finding], one.status, key=STATUSES.index)
    return said


def is_normal(report: str) -> bool:
    """Whether a report with words in it names nothing abnormal, not even as possible.

    Scars, degenerate spines, wires and catheters are abnormal too, as for OpenI's coders.
    """
    if any(one.status in STATUSES[:2] for one in mentions(report)):
        return False
    for sentence in _sentences(report):
        cues = _cues(sentence)
        for at in _OTHER.finditer(sentence):
            if _status(sentence, cues, *at.span()) != "absent":
                return False
    return bool(report.strip())


def places(report: str) -> set[tuple[str, str]]:
    """Return each asserted finding with each of :data:`ANATOMY` its sentence names.

    "Small left effusion." holds ("Effusion", "left"). Both sides count for "bilateral". A sentence
    with two findings gives each of them every place in it.
    """
    return {
        (one.finding, place)
        for one in mentions(report)
        if one.status == "present"
        for place, words in _ANATOMY.items()
        if words.search(one.sentence)
    }


def sizes_mm(report: str) -> list[tuple[float, ...]]:
    """Return what is measured, largest dimension first [mm].

    Reads "7 mm", "0.7 cm", "7-mm", "7 x 5 mm", "7 mm by 5 mm" and ``"size_mm": 7``; of "5-7 mm" the
    upper end. Sizes of before ("previously 5 mm") are left out.
    """
    found: list[tuple[float, ...]] = []
    for at in _SIZE.finditer(report.lower()):
        if at["json"]:
            found.append((float(at["json"]),))
        elif not at["past"]:
            numbers = [float(one) for one in re.findall(r"\d+(?:\.\d+)?", at["numbers"])]
            scale = 10.0 if at["unit"].startswith("c") else 1.0
            found.append(tuple(sorted((scale * one for one in numbers), reverse=True)))
    return found


def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)")


_END = re.compile(r"(?<=[.!?])\s+|\n+")
_EDGE = r"(?:(?<!\w)|(?=[,:;])){}(?:(?!\w)|(?<=[:;]))"
_CUES = re.compile("|".join(_EDGE.format(f"(?P<{kind}>{words})") for kind, words in CUES.items()))
_TERMS = {name: _whole(words) for name, words in FINDINGS.items()}
_SIGNS = {_whole(words): denied for words, denied in NORMAL_SIGNS.items()}
_OTHER = _whole(OTHER_ABNORMAL)
_LOOKALIKES = _whole(LOOKALIKES)
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"(?:mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)"
_SIZE = re.compile(
    rf'"size_mm"\s*:\s*(?P<json>{_NUMBER})'
    r"|(?P<past>(?:previously|formerly|prior)\s+(?:measur\w+\s+)?)?"
    rf"(?<![\d.])(?P<numbers>{_NUMBER}(?:[\s-]*{_UNIT}?\s*(?:x|by)\s*{_NUMBER}){{0,2}})"
    rf"[\s-]*(?P<unit>{_UNIT})(?!\w)"
)
_ANATOMY = {place: _whole(words) for place, words in ANATOMY.items()}
_CONJUNCTION = re.compile(r"\b(?:and|or)\b")


@lru_cache(maxsize=2048)  # several rewards read each report, and a reference goes with many
def _mentions(report: str) -> tuple[Mention, ...]:
    found = []
    for sentence in _sentences(report):
        cues = _cues(sentence)
        for name, term in _TERMS.items():
            for at in term.finditer(sentence):
                status = _status(sentence, cues, *at.span())
                found.append(Mention(name, status, at[0], sentence))
        for sign, denied in _SIGNS.items():
            for at in sign.finditer(sentence):
                if _status(sentence, cues, *at.span()) == "present":
                    found += [Mention(name, "absent", at[0], sentence) for name in denied]
    return tuple(found)


def _sentences(report: str) -> list[str]:
    """Split into sentences; look-alikes are blanked, as long as they were."""
    text = _LOOKALIKES.sub(lambda at: "_" * len(at[0]), report.lower())
    return [one for one in _END.split(text) if one.strip()]


def _cues(sentence: str) -> list[_Cue]:
    return [(at.lastgroup or "", *at.span()) for at in _CUES.finditer(sentence)]


def _status(sentence: str, cues: list[_Cue], start: int, end: int) -> str:
    left = max((b for kind, _, b in cues if kind == "end" and b <= start), default=0)
    right = min((a for kind, a, _ in cues if kind == "end" and a >= end), default=len(sentence))
    turn = max((b for kind, _, b in cues if kind == "turn" and b <= start), default=0)
    before = {kind for kind, a, b in cues if a >= left and b <= start}
    after = {kind for kind, a, b in cues if a >= end and b <= right and _joined(sentence[end:a])}
    denies = any(kind == "denies" and max(left, turn) <= a and b <= start for kind, a, b in cues)
    if denies or "denied" in after:
        return "absent"
    if {"hedge", "hedges"} & before or {"hedged", "hedges"} & after:
        return "uncertain"
    return "not mentioned" if "past" in before else "present"


def _joined(between: str) -> bool:
    """Whether a cue still speaks of what came before: no comma between, or those of a list."""
    return "," not in between or bool(_CONJUNCTION.search(between.rpartition(",")[2]))
