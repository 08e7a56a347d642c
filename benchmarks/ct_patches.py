"""What an epoch of augmented patches costs, against MONAI's CacheDataset; and a cached patch.

2,000 patches of 24^3, CPU seconds, arms in turn in one process, one intra-op thread, medians over
alternating pairs with the median's 95 % interval. Both keep all patches in memory and flip, scale,
shift and add noise; MONAI's transforms take one patch at a time (``set_track_meta(False)``, its
fastest recipe, printed too), the kit's a batch of 32, blur and thicker slices on top. *Warp* is
MONAI's ``RandAffined`` against torch's ``affine_grid`` and ``grid_sample`` on the batch.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import CacheDataset, DataLoader, set_track_meta
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityRanged,
)
from report import Report
from torch import Tensor
from trainer_overhead import in_turn, median_interval

from medkit.data.ct_nodules import NoduleDataModule
from medkit.data.patch_store import open_patches
from medkit.synth.chest_ct import write_candidates

SITES = {"A": 1000, "B": 1000}
BATCH = 32


def monai_loader(volumes: np.ndarray[Any, Any], y: np.ndarray[Any, Any], *, warp: bool) -> Any:
    """Patches as MONAI's tutorials have them: cached, then transformed one by one."""
    items = [
        {"image": volume.astype(np.float32), "label": int(label)}
        for volume, label in zip(volumes, y, strict=True)
    ]
    spatial = (
        RandAffined("image", prob=1, rotate_range=(0.3,) * 3, scale_range=(0.1,) * 3)
        if warp
        else RandSpatialCropd("image", (24, 24, 24), random_size=False)
    )
    chain = Compose(
        [
            EnsureChannelFirstd("image", channel_dim="no_channel"),
            ScaleIntensityRanged("image", -1000, 400, 0, 1, clip=True),
            spatial,
            *(RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandScaleIntensityd("image", factors=0.04, prob=1),
            RandShiftIntensityd("image", offsets=0.03, prob=1),
            RandGaussianNoised("image", prob=0.5, std=0.04),
        ]
    )
    data = CacheDataset(items, chain, progress=False)
    return DataLoader(data, BATCH, shuffle=True)


def warped(x: Tensor) -> Tensor:
    """Turn and scale each patch of a batch, trilinear."""
    angle, scale = torch.rand(len(x), 3) * 0.6 - 0.3, 1 + torch.rand(len(x), 3) * 0.2 - 0.1
    turn = torch.eye(3).expand(len(x), 3, 3).clone()
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        one = torch.eye(3).repeat(len(x), 1, 1)
        one[:, a, a] = one[:, b, b] = angle[:, axis].cos()
        one[:, a, b], one[:, b, a] = -angle[:, axis].sin(), angle[:, axis].sin()
        turn = turn @ one
    theta = torch.cat([turn * scale[:, None], torch.zeros(len(x), 3, 1)], dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def main() -> int:
    torch.set_num_threads(1)
    report = Report(__doc__)
    pairs = 3 if report.quick else 9
    with tempfile.TemporaryDirectory() as temp:
        write_candidates(temp, sites=SITES)
        dm = NoduleDataModule(temp, val_fraction=0.1)
        dm.setup()
        assert dm.split is not None
        store = open_patches(temp)
        rows = dm.split.train
        volumes = np.asarray(store.volume_hu)[rows]
        y = store.table["y"].to_numpy()[rows]

        def kit(warp: bool = False) -> float:
            began = time.process_time()
            for batch in dm.train_dataloader():
                x = dm._seen(batch.x, batch.row, augmented=True)
                if warp:
                    warped(x)
            return time.process_time() - began

        def timed(loader: Any) -> Callable[[], float]:
            def epoch() -> float:
                began = time.process_time()
                for _ in loader:
                    pass
                return time.process_time() - began

            return epoch

        def ratio(name: str, a: Any, b: Any, pairs: int = pairs, **bar: Any) -> None:
            value, limits = median_interval(in_turn(pairs, a, b))
            report.figure(name, value, limits, unit="x", **bar)

        report.note(f"{len(rows)} patches an epoch, {1e3 * kit() / len(rows):.2f} ms a patch")
        usual = timed(monai_loader(volumes, y, warp=False))
        ratio("epoch/monai_cache_dataset_over_kit", usual, kit, at_least=4.0)
        set_track_meta(False)
        fastest = timed(monai_loader(volumes, y, warp=False))
        ratio("epoch/monai_fastest_recipe_over_kit", fastest, kit)
        ratio(
            "epoch/monai_warp_over_kit", timed(monai_loader(volumes, y, warp=True)),
            lambda: kit(warp=True), pairs=3,
        )  # fmt: skip
        set_track_meta(True)
        path = Path(temp) / "volume_hu.npy"
        order = np.random.default_rng(0).permutation(len(store.volume_hu))
        plain = np.load(path, mmap_mode="r")
        fields = dm._fields
        assert fields is not None

        def loaded() -> float:
            began = time.process_time()
            for at in order.reshape(-1, 50):
                np.array(plain[np.sort(at)])
            return time.process_time() - began

        def hit() -> float:
            began = time.process_time()
            for at in order.reshape(-1, 50):
                fields.x.index_select(0, torch.from_numpy(np.sort(at)))
            return time.process_time() - began

        ratio("cache/hit_over_np_load", hit, loaded, pairs=max(pairs, 7), at_most=1.3)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
