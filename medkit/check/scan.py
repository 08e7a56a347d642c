"""``medkit doctor --model``: operations of a model whose results vary on accelerators.

One forward and one backward pass on the CPU, every aten operation seen: no accelerator is needed.
The table is that of ``torch.use_deterministic_algorithms`` (torch 2.13): under deterministic
algorithms, which ``stable_trainer`` switches on, each of these raises an error on a GPU,
and without them its bits vary from run to run.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from medkit.callbacks.op_trace import PlacedOps

_log = logging.getLogger(__name__)

# operation, as a pattern over its aten name -> what to use in its place
_RESIZE = (
    "upsample by mode='nearest' and a convolution, or by a ConvTranspose of stride = kernel size"
)
_POOL = (
    "a convolution of the same stride (with fixed weights 1/k^d in groups it is the same mean), or "
    "x.unfold(...) in each direction and .mean()"
)
_CROSS_ENTROPY = (
    "cross_entropy(..., reduction='none').mean(): what varies is the sum, not its terms (with "
    "class weights divide the sum by weight[y].sum())"
)
SWAPS = (
    (r"upsample_(linear1d|bilinear2d|bicubic2d|trilinear3d)_backward", _RESIZE),
    (r"_upsample_(bilinear2d|bicubic2d)_aa_backward", _RESIZE),
    (r"avg_pool3d_backward", _POOL),
    (
        r"_adaptive_avg_pool[23]d_backward",
        "for output size 1 x.mean(dim=(-3, -2, -1)); else an AvgPool's swap of fixed size",
    ),
    (r"adaptive_max_pool2d_backward", "MaxPool of fixed size, or x.amax(dim=...) for size 1"),
    (r"fractional_max_pool[23]d_backward", "MaxPool, which is deterministic"),
    (r"max_unpool[23]d", "upsample by mode='nearest', or keep the encoder's features (a U-Net)"),
    (
        r"reflection_pad[123]d_backward",
        "padding_mode='zeros' or 'replicate' (replication is deterministic since torch 2.0)",
    ),
    (
        r"grid_sampler_[23]d_backward|_grid_sampler_2d_cpu_fallback_backward",
        "resample in the dataset (on the CPU, no gradient), or let no gradient reach the input: "
        "x.detach() where only the grid is learnt",
    ),
    (r"nll_loss2d_forward", _CROSS_ENTROPY),  # of volumes too; of vectors it does not vary
    (r"_ctc_loss_backward", "no deterministic one is known: say deterministic='warn'"),
    (r"_embedding_bag", "mode='sum' or 'mean'; with mode='max' the backward pass varies"),
    (r"(put|put_)", "index_put, or a one-hot product"),
    (r"histc", "torch.bucketize and a one-hot sum, or take it on the CPU"),
    (r"bincount", "F.one_hot(...).sum(0) where weights are given"),
    (r"(median|nanmedian|kthvalue)", "x.sort(dim) and the entry in the middle"),
    (r"cumsum_?", "a product with a triangular matrix of ones, or the sum of integers"),
)
# deterministic only under deterministic algorithms, and then slower: worth knowing
SLOWER = (
    r"(index_add|scatter_add|scatter_reduce|index_put|_unsafe_index_put|index_copy)_?",
    r"(max_pool3d_with_indices_backward|replication_pad[123]d_backward)",
)


@dataclass(frozen=True)
class Found:
    """One operation that varies.

    Attributes:
        op: Its aten name.
        module: The module that calls it, with its class.
        line: Somebody's own line that calls it.
        swap: What to use in its place; empty where deterministic mode deals with it.
        count: How often it was called there.
    """

    op: str
    module: str
    line: str
    swap: str
    count: int = 1

    def __str__(self) -> str:
        where = "; ".join(part for part in (self.module, self.line) if part) or "the loss"
        times = f" (x{self.count})" if self.count > 1 else ""
        swap = self.swap or "deterministic under stable_trainer, and slower there"
        return f"{self.op}{times}\n    in {where}\n    -> {swap}"


class _Scan(PlacedOps):
    """Counts operations of the table by place."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(root)
        self.counts: dict[tuple[str, str, str, str], int] = {}
        self.seen_in_all = 0

    def seen(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Look an operation up."""
        module, line, _ = self.place()
        self.seen_in_all += 1
        whole = str(func)
        name = whole.split(".")[1] if "." in whole else whole
        swap = _swap(name, whole, args)
        if swap is not None:
            place = (name, module, line, swap)
            self.counts[place] = self.counts.get(place, 0) + 1
        return func(*args, **kwargs)


def _swap(name: str, whole: str, args: Sequence[Any]) -> str | None:
    """Return what to use instead of an operation, "" for a slower one, None for a harmless one."""
    harmless = (
        name.startswith("cumsum") and not args[0].is_floating_point(),
        name == "bincount" and (len(args) < 2 or args[1] is None),
        name == "_embedding_bag" and (len(args) < 5 or args[4] != 2),  # 2: mode="max"
        name == "nll_loss2d_forward" and args[3] == 0,  # reduction="none"
        whole in ("aten.median.default", "aten.nanmedian.default"),  # without indices
    )
    if any(harmless):
        return None
    for pattern, swap in SWAPS:
        if re.fullmatch(pattern, name):
            return swap
    return "" if any(re.fullmatch(pattern, name) for pattern in SLOWER) else None


def scan(model: nn.Module, *inputs: Tensor, target: Tensor | None = None) -> list[Found]:
    """List the operations of one forward and backward pass that vary on an accelerator.

    The loss is the mean of all outputs that are floating-point numbers; what a loss of your own
    does is seen where the model computes it.

    Args:
        model: Any module; it is left as it was, gradients and buffers included.
        *inputs: What it is called with.
        target: Where given, the loss is ``F.cross_entropy`` of the first output against it.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad for p in model.parameters()]
    training = model.training
    watch = _Scan(model)
    try:
        model.train()
        with watch.watching(), torch.enable_grad():
            outputs = [t for t in tree_leaves(model(*inputs)) if isinstance(t, Tensor)]
            learnt = [t for t in outputs if t.requires_grad]
            if target is not None and learnt:
                nn.functional.cross_entropy(learnt[0], target).backward()
            elif learnt:
                torch.stack([t.mean() for t in learnt]).sum().backward()
    finally:
        model.train(training)
        model.load_state_dict(state)
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad
    found = [Found(*place, count=count) for place, count in watch.counts.items()]
    return sorted(found, key=lambda one: not one.swap)


