"""Nodule candidates on CT as a LightningDataModule: rare, from several hospitals."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medkit.data.batches import Batch
from medkit.data.candidate_patches import SIZE, SPACING_MM, count_lost, patches_of
from medkit.data.ct_augment import another_scanner, symmetries
from medkit.data.hu_reference import Harmonisation, fit_sites, measured_correction
from medkit.data.nodule_split import require_each_site, split_candidates, watched
from medkit.data.patch_store import PatchStore
from medkit.data.preprocessing import digest_ids
from medkit.data.splits import PARTS, Split
from medkit.data.table_loader import TableLoader

__all__ = ["NoduleDataModule"]


class Stored(NamedTuple):
    """Rows as they are kept: a :class:`Batch`, but ``x`` in HU, ``(B, 1, S, S, S)``."""

    x: Tensor
    y: Tensor
    row: Tensor
    site: Tensor


CHOICES: Mapping[str, tuple[str, ...]] = {
    "draws": ("half positive", "shuffled"),
    "augment": ("all", "flips", "none"),
    "harmonise": ("reference", "site", "none"),
}
EVAL_BATCH = 128
_MOST_LOST = 0.05


class NoduleDataModule(pl.LightningDataModule):
    """Patches of CT around candidates, one in fifty a nodule, split by patient.

    From a table of LUNA16's form and the series it names, or from a folder of patches that were cut
    before. A batch is ``Batch(x, y, row, site)``: ``x`` float32 ``(B, 1, S, S, S)`` in [0, 1], rows
    towards the back, columns to the left, slices to the head. Batches travel to the training device
    as 16-bit HU; corrected, augmented and windowed they are there, with draws keyed by epoch and
    batch. What is drawn half positive has the wrong prior: pass ``logit_shift=dm.logit_shift`` to
    the model.

    After :meth:`setup`: ``store`` (patches and their table), ``data_sha256`` (of all of it: a run
    that is resumed under other data is refused), ``split``, ``sites``, ``prior`` (share
    of nodules in the training rows), ``digests`` (part -> digest of its patients), ``lost``
    (candidates that are left out, by reason).

    Args:
        candidates: Folder of patches, or a CSV with ``seriesuid, coordX, coordY, coordZ, class``
            and, where known, ``site, patient_id, exam`` (or the folder it is in, as
            ``candidates.csv``); see :func:`~medkit.data.candidate_files.find_candidates`.
        images_dir: Where the CSV's series are. This, ``annotations_csv``, ``reader``, and another
            ``size`` or ``spacing_mm`` than it has, are refused beside a folder of patches.
        annotations_csv: Nodules' diameters.
        test_site: Keep this hospital for the external test; None: a share of all patients.
        val_fraction: Share of the patients in validation, stratified by site and outcome.
        test_fraction: Share of the patients in test, where no ``test_site`` is kept.
        split_seed: Decides who is where. Keep it while the run's ``seed`` varies.
        spacing_mm: Of the patches.
        size: Their voxels along an axis.
        window_hu: Lower and upper edge of what is mapped to [0, 1]; None: HU / 1000.
        harmonise: "reference": each exam's values corrected by its air and muscle, which needs
            no other exam and holds at a new hospital; "site": each site's percentiles brought to
            the mean of the training sites', fitted on training rows, and nothing done at a
            hospital that was not among them; "none".
        draws: "half positive": every second row of a batch a nodule; or "shuffled".
        augment: "all": the 48 symmetries of a cube and another scanner; "flips": the symmetries;
            "none".
        batch_size: Rows a batch in training.
        cache_dir: Where patches are kept; see :func:`~medkit.data.patch_store.cut_patches`.
        reader: Options of the DICOM reader, such as ``{"resample": True}``.
        max_lost: Largest share of the candidates that may be left out: their series was refused,
            or their patch lies outside.
        val_negatives: Look at so many of the validation's negatives only, drawn once; None: all.

    Raises:
        ValueError: For choices that are not known, and in ``setup`` for tables that are not what
            they must be and where a part lacks a class.
    """

    def __init__(
        self,
        candidates: str,
        images_dir: str | None = None,
        *,
        annotations_csv: str | None = None,
        test_site: str | None = None,
        val_fraction: float = 0.3,
        test_fraction: float = 0.0,
        split_seed: int = 0,
        spacing_mm: float = SPACING_MM,
        size: int = SIZE,
        window_hu: Sequence[float] | None = (-1000.0, 400.0),
        harmonise: str = "reference",
        draws: str = "half positive",
        augment: str = "all",
        batch_size: int = 32,
        cache_dir: str | None = None,
        reader: Mapping[str, Any] | None = None,
        max_lost: float = _MOST_LOST,
        val_negatives: int | None = None,
    ) -> None:
        super().__init__()
        low, high = (0.0, 1000.0) if window_hu is None else map(float, window_hu)
        window_hu, reader = None if window_hu is None else [low, high], dict(reader or {})
        self.save_hyperparameters()
        for name, allowed in CHOICES.items():
            if self.hparams[name] not in allowed:
                raise ValueError(
                    f"{name} must be one of {list(allowed)}, got {self.hparams[name]!r}. The first "
                    "is the default."
                )
        if not low < high:
            raise ValueError(
                f"window_hu must have its lower edge first, got {window_hu}. (-1000, 400) suits "
                "lungs."
            )
        if batch_size < 2 or (draws == "half positive" and batch_size % 2):
            raise ValueError(
                "batch_size must be two rows at least, and an even number where half of them are "
                f'positive; got {batch_size}. 32 is usual, or pass draws="shuffled".'
            )
        if val_negatives is not None and val_negatives < 1:
            raise ValueError(
                f"val_negatives must be at least 1, got {val_negatives}: a validation needs both "
                "classes. None looks at all of them."
            )
        self.batch_size, self.draws, self.augment, self.harmonise = (
            batch_size, draws, augment, harmonise,
        )  # fmt: skip
        self.window_hu = (low, high)
        self.clipped = window_hu is not None
        self.store: PatchStore | None = None
        self.data_sha256 = ""  # the run notes it, and compares it on resume
        self.split: Split | None = None
        self.sites: list[str] = []
        self.prior = float("nan")
        self.digests: dict[str, str] = {}
        self.lost: dict[str, int] = {}
        self.harmonisation: Harmonisation | None = None
        self._fields: Stored | None = None
        self._correction: tuple[Tensor, Tensor] | None = None  # scale and offset of each row

    @property
    def logit_shift(self) -> float:
        """What puts the prior back into logits that were trained half positive."""
        if self.draws != "half positive":
            return 0.0
        return float(np.log(self.prior / (1 - self.prior)))

    @property
    def batches_per_epoch(self) -> int:
        """Training batches; times the epochs, what the kit's models call ``total_steps``."""
        return len(self._ready()[1].train) // self.batch_size

    def setup(self, stage: str | None = None) -> None:
        """Cut or open the patches, split and fit; once, however often Lightning asks."""
        if self._fields is not None:
            return
        h = self.hparams
        of_patches = ("images_dir", "annotations_csv", "spacing_mm", "size", "cache_dir", "reader")
        store = patches_of(h["candidates"], **{name: h[name] for name in of_patches})
        table = store.table
        y, site = table["y"].to_numpy(np.int64), table["site"].to_numpy().astype(str)
        patient = table["patient"].to_numpy().astype(str)
        self.lost = count_lost(table["problem"], most=h["max_lost"])
        names = ("test_site", "val_fraction", "test_fraction", "split_seed")
        split = split_candidates(table, **{name: h[name] for name in names})
        val = watched(split.val, y, most=h["val_negatives"], split_seed=h["split_seed"])
        split = replace(split, val=val)
        self.sites = sorted(set(site.tolist()))
        self.digests = {name: digest_ids(patient[split.part(name)]) for name in PARTS}
        self.prior = float(y[split.train].mean())
        codes = np.array([self.sites.index(name) for name in site.tolist()])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # it is never written to
            volumes = torch.from_numpy(np.asarray(store.volume_hu))[:, None]
        self._fields = Stored(
            volumes, torch.from_numpy(y), torch.arange(len(y)), torch.from_numpy(codes)
        )
        self.store, self.split, self.data_sha256 = store, split, store.sha256
        self._correction = self._corrected(store, site, split.train)

    def require_each_site(self) -> Self:
        """Return itself where the validation can be looked at site by site.

        Raises:
            ValueError: Where it lacks nodules or other candidates of a site.
        """
        store, split, _ = self._ready()
        require_each_site(store.table, split, val_fraction=self.hparams["val_fraction"])
        return self

    def train_dataloader(self) -> TableLoader:
        """Return the training rows, drawn as asked for; a last, smaller batch is left out.

        Raises:
            ValueError: For fewer rows than a batch.
        """
        _, split, fields = self._ready()
        if len(split.train) < self.batch_size:
            raise ValueError(
                f"there must be a batch of training rows at least, {self.batch_size}; found "
                f"{len(split.train)}. Pass a smaller batch_size, or more candidates."
            )
        rows = torch.from_numpy(split.train)
        half = self.draws == "half positive"
        return TableLoader(
            fields,
            self.batch_size,
            rows=rows,
            shuffle=not half,
            half_by=fields.y[rows] if half else None,
            drop_last=True,  # BatchNorm's statistics of a few rows are no statistics
        )

    def val_dataloader(self) -> TableLoader | list[TableLoader]:
        """Return the validation rows in order."""
        return self._in_order("val")

    def test_dataloader(self) -> TableLoader:
        """Return the test rows in order.

        Raises:
            ValueError: When the split has none.
        """
        loader = self._in_order("test")
        if isinstance(loader, list):
            raise ValueError(
                "a test needs test rows, and this split has none. Pass test_site= or "
                "test_fraction=."
            )
        return loader

    def predict_dataloader(self) -> TableLoader | list[TableLoader]:
        """Return the test rows where there are any, else the validation rows."""
        return self._in_order("test" if len(self._ready()[1].test) else "val")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Correct, augment and window a batch where it is trained on."""
        if not isinstance(batch, Stored):
            return batch
        trainer = self.trainer
        augmented = trainer is not None and trainer.training and self.augment != "none"
        return Batch(self._seen(batch.x, batch.row, augmented=augmented), *batch[1:])

    def rows(self, part: str, *, added_hu: float = 0.0) -> Batch:
        """Return all rows of "train", "val" or "test" as a net sees them, not augmented.

        Args:
            part: Of the split.
            added_hu: As a scanner would show them that adds so much to all it measures, air and
                muscle among it: 1,024 where a rescale was forgotten.
        """
        _, split, fields = self._ready()
        at = torch.from_numpy(split.part(part))
        batch = Stored(*(values[at] for values in fields))
        x = self._seen(batch.x, batch.row, augmented=False, added_hu=added_hu)
        return Batch(x, *batch[1:])

    def hu(self, rows: Tensor | Sequence[int], *, added_hu: float = 0.0) -> Tensor:
        """Return patches as the net sees them but for the window: what saliency maps are made on.

        Args:
            rows: Row numbers, such as ``dm.rows("test").row`` or ``dm.split.val``.
            added_hu: As in :meth:`rows`.

        Returns:
            float32 ``(N, 1, S, S, S)`` [HU], corrected as ``harmonise`` says.
        """
        at = torch.as_tensor(rows, dtype=torch.int64)
        return self._hu(self._ready()[2].x[at], at, augmented=False, added_hu=added_hu)

    def window(self, hu: Tensor) -> Tensor:
        """Map HU to what the net sees."""
        low, high = self.window_hu
        seen = (hu - low).div_(high - low)
        return seen.clamp_(0, 1) if self.clipped else seen

    def whose(self, row: Tensor | Sequence[int]) -> dict[str, list[str]]:
        """Return what ``run.predictions`` is to know of rows: their ids, patients and sites."""
        table = self._ready()[0].table
        at = [int(r) for r in row]
        return {
            "row_ids": table["candidate"].iloc[at].tolist(),
            "patient_ids": table["patient"].iloc[at].tolist(),
            "site": table["site"].iloc[at].tolist(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Keep what was fitted, and on whom."""
        fitted = self.harmonisation
        return {
            "prior": self.prior,
            "digests": dict(self.digests),
            "harmonisation": None if fitted is None else [fitted.sites, fitted.fitted_on],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back.

        Raises:
            ValueError: Where the training rows are other patients'.
        """
        was, now = state_dict["digests"].get("train"), self.digests.get("train")
        if was and now and was != now:
            raise ValueError(
                "a checkpoint must be resumed on the patients it was trained on, and the training "
                "rows are of others. Pass the same candidates, test_site and split_seed."
            )
        self.prior = state_dict["prior"]
        if state_dict["harmonisation"] is not None:
            sites, fitted_on = state_dict["harmonisation"]
            self.harmonisation = Harmonisation({k: tuple(v) for k, v in sites.items()}, fitted_on)

    def _corrected(
        self, store: PatchStore, site: NDArray[np.str_], train: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """Return what each row's values are multiplied with, and what is added then."""
        count = len(store.table)
        scale, offset = np.ones(count), np.zeros(count)
        if self.harmonise == "reference":
            scale, offset = measured_correction(store.table)
        elif self.harmonise == "site":
            if self.harmonisation is None:  # else from a checkpoint
                self.harmonisation = fit_sites(
                    store.volume_hu, site, train, fitted_on=self.digests["train"]
                )
            scale, offset = self.harmonisation.of(site)
        return torch.from_numpy(scale).float(), torch.from_numpy(offset).float()

    def _seen(
        self, volume: Tensor, row: Tensor, *, augmented: bool, added_hu: float = 0.0
    ) -> Tensor:
        return self.window(self._hu(volume, row, augmented=augmented, added_hu=added_hu))

    def _hu(self, volume: Tensor, row: Tensor, *, augmented: bool, added_hu: float = 0.0) -> Tensor:
        assert self._correction is not None
        scale, offset = (values[row.cpu()].to(volume.device) for values in self._correction)
        volume = volume.squeeze(1)
        if augmented:
            volume = symmetries(volume)
        if added_hu and self.harmonise == "reference":  # which was measured on the same values
            offset = offset - scale * added_hu
        hu = volume.to(torch.float32, copy=True)
        if added_hu:
            hu.add_(added_hu)
        hu.mul_(scale[:, None, None, None]).add_(offset[:, None, None, None])
        if augmented and self.augment == "all":
            hu = another_scanner(hu, spacing_mm=self._ready()[0].spacing_mm)
        return hu.unsqueeze(1)

    def _in_order(self, part: str) -> TableLoader | list[TableLoader]:
        _, split, fields = self._ready()
        rows = split.part(part)
        return TableLoader(fields, EVAL_BATCH, rows=torch.from_numpy(rows)) if len(rows) else []

    def _ready(self) -> tuple[PatchStore, Split, Stored]:
        if self.store is None or self.split is None or self._fields is None:
            raise RuntimeError(
                "patches must be there before they are asked for, and setup() has not run. Call "
                "dm.setup() first; a Trainer does so by itself."
            )
        return self.store, self.split, self._fields
