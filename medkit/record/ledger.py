"""The ledger: one line for every time the kit stepped in."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from medkit.record.files import append_whole, is_full_disk, write_text
from medkit.record.pseudonym import key_path, pseudonym

LEDGER_NAME = "ledger.jsonl"

_log = logging.getLogger(__name__)
_waiting: dict[Path, list[bytes]] = {}  # lines that a full disk keeps out, by ledger


class Ledger:
    """Append-only lines with the keys ``time stage epoch batch step event rows action detail``.

    ``rows`` holds pseudonyms or positions, never patient identifiers. Lines that a report makes a
    table of have ``facts`` too: what ``detail`` says, as plain types.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(
        self,
        event: str,
        *,
        action: str,
        stage: str = "",
        epoch: int | None = None,
        batch: int | None = None,
        step: int | None = None,
        rows: Sequence[int | str] = (),
        detail: str = "",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write one line and sync it: what was done is known even after a SIGKILL.

        On a full disk the line waits in memory for the next one, or for :meth:`flush`.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "epoch": epoch,
            "batch": batch,
            "step": step,
            "event": event,
            "rows": list(rows),
            "action": action,
            "detail": detail,
        } | ({} if facts is None else {"facts": dict(facts)})
        text = f"{json.dumps(line, ensure_ascii=False)}\n".encode()
        _waiting.setdefault(self.path, []).append(text)
        try:
            self.flush()
        except OSError as error:
            if not is_full_disk(error):
                raise
            _log.warning("%s: %d lines wait for room on the disk", self.path, len(self._lines()))

    def flush(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: When they still cannot be written; they go on waiting.
        """
        lines = self._lines()
        if not lines:
            return
        if self.path.exists():
            with self.path.open("r+b") as handle:
                _drop_torn_end(handle)
        append_whole(self.path, b"".join(lines))
        del _waiting[self.path]

    def _lines(self) -> list[bytes]:
        return _waiting.get(self.path, [])

    def read(self) -> list[dict[str, Any]]:
        """Return the lines; a last line torn by a kill is left out."""
        there = self.path.read_bytes() if self.path.exists() else b""
        waiting = b"".join(self._lines())
        if waiting and there:
            there = there[: there.rfind(b"\n") + 1]
        lines = (there + waiting).decode().splitlines()
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise ValueError(
                        f"{self.path} line {number} must be JSON, got {line[:80]!r}. "
                        "The ledger was damaged or edited; restore it from a copy."
                    ) from None
        return rows

    def cut_after(self, stage: str, step: int, *, place: tuple[int, int] | None = None) -> int:
        """Drop what ``stage`` wrote after optimizer step ``step``; return the number dropped.

        A run resumed from that step lives through those events again and writes them anew. Steps
        that were skipped have no number of their own: a line that names its epoch and batch is
        judged by ``place``, the epoch and batch the run goes on with.
        """

        def is_later(row: Mapping[str, Any]) -> bool:
            if row["stage"] != stage or row["step"] is None:
                return False
            if place is None or row["epoch"] is None or row["batch"] is None:
                return int(row["step"]) > step
            return (row["epoch"], row["batch"]) >= place

        rows = self.read()
        kept = [row for row in rows if not is_later(row)]
        if len(kept) < len(rows):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            write_text(self.path, text)
            _waiting.pop(self.path, None)
        return len(rows) - len(kept)


def rows_named(run_dir: Path | str, rows: Iterable[int | str]) -> dict[str, int | str]:
    """Return name -> row for those of ``rows`` that the ledger of a run names.

    Only whoever has the key of the pseudonyms and the rows themselves can go back to them.

    Args:
        run_dir: The run folder.
        rows: Rows as the data know them: what the batches' field ``row`` holds, else
            ``range(len(dataset))``.

    Raises:
        ValueError: When the ledger names rows and none of these is among them.
    """
    lines = Ledger(Path(run_dir) / LEDGER_NAME).read()
    names = {str(name) for line in lines for name in line["rows"]}
    named = {name: row for row in rows if (name := pseudonym(row)) in names}
    if names and not named:
        raise ValueError(
            f"rows must be those of the run, but none is among the {len(names)} that {run_dir} "
            f"names. Pass the batches' field `row`, or range(len(dataset)); the key must be the "
            f"one of that run, here it is {key_path()}."
        )
    return named


def _drop_torn_end(handle: BinaryIO) -> None:
    """Cut a last line that a kill or a full disk tore: the next one would be glued to it."""
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - 1))
    if handle.read(1) not in {b"", b"\n"}:
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)