def scan_command(spec: str, shape: str = "") -> int:
    """Scan what ``package:factory`` gives, and say what was found; 1 where something varies.

    Args:
        spec: A class or function without arguments that gives a ``nn.Module``.
        shape: The input's shape, such as "1,1,64,64,64"; empty: the module's
            ``example_input_array``.

    Raises:
        ValueError: For a spec or a shape that leads nowhere, or where somebody's code raises an
            error; its traceback is logged on the level "debug".
    """
    from medkit import keyed
    from medkit.check.subject import factory

    make, _ = factory(spec)
    with keyed.globals_keyed(0, "init", "scan"):
        with _named(f"{spec} can't be called without arguments and give a net"):
            model = make()
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"{spec!r} must give a torch.nn.Module, got a {type(model).__name__}. "
                "Write a function that returns the net."
            )
        inputs = _inputs(model, shape)
        shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
        with _named(f"{spec} can't be called with {shapes}, forward and back"):
            found = scan(model, *inputs)
    for one in found:
        sys.stdout.write(f"{'VARIES' if one.swap else 'slower'}  {one}\n")
    varying = [one for one in found if one.swap]
    sys.stdout.write(
        f"{len(varying)} operations of {spec} vary on a GPU and raise an error under "
        f"stable_trainer; seen in one forward and backward pass over {shapes} on the CPU\n"
    )
    return int(bool(varying))


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in one line what somebody's own code could not do."""
    try:
        yield
    except Exception as error:
        _log.debug("%s", what, exc_info=True)
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{what}: {type(error).__name__}: {first}") from error


def _inputs(model: nn.Module, shape: str) -> list[Tensor]:
    if shape:
        try:
            sizes = [int(part) for part in shape.split(",")]
        except ValueError:
            sizes = []
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"--input must be sizes above 0, as in 1,1,64,64,64, got {shape!r}. "
                "Batch and channels come first."
            )
        return [torch.randn(sizes)]
    example = getattr(model, "example_input_array", None)
    found = [t for t in tree_leaves(example) if isinstance(t, Tensor)]
    if not found:
        raise ValueError(
            f"a {type(model).__name__} must say what it is called with, and it has no "
            "example_input_array. Give the shape: --input 1,1,64,64,64."
        )
    return found
