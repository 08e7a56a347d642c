"""What ``medkit check`` says: one row a promise, where it breaks, and what to do about it."""

from __future__ import annotations

import inspect
import re
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medkit.callbacks.own_code import is_theirs
from medkit.check.compare import Culprit

PROMISES = {
    "positions": "every sample has a place in its epoch",
    "data set-up": "the data are the same whatever was done before",
    "order": "the order of an epoch is a function of seed and epoch",
    "augmentation": "a sample is a function of its place",
    "collate": "so is a batch",
    "workers": "0 and 2 loader workers give the same batches",
    "initial weights": "they are a function of seed and stage",
    "batch transfer": "what is drawn while a batch is moved is a function of its place",
    "training step": "loss and gradients are functions of weights, batch and place",
    "hidden state": "a resume point holds all that a step leaves behind",
    "resume": "cut and resumed, the same bits",
    "repeat": "a fresh process, the same bits",
}
_ENTROPY = (
    "it is seeded by the operating system, anew each time. Draw from random, np.random or torch "
    "(all keyed), or keep one generator in an attribute (it is found and keyed)"
)
_ADVICE = [
    (
        r"SystemRandom|urandom|secrets\.|uuid[14]\(",
        "the operating system's randomness does not repeat. Draw from random, np.random or torch",
    ),
    (
        r"time\(|time_ns|perf_counter|monotonic|now\(|today\(",
        "the wall time decides. Draw from random, np.random or torch instead (all keyed)",
    ),
    (
        r"getpid|get_ident|get_worker_info|worker_id",
        "it depends on which process fetches. Leave worker and process numbers out of it",
    ),
    (r"(default_rng|RandomState|Random|SeedSequence|PCG64|Philox)\(\s*\)", _ENTROPY),
    (r"\.seed\(\s*\)", _ENTROPY),
    (r"listdir|iterdir|glob\(", "the order of files in a folder is not fixed. Sort them"),
]
_CARRIED = (
    "it is carried over from earlier calls, so it is another value after a resume and in another "
    "worker. Compute it from the index, the epoch or self.global_step"
)
_PRIVATE = (
    "a draw that no key reaches, or state left by earlier calls. Draw from random, np.random or "
    "torch, or keep the generator in an attribute"
)
_PER_PROMISE = {
    "workers": "it depends on which process fetches. Compute it from the index alone",
    "hidden state": _CARRIED,
    "resume": "it does not come back after a resume. Keep it as a number, tensor, list or dict in "
    "an attribute that __init__ makes, or compute it from the step",
    "repeat": "it differs from process to process, as the order of a set of strings, hash() and "
    "id() do. Sort it, or compute it from the data",
}


@dataclass(frozen=True)
class Finding:
    """One row.

    Attributes:
        promise: A key of :data:`PROMISES`.
        holds: None where it was not looked at.
        where: The line that breaks it, or what was seen.
        advice: What to do.
        culprit: The line, where one was found.
    """

    promise: str
    holds: bool | None
    where: str = ""
    advice: str = ""
    culprit: Culprit | None = None

    @property
    def verdict(self) -> str:
        """The word in the table."""
        return {True: "holds", False: "BROKEN", None: "not checked"}[self.holds]


def holds(promise: str, note: str = "") -> Finding:
    """Return the row of a promise that held."""
    return Finding(promise, True, note)


def skipped(promise: str, why: str) -> Finding:
    """Return the row of a promise that was not looked at."""
    return Finding(promise, None, why)


def broken(promise: str, culprit: Culprit, what: str, advice: str = "") -> Finding:
    """Return the row of a promise that broke, with the line.

    Args:
        promise: A key of :data:`PROMISES`.
        culprit: From a comparison of two passes.
        what: What came out otherwise, for when no line of somebody's own is to blame.
        advice: What to do; empty for what the line suggests.
    """
    parts = []
    if culprit.file:
        names = f"  [{', '.join(culprit.names[:3])}]" if culprit.names else ""
        parts.append(f"{_short(culprit.file)}:{culprit.line}: {culprit.source}{names}")
    else:
        parts.append(f"{what}, and no line of your own files differs before it")
    if culprit.label:
        parts.append(f"in {culprit.label}")
    return Finding(promise, False, "; ".join(parts), advice or _advise(promise, culprit), culprit)


def failed(promise: str, error: BaseException, roots: tuple[str, ...]) -> Finding:
    """Return the row of a promise whose check ran into an error of the code under check."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_theirs(frame.filename, roots)]
    text = f"{type(error).__name__}: {error}".splitlines()[0]
    if not own:
        return Finding(promise, False, text, "make it run under a plain Lightning Trainer first")
    at = own[-1]
    where = f"{_short(at.filename)}:{at.lineno}: {at.line}: {text}"
    culprit = Culprit(at.filename, at.lineno or 0)
    return Finding(promise, False, where, "make it run under a plain Trainer first", culprit)


def guarded(promise: str, roots: tuple[str, ...], call: Callable[[], Finding]) -> Finding:
    """Return what ``call`` finds; an error of the code under check is a finding as well."""
    try:
        return call()
    except Exception as error:
        return failed(promise, error, roots)


def table(findings: list[Finding]) -> str:
    """Return the rows as text."""
    lines = [f"{'promise':<16}{'verdict':<13}where, and what to do"]
    for finding in findings:
        text = finding.where or PROMISES[finding.promise]
        lines += row(finding.promise, finding.verdict, text)
        if finding.advice:
            lines += row("", "", f"-> {finding.advice}")
    return "\n".join(lines) + "\n"


def row(first: str, second: str, text: str) -> list[str]:
    """Return one table row, its text wrapped."""
    wrapped = textwrap.wrap(text, 92, break_long_words=False, break_on_hyphens=False) or [""]
    heads = [f"{first:<16}{second:<13}", *[" " * 29] * (len(wrapped) - 1)]
    return [head + line for head, line in zip(heads, wrapped, strict=True)]


def class_line(kind: type) -> Culprit:
    """Return where a class begins."""
    try:
        return Culprit(inspect.getfile(kind), inspect.getsourcelines(kind)[1])
    except (TypeError, OSError):
        return Culprit()


def _advise(promise: str, culprit: Culprit) -> str:
    for pattern, advice in _ADVICE:
        if re.search(pattern, culprit.source):
            return advice
    if culprit.carried and culprit.names:
        return f"{culprit.names[0]}: {_CARRIED}"
    return _PER_PROMISE.get(promise, _PRIVATE)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
