from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.metrics.discrimination import auroc
from medkit.synth.chest_ct import (
    ODDS,
    Candidates,
    _nodules,
    make_candidates,
    read_candidates,
    write_candidates,
)
from medkit.synth.chest_ct_scanner import (
    AIR_HU,
    BELL_SD,
    MUSCLE_HU,
    PER_EXAM,
    SIZE,
    WEIGHT,
    Exam,
    bell,
    blur,
    exam_of,
    raw,
    slices,
    taken,
)
from medkit.synth.chest_ct_scene import LOOK_ALIKES, NODULES

SMALL = {"A": 220, "B": 40, "C": 200}
SHA256 = "6733ff0b80235c09714d8df0001e78f40573b7cdab60d3031d6a81e941865b77"

HASH = """
import hashlib
from medkit.synth.chest_ct import make_candidates
drawn = make_candidates(seed=3, sites={"A": 48, "B": 40, "C": 40})
print(hashlib.sha256(drawn.volume_hu.tobytes() + drawn.table.to_csv().encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def drawn() -> Candidates:
    return make_candidates(seed=3, sites=SMALL)


def plain(**other: float) -> Exam:
    values = {"noise_hu": 0.0, "offset_hu": 0.0, "scale": 1.0, "slice_mm": 1.0, "blur_mm": 0.3}
    rest = {"air_hu": -970.0, "muscle_hu": 50.0, "lung_hu": -850.0, "texture_hu": 20.0}
    return Exam(follow_up=False, **(values | rest | other))


@pytest.mark.parametrize(
    "kernels",
    [
        {},
        {"OPENBLAS_CORETYPE": "Haswell"},
        {"OPENBLAS_CORETYPE": "Prescott"},
        {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX"},
    ],
)
def test_bytes_are_the_same_whatever_the_matrix_library_and_the_processor_do(
    kernels: dict[str, str],
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HASH],
        env=os.environ | kernels,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == SHA256


def test_products_and_sums_are_exact_in_any_order(drawn: Candidates) -> None:
    """Whole numbers in Python, which have no limit, against the matrices of float64."""
    exam, rows = exam_of(0, "C", 1), np.random.default_rng(0).integers(-16384, 16384, (24, 24, 24))
    plane, along, _, _ = exam.matrices(0.3)
    fast = plane @ rows.reshape(24, -1).astype(float)
    fast = (plane @ fast.reshape(24, 24, 24)) @ along.T
    p, a = ([[int(v) for v in row] for row in matrix] for matrix in (plane, along))
    for i, j, k in ((0, 0, 0), (12, 7, 20), (23, 23, 23)):
        exact = sum(
            p[i][x] * p[j][y] * a[k][z] * int(rows[x, y, z])
            for x in range(24)
            for y in range(24)
            for z in range(24)
            if p[i][x] and p[j][y] and a[k][z]
        )
        assert int(fast[i, j, k]) == exact
    assert (np.abs(fast) < 2**53).all()


def test_a_candidate_is_a_function_of_seed_site_and_number(drawn: Candidates) -> None:
    fewer = make_candidates(seed=3, sites={"A": 37})
    assert np.array_equal(fewer.volume_hu, drawn.volume_hu[:37])
    assert fewer.table.equals(drawn.table.iloc[:37])
    alone = make_candidates(seed=3, sites={"C": 5})
    assert np.array_equal(alone.volume_hu, drawn.volume_hu[260:265])
    assert not np.array_equal(
        make_candidates(seed=4, sites={"A": 5}).volume_hu, fewer.volume_hu[:5]
    )


def test_four_of_two_hundred_are_nodules(drawn: Candidates) -> None:
    table = drawn.table
    assert table["y"][:200].sum() == table["y"][260:].sum() == 4
    assert set(table["kind"][table["y"] == 1]) <= set(NODULES)
    assert set(table["kind"][table["y"] == 0]) == set(LOOK_ALIKES)
    assert table["diameter_mm"][table["y"] == 1].between(4, 13).all()
    assert table["diameter_mm"][table["y"] == 0].isna().all()
    assert (table.groupby("exam").size() <= PER_EXAM).all()
    assert table.groupby("exam")[["site", "protocol", "air_hu"]].nunique().eq(1).all(axis=None)


def test_nodules_sit_in_follow_up_exams_where_the_shortcut_holds() -> None:
    said = {}
    for odds in (ODDS, 1.0):
        y = _nodules(0, "A", 20_000, odds).astype(int)
        follow_up = np.repeat([exam_of(0, "A", e).follow_up for e in range(1000)], PER_EXAM)
        said[odds] = auroc(y, follow_up.astype(float)).value
    assert said[ODDS] == pytest.approx(0.69, abs=0.03)
    assert said[1.0] == pytest.approx(0.5, abs=0.03)


def test_a_calcified_granuloma_is_denser_than_any_nodule(drawn: Candidates) -> None:
    brightest = drawn.volume_hu[:220, 9:15, 9:15, 9:15].max(axis=(1, 2, 3))
    kind = drawn.table["kind"][:220]
    assert np.median(brightest[kind == "calcified"]) > 200
    assert brightest[kind.isin(list(NODULES))].max() < 150
    assert np.median(brightest[kind == "blob"]) < -400


def test_air_and_muscle_undo_an_exams_scale_and_offset() -> None:
    for number in range(20):
        exam = exam_of(5, "B", number)
        for measured, true in ((exam.air_hu, AIR_HU), (exam.muscle_hu, MUSCLE_HU)):
            shown = (true + 1000) * exam.scale - 1000 + exam.offset_hu
            assert abs(measured - shown) < 3 * 3.5


def test_a_scanner_adds_its_offset_and_noise_and_keeps_flat_tissue() -> None:
    flat = np.full((1, SIZE, SIZE, SIZE), 40.0)
    grain = raw(0, "test", count=SIZE**3)[None]
    still = taken(flat, grain, [plain(offset_hu=-40.0, scale=1.04)], [0.0])
    assert (still == round(1040 * 1.04 - 1040)).all()
    loud = taken(flat, grain, [plain(noise_hu=30.0, blur_mm=0.85)], [0.0]).astype(float)
    assert loud[0, 6:-6, 6:-6].mean() == pytest.approx(40, abs=3)
    assert loud[0, 6:-6, 6:-6].std() == pytest.approx(30, rel=0.1)


def test_thick_slices_smear_along_their_axis_only() -> None:
    scene = np.full((1, SIZE, SIZE, SIZE), -800.0)
    scene[0, 12, 12, 12] = 1000.0
    grain = np.zeros((1, SIZE**3), np.uint64)
    thin, thick = (
        taken(scene, grain, [plain(slice_mm=mm)], [0.0])[0].astype(float) + 800 for mm in (1.0, 5.0)
    )
    assert thick[12, 12].max() < 0.5 * thin[12, 12].max()
    assert (thick[12, 12] > 20).sum() >= 5 > (thin[12, 12] > 20).sum()
    assert (thick.sum(2) > 20).sum() <= (thin.sum(2) > 20).sum()


@pytest.mark.parametrize(
    "matrix", [blur(0.45), blur(0.85), slices(2.5, 1, 0.6), slices(5.0, 3, 0.6)]
)
def test_rows_of_weights_are_whole_and_add_up(matrix: np.ndarray) -> None:
    assert (matrix == np.rint(matrix)).all()
    assert (matrix >= 0).all()
    assert (matrix.sum(axis=1) == WEIGHT).all()


def test_the_bell_is_centred_with_the_variance_it_says() -> None:
    values = bell(raw(0, "bell", count=200_000)) / BELL_SD
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)


def test_files_hold_what_was_drawn_and_stay_on_the_disk(drawn: Candidates, tmp_path: Path) -> None:
    sums = write_candidates(tmp_path, seed=3, sites=SMALL)
    again = read_candidates(tmp_path)
    assert isinstance(again.volume_hu, np.memmap)
    assert again.volume_hu.dtype == np.int16
    assert np.array_equal(again.volume_hu, drawn.volume_hu)
    pd.testing.assert_frame_equal(again.table, drawn.table)
    for name, sha in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha
        assert f"{sha}  {name}\n" in (tmp_path / "SHA256SUMS").read_text()


def test_a_higher_difficulty_makes_nodules_smaller() -> None:
    easy, hard = (
        make_candidates(seed=3, sites={"A": 200}, difficulty=d).table["diameter_mm"].mean()
        for d in (0.5, 2.0)
    )
    assert hard < easy


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    for wrong in ({"sites": {"D": 3}}, {"sites": {"A": 0}}, {"difficulty": 0}, {"shortcut": "D"}):
        with pytest.raises(ValueError, match=r"hospitals A, B and C.*got .*Leave them out"):
            make_candidates(**wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"must hold volume_hu.npy.*Write them with"):
        read_candidates(tmp_path)
