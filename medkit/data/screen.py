"""What a sample must be before it is trained on: finite, in its range, a picture of something."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medkit.data.batches import alike

CHECKS = ("finite", "constant", "padded")
MOST_PADDING = 0.25
_AT_ONCE = 256  # images: some hundred MB at most


class Problem(NamedTuple):
    """Why a sample is bad."""

    kind: str
    detail: str


Check = str | Callable[[Any], str]


@dataclass(frozen=True)
class Screen:
    """What a sample must be. Looks at it in the loader's workers, so it holds plain values.

    Attributes:
        ranges: Field of a sample (key, attribute, or number in a tuple; "" for a sample that is one
            tensor) -> (low, high): numbers, or one per feature along the last axis; None for no
            limit.
        checks: "finite": no NaN or infinity in a field of floating numbers. "constant": the image
            is not one value throughout. "padded": at most a quarter of it are planes of one value
            at its edges. Or functions of a sample that return what is wrong, or "".
        fields: What "finite" looks at, and of these the first as the image; None: all, and
            "image" or the first tensor. Labels that may be NaN must be left out.
    """

    ranges: Mapping[str | int, tuple[Any, Any]] = field(default_factory=dict)
    checks: tuple[Check, ...] = ("finite",)
    fields: tuple[str | int, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [c for c in self.checks if not callable(c) and c not in CHECKS]
        if unknown:
            raise ValueError(
                f"checks of a quarantine must be among {list(CHECKS)} or functions, got {unknown}. "
                "Samples that can't be read and ranges are looked at anyway."
            )
        for name, limits in self.ranges.items():
            if not isinstance(limits, tuple | list) or len(limits) != 2:
                raise ValueError(
                    f"the range of {name!r} must be (low, high), got {limits!r}. "
                    "None stands for no limit: (-1024, None)."
                )
            if _upside_down(*limits):
                raise ValueError(
                    f"the range of {name!r} must go from low to high, got {limits!r}. "
                    "Exchange the two, or no sample is in it."
                )

    def problem(self, sample: Any) -> Problem | None:
        """Return what is wrong with a sample, or None.

        Raises:
            ValueError: When it has no field of that name: that is no fault of the sample.
        """
        if "finite" in self.checks:
            for name, value in self._looked_at(sample):
                if not _all_finite(value):
                    bad = value.numel() - int(value.isfinite().sum())
                    return Problem("non-finite", f"{name or 'the sample'}: {bad} values")
        for place, limits in self.ranges.items():
            detail = self._outside(place, _tensor(_field(sample, place)), *limits)
            if detail:
                return Problem("out of range", detail)
        if "constant" in self.checks or "padded" in self.checks:
            image = self._image(sample)
            if "constant" in self.checks and bool(image.min() == image.max()):
                return Problem("constant", f"all {float(image.min()):g}")
            if "padded" in self.checks and (share := padding(image)) >= MOST_PADDING:
                return Problem("padded", f"{share:.0%} padding")
        for check in self.checks:
            detail = check(sample) if callable(check) else ""
            if detail:
                return Problem(getattr(check, "__name__", "own check"), detail)
        return None

    def bad_rows(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Return which rows in memory are bad, ``(N,)``, all looked at together.

        Args:
            rows: Fields with one entry per row.

        Raises:
            ValueError: Where a check is one of images, and rows are none: ``(N, F)``.
        """
        of_images = {"constant", "padded"} & {c for c in self.checks if isinstance(c, str)}
        images = self._image(rows) if of_images else torch.empty(0)
        if of_images and images.ndim < 4:
            raise ValueError(
                f"rows of a table are no images, and checks are {list(map(str, self.checks))}. "
                "Leave 'constant' and 'padded' out: Quarantine(checks=('finite',))."
            )
        bad = torch.zeros(len(rows[0]), dtype=torch.bool, device=rows[0].device)
        if "finite" in self.checks:
            for _, value in self._looked_at(rows):
                bad |= ~value.isfinite().reshape(len(value), -1).all(1)
        for name, limits in self.ranges.items():
            value = _field(rows, name)
            for limit, below in zip(limits, (True, False), strict=True):
                if limit is not None:
                    bound = torch.as_tensor(limit, dtype=torch.float64, device=value.device)
                    over = value < bound if below else value > bound
                    bad |= over.reshape(len(value), -1).any(1)
        if of_images:
            bad |= self._bad_images(images).to(bad.device)
        own = [check for check in self.checks if callable(check)]
        for row in range(len(bad)) if own else ():
            sample = alike(rows, [value[row] for value in rows])
            bad[row] |= any(check(sample) for check in own)
        return bad.cpu()

    def _bad_images(self, images: Tensor) -> Tensor:
        """Return which of ``(N, C, ...)`` are constant or padded, some at a time."""
        bad = torch.zeros(len(images), dtype=torch.bool)
        for start in range(0, len(images), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            flat = some.reshape(len(some), -1)
            constant = (flat == flat[:, :1]).all(1).cpu()
            if "constant" in self.checks:
                bad[start : start + len(some)] |= constant
            if "padded" not in self.checks:
                continue
            for row in (_flat_edge(some) & ~constant.to(some.device)).nonzero()[:, 0].tolist():
                bad[start + row] |= padding(some[row]) >= MOST_PADDING
        return bad

    def _looked_at(self, sample: Any) -> Iterator[tuple[str, Tensor]]:
        if self.fields is None:
            yield from _floating(sample, "")
        else:
            for name in self.fields:
                yield from _floating(_field(sample, name), str(name))

    def _image(self, sample: Any) -> Tensor:
        if self.fields:
            return _tensor(_field(sample, self.fields[0]))
        if isinstance(sample, Mapping) and "image" in sample:
            return _tensor(sample["image"])
        parts = sample.values() if isinstance(sample, Mapping) else sample
        if not isinstance(sample, Tensor | np.ndarray):
            sample = next((p for p in parts if isinstance(p, Tensor | np.ndarray)), None)
        if sample is None:
            raise ValueError(
                "the check of an image needs a tensor or array in each sample, and there is none. "
                "Return one from the dataset, or leave 'constant' and 'padded' out of checks."
            )
        return _tensor(sample)

    def _outside(self, name: str | int, value: Tensor, low: Any, high: Any) -> str:
        for limit, below in ((low, True), (high, False)):
            if limit is None or (isinstance(limit, int | float) and _within(value, limit, below)):
                continue
            bound = torch.as_tensor(limit, dtype=torch.float64)
            over = value < bound if below else value > bound
            if not bool(over.any()):
                continue
            at = int(over.reshape(-1).nonzero()[0])
            last = at % value.shape[-1] if value.ndim else 0
            what = str(name) if name != "" else "the sample"
            if bound.ndim:
                what = f"{what}[{last}]"
            one = float(bound.broadcast_to(value.shape).reshape(-1)[at])
            word = "below" if below else "above"
            more = int(over.sum()) - 1
            rest = f", {more} more" if more else ""
            return f"{what}: {float(value.reshape(-1)[at]):.4g} {word} {one:g}{rest}"
        return ""


def _flat_edge(images: Tensor) -> Tensor:
    """Return which of ``(N, C, ...)`` have a plane of one value at an edge."""
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for axis in range(2, images.ndim):
        for edge in (0, -1):
            plane = images.select(axis, edge).reshape(len(images), -1)
            found |= (plane == plane[:, :1]).all(1)
    return found


def padding(image: Tensor) -> float:
    """Return the share of an image that whole planes of one value at its edges take up.

    Values alone don't tell padding from air that a window has cut to its lower edge; planes from
    one side of the image to the other do so better, and a body on its table leaves few of them.

    Args:
        image: ``(H, W)``, ``(C, H, W)`` or ``(C, H, W, D)``; the first of three or more axes is
            that of channels.
    """
    kept = 1.0
    axes = range(1, image.ndim) if image.ndim >= 3 else range(image.ndim)
    for axis in axes:
        size = image.shape[axis]
        planes = image.movedim(axis, 0).reshape(size, -1)
        low, high = planes.amin(1), planes.amax(1)
        flat = low == high
        left = int((flat & (low == low[0])).long().cumprod(0).sum())
        right = int((flat & (low == low[-1])).flip(0).long().cumprod(0).sum())
        kept *= max(0, size - left - right) / size
    return 1.0 - kept


def _field(sample: Any, name: str | int) -> Any:
    if name == "":
        return sample
    try:
        if isinstance(sample, Mapping) or isinstance(name, int):
            return sample[name]
        return getattr(sample, name)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        there: Any = type(sample).__name__
        if isinstance(sample, Mapping):
            there = list(sample)
        elif isinstance(sample, tuple | list):
            there = list(getattr(sample, "_fields", range(len(sample))))
        raise ValueError(
            f"a quarantine needs the field {name!r} in each sample, found {there}. Name fields by "
            "their key, their attribute or their number; '' is a sample that is one tensor."
        ) from error


def _floating(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor | np.ndarray | float | np.floating):
        tensor = _tensor(value) if not _is_text(value) else torch.empty(0, dtype=torch.long)
        if tensor.is_floating_point() or tensor.is_complex():
            yield name, tensor
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _floating(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        names = getattr(value, "_fields", range(len(value)))
        for key, part in zip(names, value, strict=True):
            yield from _floating(part, f"{name}.{key}".lstrip("."))


def _all_finite(value: Tensor) -> bool:
    """Say so from the least and the largest value, which are NaN where any is: half the time."""
    if value.is_complex() or not value.numel():
        return bool(value.isfinite().all())
    low, high = value.aminmax()
    return math.isfinite(float(low)) and math.isfinite(float(high))


def _upside_down(low: Any, high: Any) -> bool:
    if low is None or high is None:
        return False
    return bool((torch.as_tensor(low) > torch.as_tensor(high)).any())


def _within(value: Tensor, limit: float, below: bool) -> bool:
    if not value.numel():
        return True
    return float(value.amin()) >= limit if below else float(value.amax()) <= limit


def _is_text(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind not in "biufc"


def _tensor(value: Any) -> Tensor:
    tensor = torch.as_tensor(value)
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)
