"""Values of DICOM elements: dates moved, ages capped, and whose words a text says."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

__all__ = ["age", "each", "fit", "moved", "says", "texts", "words_of"]

_IDS = ("PatientID", "OtherPatientIDs", "AccessionNumber")
OLDEST = 89  # years; those above count as one
_FIT = {  # what a value of this kind must be; anything else is somebody's text
    "CS": re.compile(r"[A-Z0-9 _]{0,16}"),
    "DS": re.compile(r" *[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? *"),
    "IS": re.compile(r" *[+-]?\d+ *"),
    "TM": re.compile(r"\d\d(:?\d\d(:?\d\d(\.\d{1,6})?)?)? *"),
    "AS": re.compile(r"\d{3}[DWMY]"),
}
_DATE = re.compile(r"(\d{4})(\d\d)?(\d\d)?((?:\d\d){0,3}(?:\.\d{1,6})?(?:[+-]\d{4})?)")


def moved(text: str, days: int, *, day_only: bool) -> str:
    """Return a DICOM date, or date and time, some days earlier; "" for what is neither.

    A year or a month alone stays one.
    """
    text = text.strip(" \0")
    found = _DATE.fullmatch(re.sub(r"[.-]", "", text) if day_only else text)
    if found is None or (found[4] and (day_only or not found[3])):
        return ""
    try:
        then = date(int(found[1]), int(found[2] or 1), int(found[3] or 1)) - timedelta(days)
    except (ValueError, OverflowError):
        return ""
    digits = 4 + 2 * (found[2] is not None) + 2 * (found[3] is not None)
    return f"{then.year:04d}{then.month:02d}{then.day:02d}"[:digits] + found[4]


def texts(element: Any) -> list[str]:
    """Return the values of an element as texts."""
    value = element.value
    several = value if hasattr(value, "append") else [value]
    return ["" if one is None else str(one) for one in several]


def each(element: Any, change: Callable[[str], str]) -> None:
    """Change each value of an element; an empty one stays empty."""
    changed = [change(text) if text else "" for text in texts(element)]
    element.value = changed if len(changed) > 1 else "".join(changed)


def fit(kind: str, text: str) -> str:
    """Return the text if it can be a value of this kind, else ""."""
    return text if _FIT[kind].fullmatch(text) else ""


def age(text: str) -> str:
    """Return an age, those above 89 years as 90."""
    text = fit("AS", text)
    return f"{OLDEST + 1:03d}Y" if text.endswith("Y") and int(text[:3]) > OLDEST else text


def words_of(dataset: Any) -> frozenset[str]:
    """Return the words of the names and ids, which no text that stays may say."""
    words: set[str] = set()
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if element.VR == "PN" or element.keyword in _IDS:
                words.update(word for text in texts(element) for word in _words(text))
        except Exception:  # what can't be converted is taken out later
            continue
    return frozenset(word for word in words if len(word) > 2)


def says(element: Any, words: frozenset[str]) -> bool:
    """Return whether an element has one of these words."""
    return any(not words.isdisjoint(_words(text)) for text in texts(element))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.upper())
