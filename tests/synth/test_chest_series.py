from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom import config

from medkit.dicom import Volume, read_series
from medkit.synth import chest_series
from medkit.synth.chest_ct_scanner import AIR_HU, MUSCLE_HU, bell, exam_of, raw
from medkit.synth.chest_ct_scene import LOOK_ALIKES, NODULES
from medkit.synth.chest_series import ChestSeries, make_series, write_series
from medkit.synth.chest_series_draws import Stream
from medkit.synth.chest_series_files import MAKERS, PADDED_HU
from medkit.synth.chest_series_finds import Find, put_finds
from medkit.synth.chest_series_lungs import Chest
from medkit.synth.chest_series_scanner import sampled, taken_whole
from medkit.synth.chest_series_scene import make_scene

SAMPLES = Path(__file__).parents[2] / "data_samples" / "ct_nodules"
SHA256 = "648a0a3f92b41785f5a43200aa5e73ed75282765e8376691f2f29841e1aaeae1"

HASH = """
import hashlib
from medkit.synth.chest_series import make_series
one = make_series(seed=3, site="B", number=1, size=(60, 64, 16))
known = one.nodules.to_csv() + one.look_alikes.to_csv() + repr((one.origin_mm, one.air_hu))
print(hashlib.sha256(one.volume_hu.tobytes() + known.encode()).hexdigest())
"""


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(SAMPLES / f"{name}.csv")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ChestSeries]]:
    """Run the command once, and keep what it draws."""
    folder, made = tmp_path_factory.mktemp("series"), {}

    def kept(**arguments: Any) -> ChestSeries:
        one = make_series(**arguments)
        made[one.name] = one
        return one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chest_series, "make_series", kept)
        chest_series.main([str(folder)])
    return folder, made


@pytest.fixture(scope="module")
def sample(written: tuple[Path, dict[str, ChestSeries]]) -> list[tuple[ChestSeries, Volume]]:
    """Return each series of the samples, made and read."""
    _, made = written
    return [
        (made[row.exam], read_series(SAMPLES / row.folder)) for row in table("series").itertuples()
    ]


