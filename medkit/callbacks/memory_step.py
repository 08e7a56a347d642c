"""An optimizer step that ran out of memory half-way: taken back whole, and taken again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from medkit.callbacks.guard_step import weights_of
from medkit.callbacks.memory_errors import DoesNotFitError, first_line, free, is_out_of_memory

_AS_IS = (Tensor, int, float, bool, str, type(None))
Tell = Callable[[str, str], None]  # action and detail


class Copies:
    """Weights and an optimizer's state as they were before its step.

    A step moves them tensor by tensor, and what it needs beside (its first state, sums of all
    tensors at once) is asked for in between. So they are copied at each step: for AdamW three times
    the weights. On a CPU the copies stay; elsewhere they go as the step ends, for activations.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._were: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._states: list[tuple[Tensor, dict[str, Any] | None]] = []
        self._groups: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self) -> None:
        """Copy what the coming step may move."""
        state = self._optimizer.state
        weights = [weight for weight in weights_of(self._optimizer) if weight.grad is not None]
        self._states = [(p, _kept(state[p]) if p in state else None) for p in weights]
        now = weights + [
            value
            for _, own in self._states
            for value in (own or {}).values()
            if isinstance(value, Tensor)
        ]
        self._groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in self._optimizer.param_groups
        ]
        same = len(now) == len(self._were) == len(self._copies)
        if same and all(a is b for a, b in zip(now, self._were, strict=True)):
            if now:  # a step without gradients, held back by another guard, moves nothing
                torch._foreach_copy_(self._copies, now)
            return
        self._were, self._copies = now, []
        self._copies = [value.detach().clone() for value in now]

    @torch.no_grad()
    def put_back(self) -> bool:
        """Put all of it back; False where there was no room for copies."""
        if len(self._copies) != len(self._were):
            return False
        for was, value in zip(self._were, self._copies, strict=True):
            was.copy_(value)
        for weight, own in self._states:
            if own is None:
                self._optimizer.state.pop(weight, None)
            else:
                self._optimizer.state[weight].clear()
                self._optimizer.state[weight].update(own)
        for group, settings in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update(settings)
        self._copies = [value.to("cpu") for value in self._copies]  # room for the next try
        return True

    def drop(self) -> None:
        """Let copies go that take a device's memory."""
        if any(value.device.type != "cpu" for value in self._were[:1]):
            self._were, self._copies = [], []


def guard_step(optimizer: Optimizer, tell: Tell) -> Callable[[], None]:
    """Have an optimizer's steps taken again when memory runs out; return what undoes that.

    Tried are: the same step once more, with all freed that nobody holds; and then tensor by tensor
    (``foreach=False``), from then on. The first gives the bits of a step that had memory.
    """
    own = vars(optimizer).get("step")  # a scheduler's, say
    optimizer.step = wraps(optimizer.step)(  # type: ignore[method-assign]
        partial(_step, optimizer, optimizer.step, Copies(optimizer), tell)
    )

    def undo() -> None:
        vars(optimizer).pop("step", None)
        if own is not None:
            optimizer.step = own  # type: ignore[method-assign]

    return undo


def _step(
    optimizer: Optimizer,
    step: Callable[..., Any],
    copies: Copies,
    tell: Tell,
    closure: Callable[[], Any] | None = None,
    **options: Any,
) -> Any:
    """Take the place of ``optimizer.step``."""
    results: list[Any] = []

    def once() -> Any:
        if not results:
            results.append(None if closure is None else _gradients(closure, optimizer, tell))
            try:
                copies.take()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        return results[0]

    for again in ("once more", "tensor by tensor from now on", ""):
        found = ""
        try:
            if closure is None:
                once()
                result = step(**options)
            else:
                result = step(closure=once, **options)
        except Exception as error:
            if not results or not is_out_of_memory(error):
                raise
            whole = copies.put_back()
            if not again or not whole:
                tell("training stopped", f"optimizer step: {first_line(error)}")
                raise DoesNotFitError(_advice(optimizer, whole=whole)) from error
            found = first_line(error)
        if not found:
            copies.drop()
            return result
        free(weights_of(optimizer)[0].device)
        tell(f"step taken back and tried {again}", f"optimizer step: {found}")
        if "tensor" in again:
            for group in optimizer.param_groups:
                if "foreach" in group and not group.get("fused"):
                    group["foreach"] = False
    raise AssertionError("unreachable: the last try returns or raises")


def _gradients(closure: Callable[[], Any], optimizer: Optimizer, tell: Tell) -> Any:
    """Compute the gradients; what runs out behind them (norms, clipping) is tried once more."""
    found = ""
    try:
        return closure()
    except Exception as error:
        if isinstance(error, DoesNotFitError) or not is_out_of_memory(error):
            raise
        found = first_line(error)
    free(weights_of(optimizer)[0].device)
    tell("tried once more", f"between backward and optimizer step: {found}")
    return closure()  # the batch is done, and is not run again


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, _AS_IS) else copy.deepcopy(value)
        for name, value in state.items()
    }


def _advice(optimizer: Optimizer, *, whole: bool) -> str:
    numbers = sum(weight.numel() for weight in weights_of(optimizer))
    as_before = (
        "Weights and optimizer are as before the step."
        if whole
        else "There was no room for copies: go on from the last resume point."
    )
    return (
        "an optimizer step needs room for its state and its sums, and memory ran out in "
        f"{type(optimizer).__name__} over {numbers:,} weights, tensor by tensor too. {as_before} "
        "Take an optimizer with less state (SGD), train fewer layers, or free memory that others "
        "hold."
    )
