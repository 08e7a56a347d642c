"""Compressed pixels, decoded in a process of their own: a broken file cannot end this one."""

from __future__ import annotations

import atexit
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.dicom.errors import DicomError
from medkit.dicom.frames import Frame

__all__ = ["Decoder"]

SECONDS = 60.0  # that one frame may take; JPEG 2000 of 512 x 512 takes 0.02
_COMMAND = (sys.executable, "-m", "medkit.dicom.decoding_process")
_ARENA_BYTES = 1 << 25  # shared with the process; a larger frame gets a larger one


class Decoder:
    """A process that decodes frames into memory shared with this one; it is started when needed.

    It lives as long as this process, and is started anew where a file has ended it.
    """

    _one: Decoder | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._arena: mmap.mmap | None = None
        self._owner = os.getpid()

    @classmethod
    def here(cls) -> Decoder:
        """Return this process's decoder."""
        if cls._one is None or cls._one._owner != os.getpid():  # a fork has its own
            cls._one = cls()
            atexit.register(cls._one.stop)
        return cls._one

    def decode(self, frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
        """Yield the stored values of each frame, ``(H, W)``, unsigned as they lie in memory.

        What is yielded is a view, and overwritten when the next ones are asked for.

        Raises:
            DicomError: For a frame that cannot be decoded, ended the process, or hung it.
        """
        with self._lock:
            first, used = 0, 0
            for number, frame in enumerate(frames):
                size = frame.rows * frame.columns * _kind(frame).itemsize
                if used and used + size > _ARENA_BYTES:
                    yield from self._some(frames[first:number])
                    first, used = number, 0
                used += size
            yield from self._some(frames[first:])

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.kill()
            process.wait()
        self._arena = None  # views of it may still be read

    def _some(self, frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
        kinds = [_kind(frame) for frame in frames]
        sizes = [f.rows * f.columns * kind.itemsize for f, kind in zip(frames, kinds, strict=True)]
        starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
        wanted = [
            [f.header.path, f.header.syntax, f.header.pixels, f.number, f.rows, f.columns,
             kind.itemsize, start]
            for f, kind, start in zip(frames, kinds, starts, strict=False)
        ]  # fmt: skip
        self._start(starts[-1])
        assert self._arena is not None
        assert self._socket is not None
        line = json.dumps(wanted).encode()
        self._socket.sendall(len(line).to_bytes(8, "little") + line)
        answers = self._answers(self._socket)
        try:
            for frame, kind, start, size in zip(frames, kinds, starts, sizes, strict=False):
                answer = self._answer(frame, answers)
                if answer:
                    raise _undecodable(frame, answer)
                pixels = np.frombuffer(self._arena, kind, size // kind.itemsize, start)
                yield pixels.reshape(frame.rows, frame.columns)
        except BaseException:  # Ctrl-C too, and a caller that asks for no more (GeneratorExit)
            self.stop()  # else the next call would read the answers that are left of this one
            raise

    @staticmethod
    def _answers(channel: socket.socket) -> Iterator[str]:
        """Yield the lines that come back, as long as the process lives."""
        rest = b""
        while True:
            while b"\n" not in rest:
                more = channel.recv(1 << 16)
                if not more:
                    return
                rest += more
            one, _, rest = rest.partition(b"\n")
            yield one.decode()

    def _answer(self, frame: Frame, answers: Iterator[Any]) -> str:
        try:
            return str(next(answers))
        except (StopIteration, ConnectionError):
            code = None if self._process is None else self._process.wait(timeout=10)
            return f"the decoder died on it (exit code {code})"
        except TimeoutError:
            return f"decoding took longer than {SECONDS:g} s"

    def _start(self, size: int) -> None:
        """See that the process lives, and has room for so many bytes."""
        alive = self._process is not None and self._process.poll() is None
        if alive and self._arena is not None and len(self._arena) >= size:
            return
        self.stop()
        size = max(size, _ARENA_BYTES)
        fd = os.memfd_create("frames")
        ours, theirs = socket.socketpair()
        with theirs:
            os.ftruncate(fd, size)
            self._arena = mmap.mmap(fd, size)
            self._process = subprocess.Popen(
                [*_COMMAND, str(theirs.fileno()), str(fd)],
                pass_fds=[theirs.fileno(), fd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        os.close(fd)
        ours.settimeout(SECONDS)
        self._socket = ours


def _kind(frame: Frame) -> np.dtype[Any]:
    bits = frame.header.whole("BitsAllocated")
    if bits not in (8, 16, 32):
        raise frame.bad("bits", f"BitsAllocated must be 8, 16 or 32, found {bits}")
    return np.dtype(f"u{bits // 8}")


def _undecodable(frame: Frame, why: str) -> DicomError:
    missing = "no decoder for" in why
    return frame.bad(
        "no_decoder" if missing else "undecodable",
        f"compressed pixels ({frame.header.syntax}) cannot be decoded: {why}",
        "Install the decoders: pip install 'medkit[codecs]'." if missing else "",
    )