@pytest.mark.parametrize(
    "kernels",
    [
        {},
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


def test_another_seed_number_or_hospital_is_another_chest() -> None:
    small = {"size": (32, 32, 8)}
    first = make_series(site="A", number=0, **small)
    for other in ({"seed": 1}, {"number": 1}, {"site": "B"}):
        made = make_series(**({"site": "A", "number": 0} | small | other))  # type: ignore[arg-type]
        assert not np.array_equal(made.volume_hu, first.volume_hu)
        assert made.uid != first.uid
        assert made.patient_id != first.patient_id


def test_the_sample_folder_is_what_the_command_writes(
    written: tuple[Path, dict[str, ChestSeries]],
) -> None:
    folder, _ = written
    made = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    kept = {str(p.relative_to(SAMPLES)) for p in SAMPLES.rglob("*") if p.is_file()}
    assert kept == made | {"README.md"}
    for name in made:
        assert (folder / name).read_bytes() == (SAMPLES / name).read_bytes(), name
    for line in (SAMPLES / "SHA256SUMS").read_text().splitlines():
        sha, name = line.split("  ")
        assert hashlib.sha256((SAMPLES / name).read_bytes()).hexdigest() == sha
    assert sum((SAMPLES / name).stat().st_size for name in kept) < 6.2e6


def chest_with_finds(number: int) -> tuple[np.ndarray, np.ndarray, list[Find]]:
    """Return a scene before and after its nodules and look-alikes."""
    chest = Chest.drawn(Stream(5, "chest", number), -860.0)
    scene = make_scene((5, "B", number), chest, texture_hu=20.0, size_mm=(264, 264, 70))
    healthy = scene.hu.copy()
    return healthy, scene.hu, put_finds(scene, Stream(5, number), length_mm=70, difficulty=1.0)


def test_nodules_are_in_the_noise_free_scene_where_and_as_large_as_the_table_says() -> None:
    seen = 0
    for number in (0, 1):
        healthy, ill, finds = chest_with_finds(number)
        z, y, x = (np.arange(n) - (n - 1) / 2 for n in ill.shape)
        for find in finds:
            far = np.sqrt(
                (x - find.centre[0]) ** 2
                + (y[:, None] - find.centre[1]) ** 2
                + (z[:, None, None] - find.centre[2]) ** 2
            )
            risen = np.where(far < 11, ill - healthy, 0)
            assert risen.min() >= 0
            assert max(abs(a - b) for a, b in zip(find.centre, find.found, strict=True)) <= 1
            if find.kind not in NODULES or find.where != "lung":
                assert find.kind == "bump" or risen.max() > 20
                continue
            seen += 1
            inside, around = far < 0.3 * find.diameter_mm, (far > 11) & (far < 14)
            assert ill[inside].mean() - np.median(ill[around]) > 120
            weight = risen / risen.sum()
            centroid = [(weight * axis).sum() for axis in (x, y[:, None], z[:, None, None])]
            assert np.abs(np.subtract(centroid, find.centre)).max() < 1.0
            volume = (risen > 0.5 * np.percentile(risen[inside], 50)).sum()
            assert 0.5 < (6 * volume / np.pi) ** (1 / 3) / find.diameter_mm < 1.25
            assert find.density_hu == pytest.approx(ill[far < 1.2].mean(), abs=1)
    assert seen >= 2


def test_the_kits_reader_finds_every_voxel_and_nodule(
    sample: list[tuple[ChestSeries, Volume]],
) -> None:
    annotations = table("annotations")
    for made, read in sample:
        stored = np.where(made.volume_hu == PADDED_HU, -1000, made.volume_hu)
        assert np.array_equal(read.array, stored)
        assert read.spacing_mm == pytest.approx(made.spacing_mm, abs=1e-9)
        padded = (made.volume_hu == PADDED_HU).sum()
        expected = (f"{padded:,} padded pixels set to -1000",) if made.site == "B" else ()
        assert read.notes == expected
        mine = annotations[annotations.seriesuid == made.uid]
        assert len(mine) == len(made.nodules)
        for row in mine.itertuples():
            i, j, k = read.index_of([-row.coordX, -row.coordY, row.coordZ])  # LPS to RAS
            x, y, z = np.array([row.coordX, row.coordY, row.coordZ]) - made.origin_mm
            assert np.abs([j * made.spacing_mm[1] - x, i * made.spacing_mm[0] - y]).max() < 1e-2
            assert abs(k * made.spacing_mm[2] - z) < 1e-2
            i, j, k = np.rint([i, j, k]).astype(int)
            middle = read.array[i - 1 : i + 2, j - 1 : j + 2, k].max()
            around = np.median(read.array[i - 6 : i + 7, j - 6 : j + 7, k])
            assert middle - around > (250 if row.kind == "solid" else 90), row


def test_hospitals_differ_as_their_scanners_do(
    sample: list[tuple[ChestSeries, Volume]],
) -> None:
    for made, read in sample:
        for name, true in (("air", made.air_hu), ("muscle", made.muscle_hu)):
            if name == "air" and made.site == "C":
                continue  # its noise is cut off at -1024
            assert tissue(made, read, name).mean() == pytest.approx(true, abs=3), made.name
        noise = made.exam.noise_hu / np.sqrt(made.spacing_mm[2])
        assert tissue(made, read, "muscle").std() == pytest.approx(noise, rel=0.25)
    kernels = {made.kernel for made, _ in sample}
    assert kernels == {"smooth", "sharp", "medium"}
    assert {read.provenance["transfer_syntax"] for _, read in sample} == {
        maker.syntax for maker in MAKERS.values()
    }


def tissue(made: ChestSeries, read: Volume, name: str) -> np.ndarray:
    """Return the voxels of a reference; muscle goes through all slices."""
    x, y, z = made.reference_mm[name]
    i, j, k = (np.arange(n) for n in read.array.shape)
    x = made.origin_mm[0] + j * made.spacing_mm[1] - x
    y = made.origin_mm[1] + i[:, None] * made.spacing_mm[0] - y
    z = made.origin_mm[2] + k * made.spacing_mm[2] - z
    near = np.abs(z) < (40 if name == "muscle" else 7)
    return read.array[:, :, near][x * x + y * y < 4.5**2]


@pytest.mark.parametrize("site", ["A", "B", "C"])
def test_without_noise_air_and_muscle_are_what_the_table_says(site: str) -> None:
    exam = exam_of(0, site, 0)
    flat = np.full((30, 40, 40), MUSCLE_HU)
    flat[:15] = AIR_HU
    shown = taken_whole(flat, exam, size=(10, 20, 20), spacing_mm=(2.5, 1.75, 1.75), noise_of=None)
    made = make_series(site=site, number=0, size=(32, 32, 8))
    assert abs(shown[0, 10, 10] - made.air_hu) <= 0.5
    assert abs(shown[-1, 10, 10] - made.muscle_hu) <= 0.5


def test_pixels_are_whole_weights_about_their_places() -> None:
    weights = sampled(60, 20, 2.5, 0.85)
    assert (weights == np.rint(weights)).all()
    assert (weights.sum(axis=1) == 4096).all()
    centres = weights @ (np.arange(60) - 29.5) / 4096
    assert centres == pytest.approx((np.arange(20) - 9.5) * 2.5, abs=0.06)  # of 1 mm steps


def test_candidates_have_the_columns_of_luna16_and_agree_with_the_annotations() -> None:
    candidates, annotations = table("candidates"), table("annotations")
    place = ["coordX", "coordY", "coordZ"]
    assert list(candidates.columns[:5]) == ["seriesuid", *place, "class"]
    assert list(annotations.columns[:5]) == ["seriesuid", *place, "diameter_mm"]
    found = candidates[candidates["class"] == 1]
    assert len(found) == len(annotations) >= 6
    off = found[place].to_numpy() - annotations[place].to_numpy()
    assert 0.3 < np.abs(off).max() <= 1.001
    assert set(found.kind) == set(NODULES)
    assert set(candidates.kind[candidates["class"] == 0]) == set(LOOK_ALIKES)
    assert annotations.diameter_mm.between(4, 13).all()
    assert 0 in table("series").nodules.to_numpy()


def test_every_header_is_valid_and_says_that_nobody_was_scanned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    ids = set()
    for path in SAMPLES.rglob("*.dcm"):
        one = pydicom.dcmread(path)
        assert all(element.value is not None for element in one.iterall())
        assert one.SyntheticData == "YES"
        assert str(one.PatientName) == one.PatientID
        assert path.relative_to(SAMPLES).parts[0] == one.PatientID
        ids.add(one.SOPInstanceUID)
    assert len(ids) == len(list(SAMPLES.rglob("*.dcm")))


def test_simpleitk_reads_the_same_voxels_at_the_same_places(
    sample: list[tuple[ChestSeries, Volume]],
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for made, _ in sample:
        folder = SAMPLES / table("series").set_index("seriesuid").folder[made.uid]
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute()
        assert np.array_equal(sitk.GetArrayFromImage(image), made.volume_hu.transpose(2, 0, 1))
        assert image.GetOrigin() == pytest.approx(made.origin_mm, abs=1e-6)
        assert image.GetSpacing() == pytest.approx(made.spacing_mm, abs=1e-6)


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "dcm2niix").exists() and not shutil.which("dcm2niix"),
    reason="needs dcm2niix, of the extra peers",
)
def test_dcm2niix_warns_of_the_invented_makers_only(tmp_path: Path) -> None:
    beside = Path(sys.executable).parent / "dcm2niix"
    program = str(beside) if beside.exists() else "dcm2niix"
    for folder in table("series").folder:
        done = subprocess.run(
            [program, "-o", tmp_path, "-f", "%i", SAMPLES / folder], capture_output=True, text=True
        )
        assert done.returncode == 0
        said = [line for line in (done.stdout + done.stderr).splitlines() if "Warn" in line]
        assert all("manufacturer" in line for line in said), said
        assert f"Convert {len(list((SAMPLES / folder).iterdir()))} DICOM" in done.stdout


def test_a_series_is_written_below_patient_and_study(tmp_path: Path) -> None:
    made = make_series(seed=2, site="B", number=3, size=(36, 32, 8), difficulty=2.0)
    own = write_series(tmp_path, made)
    assert own.relative_to(tmp_path).parts[:2] == (made.patient_id, "B0003-chest")
    assert read_series(tmp_path).array.shape == (36, 32, 8)


def test_the_bell_of_a_stream_is_the_patches_bell() -> None:
    words = raw(1, "place", 0, count=3).tolist()
    x, y, z = bell(np.array(words, np.uint64)).tolist()
    length = np.sqrt(x * x + y * y + z * z)
    assert Stream(1, "place").direction() == pytest.approx((x / length, y / length, z / length))


def test_what_is_not_known_is_refused() -> None:
    fine = {"site": "A", "number": 0}
    for wrong in ({"site": "D"}, {"number": -1}, {"number": 0.5}, {"difficulty": 9.0}):
        with pytest.raises(ValueError, match=r"needs a hospital A, B or C.*got .*Pass site='A'"):
            make_series(**(fine | wrong))  # type: ignore[arg-type]
    for size in ((128, 128), (16, 128, 30), (128, 128, 4), (64.5, 64, 30)):
        with pytest.raises(ValueError, match=r"size must be rows and columns.*got .*Leave it out"):
            make_series(site="A", number=0, size=size)  # type: ignore[arg-type]
