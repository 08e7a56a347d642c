"""Every operation of a step with the module and the line that called it, backward ones included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medkit.callbacks.bits import memory_of
from medkit.callbacks.fingerprint import feed
from medkit.callbacks.own_code import line_here

FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
_FRESH = ("empty", "new_empty", "resize")  # what they give was never written
_OVERWRITE = ("fill_", "copy_", "zero_", "normal_", "uniform_", "bernoulli_", "random_")


class PlacedOps(TorchDispatchMode):
    """Sees aten operations, and says where each comes from.

    A node of the backward graph carries the sequence number of the forward operation that made
    it, so an operation of the backward pass is given that one's module and line.

    Args:
        root: The module whose parts are named.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self._names = {id(part): name for name, part in root.named_modules()}
        self._open: list[str] = []
        self._made: dict[int, tuple[str, str]] = {}
        self._handles: list[Any] = []

    def watch(self) -> None:
        """Follow which module is running from now on."""

        def enter(module: nn.Module, _: Any) -> None:
            if id(module) in self._names:
                name = self._names[id(module)]
                self._open.append(f"{name} ({type(module).__name__})" if name else "")

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if id(module) in self._names and self._open:
                self._open.pop()

        self._handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]

    def unwatch(self) -> None:
        """Leave the modules alone again."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._open = [], []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what runs inside the block."""
        self.watch()
        try:
            with self:
                yield
        finally:
            self.unwatch()

    def place(self) -> tuple[str, str, bool]:
        """Return module, line and whether it is a backward operation, for the one that runs now."""
        node: Any = torch._C._current_autograd_node()
        if node is not None:
            return *self._made.get(node._sequence_nr(), ("", "")), True
        at = (self._open[-1] if self._open else "", line_here())
        # the first one seen there: what needs no gradient has no number of its own
        self._made.setdefault(torch._C._autograd._get_sequence_nr() - 1, at)
        return *at, False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and have it seen."""
        return self.seen(func, args, dict(kwargs or {}))

    def seen(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one operation; a subclass looks at what goes in and comes out."""
        raise NotImplementedError


@dataclass(frozen=True)
class Op:
    """What one operation took and gave.

    Attributes:
        name: As torch writes it, such as "aten.addmm.default".
        phase: "forward", "backward" or "optimizer".
        module: The module that was running, with its class; empty outside of one.
        line: Somebody's own line that called it.
        took: Digest of its inputs, generators left out.
        gave: Digest of its outputs; empty for memory that nobody has written yet.
        draws: Whether it draws from a generator.
        unwritten: Whether it reads memory that nobody has written.
    """

    name: str
    phase: str
    module: str
    line: str
    took: str
    gave: str
    draws: bool
    unwritten: bool


class OpTrace(PlacedOps):
    """Digests inputs and outputs of every operation.

    Attributes:
        ops: One an operation, in order.
        phase: What runs now; whoever holds the trace says so.
        paused: While true, nothing is recorded.
    """

    def __init__(self, root: nn.Module) -> None:
        super().__init__(root)
        self.ops: list[dict[str, Any]] = []
        self.phase = FORWARD
        self.paused = False
        self._unwritten: set[int] = set()

    def seen(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Digest what goes in and comes out."""
        if self.paused:
            return func(*args, **kwargs)
        module, line, _ = self.place()
        whole = str(func)
        name = whole.split(".")[1] if "." in whole else whole
        wrote, read, views = _tensors(func, args, kwargs)
        overwrites = name in _OVERWRITE or ".out" in whole
        taken = read if overwrites else [*read, *wrote]
        unwritten = not views and any(memory_of(t) in self._unwritten for t in taken)
        numbers = [p for p in tree_leaves((args, kwargs)) if isinstance(p, bool | int | float)]
        known = [t for t in taken if memory_of(t) not in self._unwritten]
        took = digest_of([known, numbers])
        result = func(*args, **kwargs)
        given = [part for part in tree_leaves(result) if isinstance(part, Tensor)]
        fresh = name.startswith(_FRESH)
        for tensor in wrote if not fresh else ():
            if tensor.nbytes >= tensor.untyped_storage().nbytes():
                self._unwritten.discard(memory_of(tensor))
        if fresh:
            self._unwritten |= {memory_of(tensor) for tensor in given}
        elif not views:
            self._unwritten -= {memory_of(t) for t in given} - {memory_of(t) for t in wrote}
        known = [tensor for tensor in given if memory_of(tensor) not in self._unwritten]
        gave = "" if fresh else digest_of([known, [] if given else [result]])
        draws = torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())
        op = Op(whole, self.phase, module, line, took, gave, draws, unwritten)
        self.ops.append(asdict(op))
        return result


def digest_of(value: Any) -> str:
    """Return a short digest of tensors, arrays and plain values."""
    hasher = hashlib.blake2b(digest_size=8)
    feed(hasher, value)
    return hasher.hexdigest()


def _tensors(func: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[list[Any], list[Any], bool]:
    """Return the tensors an operation writes, those it reads, and whether it only gives a view."""
    schema = func._schema
    by_name = dict(zip((a.name for a in schema.arguments), args, strict=False)) | dict(kwargs)
    wrote: list[Any] = []
    read: list[Any] = []
    for argument in schema.arguments:
        found = [t for t in tree_leaves(by_name.get(argument.name)) if isinstance(t, Tensor)]
        alias = argument.alias_info
        (wrote if alias is not None and alias.is_write else read).extend(found)
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return wrote, read, views
