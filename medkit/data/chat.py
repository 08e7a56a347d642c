"""Conversations -> token numbers and what is learnt of them.

The chat template says what stands between the turns. Only what the assistant says, and the token
that ends it, is learnt; where it lies is found by the characters of the template's own text, turn
by turn, so a template that changes earlier turns when a later one comes is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from medkit.data.conversations import MARK, Conversation, Turn
from medkit.data.encoded import IGNORED, Encoded

__all__ = ["ChatEncoder", "Pictures"]

Pictures = Callable[[Sequence[str]], tuple[Mapping[str, Tensor], Sequence[str]]]
"""Files -> what the model is given of them, and the text that stands for each in a conversation."""


class ChatEncoder:
    """Encodes conversations for one model.

    Args:
        tokenizer: Hugging Face's, fast and with a chat template.
        pictures: How the model sees pictures; None: it sees none.
        mark: What the template writes where a picture stands (``<|image_pad|>``): contents are
            then lists of parts, as the templates of image-text models want them. None: contents
            are texts, in which the pictures' text stands.
        longest: Tokens that a conversation may have; None: any number.
        kinds: Of each :class:`Encoded`.

    Raises:
        ValueError: For a tokenizer without template or without the places of its tokens, and a
            template that writes no pictures where it should.
    """

    def __init__(
        self,
        tokenizer: Any,
        pictures: Pictures | None = None,
        *,
        mark: str | None = None,
        longest: int | None = None,
        kinds: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        if not getattr(tokenizer, "chat_template", None) or not tokenizer.is_fast:
            raise ValueError(
                "a conversation needs a fast tokenizer with a chat template, which says what "
                f"stands between turns; {type(tokenizer).__name__} has "
                f"{'none' if tokenizer.is_fast else 'no places of tokens'}. Set "
                "tokenizer.chat_template, or take the Instruct version of the model."
            )
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.mark = mark
        self.longest = longest
        self.kinds = dict(kinds)
        self.end = self._ended_by()

    def encode(self, conversation: Conversation, answer: str | None = None) -> Encoded:
        """Encode all turns; the last with another answer where one is passed.

        Raises:
            ValueError: Where the template cannot be followed turn by turn, or leaves out what was
                said, and for a conversation that is longer than it may be.
        """
        turns = list(conversation.turns)
        if answer is not None:
            turns[-1] = Turn("assistant", answer)
        seen, texts = self._seen(conversation)
        text = self._text(turns, texts)
        learnt: list[tuple[int, int]] = []
        for number, turn in enumerate(turns):
            if turn.role == "assistant" and turn.loss:
                before = self._text(turns[:number], texts, asking=True)
                until = self._text(turns[: number + 1], texts)
                if number == len(turns) - 1 and not text.startswith(before):
                    text = until = self._as_asked(text, before, turn.content)
                if not (text.startswith(before) and text.startswith(until)):
                    raise ValueError(
                        "the chat template must write a turn alike whatever follows it, and does "
                        f"not: turn {number} of {text[:200]!r}. Take another template, or one "
                        "answer a conversation."
                    )
                learnt.append((len(before), len(until)))
        self._require_all(turns, text)
        found = self.tokenizer(
            text, add_special_tokens=self._begins(text), return_offsets_mapping=True
        )
        ids = torch.tensor(found["input_ids"])
        labels = torch.full_like(ids, IGNORED)
        for first, last in learnt:
            for at, (start, stop) in enumerate(found["offset_mapping"]):
                if first <= start and stop <= last and start < stop:
                    labels[at] = ids[at]
                    if ids[at] == self.end:
                        break  # a line break that some templates write behind it is not said
        return self._encoded(conversation, ids, labels, seen)

    def prompt(self, conversation: Conversation) -> Encoded:
        """Encode what comes before the last answer, ready to be answered."""
        seen, texts = self._seen(conversation)
        text = self._text(conversation.asked, texts, asking=True)
        self._require_all(conversation.asked, text)
        found = self.tokenizer(text, add_special_tokens=self._begins(text))
        ids = torch.tensor(found["input_ids"])
        return self._encoded(conversation, ids, torch.full_like(ids, IGNORED), seen)

    def _encoded(
        self, of: Conversation, ids: Tensor, labels: Tensor, seen: Mapping[str, Tensor]
    ) -> Encoded:
        if self.longest is not None and len(ids) > self.longest:
            raise ValueError(
                f"a conversation may have {self.longest} tokens, which is what the model reads or "
                f"longest= says; one with {len(of.images)} pictures has {len(ids)}: "
                f"{of.turns[0].content[:60]!r}. Lower max_pixels=, show fewer slices, or leave it "
                "out and say so."
            )
        return Encoded(ids, labels, seen, self.kinds)

    def _seen(self, conversation: Conversation) -> tuple[Mapping[str, Tensor], Sequence[str]]:
        """Return what is given of the pictures, and the text that stands for each."""
        marks = sum(turn.content.count(MARK) for turn in conversation.turns)
        if marks != len(conversation.images):
            raise ValueError(
                f"a conversation must have as many images as {MARK} marks; this one has "
                f"{len(conversation.images)} and {marks}. Write a mark where each picture stands."
            )
        if not conversation.images:
            return {}, ()
        if self.pictures is None:
            raise ValueError(
                f"this conversation has {len(conversation.images)} pictures, and the encoder sees "
                "none. Pass pictures=, or leave the marks and images out."
            )
        return self.pictures(conversation.images)

    def _text(self, turns: Sequence[Turn], texts: Sequence[str], *, asking: bool = False) -> str:
        """Return the template's text of turns, pictures' texts in it."""
        left = iter(texts)
        ended = self.end_text if self._adds_end else ""
        messages: list[dict[str, Any]] = []
        for turn in turns:
            content = turn.content + (ended if turn.role == "assistant" else "")
            first, *rest = content.split(MARK)
            if self.mark is None:
                whole: Any = first + "".join(next(left) + part for part in rest)
            else:
                said = [[{"type": "image"}, {"type": "text", "text": part}] for part in rest]
                whole = [{"type": "text", "text": first}, *(part for both in said for part in both)]
                whole = [part for part in whole if part.get("text", "there")]
            messages.append({"role": turn.role, "content": whole})
        text = self._rendered(messages, asking=asking)
        if self.mark is None:
            return text
        marks = sum(turn.content.count(MARK) for turn in turns)
        first, *rest = text.split(self.mark)
        if len(rest) != marks:
            raise ValueError(
                f"the chat template must write {self.mark!r} once a picture; it wrote "
                f"{len(rest)} for {marks}, in {text[:200]!r}. A text must not hold the mark "
                "itself; for another template pass template=."
            )
        return first + "".join(next(left) + part for part in rest)

    def _as_asked(self, text: str, before: str, answer: str) -> str:
        """Return a text whose last answer begins as the model will be asked for it.

        LLaVA-OneVision's template begins an answer with a space that a question does not end in.
        """
        said = answer + (self.end_text if self._adds_end else "")
        head, found, behind = text.rpartition(said)
        alike = sum(
            1 for _ in takewhile(lambda both: both[0] == both[1], zip(head, before, strict=False))
        )
        differ = head[alike:] + before[alike:]
        return before + said + behind if found and not differ.strip() else text

    def _rendered(self, messages: Sequence[Mapping[str, Any]], *, asking: bool = False) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asking
        )
        return text

    def _begins(self, text: str) -> bool:
        """Whether the tokenizer's first token is still to be put before a template's text.

        Hugging Face's processors do so where a template does not write it, its tokenizers never.
        """
        first = self.tokenizer.bos_token
        return self.mark is not None and not (first and first in text)

    def _require_all(self, turns: Sequence[Turn], text: str) -> None:
        """Refuse a template that leaves out what was said, as one that wants parts does of text."""
        for turn in turns:
            lost = [part for part in turn.content.split(MARK) if part.strip() not in text]
            if lost:
                raise ValueError(
                    f"the chat template must write all that is said, and leaves {lost[0][:60]!r} "
                    f"of the {turn.role} out of {text[:200]!r}. Pass another by template=."
                )

    def _ended_by(self) -> int:
        """Return the token that ends an answer; set whether answers get it from here."""
        self._adds_end, said = False, "medkit"
        asked: Any = said if self.mark is None else [{"type": "text", "text": said}]
        turns = [{"role": role, "content": asked} for role in ("user", "assistant")]
        behind = self._rendered(turns).rpartition(said)[2]
        special = self.tokenizer.added_tokens_decoder
        found = self.tokenizer(behind, add_special_tokens=False)["input_ids"]
        ends = [one for one in found if one in special and special[one].special]
        # LLaVA's templates write none: its answers would never end
        self._adds_end = not ends
        end: int | None = ends[0] if ends else self.tokenizer.eos_token_id
        if end is None:
            raise ValueError(
                "an answer needs a token that ends it; the chat template writes none, and the "
                "tokenizer has none. Set tokenizer.eos_token."
            )
        self.end_text: str = self.tokenizer.convert_ids_to_tokens(end)
        return end
