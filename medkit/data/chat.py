"""Conversations -> token numbers and what is learnt of them.

The chat template says what stands between the turns. Only what the assistant says, and the token
that ends it, is learnt; where it lies is found by the characters of the template's own text, turn
by turn, so a template that changes earlier turns when a later one comes is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medkit.data.conversations import MARK, Conversation, Turn

__all__ = ["IGNORED", "ChatEncoder", "Encoded", "Pictures", "padded", "pictures_of"]

IGNORED = -100  # as a label: nothing is learnt here

Pictures = Callable[[Sequence[str]], tuple[Mapping[str, Tensor], Sequence[str]]]
"""Files -> what the model is given of them, and the text that stands for each in a conversation."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One conversation.

    Attributes:
        ids: Token numbers, int64 ``(L,)``.
        labels: The same where it is learnt, ``IGNORED`` elsewhere.
        pictures: What the model is given of its pictures.
    """

    ids: Tensor
    labels: Tensor
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class ChatEncoder:
    """Encodes conversations for one model.

    Args:
        tokenizer: Hugging Face's, fast and with a chat template.
        pictures: How the model sees pictures; None: it sees none.

    Raises:
        ValueError: For a tokenizer without template or without the places of its tokens.
    """

    def __init__(self, tokenizer: Any, pictures: Pictures | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None) or not tokenizer.is_fast:
            raise ValueError(
                "a conversation needs a fast tokenizer with a chat template, which says what "
                f"stands between turns; {type(tokenizer).__name__} has "
                f"{'none' if tokenizer.is_fast else 'no places of tokens'}. Set "
                "tokenizer.chat_template, or take the Instruct version of the model."
            )
        self.tokenizer = tokenizer
        self.pictures = pictures

    def encode(self, conversation: Conversation, answer: str | None = None) -> Encoded:
        """Encode all turns; the last with another answer where one is passed.

        Raises:
            ValueError: Where the template cannot be followed turn by turn.
        """
        turns = list(conversation.turns)
        if answer is not None:
            turns[-1] = Turn("assistant", answer)
        given, turns = self._seen(conversation, turns)
        text = self._text(turns)
        learnt: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and turn.loss:
                before = self._text(turns[:number], asking=True)
                until = self._text(turns[: number + 1])
                if not (text.startswith(before) and text.startswith(until)):
                    raise ValueError(
                        "the chat template must write a turn alike whatever follows it, and does "
                        f"not: turn {number} of {text[:200]!r}. Take another template, or one "
                        "answer a conversation."
                    )
                learnt.append((len(before), len(until)))
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(found["input_ids"])
        labels = torch.full_like(ids, IGNORED)
        for at, (start, stop) in enumerate(found["offset_mapping"]):
            if any(first <= start and stop <= last for first, last in learnt):
                labels[at] = ids[at]
        return Encoded(ids, labels, given)

    def prompt(self, conversation: Conversation) -> Encoded:
        """Encode what comes before the last answer, ready to be answered."""
        given, turns = self._seen(conversation, conversation.asked)
        text = self._text(turns, asking=True)
        ids = torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Encoded(ids, torch.full_like(ids, IGNORED), given)

    def _seen(
        self, conversation: Conversation, turns: Sequence[Turn]
    ) -> tuple[Mapping[str, Tensor], list[Turn]]:
        """Return what is given of the pictures, and turns with their tokens in place of marks."""
        if not conversation.images:
            return {}, list(turns)
        if self.pictures is None:
            raise ValueError(
                f"this conversation has {len(conversation.images)} pictures, and the encoder sees "
                "none. Pass pictures=, or leave the marks and images out."
            )
        given, texts = self.pictures(conversation.images)
        left = iter(texts)
        out = []
        for turn in turns:
            first, *rest = turn.content.split(MARK)
            content = first + "".join(next(left) + part for part in rest)
            out.append(Turn(turn.role, content, turn.loss))
        return given, out

    def _text(self, turns: Sequence[Turn], *, asking: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asking
        )
        return text


def padded(samples: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Return conversations as one batch, filled up on the right.

    Args:
        samples: To be put together; pictures are put one behind the other.
        pad: Number of the padding token.

    Returns:
        ``input_ids``, ``labels`` and ``attention_mask``, ``(B, L)``, and the pictures' fields.
    """
    length = max(len(one.ids) for one in samples)
    ids = torch.full((len(samples), length), pad)
    labels = torch.full((len(samples), length), IGNORED)
    mask = torch.zeros((len(samples), length), dtype=torch.int64)
    for row, one in enumerate(samples):
        ids[row, : len(one.ids)] = one.ids
        labels[row, : len(one.ids)] = one.labels
        mask[row, : len(one.ids)] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask} | pictures_of(samples)


def pictures_of(samples: Sequence[Encoded]) -> dict[str, Tensor]:
    """Put the pictures of conversations one behind the other.

    Where models keep them by conversation, ``(1, K, ...)``, and these have different numbers, they
    are filled up with zeros, which such models leave out.
    """
    found = {}
    for name in dict.fromkeys(name for one in samples for name in one.pictures):
        parts = [one.pictures[name] for one in samples if name in one.pictures]
        most = max(part.shape[1] if part.ndim > 1 else 0 for part in parts)
        if any(part.ndim >= 4 and part.shape[1] < most for part in parts):
            parts = [_filled(part, most) for part in parts]
        found[name] = torch.cat(parts)
    return found


def _filled(part: Tensor, most: int) -> Tensor:
    missing = part.new_zeros(part.shape[0], most - part.shape[1], *part.shape[2:])
    return torch.cat([part, missing], dim=1)
