"""One live line in the terminal, from the file that the kernel's callback writes."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from medkit.record.attempts import read_progress

PLAIN_EVERY_S = 30.0
_LOOK_EVERY_S = 0.5


class ProgressLine:
    """Show where a job is: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        progress_json: ``logs/progress.json``, which may not be there yet.
        cells: Number of code cells.
        stream: Where to write; standard error by default.
    """

    def __init__(self, progress_json: Path, *, cells: int, stream: TextIO | None = None) -> None:
        self._path = progress_json
        self._cells = cells
        self._stream = stream or sys.stderr
        self._cell = 0
        self._start, self._began = time.monotonic(), time.time()
        self._bar: tqdm | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="medkit-progress", daemon=True)

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def at_cell(self, number: int) -> None:
        """Say which code cell is running, counted from 1."""
        self._cell = number

    def _run(self) -> None:
        live = self._stream.isatty()
        last_plain = time.monotonic()
        while not self._stop.wait(_LOOK_EVERY_S):
            state = read_progress(self._path, since=self._began)
            if live:
                self._draw(state)
            elif time.monotonic() - last_plain >= PLAIN_EVERY_S:
                last_plain = time.monotonic()
                self._stream.write(f"[{last_plain - self._start:6.0f} s] {self._words(state)}\n")
                self._stream.flush()

    def _words(self, state: dict[str, Any]) -> str:
        words = f"cell {self._cell}/{self._cells}" if self._cell else "starting"
        if state.get("stage"):
            words += f"  {state['stage']}"
            if state.get("message") != "done":
                epoch = int(state.get("epoch") or 0) + 1
                words += "  " + _counted("epoch", epoch, state.get("max_epochs"))
                words += "  " + _counted("batch", state.get("batch"), state.get("batches"))
        return f"{words}  {state.get('message') or ''}".rstrip()

    def _draw(self, state: dict[str, Any]) -> None:
        batches, epochs = int(state.get("batches") or 0), int(state.get("max_epochs") or 0)
        fitting = batches * epochs > 0 and state.get("message") != "done"
        total, done = self._cells, self._cell - 1
        if fitting:
            total = batches * epochs
            done = int(state.get("epoch") or 0) * batches + int(state.get("batch") or 0)
        columns, lines = shutil.get_terminal_size()  # 80 x 24 where a terminal says 0 x 0
        if self._bar is None:
            self._bar = tqdm(
                total=total,
                file=self._stream,
                leave=False,
                bar_format=_FORMAT,
                ncols=columns,
                nrows=lines,
            )
        if self._bar.total != total:
            self._bar.reset(total=total)
        self._bar.ncols = columns
        self._bar.n = max(0, min(done, total))
        self._bar.set_description_str(self._words(state), refresh=False)
        self._bar.refresh()


def _counted(name: str, number: int | None, last: int | None) -> str:
    """Return ``epoch 3/12``, never more than all; ``epoch 3`` where no end is set."""
    number, last = int(number or 0), int(last or 0)
    return f"{name} {min(number, last)}/{last}" if last > 0 else f"{name} {number}"


_FORMAT = "{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]"
