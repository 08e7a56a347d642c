"""Where things are in a conversation: a field's tokens, and the place of each picture's tokens.

Image tokens are a row of numbers to the model. Which part of the picture one stands for, is known
for families that cut a picture into a grid; of the others it is said why not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation
from medkit.data.encoded import IGNORED, Encoded, given, padded
from medkit.data.pictures import read_picture
from medkit.data.report_schema import ReportSchema

__all__ = ["Asked", "Pixels", "ask", "token_grids"]

WHOLE = "answer"  # the name of all that is said, where there is no schema


@dataclass(frozen=True, eq=False)
class Asked:
    """A conversation with an answer, of which can be asked why it says what it says.

    Attributes:
        encoded: Question and answer.
        tokens: Field -> places in ``encoded.ids`` of the tokens that say its value.
        said: Field -> its value, as JSON.
        blank: What the model is given of black pictures of the same size.
    """

    encoded: Encoded
    tokens: Mapping[str, tuple[int, ...]]
    said: Mapping[str, str]
    blank: Mapping[str, Tensor] = field(default_factory=dict)

    def inputs(self, model: Any) -> dict[str, Tensor]:
        """Return what the model is called with, on its device, a batch of one."""
        batch = given(padded([self.encoded], 0))
        device = next(model.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}


def ask(
    encoder: ChatEncoder,
    conversation: Conversation,
    answer: str | None = None,
    *,
    schema: ReportSchema | None = None,
) -> Asked:
    """Find the tokens of an answer's fields.

    Args:
        encoder: Of the model.
        conversation: With pictures.
        answer: What was said, such as the model's own; None: the conversation's answer.
        schema: Of the answer; None: all of it is one field, called "answer".

    Raises:
        ValueError: For an answer that is not of the schema, a conversation without pictures, and a
            tokenizer that changes what is said.
    """
    text = conversation.answer if answer is None else answer
    report = None if schema is None else schema.parse(text)
    if not conversation.images or (schema is not None and report is None):
        raise ValueError(
            f"what is asked about must have pictures and an answer of the schema; found "
            f"{len(conversation.images)} pictures and {text[:80]!r}. Leave this one out, or have "
            "answers written under the schema."
        )
    encoded = encoder.encode(conversation, text)
    learnt = (encoded.labels != IGNORED).nonzero()[:, 0].tolist()
    first = next(p for p in reversed(learnt) if p - 1 not in learnt)  # of the last answer
    spans = {WHOLE: (0, len(text))} if report is None else _spans(text, report)
    ends = [encoder.tokenizer.decode(encoded.ids[first : p + 1]) for p in learnt if p >= first]
    start = ends[-1].find(text)
    if start < 0:
        raise ValueError(
            f"an answer's tokens must spell it, so that a field's are found; {text[:60]!r} comes "
            f"back as {ends[-1][:60]!r}. The tokenizer changes letters or spaces: take one that "
            "keeps them, or ask about the tokens' places yourself (Asked)."
        )
    edges = [0, *(max(0, len(one) - start) for one in ends)]
    tokens = {
        name: tuple(first + n for n in range(len(ends)) if edges[n] < stop and edges[n + 1] > begin)
        for name, (begin, stop) in spans.items()
    }
    said = {name: text[begin:stop] for name, (begin, stop) in spans.items()}
    return Asked(encoded, tokens, said, _blank(encoder, conversation))


class Pixels:
    """How the pictures lie in what a model is given, and the way back to rows and columns.

    Args:
        pictures: Fields of :class:`~medkit.data.encoded.Encoded`: ``pixel_values`` as ``(..., C, H,
            W)``, or Qwen-VL's rows, a patch each, with ``image_grid_thw``.
        merge: Patches along a side of what becomes one token of Qwen-VL, which decides on the order
            of rows.

    Raises:
        ValueError: For pictures of different grids, and for videos.
    """

    def __init__(self, pictures: Mapping[str, Tensor], merge: int = 1) -> None:
        values = pictures["pixel_values"]
        grid = pictures.get("image_grid_thw")
        self.rows: Tensor | None = None  # of the tensor, (h, w, K), where it has patches in rows
        if grid is None:
            self.sides = (int(values.shape[-2]), int(values.shape[-1]))
            self.before = values.shape[:-3]
            self.count = self.before.numel()
            return
        if len(grid.unique(dim=0)) != 1 or int(grid[0, 0]) != 1:
            raise ValueError(
                "pictures of one conversation must have one grid and no time, so that their maps "
                f"can stand together; got {grid.tolist()} (time, rows, columns). Resample them."
            )
        _, height, width = grid[0].tolist()
        self.sides, self.count = (height, width), len(grid)
        number = torch.arange(len(grid) * height * width)
        tiles = number.view(len(grid), height // merge, width // merge, merge, merge)
        self.rows = tiles.permute(1, 3, 2, 4, 0).reshape(height, width, len(grid))

    def maps(self, values: Tensor) -> Tensor:
        """Add up what is of one place: like ``pixel_values`` to ``(h, w, K)``."""
        if self.rows is not None:
            return values.sum(-1)[self.rows.to(values.device)]
        return values.flatten(0, -4).sum(1).permute(1, 2, 0)

    def mask(self, picture: int, rows: slice, columns: slice) -> Tensor:
        """Return where a rectangle of one picture is, to be broadcast to ``pixel_values``."""
        height, width = self.sides
        if self.rows is not None:
            found = torch.zeros(self.rows.numel(), 1, dtype=torch.bool)
            found[self.rows[rows, columns, picture].flatten()] = True
            return found
        found = torch.zeros(self.count, 1, height, width, dtype=torch.bool)
        found[picture, :, rows, columns] = True
        return found.view(*self.before, 1, height, width)


def token_grids(model: Any, asked: Asked) -> tuple[Tensor, tuple[int, int]]:
    """Return where the image tokens are in ``ids``, ``(K, rows * columns)``, and rows, columns.

    Raises:
        ValueError: For a family whose image tokens have no place in the picture, or not one grid.
    """
    names = [name for name, _ in model.named_parameters()]
    for part, why in _NO_GRID.items():
        if any(part in name for name in names):
            raise ValueError(
                f"an image token must stand for a place in the picture, and of "
                f"{type(model).__name__} {why}. Ask by occlusion or integrated gradients instead, "
                "which go back to the pixels."
            )
    merge = _merge(model)
    pixels = Pixels(asked.encoded.pictures, merge)
    at = (asked.encoded.ids == model.config.image_token_id).nonzero()[:, 0]
    each, rest = divmod(len(at), pixels.count)
    height, width = pixels.sides
    if pixels.rows is not None:
        rows, columns = height // merge, width // merge
    else:
        rows = round((each * height / width) ** 0.5)
        columns = each // max(rows, 1)
    if rest or rows * columns != each or rows * width != columns * height:
        raise ValueError(
            f"image tokens must be a grid over the picture; found {len(at)} of {pixels.count} "
            f"pictures of {height} x {width}. Where a class token or ends of lines are among them, "
            "places are not known; ask by occlusion or integrated gradients."
        )
    return at.view(pixels.count, each), (rows, columns)


def pixels_of(model: Any, asked: Asked) -> Pixels:
    """Return how the pictures lie in what this model is given."""
    return Pixels(asked.encoded.pictures, _merge(model))


_NO_GRID = {
    "qformer": "they are queries, each of which looks at all of it",
    "image_newline": "tiles and ends of lines are mixed",
}


def _merge(model: Any) -> int:
    return int(getattr(model.config.vision_config, "spatial_merge_size", 1))


def _spans(text: str, report: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    found = {}
    for name, value in report.items():
        key, said = (re.escape(json.dumps(one)) for one in (name, value))
        at = re.search(rf"{key}\s*:\s*({said})", text)
        if at is not None:
            found[name] = at.span(1)
    return found


def _blank(encoder: ChatEncoder, conversation: Conversation) -> Mapping[str, Tensor]:
    """Show the encoder black pictures: what that is after its scaling, it alone knows."""
    from PIL import Image

    with TemporaryDirectory() as folder:
        files = []
        for number, image in enumerate(conversation.images):
            black = np.zeros(read_picture(image).shape, np.uint8)
            files.append(str(Path(folder) / f"{number}.png"))
            Image.fromarray(black).save(files[-1])
        return encoder.pictures(files)[0] if encoder.pictures is not None else {}
