"""How varied and how odd answers are, without a look at whether they are right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

__all__ = ["answer_figures", "words_of"]

_WORD = re.compile(r"(\S)\1{3,}|[^\W\d_]+")


def words_of(text: str) -> list[str]:
    """Return a text's words in small letters, numbers left out; "////" is one too."""
    return [found.group().lower() for found in _WORD.finditer(text)]


def answer_figures(
    answers: Sequence[str], true: Sequence[str], known: Collection[str]
) -> dict[str, float]:
    """Say how varied and how odd answers are, beside the true ones of the same questions.

    Args:
        answers: One a question.
        true: As many.
        known: Words of :func:`words_of` that true answers have.

    Returns:
        ``diversity``, different answers over different true ones; ``dominance``, share of the
        commonest answer less that of the commonest true one; ``odd_words``, share of words that are
        not known, or one sign four times or more ("xxxx", "////"); 1 where there is no word.
    """
    words = [word for text in answers for word in words_of(text)]
    odd = [word for word in words if word not in known or (len(word) > 3 and len({*word}) == 1)]
    most, most_true = (Counter(texts).most_common(1)[0][1] for texts in (answers, true))
    return {
        "diversity": len({*answers}) / len({*true}),
        "dominance": (most - most_true) / len(true),
        "odd_words": len(odd) / len(words) if words else 1.0,
    }
