"""Three made-up hospitals' lung-nodule candidates: patches of chest CT whose truth is known.

One candidate in fifty is a nodule; the others are what a detector mistakes for one. Hospitals
differ in kernel, slice thickness, noise and in scale and offset of their values. At hospitals A
and B nodules are mostly in follow-up exams, which are thin-sliced and quiet: a shortcut that does
not hold at C. Of the look-alikes a calcified granuloma differs by its density alone, so absolute
values matter. Shapes, sizes and scanners are guesses: an AUROC on these says nothing of real ones.

The bytes are the same on any CPU, and each candidate is a function of seed, hospital and number:
more candidates begin with the same ones.

Run as ``python -m medkit.synth.chest_ct OUT`` to write 12,000 of them (332 MB).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from medkit.record.files import write_text
from medkit.synth.chest_ct_scanner import PER_EXAM, SCANNERS, SIZE, Exam, exam_of, raw, taken
from medkit.synth.chest_ct_scene import LOOK_ALIKES, NODULES, WORDS, furnish, lung
from medkit.synth.chest_ct_shapes import Draws
from medkit.synth.exact import Floats, log, uniforms

__all__ = ["SITES", "Candidates", "make_candidates", "read_candidates", "write_candidates"]

SITES: Mapping[str, int] = {"A": 4000, "B": 4000, "C": 4000}
SHORTCUT = ("A", "B")
DIFFICULTY = 1.15  # the recipe's small net: mean AUROC .936 at C on data seeds 100 to 104
ODDS = 5.0  # of a nodule in a follow-up exam, against another, where the shortcut holds
_BLOCK, _NODULES = 10, 4  # exams in which there are exactly so many nodules: one in fifty
_CHUNK = 16  # patches at once, so that they stay in the cache; no byte depends on it
_VOLUMES, _TABLE, _SUMS = "volume_hu.npy", "candidates.csv", "SHA256SUMS"


@dataclass(frozen=True)
class Candidates:
    """Nodule candidates.

    Attributes:
        volume_hu: int16 ``(N, 24, 24, 24)``, voxels of 1 mm, slices along the last axis [HU].
        table: A row per candidate: ``candidate``, ``exam`` (one a patient), ``site``, ``y`` (1: a
            nodule), ``kind``, ``diameter_mm`` of a nodule, ``protocol`` ("routine" or
            "follow-up"), ``kernel``, ``slice_mm``, and the exam's ``air_hu`` and ``muscle_hu``:
            means measured in windpipe and muscle, truly -970 and 50 HU, within 3 HU.
    """

    volume_hu: NDArray[np.int16]
    table: pd.DataFrame


def make_candidates(
    *,
    seed: int = 0,
    sites: Mapping[str, int] | None = None,
    difficulty: float = DIFFICULTY,
    shortcut: Collection[str] = SHORTCUT,
) -> Candidates:
    """Draw candidates, hospital by hospital and exam by exam, 20 an exam.

    Args:
        seed: Another seed, other patients of the same hospitals.
        sites: Hospital -> number of candidates; by default 4,000 at each of A, B and C.
        difficulty: The higher, the smaller nodules are and the rounder look-alikes; 0.5 to 2 make
            sense. The default is frozen.
        shortcut: Hospitals where nodules are mostly in follow-up exams.

    Raises:
        ValueError: For hospitals, numbers or a difficulty that are not known.
    """
    sites = _checked(sites, difficulty, shortcut)
    volume = np.empty((sum(sites.values()), SIZE, SIZE, SIZE), np.int16)
    return Candidates(volume, _drawn_into(volume, seed, sites, difficulty, shortcut))


def write_candidates(
    folder: Path | str,
    *,
    seed: int = 0,
    sites: Mapping[str, int] | None = None,
    difficulty: float = DIFFICULTY,
    shortcut: Collection[str] = SHORTCUT,
) -> dict[str, str]:
    """Write what :func:`make_candidates` returns; return file name -> SHA-256.

    ``volume_hu.npy`` is written through a memory map, and ``candidates.csv`` last: without it the
    folder holds nothing.
    """
    sites = _checked(sites, difficulty, shortcut)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _TABLE).unlink(missing_ok=True)
    shape = (sum(sites.values()), SIZE, SIZE, SIZE)
    volume = open_memmap(folder / _VOLUMES, mode="w+", dtype=np.int16, shape=shape)
    table = _drawn_into(volume, seed, sites, difficulty, shortcut)
    volume.flush()
    digest = hashlib.sha256()
    with open(folder / _VOLUMES, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.1f", lineterminator="\n")
    csv = text.getvalue()
    sums = {_VOLUMES: digest.hexdigest(), _TABLE: hashlib.sha256(csv.encode()).hexdigest()}
    write_text(folder / _SUMS, "".join(f"{sums[name]}  {name}\n" for name in sums))
    write_text(folder / _TABLE, csv)
    return sums


def read_candidates(folder: Path | str) -> Candidates:
    """Open what :func:`write_candidates` wrote; the volumes stay on the disk until asked for.

    Raises:
        FileNotFoundError: Where there are none.
    """
    folder = Path(folder)
    if not (folder / _TABLE).is_file():
        raise FileNotFoundError(
            f"{folder} must hold {_VOLUMES} and {_TABLE}; there is no {_TABLE}. Write them with "
            "write_candidates(folder), or python -m medkit.synth.chest_ct OUT."
        )
    text = {"candidate": str, "exam": str, "site": str}
    return Candidates(
        np.load(folder / _VOLUMES, mmap_mode="r"), pd.read_csv(folder / _TABLE, dtype=text)
    )


def _checked(
    sites: Mapping[str, int] | None, difficulty: float, shortcut: Collection[str]
) -> dict[str, int]:
    sites = dict(SITES if sites is None else sites)
    whole = all(n > 0 and n == int(n) for n in sites.values())
    if (
        not sites
        or not {*sites, *shortcut} <= {*SCANNERS}
        or not whole
        or not 0.2 <= difficulty <= 5
    ):
        raise ValueError(
            "candidates need a positive whole number for some of the hospitals A, B and C, a "
            f"shortcut at some of these, and a difficulty from 0.2 to 5; got {sites}, "
            f"{sorted(shortcut)} and {difficulty}. Leave them out for the usual ones."
        )
    return {site: int(n) for site, n in sites.items()}


def _drawn_into(
    volume: NDArray[np.int16],
    seed: int,
    sites: Mapping[str, int],
    difficulty: float,
    shortcut: Collection[str],
) -> pd.DataFrame:
    rows, start = [], 0
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(volume), disable=quiet, leave=False, unit="patch") as bar:
        for site, count in sites.items():
            exams = [exam_of(seed, site, e) for e in range(-(-count // PER_EXAM))]
            nodule = _nodules(seed, site, count, ODDS if site in shortcut else 1.0)
            for first in range(0, count, _CHUNK):
                numbers = range(first, min(first + _CHUNK, count))
                kinds = [_kind(seed, site, i, y=bool(nodule[i])) for i in numbers]
                of = [exams[i // PER_EXAM] for i in numbers]
                part = slice(start + first, start + first + len(numbers))
                volume[part], sizes = _patches(seed, site, numbers, kinds, of, difficulty)
                rows += list(_rows(site, numbers, kinds, of, sizes))
                bar.update(len(numbers))
            start += count
    return pd.DataFrame(rows)


def _patches(
    seed: int,
    site: str,
    numbers: range,
    kinds: list[str],
    exams: list[Exam],
    difficulty: float,
) -> tuple[NDArray[np.int16], Floats]:
    words = np.stack([raw(seed, "patch", site, i, count=WORDS + SIZE**3) for i in numbers])
    scene = lung(words[:, :WORDS], [e.lung_hu for e in exams], [e.texture_hu for e in exams])
    draws = Draws.of(words)
    phases = draws.between(0, 1).ravel().tolist()
    sizes = furnish(scene, draws, kinds, difficulty)
    return taken(scene, words[:, WORDS:], exams, phases), sizes


def _nodules(seed: int, site: str, count: int, odds: float) -> NDArray[np.bool_]:
    """Return which candidates are nodules: the first to arrive of each block of exams."""
    found = []
    for block in range(-(-count // (_BLOCK * PER_EXAM))):
        exams = [exam_of(seed, site, block * _BLOCK + e) for e in range(_BLOCK)]
        rate = np.repeat([odds if exam.follow_up else 1.0 for exam in exams], PER_EXAM)
        arrival = -log(1 - uniforms(seed, "ct", "nodules", site, block, shape=rate.shape)) / rate
        found.append(np.isin(np.arange(len(rate)), np.argsort(arrival, kind="stable")[:_NODULES]))
    return np.concatenate(found)[:count]


def _kind(seed: int, site: str, number: int, *, y: bool) -> str:
    shares = NODULES if y else LOOK_ALIKES
    (u,) = uniforms(seed, "ct", "kind", site, number, shape=(1,)).tolist()
    for name, share in shares.items():
        u -= share
        if u < 0:
            return name
    return name  # what rounding leaves of the last


def _rows(
    site: str, numbers: range, kinds: list[str], exams: list[Exam], sizes: Floats
) -> Iterator[dict[str, object]]:
    for i, kind, exam, size in zip(numbers, kinds, exams, sizes.tolist(), strict=True):
        yield {
            "candidate": f"{site}{i:05d}",
            "exam": f"{site}{i // PER_EXAM:04d}",
            "site": site,
            "y": int(kind in NODULES),
            "kind": kind,
            "diameter_mm": round(size, 1),
            "protocol": "follow-up" if exam.follow_up else "routine",
            "kernel": SCANNERS[site].kernel,
            "slice_mm": exam.slice_mm,
            "air_hu": round(exam.air_hu, 1),
            "muscle_hu": round(exam.muscle_hu, 1),
        }


def main() -> None:
    """Write the candidates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the volumes and their table")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_candidates(options.out, seed=options.seed)


if __name__ == "__main__":
    main()
