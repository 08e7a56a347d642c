"""Answers of predefined fields only: how many are valid, and what the mask costs.

The tutorial model with random weights, and trained for a few hundred steps, answers about slices
it has not seen at temperatures 1, 3 and 5, under the schema and freely. *Nodule* is the tutorial's
schema; *lung nodule* has lobe, size_mm and category. *Pieces*: each piece of an answer is one
token; *bytes*: the tokenizer knows none of them. The mask's cost is the time in the logits
processor for each token of an answer, beside the model's forward pass for it (with its cache; the
question's is among them) and the rest of ``generate``, one thread, one and 64 answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import _reports as reports
import numpy as np
import torch
from report import Report
from torch import Tensor

from medkit import keyed
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation
from medkit.data.report_schema import LUNG_NODULE, NODULE, ReportSchema
from medkit.vlm.answers import write_answers
from medkit.vlm.constrained import FieldGrammar, OnlyValid
from medkit.vlm.tutorial import tutorial_model, tutorial_pictures, tutorial_tokenizer

SCHEMAS = {"nodule": NODULE, "lung nodule": LUNG_NODULE}


class Timed(OnlyValid):
    """Counts its own seconds and the tokens it masked."""

    seconds, tokens = 0.0, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        began = time.perf_counter()
        out = super().__call__(input_ids, scores)
        Timed.seconds += time.perf_counter() - began
        Timed.tokens += len(scores)
        return out


def answers(
    model: Any,
    chat: ChatEncoder,
    some: list[Conversation],
    schema: ReportSchema,
    temperature: float,
    *,
    free: bool = False,
) -> list[str]:
    """Let a model answer, with room for the longest valid answer."""
    grammar = FieldGrammar(schema, chat.tokenizer)
    return write_answers(
        model,
        chat,
        some,
        max_new_tokens=grammar.longest_tokens,
        batch_size=100,
        processor=None if free else grammar.processor,
        temperature=temperature,
    )


def cost(model: Any, chat: ChatEncoder, some: list[Conversation], repeats: int) -> list[float]:
    """Return milliseconds a token: mask, forward pass and the rest, medians over repeats."""
    grammar = FieldGrammar(NODULE, chat.tokenizer)
    found = []
    at = [0.0, 0.0]  # the pass under way began, all of them took

    def begins(*_: Any) -> None:
        at[0] = time.perf_counter()

    def ends(*_: Any) -> None:
        at[1] += time.perf_counter() - at[0]

    hooks = [model.register_forward_pre_hook(begins), model.register_forward_hook(ends)]
    for number in range(repeats):
        Timed.seconds, Timed.tokens, at[1] = 0.0, 0, 0.0
        prompts = some[number * 64 : number * 64 + 64] if len(some) >= 64 else some
        began = time.perf_counter()
        write_answers(
            model,
            chat,
            prompts,
            max_new_tokens=grammar.longest_tokens,
            processor=lambda: Timed(grammar),
            temperature=1.0,
            seed=number,
        )
        whole = time.perf_counter() - began
        parts = np.array([Timed.seconds, at[1], whole - Timed.seconds - at[1]])
        found.append(parts / Timed.tokens)
    for hook in hooks:
        hook.remove()
    middle: list[float] = (1000 * np.median(found[1:], axis=0)).tolist()
    return middle


def main() -> int:
    """Print the figures."""
    report = Report(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    count = 100 if report.quick else 1000
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        asked = reports.held_out(reports.studies(folder, count, first=20000))
        own = reports.studies(folder, 600 if report.quick else 4000)
        chat = reports.encoder()
        steps = 20 if report.quick else 350
        trained = reports.train(own, folder / "run", seed=0, steps=steps, chat=chat).model
        for name, schema in SCHEMAS.items():
            for words in ("pieces", "bytes"):
                pieces = schema.pieces() if words == "pieces" else ()
                tokenizer = tutorial_tokenizer(["a"], pieces=pieces)
                other = ChatEncoder(tokenizer, tutorial_pictures)
                with keyed.globals_keyed(0, "init"):
                    model: Any = tutorial_model(vocabulary=len(tokenizer))
                for t in (1.0, 3.0, 5.0):
                    found = answers(model, other, asked, schema, t)
                    valid = sum(schema.parse(text) is not None for text in found)
                    title = f"random weights/{name}, {words}, T {t:.0f}/valid"
                    report.share(title, valid, count, at_least=1.0)
                    report.note(f"{len(set(found))} different answers, such as {found[0]}")
        for t in (0.0, 1.0, 3.0, 5.0):
            for free in (True, False):
                found = answers(trained, chat, asked, NODULE, t, free=free)
                read = [NODULE.parse(text) for text in found]
                truth = [one.columns["fields"] for one in asked]
                title = f"trained/{'free' if free else 'schema'}, T {t:.0f}"
                valid = sum(one is not None for one in read)
                report.share(f"{title}/valid", valid, count, at_least=None if free else 1.0)
                exact = sum(one == of for one, of in zip(read, truth, strict=True))
                report.share(f"{title}/exact", exact, count)
        for several in (1, 64):
            part = asked[:several] if several == 1 else asked
            mask, forward, rest = cost(trained, chat, part, 1 + min(20, max(1, len(part) // 64)))
            report.figure(f"cost/{several} at once/mask", mask, unit="ms a token")
            report.figure(f"cost/{several} at once/forward pass", forward, unit="ms a token")
            report.figure(f"cost/{several} at once/the rest of generate", rest, unit="ms a token")
            report.figure(f"cost/{several} at once/mask over forward", mask / forward)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
