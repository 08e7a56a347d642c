"""Secrets: refused as parameters, blotted out in what a run prints.

A parameter ends up in ``run.json``, twice in the executed notebook and in the report, and a
resumed run must compare it with the earlier one. A secret can't be in all of these and stay one,
so it is refused with the way out: an environment variable, which the notebook reads itself and
which no file of the run folder holds. What a notebook then prints is searched for the values of
such variables and for shapes that only secrets have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

BLOT = "[secret left out]"

_SECRET_NAME = re.compile(
    r"(^|_)(token|secret|passwd|password|passphrase|credentials?|apikey|api_key|access_key"
    r"|secret_key|private_key|auth_key|auth)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"gh[pousr]_[A-Za-z0-9]{20,}"
    r"|github_pat_[A-Za-z0-9_]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}"
    r"|hf_[A-Za-z0-9]{20,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}"
    r"|sk-[A-Za-z0-9_-]{20,}"
    r"|AIza[A-Za-z0-9_-]{30,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]{0,10000}?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|(?i:bearer)\s+[A-Za-z0-9._~+/=-]{16,}"
    r"|(?<=://)[^\s/:@]+:[^\s/:@]{3,}(?=@)"  # user:password@ in a URL
)
_SECRET_VARIABLE = re.compile(_SECRET_NAME.pattern + r"|_key$", re.IGNORECASE)
MIN_SECRET = 8  # a shorter value would blot out innocent words


def why_secret(name: str, value: object) -> str:
    """Say why a parameter looks like a secret, or return an empty string.

    Names count for strings only (``max_token`` is a number), and not when the value is empty.
    """
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, list) else []
    texts = [text for text in texts if isinstance(text, str) and text]
    if texts and _SECRET_NAME.search(name):
        return "its name says so"
    if any(_SECRET_VALUE.search(text) for text in texts):
        return "its value has the shape of one"
    return ""


class Redactor:
    """Blot secrets out of text: values of secret-named variables, and telltale shapes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        values = {
            value
            for name, value in environment.items()
            if _SECRET_VARIABLE.search(name) and len(value) >= MIN_SECRET
        }
        longest_first = sorted(values, key=lambda value: (-len(value), value))
        self._known = re.compile("|".join(map(re.escape, longest_first))) if values else None

    def clean(self, text: str) -> str:
        """Return ``text`` without secrets."""
        if self._known is not None:
            text = self._known.sub(BLOT, text)
        return _SECRET_VALUE.sub(BLOT, text)
