"""What a notebook prints, kept readable and bounded.

papermill keeps every refresh of a progress bar as an output of its own (20,000 refreshes make a
3.5 MB notebook and cost 13 CPU seconds) and every printed line. Here a carriage return overwrites
the line as it does in a terminal, and the middle of a long output is left out, with a note.
"""

from __future__ import annotations

import re
from collections import deque

HEAD_CHARS = 100_000
TAIL_CHARS = 100_000

_BELOW = re.compile(r"\n[^\n]*\x1b\[A")  # a nested bar: one line down, draw, one line up again


class Terminal:
    """Turn chunks of printed text into lines, with carriage returns carried out.

    Args:
        open_lines: How many of the last lines may still be overwritten; 1 for a log that is to be
            followed line by line, more where nested progress bars go up and down.
    """

    def __init__(self, open_lines: int = 1) -> None:
        self.open = ""
        self._open_lines = open_lines

    def feed(self, text: str) -> str:
        """Take a chunk; return the text that is finished by it."""
        text = self.open + text
        while "\x1b[A" in text:
            text, found = _BELOW.subn("", text)
            if not found:
                text = text.replace("\x1b[A", "")
        *above, last = text.split("\n")
        lines = [*(_overwritten(line.rstrip("\r")) for line in above), _overwritten(last)]
        cut = max(0, len(lines) - self._open_lines)
        self.open = "\n".join(lines[cut:])
        done = "".join(line + "\n" for line in lines[:cut])
        if len(self.open) > HEAD_CHARS:  # no newline ever: don't scan it again and again
            done, self.open = done + self.open, ""
        return done

    def finish(self) -> str:
        """Return what is still open, as the terminal would show it."""
        rest, self.open = self.open.rstrip("\r"), ""
        return rest


def _overwritten(line: str) -> str:
    """Drop what a carriage return has overwritten; one at the end may still be a line end's."""
    text = line.rstrip("\r")
    return text[text.rfind("\r") + 1 :] + line[len(text) :]


class StreamBuffer:
    """One stream output of a cell: its beginning, its end, and how much was left out between."""

    def __init__(self) -> None:
        self._terminal = Terminal(open_lines=8)
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._head_size = self._tail_size = self._dropped = 0

    def append(self, text: str) -> None:
        """Take a chunk of the stream."""
        done = self._terminal.feed(text)
        if not done:
            return
        room = HEAD_CHARS - self._head_size
        if room > 0:
            self._head.append(done[:room])
            self._head_size += len(self._head[-1])
            done = done[room:]
        if done:
            self._tail.append(done)
            self._tail_size += len(done)
        while (excess := self._tail_size - TAIL_CHARS) > 0:
            first = self._tail.popleft()
            if len(first) > excess:
                self._tail.appendleft(first[excess:])
            gone = min(len(first), excess)
            self._tail_size -= gone
            self._dropped += gone

    @property
    def text(self) -> str:
        """The stream as a notebook should hold it."""
        note = ""
        if self._dropped:
            note = f"\n[{self._dropped:,} characters left out; all of it is in logs/output.log]\n"
        open_text = self._terminal.open.rstrip("\r")
        return "".join(self._head) + note + "".join(self._tail) + open_text
