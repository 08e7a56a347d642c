"""What a classifier of patches says of places in a volume."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm

from medkit.data.patches import patches_at
from medkit.dicom.volume import Volume
from medkit.models.classifier import LitClassifier

__all__ = ["PatchForm", "require_ct", "scores_at", "scores_of"]

_LONG = 2000  # patches from which on a bar is shown: some seconds
Places = Callable[[int, int], NDArray[np.float64]]


@dataclass(frozen=True)
class PatchForm:
    """What a net was trained on, and must be shown.

    Attributes:
        spacing_mm: Along all axes.
        size: Voxels along an axis.
        window_hu: What the net sees as 0 and as 1 [HU]; None: HU / 1000, not clipped.
        scale: Values are multiplied with it before the window, and ``offset_hu`` is added: each
            exam's own (``dataclasses.replace``), where training corrected exams by air and muscle.
        offset_hu: See ``scale`` [HU].
        batch_size: Patches at once: memory grows with it, and not with the volume.
    """

    spacing_mm: float = 1.0
    size: int = 24
    window_hu: tuple[float, float] | None = (-1000.0, 400.0)
    scale: float = 1.0
    offset_hu: float = 0.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        low, high = self.window_hu or (0.0, 1000.0)
        if not self.spacing_mm > 0 or min(self.size, self.batch_size) < 1 or not low < high:
            raise ValueError(
                "patches need a spacing above 0 mm, a size and a batch size of at least 1, and a "
                f"window that rises; got {self}. Leave them out for the usual ones."
            )

    def seen(self, patches_hu: NDArray[np.float32]) -> Tensor:
        """Return patches ``(B, S, S, S)`` as the net sees them, ``(B, 1, S, S, S)``, in place."""
        low, high = self.window_hu or (0.0, 1000.0)
        hu = torch.from_numpy(patches_hu)[:, None].mul_(self.scale).add_(self.offset_hu)
        x = hu.sub_(low).div_(high - low)
        return x if self.window_hu is None else x.clamp_(0, 1)


def scores_at(
    model: LitClassifier, volume: Volume, centres_mm: ArrayLike, patch: PatchForm | None = None
) -> NDArray[np.float32]:
    """Return P(y = 1) of the patch around each place: candidates of another detector, say.

    The net runs where it is and in the precision of its Trainer, where it has one, or of its
    weights; ``torch.autocast`` around the call is heeded as well.

    Args:
        model: Classifier of patches ``(B, 1, size, size, size)``.
        volume: CT in HU, of any orientation and spacing. NIfTI and MetaImage files don't say what
            they hold (unit ""): it is taken for HU.
        centres_mm: ``(N, 3)`` RAS [mm].
        patch: As in training.

    Returns:
        float32 ``(N,)``.

    Raises:
        TypeError: For an array, which doesn't say where it lies.
        ValueError: For a volume that is not in HU.
        FloatingPointError: Where the net returns what is no number.
    """
    centres = np.asarray(centres_mm, np.float64).reshape(-1, 3)
    return scores_of(model, volume, lambda a, b: centres[a:b], len(centres), patch or PatchForm())


def scores_of(
    model: LitClassifier, volume: Volume, places: Places, count: int, patch: PatchForm
) -> NDArray[np.float32]:
    """Return what :func:`scores_at` does for ``count`` places that ``places(first, stop)`` makes.

    So there are never more of them in memory than in a batch.
    """
    require_ct(volume)
    out = np.empty(count, np.float32)
    weight = next(model.parameters(), torch.empty(0))
    bar = tqdm(
        total=count, desc="scoring patches", unit="patch", unit_scale=True, leave=False,
        disable=count < _LONG, mininterval=0.1 if sys.stderr.isatty() else 10,
    )  # fmt: skip
    with torch.inference_mode(), _evaluating(model), _precision(model), bar:
        for first in range(0, count, patch.batch_size):
            stop = min(first + patch.batch_size, count)
            hu = patches_at(
                volume, places(first, stop), spacing_mm=patch.spacing_mm, size=patch.size
            )
            prob = model.prob(patch.seen(hu).to(weight.device, weight.dtype))
            out[first:stop] = prob.cpu().numpy()
            bar.update(stop - first)
    bad = ~np.isfinite(out)
    if bad.any():
        at = int(bad.argmax())
        raise FloatingPointError(
            f"probabilities must be numbers; {int(bad.sum())} of {count} are {out[at]}, the first "
            f"at {places(at, at + 1)[0].round(1).tolist()} mm. Look for NaN in the volume there, "
            "and for weights or a precision that overflow."
        )
    return out


def require_ct(volume: Volume) -> None:
    """Refuse what is no volume, or not in HU."""
    if not isinstance(volume, Volume):
        raise TypeError(
            f"a volume must be a medkit.dicom.Volume, got {type(volume).__name__}. Read it with "
            "read_volume, or say where an array lies: Volume(array, affine, 'HU')."
        )
    if volume.unit not in ("HU", ""):
        raise ValueError(
            f"patches of CT need a volume in HU, got {volume.unit!r}. Convert it, or leave this "
            "series out."
        )


def _precision(model: LitClassifier) -> AbstractContextManager[Any]:
    trainer = model._trainer
    return nullcontext() if trainer is None else trainer.precision_plugin.forward_context()


@contextmanager
def _evaluating(model: LitClassifier) -> Iterator[None]:
    """Switch to evaluation, and each part back to what it was."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
