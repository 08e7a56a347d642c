"""What an epoch over a table in memory costs: the kit's loader against bare slicing, and its draws.

CPU seconds, arms in turn in one process, one intra-op thread; the interval is that of the median
over pairs (binomial order statistics, 95 %), and the bars are on its limit. The bare arm draws a
permutation and indexes the same four fields batch by batch, by ``index_select`` (twice as fast as
``x[at]``); the peer is a DataLoader over single rows. The table of 2 million rows is a Parquet file
of 40 columns, 30 % of their values missing, read by ``EHRDataModule``; its peak memory is taken in
a fresh process, above the imports, in multiples of the float32 table after indicators.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from report import Report
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler
from trainer_overhead import in_turn, median_interval

from medkit import keyed as keys
from medkit.data.batches import Batch
from medkit.data.draws import BalancedDraws
from medkit.data.ehr import EHRDataModule
from medkit.data.loader import KeyedLoader, keyed
from medkit.data.table_loader import TableLoader

COLUMNS, MISSING, PREVALENCE = 40, 0.3, 0.05
SMALL, SMALL_BATCH = 2_000, 64
LARGE, LARGE_BATCH = 2_000_000, 1024
ABOVE = (1 << 24) + 4096  # rows; torch.multinomial takes 2**24 at most


def write_table(path: Path, rows: int, dtype: str) -> None:
    """Write a table of hospital encounters, 100,000 at a time."""
    draw = keys.generator(0, "synth", rows, dtype)
    writer = None
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        values = draw.standard_normal((COLUMNS, count), dtype=np.float32)
        gone = draw.random((COLUMNS, count), dtype=np.float32) < MISSING
        part = pa.table(
            {
                "patient_id": np.arange(start, start + count),
                "site": np.array(["north", "east", "south", "west"])[draw.integers(0, 4, count)],
                "died": (draw.random(count) < PREVALENCE).astype(np.int64),
            }
            | {
                f"lab_{number}": pa.array(column.astype(dtype), mask=mask)
                for number, (column, mask) in enumerate(zip(values, gone, strict=True))
            }
        )
        writer = writer or pq.ParquetWriter(path, part.schema)
        writer.write_table(part)
    if writer is not None:
        writer.close()


def read(path: Path, **settings: Any) -> EHRDataModule:
    """Read it as a user does."""
    data = EHRDataModule(path, target="died", site="site", batch_size=LARGE_BATCH, **settings)
    data.setup()
    return data


def peak_mb() -> float:
    """Return the most memory this process has held [MB]."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage counts the process this one was started from
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure_memory(path: Path) -> None:
    """Read a table, take the first batch of an epoch, and write what that took to stdout."""
    before = peak_mb()
    data = read(path)
    after_setup = peak_mb()
    next(iter(data.train_dataloader()))
    table_mb = LARGE * data.num_features * 4 / 2**20
    peaks = {"setup": after_setup, "batch": peak_mb()}
    found = {name: (peak - before) / table_mb for name, peak in peaks.items()}
    sys.stdout.write(json.dumps(found | {"columns": data.num_features}) + "\n")


