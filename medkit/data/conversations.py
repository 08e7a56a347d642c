"""Conversations about pictures, in ms-swift's JSONL and in tables of reports.

A line has ``messages`` (role and content, ``<image>`` where a picture stands) and ``images``;
``rejected_response`` for preferences. Everything else, such as ``patient``, ``site`` and
``fields``, is kept as a column that rewards and scores get. A run can be carried over as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medkit.record.files import write_text

__all__ = [
    "Conversation",
    "Turn",
    "patients_of",
    "place_of",
    "read_conversations",
    "read_report_table",
    "write_conversations",
]

MARK = "<image>"
_ROLES = ("system", "user", "assistant")
_MISSING = ("", "nan", "none", "null", "<na>")  # what is written of a value that is not there
_OWN = ("messages", "images", "rejected_response")


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: "system", "user" or "assistant".
        content: With ``<image>`` where a picture stands.
        loss: Whether it is learnt from, for the assistant's.
    """

    role: str
    content: str
    loss: bool = True


@dataclass(frozen=True)
class Conversation:
    """One sample.

    Attributes:
        turns: The last one is the assistant's.
        images: Files, in the order of their marks.
        rejected: Another last answer, which is worse.
        columns: All else that is known of it.
        where: File and line it was read from, for messages; it is no part of what it is.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    rejected: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)

    @property
    def answer(self) -> str:
        """The last answer."""
        return self.turns[-1].content

    @property
    def asked(self) -> tuple[Turn, ...]:
        """All before it."""
        return self.turns[:-1]


def place_of(conversations: Sequence[Conversation], row: int) -> str:
    """Return where a person finds a conversation: its file and line, else its row."""
    return conversations[row].where or f"row {row}, counted from 0"


def patients_of(conversations: Sequence[Conversation], column: str, *, remedy: str) -> list[str]:
    """Return whose each conversation is.

    Raises:
        ValueError: Where some do not say so, or are empty there: all of these would be one patient.
            It ends with the remedy.
    """
    said = [str(one.columns.get(column, "")) for one in conversations]
    missing = [row for row, one in enumerate(said) if one.strip().lower() in _MISSING]
    if missing:
        raise ValueError(
            f"each conversation must say whose it is, as {column!r}; {len(missing)} of "
            f"{len(said)} do not or are empty there, the first is "
            f"{place_of(conversations, missing[0])}. {remedy}"
        )
    return said


def read_conversations(path: Path | str) -> list[Conversation]:
    """Read JSONL as ms-swift writes it; pictures are looked for beside the file.

    Raises:
        ValueError: For a line that is none; it is named.
        FileNotFoundError: For a picture that is not there.
    """
    path = Path(path)
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append(_conversation(line, f"{path}:{number}", path.parent))
    if not found:
        raise ValueError(f"{path} must hold conversations, a line each, and is empty.")
    return found


def write_conversations(path: Path | str, conversations: Sequence[Conversation]) -> None:
    """Write JSONL that :func:`read_conversations`, and ms-swift, read; paths as they are."""
    write_text(Path(path), "".join(json.dumps(_line(one)) + "\n" for one in conversations))


def read_report_table(
    path: Path | str,
    *,
    answer: Sequence[str] = ("findings", "impression"),
    images: str | None = None,
    asked: str = "Describe the findings.",
) -> list[Conversation]:
    """Read a table with a report a row, as OpenI's is, into conversations.

    Args:
        path: CSV.
        answer: Columns that make the answer, in their order; rows where all are empty are left out.
        images: Column with file names, several apart by ``;``, beside the table, at least one
            where there is an answer; None: text alone.
        asked: What the user says.

    Raises:
        ValueError: For columns that are not there, no row with an answer, or an answer without
            the picture.
        FileNotFoundError: For a picture that is not there.
    """
    path = Path(path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    wanted = [*answer, *([images] if images else [])]
    missing = [name for name in wanted if name not in table.columns]
    if missing:
        raise ValueError(
            f"{path} must have the columns {wanted}; {missing} are not among "
            f"{list(table.columns)}. Name others by answer= and images=."
        )
    found, bare = [], []
    for number, row in enumerate(table.to_dict("records"), 1):
        where = f"{path}, row {number} below the header"
        text = " ".join(part for name in answer if (part := row[name].strip()))
        if not text:
            continue
        names = [n for n in (row[images].split(";") if images else []) if n.strip()]
        if images and not names:
            bare.append(number)
        files = tuple(_there(path.parent / n.strip(), where) for n in names)
        turns = (Turn("user", MARK * len(files) + asked), Turn("assistant", text))
        columns = {str(k): v for k, v in row.items() if k not in wanted}
        found.append(Conversation(turns, files, columns=columns, where=where))
    if bare:
        raise ValueError(
            f"{path} must name a picture in {images!r} wherever there is an answer; it is empty in "
            f"{len(bare)} of {len(found)} rows, counted from 1 below the header: "
            f"{', '.join(map(str, bare[:5]))}{', ...' * (len(bare) > 5)}. Leave these rows out, or "
            "pass images=None for text alone."
        )
    if not found:
        raise ValueError(f"{path} must have rows with a text in {list(answer)}, and has none.")
    return found


def _conversation(line: str, where: str, folder: Path) -> Conversation:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise ValueError(
            f"{where} must be JSON ({error}). Write one object a line; a CSV "
            "is read by read_report_table(path), whose conversations are passed instead."
        ) from error
    if not isinstance(read, dict) or not isinstance(read.get("messages"), list):
        raise ValueError(f"{where} must be an object with a list called messages.")
    turns = tuple(_turns(read["messages"], where))
    if not turns or turns[-1].role != "assistant":
        raise ValueError(f"{where} must end with what the assistant says, there to be learnt.")
    names = read.get("images") or []
    names = [names] if isinstance(names, str) else names
    images = tuple(_there(folder / name, where) for name in names)
    marks = sum(turn.content.count(MARK) for turn in turns)
    if marks != len(images):
        raise ValueError(
            f"{where} must have as many images as {MARK} marks; found {len(images)} and {marks}. "
            "A picture without a mark would never be seen."
        )
    rejected = read.get("rejected_response")
    if rejected is not None and (not isinstance(rejected, str) or rejected == turns[-1].content):
        raise ValueError(
            f"{where}: rejected_response must be a text that is not the answer itself; found "
            f"{rejected!r}."
        )
    columns = {name: value for name, value in read.items() if name not in _OWN}
    return Conversation(turns, images, rejected, columns, where)


def _turns(messages: Sequence[Any], where: str) -> Iterator[Turn]:
    before = ""
    for one in messages:
        role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (0, 0)
        if role not in _ROLES or not isinstance(content, str):
            raise ValueError(
                f"{where}: a message must have a role of {_ROLES} and a content; found {one!r}."
            )
        if role == before or (role == "system") != (role == "system" and not before):
            raise ValueError(
                f"{where}: user and assistant must take turns, after at most one system message; "
                f"found {role!r} after {before or 'nothing'!r}."
            )
        before = role
        if role == "assistant" and one.get("loss", True) and not content.strip():
            raise ValueError(
                f"{where}: what the assistant says must not be empty, as it is learnt; found "
                f'{content!r}. Write it, leave the line out, or add "loss": false to the message.'
            )
        yield Turn(role, content, bool(one.get("loss", True)))


def _there(path: Path, where: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {path} must be a picture, and is not there.")
    return str(path)


def _line(one: Conversation) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": turn.role, "content": turn.content} | ({} if turn.loss else {"loss": False})
        for turn in one.turns
    ]
    line: dict[str, Any] = {"messages": messages}
    if one.images:
        line["images"] = list(one.images)
    if one.rejected is not None:
        line["rejected_response"] = one.rejected
    return line | dict(one.columns)
