"""Answers of predefined fields only: a schema enforced token by token.

Valid is not right: a model that never looked at the picture writes valid answers too, all the more
under a schema. Report validity beside what shuffled pictures leave of the score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medkit.data.report_schema import ReportSchema
from medkit.vlm.extra import require

__all__ = ["FieldGrammar", "OnlyValid"]


class FieldGrammar:
    """A schema, ready for one tokenizer.

    ::

        grammar = FieldGrammar(NODULE, tokenizer)
        model.generate(..., logits_processor=[grammar.processor()],
                       max_new_tokens=grammar.longest_tokens)

    Args:
        schema: Fields, or any JSON schema.
        tokenizer: Hugging Face's, fast.

    Raises:
        ValueError: For a schema that cannot be enforced.
        ModuleNotFoundError: Without the extra ``vlm``.
    """

    def __init__(self, schema: ReportSchema | Mapping[str, Any], tokenizer: Any) -> None:
        self._guide = require("llguidance")
        self.schema = schema
        self.tokenizer = tokenizer
        plain = schema.json_schema if isinstance(schema, ReportSchema) else dict(schema)
        # By default a text that must come next is taken apart by the tokenizer and its first token
        # forced, however much likelier a longer one is that begins alike: answers stay valid, and
        # a trained model's exact ones fell from .84 to .29.
        plain = plain | {"x-guidance": {"whitespace_flexible": False}}
        self._text = self._guide.LLMatcher.grammar_from_lark(
            f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps(plain)}'
        )
        wrong = self._guide.LLMatcher.validate_grammar(self._text)
        if wrong:
            raise ValueError(
                f"the schema must be one that can be enforced token by token: {wrong}. Simplify "
                "it; enum, integer bounds, anyOf and required fields work."
            )
        self._wrapped: dict[int, Any] = {}  # by vocabulary

    @property
    def longest_tokens(self) -> int:
        """Tokens that the longest answer can take, a token a character, and the one that ends it.

        Raises:
            ValueError: For a schema of which this is not known.
        """
        if not isinstance(self.schema, ReportSchema):
            raise ValueError(
                "how long an answer can be is known of a ReportSchema; of another JSON schema it "
                "may have no end. Pass max_new_tokens, and count answers that were cut off."
            )
        return self.schema.longest() + 1

    def processor(self) -> OnlyValid:
        """Return what ``generate`` takes in ``logits_processor``; a new one for each call."""
        return OnlyValid(self)

    def matcher(self, vocabulary: int) -> Any:
        """Return a fresh state of the grammar for logits of so many tokens."""
        wrapped = self._wrapped.get(vocabulary)
        if wrapped is None:
            of = require("llguidance.hf")
            wrapped = of.from_tokenizer(self.tokenizer, n_vocab=vocabulary)
            self._wrapped[vocabulary] = wrapped
        return self._guide.LLMatcher(wrapped, self._text)


class OnlyValid:
    """Takes the logits of all tokens away that the grammar does not allow next.

    Follows each row by what is in ``input_ids``, so beams may change places. What stands there at
    the first call is the question.

    Args:
        grammar: Whose answers.
    """

    def __init__(self, grammar: FieldGrammar) -> None:
        self._grammar = grammar
        self._rows: list[tuple[Any, list[int]]] = []  # state, and the answer so far
        self._start = 0
        self._bits: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores, ``(B, vocabulary)``, with -inf where a token is not allowed.

        Args:
            input_ids: Question and answer so far, ``(B, L)``.
            scores: Logits of the next token, ``(B, vocabulary)``.

        Raises:
            ValueError: For a second call of ``generate``, and for a token that is not allowed.
        """
        if not self._rows:
            self._start = input_ids.shape[1]
            self._rows = [(self._fresh(scores), []) for _ in range(len(input_ids))]
            self._bits = torch.zeros(len(scores), -(-scores.shape[1] // 32), dtype=torch.int32)
        if len(input_ids) != len(self._rows) or input_ids.shape[1] < self._start:
            raise ValueError(
                f"a processor is for one call of generate; this one began with {len(self._rows)} "
                f"rows of {self._start} tokens, and now finds {tuple(input_ids.shape)}. Take "
                "grammar.processor() anew."
            )
        bits = self._bits
        assert bits is not None
        said = input_ids[:, self._start :].tolist()
        for row, answer in enumerate(said):
            state = self._at(row, answer, scores)
            if state.is_stopped():
                bits[row] = 0
                end = self._grammar.tokenizer.eos_token_id
                bits[row, end // 32] = torch.tensor(1 << (end % 32)).to(torch.int32)
            else:
                state.unsafe_compute_mask_ptr(bits[row].data_ptr(), 4 * bits.shape[1])
        allowed = (bits.unsqueeze(2) >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = allowed.flatten(1)[:, : scores.shape[1]].bool().to(scores.device)
        return scores.masked_fill(~allowed, -torch.inf)

    def _at(self, row: int, answer: list[int], scores: Tensor) -> Any:
        state, before = self._rows[row]
        if answer[: len(before)] != before:  # another beam
            state, before = self._fresh(scores), []
        for token in answer[len(before) :]:
            if state.is_stopped():
                break  # padding behind the end
            if not state.consume_token(token):
                word = self._grammar.tokenizer.decode([token])
                raise ValueError(
                    f"row {row} went on with {word!r}, which the schema does not allow there: "
                    "another processor behind this one changed the scores. Put this one last."
                )
        self._rows[row] = state, answer
        return state

    def _fresh(self, scores: Tensor) -> Any:
        return self._grammar.matcher(scores.shape[1])