def memory(path: Path) -> dict[str, float]:
    """Do that in a fresh process."""
    command = [sys.executable, __file__, "--memory", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(epochs: int, once: Callable[[int], None]) -> Callable[[], float]:
    """Return a function that gives the CPU seconds of so many epochs."""

    def measure() -> float:
        began = time.process_time()
        for epoch in range(epochs):
            once(epoch)
        return time.process_time() - began

    return measure


def go_through(loader: KeyedLoader) -> Callable[[int], None]:
    """Return one epoch of the kit's loader."""

    def once(epoch: int) -> None:
        loader.set_epoch(epoch)
        for _batch in loader:
            pass

    return once


def slice_bare(rows: Batch, size: int) -> Callable[[int], None]:
    """Return one epoch of bare slicing."""

    def once(epoch: int) -> None:
        order = torch.randperm(len(rows.y))
        for at in order.split(size):
            _batch = [field.index_select(0, at) for field in rows]

    return once


def one_by_one(rows: Batch, size: int) -> Callable[[int], None]:
    """Return one epoch of a DataLoader over single rows."""
    loader = DataLoader(TensorDataset(*rows), size, shuffle=True)

    def once(epoch: int) -> None:
        for _batch in loader:
            pass

    return once


def compare_epochs(
    report: Report, name: str, rows: Batch, loader: KeyedLoader, size: int, epochs: int, pairs: int
) -> None:
    """Print the cost of an epoch in multiples of bare slicing; the peer on 100,000 rows at most."""
    bare = timed(epochs, slice_bare(rows, size))
    few = Batch(*(field[:100_000] for field in rows))
    several = max(1, epochs // 10)
    peer = in_turn(
        3 if report.quick else 5,
        timed(several, one_by_one(few, size)),
        timed(several, slice_bare(few, size)),
    )
    ratios = in_turn(pairs, timed(epochs, go_through(loader)), bare)
    report.figure(
        f"epoch/{name}", *median_interval(ratios), at_most=1.5, on_limit=True, unit="x bare",
        peers=f"DataLoader over single rows {median_interval(peer)[0]:.0f}x",
    )  # fmt: skip


def compare_draws(report: Report, pairs: int) -> None:
    """Print how much faster balanced draws are than torch's."""
    made = keys.torch_generator(0, "synth", "labels")
    labels = (torch.rand(LARGE, generator=made) < PREVALENCE).long()
    share = labels.double().mean()
    weights = torch.where(labels == 1, 0.5 / share, 0.5 / (1 - share))
    torchs = WeightedRandomSampler(weights, LARGE)  # type: ignore[arg-type]
    mine = BalancedDraws(labels)

    def of_mine(epoch: int) -> None:
        mine.keyed_order(keys.generator(0, "order", epoch))

    def with_set_up(epoch: int) -> None:
        BalancedDraws(labels).keyed_order(keys.generator(0, "order", epoch))

    def of_torch(epoch: int) -> None:
        list(torchs)

    def without_list(epoch: int) -> None:
        torch.multinomial(weights, LARGE, replacement=True)

    for name, peer, own, bar in (
        ("draws/weighted_sampler_over_kit", of_torch, of_mine, 8.0),
        ("draws/weighted_sampler_over_kit_set_up_included", of_torch, with_set_up, None),
        ("draws/multinomial_alone_over_kit", without_list, of_mine, None),
    ):
        ratios = in_turn(pairs, timed(1, peer), timed(1, own))
        report.figure(
            name, *median_interval(ratios), at_least=bar, on_limit=bar is not None, unit="x"
        )


def check_above(report: Report) -> None:
    """Print how many of the checks hold where each member must come equally often."""
    rare = 4096
    labels = torch.zeros(ABOVE, dtype=torch.uint8)
    labels[-rare:] = 1  # a class whose members all lie beyond 2**24
    draws, hits = BalancedDraws(labels), 0
    epochs = 1 if report.quick else 4
    for epoch in range(epochs):
        order = torch.from_numpy(draws.keyed_order(keys.generator(1, "order", epoch)))
        of_rare = order >= ABOVE - rare
        ones = int(of_rare.sum())
        hits += abs(ones - ABOVE / 2) < 4 * (ABOVE / 4) ** 0.5
        for found, cells in (
            (order[of_rare] - (ABOVE - rare), rare),
            (order[~of_rare] // 4096, (ABOVE - rare) // 4096),
        ):
            times = torch.bincount(found, minlength=cells).double()
            chi2 = float(((times - times.mean()) ** 2 / times.mean()).sum())
            hits += abs(chi2 - (cells - 1)) < 4 * (2 * (cells - 1)) ** 0.5
    report.share(
        "draws/right_above_2^24_rows", hits, 3 * epochs, at_least=1.0,
        peers="WeightedRandomSampler refuses; float32 multinomial never draws the upper half",
    )  # fmt: skip


def main() -> int:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(Path(sys.argv[2]))
        return 0
    torch.set_num_threads(1)
    report = Report(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        for dtype in ("float64", "float32"):
            write_table(path, LARGE, dtype)
            found = memory(path)
            report.figure(
                f"memory/{dtype}_parquet_peak", found["batch"], at_most=2.5, unit="x table",
                peers=f"after set-up {found['setup']:.2f}x; {found['columns']:.0f} columns",
            )  # fmt: skip
        tables = {  # all but few of the rows in training; the baseline is no part of loading
            name: read(path, indicators=indicators, val_fraction=0.01, baseline_c=None)
            for name, indicators in (("", False), ("_and_indicators", True))
        }
    made = keys.torch_generator(0, "synth", "small")
    small = Batch(
        torch.randn(SMALL, COLUMNS, generator=made),
        torch.randint(2, (SMALL,), generator=made),
        torch.arange(SMALL),
        torch.randint(4, (SMALL,), generator=made),
    )
    loader = TableLoader(small, SMALL_BATCH, shuffle=True, seed=0)
    pairs = 15 if report.quick else 25
    compare_epochs(report, "2,000_rows", small, loader, SMALL_BATCH, 100, pairs)
    for name, data in tables.items():
        loader = keyed(data, seed=0).train_dataloader()
        compare_epochs(
            report, f"2_million_rows_40_columns{name}", data.rows("train"), loader, LARGE_BATCH,
            1, pairs,
        )  # fmt: skip
    compare_draws(report, 7 if report.quick else 15)
    check_above(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
