"""Candidates on CT as batches: split, corrected, drawn, augmented, windowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch

from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.quarantine import Quarantine
from medkit.data.batches import Batch
from medkit.data.ct_augment import another_scanner, symmetries
from medkit.data.ct_nodules import NoduleDataModule
from medkit.data.draws import HalfPositive
from medkit.data.loader import keyed
from medkit.dicom import DicomError
from medkit.models.classifier import LitClassifier
from medkit.synth import phantom_series as phantom
from medkit.synth.broken_series import CASES
from medkit.synth.chest_ct import Candidates, read_candidates, write_candidates


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("candidates")
    write_candidates(path, seed=1, sites={"A": 200, "B": 200, "C": 200})
    return str(path)


@pytest.fixture(scope="module")
def candidates(folder: str) -> Candidates:
    return read_candidates(folder)


def ready(folder: str, **settings: Any) -> NoduleDataModule:
    dm = NoduleDataModule(folder, **{"test_site": "C", **settings})
    dm.setup()
    return dm


class Spy(LitClassifier):
    """Keeps what it is trained on, and learns nothing."""

    def __init__(self) -> None:
        super().__init__("medkit.models.ct_net:CandidateNet", {})
        self.seen: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)


def trained_on(folder: str, quiet: dict[str, Any], seed: int = 0, **settings: Any) -> list[Batch]:
    module = Spy()
    trainer = pl.Trainer(
        **quiet, max_epochs=2, limit_val_batches=0, callbacks=[KeyedSteps(seed=seed)]
    )
    trainer.fit(module, keyed(NoduleDataModule(folder, test_site="C", **settings), seed=seed))
    return module.seen


def test_parts_share_no_patient_and_the_test_is_the_hospital(
    folder: str, candidates: Candidates
) -> None:
    table = candidates.table
    dm = ready(folder, val_negatives=30)
    assert dm.split is not None
    exams = {part: set(table["exam"].iloc[dm.split.part(part)]) for part in ("train", "val")}
    assert not exams["train"] & exams["val"]
    assert set(table["site"].iloc[dm.split.test]) == {"C"}
    assert "C" not in set(table["site"].iloc[np.concatenate([dm.split.train, dm.split.val])])
    assert (table["y"].iloc[dm.split.val] == 0).sum() == 30
    other = ready(folder, split_seed=1)
    assert other.split is not None
    assert set(other.split.train) != set(dm.split.train)
    assert other.digests["train"] != dm.digests["train"]


def test_a_batch_is_half_positive_and_each_positive_comes_as_often(
    folder: str, quiet: dict[str, Any]
) -> None:
    seen = trained_on(folder, quiet, batch_size=16)
    assert all(int(batch.y.sum()) == 8 for batch in seen)
    y = ready(folder).rows("train").y.numpy()
    drawn = np.bincount(HalfPositive(y).keyed_order(np.random.default_rng(0)), minlength=len(y))
    assert drawn[y == 1].max() - drawn[y == 1].min() <= 1
    assert drawn[y == 0].max() == 1
    with pytest.raises(ValueError, match="labels are 0 and 1 and both are there"):
        HalfPositive(np.zeros(4, np.int64))


def test_a_batch_is_a_function_of_seed_epoch_and_place(folder: str, quiet: dict[str, Any]) -> None:
    torch.manual_seed(1)
    first = trained_on(folder, quiet)
    torch.manual_seed(2)
    again, other = trained_on(folder, quiet), trained_on(folder, quiet, seed=1)
    for one, same in zip(first, again, strict=True):
        torch.testing.assert_close(one.x, same.x, rtol=0, atol=0)
    assert not torch.equal(first[0].x, other[0].x)
    half = len(first) // 2
    assert not torch.equal(first[0].x, first[half].x), "another epoch, another augmentation"


def test_a_batch_has_the_shape_and_range_a_net_expects(folder: str, quiet: dict[str, Any]) -> None:
    (batch, *_) = trained_on(folder, quiet)
    assert batch.x.shape == (32, 1, 24, 24, 24)
    assert batch.x.dtype == torch.float32
    assert float(batch.x.min()) >= 0
    assert float(batch.x.max()) <= 1
    assert batch.row.dtype == batch.site.dtype == torch.int64


def test_evaluation_is_not_augmented(folder: str, candidates: Candidates) -> None:
    dm = ready(folder, harmonise="none")
    batch = next(iter(dm.test_dataloader()))
    seen = dm.on_after_batch_transfer(batch, 0)
    hu = torch.from_numpy(np.array(candidates.volume_hu[batch.row.numpy()], np.float32))
    expected = ((hu + 1000) / 1400).clamp(0, 1)
    torch.testing.assert_close(seen.x[:, 0], expected)
    torch.testing.assert_close(dm.rows("test").x[: len(batch.y), 0], expected)
    assert batch.x.dtype == torch.int16, "what travels to the device is 16 bits a voxel"


def test_a_window_of_none_is_a_thousandth_of_hu(folder: str, candidates: Candidates) -> None:
    rows = ready(folder, harmonise="none", window_hu=None).rows("test")
    hu = np.asarray(candidates.volume_hu)[rows.row.numpy()]
    np.testing.assert_allclose(rows.x[:, 0].numpy(), hu / 1000, atol=1e-6)


def test_the_exams_reference_undoes_its_scale_and_offset(
    folder: str, candidates: Candidates
) -> None:
    mended = ready(folder, window_hu=None).rows("test")
    table = candidates.table.iloc[mended.row.numpy()]
    hu = np.asarray(candidates.volume_hu)[mended.row.numpy()].astype(np.float64)
    air, muscle = (table[name].to_numpy()[:, None, None, None] for name in ("air_hu", "muscle_hu"))
    true = (hu - air) / (muscle - air) * (50 + 970) - 970
    np.testing.assert_allclose(mended.x[:, 0].numpy(), true / 1000, atol=1e-5)


def test_a_forgotten_rescale_is_undone_by_the_reference_alone(folder: str) -> None:
    dm, plain = ready(folder), ready(folder, harmonise="none")
    torch.testing.assert_close(dm.rows("test", added_hu=1024).x, dm.rows("test").x)
    assert float(plain.rows("test", added_hu=1024).x.mean()) > float(plain.rows("test").x.mean())


def test_sites_are_made_alike_by_training_rows_and_a_new_hospital_is_left_alone(
    folder: str,
) -> None:
    dm = ready(folder, harmonise="site", window_hu=None)
    raw = ready(folder, harmonise="none", window_hu=None)
    assert dm.harmonisation is not None
    assert set(dm.harmonisation.sites) == {"A", "B"}
    assert dm.harmonisation.fitted_on == dm.digests["train"]
    torch.testing.assert_close(dm.rows("test").x, raw.rows("test").x)

    def apart(module: NoduleDataModule) -> float:
        rows = module.rows("train")
        low, high = (np.percentile(rows.x[rows.site == s].numpy(), 95) for s in (0, 1))
        return float(abs(low - high))

    assert apart(dm) < apart(raw) / 5


def test_what_was_fitted_goes_with_the_checkpoint_and_not_to_other_patients(folder: str) -> None:
    dm = ready(folder, harmonise="site")
    state = dm.state_dict()
    again = NoduleDataModule(folder, test_site="C", harmonise="site")
    again.load_state_dict(state)
    again.setup()
    torch.testing.assert_close(again.rows("val").x, dm.rows("val").x, rtol=0, atol=0)
    with pytest.raises(ValueError, match="resumed on the patients it was trained on"):
        ready(folder, harmonise="site", split_seed=3).load_state_dict(state)


def test_the_prior_that_half_positive_batches_took_out_is_put_back(folder: str) -> None:
    dm = ready(folder)
    y = dm.rows("train").y.double().mean().item()
    assert dm.prior == pytest.approx(y)
    assert dm.logit_shift == pytest.approx(np.log(y / (1 - y)))
    assert ready(folder, draws="shuffled").logit_shift == 0


def test_rows_that_are_broken_are_found_and_named(
    folder: str, tmp_path: Path, quiet: dict[str, Any], candidates: Candidates
) -> None:
    volumes = np.array(candidates.volume_hu, np.float32)
    volumes[3] = np.nan
    volumes[10] = -1000
    volumes[20, :, :, 8:] = -1000
    np.save(tmp_path / "volume_hu.npy", volumes)
    candidates.table.to_csv(tmp_path / "candidates.csv", index=False)
    screen = Quarantine(checks=("finite", "constant", "padded"), budget=0.05)
    module = Spy()
    trainer = pl.Trainer(
        **quiet, max_epochs=1, limit_val_batches=0, callbacks=[KeyedSteps(seed=0), screen]
    )
    dm = NoduleDataModule(str(tmp_path), test_site="C")
    trainer.fit(module, keyed(dm, seed=0))
    assert dm.split is not None
    train = set(dm.split.train.tolist())
    assert set(screen.rows) == train & {3, 10, 20}
    seen = torch.cat([batch.row for batch in module.seen])
    assert not {3, 10, 20} & set(seen.tolist())
    assert all(bool(torch.isfinite(batch.x).all()) for batch in module.seen)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"draws": "balanced"}, "draws must be one of"),
        ({"augment": "some"}, "augment must be one of"),
        ({"harmonise": "histogram"}, "harmonise must be one of"),
        ({"window_hu": (400, -1000)}, "window_hu must have its lower edge first"),
        ({"batch_size": 5}, "batch_size must be two rows at least, and an even number"),
        ({"val_negatives": 0}, "val_negatives must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(folder: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NoduleDataModule(folder, **settings)


def test_what_is_no_folder_needs_its_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="with images_dir="):
        NoduleDataModule(str(tmp_path / "candidates.csv")).setup()
    with pytest.raises(FileNotFoundError, match=r"must hold volume_hu\.npy"):
        NoduleDataModule(str(tmp_path)).setup()
    with pytest.raises(RuntimeError, match="setup"):
        NoduleDataModule(str(tmp_path)).rows("val")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Four patients' series and a table of candidates in them."""
    rows = []
    for patient in range(4):
        datasets = phantom.phantom_series(uid=f"7{patient}")
        for dataset in datasets:
            dataset.PatientID = f"P{patient}"
        phantom.write_series(tmp_path / "images" / f"P{patient}", datasets)
        uid = str(datasets[0].SeriesInstanceUID)
        middle = np.array([-33.0, -21.0, -97.0])
        for number in range(6):
            place = middle + number * 0.4
            rows.append([uid, *place, int(number == 0), "AB"[patient % 2]])
    names = ["seriesuid", "coordX", "coordY", "coordZ", "class", "site"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "candidates.csv", index=False)
    nodule = rows[0]
    pd.DataFrame([[*nodule[:4], 7.5]], columns=[*names[:4], "diameter_mm"]).to_csv(
        tmp_path / "annotations.csv", index=False
    )
    return tmp_path


def from_series(archive: Path, **settings: Any) -> NoduleDataModule:
    dm = NoduleDataModule(
        str(archive / "candidates.csv"),
        str(archive / "images"),
        annotations_csv=str(archive / "annotations.csv"),
        cache_dir=str(archive / "cache"),
        **{"size": 8, "val_fraction": 0.5, "harmonise": "none", **settings},
    )
    dm.setup()
    return dm


def test_patches_around_world_coordinates_have_the_hu_of_their_places(archive: Path) -> None:
    dm = from_series(archive)
    assert dm.store is not None
    table = dm.store.table
    assert dm.store.volume_hu.shape == (24, 8, 8, 8)
    for number in (0, 7, 23):
        lps = table[["x", "y_lps", "z"]].iloc[number].to_numpy(float)
        offset = np.arange(8) - 3.5
        grid = np.stack(np.meshgrid(offset, offset, offset, indexing="ij"), axis=-1)
        truth = phantom.hu_at(lps + grid[..., [1, 0, 2]])
        assert dm.store.volume_hu[number] == pytest.approx(truth, abs=1.1)
    assert table["diameter_mm"].notna().sum() == 1
    assert not any("P" in patient for patient in table["patient"]), "pseudonyms only"
    assert dm.sites == ["A", "B"]


def test_patches_are_cut_once_and_never_stale(archive: Path) -> None:
    first = from_series(archive).store
    again = from_series(archive).store
    assert first is not None
    assert again is not None
    assert again.sha256 == first.sha256
    assert len(list((archive / "cache").glob("*/patches.json"))) == 1
    other = from_series(archive, spacing_mm=0.8).store
    assert other is not None
    assert other.sha256 != first.sha256
    path = next((archive / "images" / "P0").iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    changed = from_series(archive).store
    assert changed is not None
    assert changed.sha256 not in {first.sha256, other.sha256}


def test_a_refused_series_is_listed_and_bounded(archive: Path) -> None:
    broken = CASES["missing middle slice"].make()
    for dataset in broken:
        dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3.999", "P9"
    phantom.write_series(archive / "images" / "P9", broken)
    table = pd.read_csv(archive / "candidates.csv")
    table.loc[len(table)] = ["1.2.3.999", -33.0, -21.0, -97.0, 0, "A"]
    table.loc[len(table)] = [table["seriesuid"][0], 500.0, -21.0, -97.0, 0, "A"]
    table.to_csv(archive / "candidates.csv", index=False)
    dm = from_series(archive, max_lost=0.1)
    assert dm.lost == {"missing_slice": 1, "outside of its volume": 1}
    with pytest.raises(ValueError, match="at most 5% of the candidates may be left out, and 2 of"):
        from_series(archive)
    mended = from_series(archive, reader={"resample": True})
    assert mended.lost == {"outside of its volume": 1}


@pytest.mark.parametrize("place", [0, 5], ids=["at an end", "amid"])
def test_a_damaged_slice_is_named_where_patches_are_cut(
    archive: Path, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    lost = sorted((archive / "images" / "P0").iterdir())[place]
    lost.write_bytes(b"no slice any more")
    from_series(archive, max_lost=0.5)
    assert lost.name in caplog.text


def test_tables_that_do_not_fit_their_images_are_refused(archive: Path) -> None:
    path = archive / "candidates.csv"
    table = pd.read_csv(path)
    for broken, said in (
        (table.drop(columns=["class"]), "must have the columns seriesuid, coordX"),
        (table.assign(coordX=np.nan), "coordX must be a finite number .* row 1 .* is empty"),
        (table.assign(**{"class": 2}), "class must be 0 or 1 .* and 23 more of 24 rows"),
        (table.assign(seriesuid="1.2.3"), "must hold each series"),
    ):
        broken.to_csv(path, index=False)
        with pytest.raises(ValueError, match=said):
            from_series(archive)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coordX": "left"}, "coordX must be a finite number in each row; row 4 .* has 'left'"),
        ({"site": ""}, "site must be given in each row; row 4 below the header is empty"),
        ({"class": 2}, "class must be 0 or 1 .*; row 4 below the header has '2'"),
    ],
)
def test_a_bad_cell_of_a_table_of_series_is_named(
    archive: Path, change: dict[str, object], said: str
) -> None:
    path = archive / "candidates.csv"
    table = pd.read_csv(path).astype(object)
    table.loc[3, list(change)] = list(change.values())
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=f"candidates.csv: {said}"):
        from_series(archive)


def test_without_a_column_of_sites_manufacturers_are_the_sites_and_it_is_said(
    archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = archive / "candidates.csv"
    pd.read_csv(path).drop(columns="site").to_csv(path, index=False)
    dm = from_series(archive)
    assert f"has no column site: the manufacturers stand for the sites, {dm.sites}" in caplog.text
    assert all(dm.sites)


def test_a_folder_with_a_table_of_series_needs_no_more_than_its_images(archive: Path) -> None:
    (archive / "candidates").mkdir()
    (archive / "candidates.csv").rename(archive / "candidates" / "candidates.csv")
    ways = {"size": 8, "val_fraction": 0.5, "harmonise": "none", "cache_dir": str(archive / "c")}
    dm = NoduleDataModule(str(archive / "candidates"), str(archive / "images"), **ways)
    dm.setup()
    assert len(dm.rows("train").y) == 12


def test_nothing_that_can_be_read_is_an_error(archive: Path) -> None:
    for path in (archive / "images").rglob("*.dcm"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises((ValueError, DicomError), match="none of 4 series could be read"):
        from_series(archive)


def test_symmetries_of_a_cube_keep_its_values_and_its_centre() -> None:
    cube = torch.arange(5**3, dtype=torch.int16).reshape(1, 5, 5, 5)
    torch.manual_seed(0)
    seen = {tuple(one.flatten().tolist()) for one in symmetries(cube.expand(900, -1, -1, -1))}
    assert len(seen) == 48
    assert {patch[62] for patch in seen} == {62}


def test_another_scanner_keeps_tissue_within_its_limits() -> None:
    torch.manual_seed(0)
    flat = torch.full((200, 24, 24, 24), -800.0)
    means = another_scanner(flat).mean(dim=(1, 2, 3))
    assert (means + 800).abs().max() < 40 + 0.04 * 800 + 1
    assert (means + 800).abs().max() > 40
    torch.manual_seed(0)
    same = torch.full((8, 24, 24, 24), -800.0)
    torch.testing.assert_close(another_scanner(same.clone(), strength=0), same)


def test_each_patch_is_changed_by_its_own_draws() -> None:
    torch.manual_seed(3)
    ramp = torch.linspace(-1000, 200, 24).expand(16, 24, 24, 24).clone()
    seen = another_scanner(ramp)
    assert len({round(float(one.mean()), 4) for one in seen}) == 16
    assert len({round(float(one.std()), 2) for one in seen}) > 8


def test_the_shipped_series_become_patches_of_three_hospitals(tmp_path: Path) -> None:
    samples = Path(__file__).resolve().parents[2] / "data_samples" / "ct_nodules"
    dm = NoduleDataModule(
        str(samples / "candidates.csv"),
        str(samples),
        annotations_csv=str(samples / "annotations.csv"),
        cache_dir=str(tmp_path),
        test_site="C",
        val_fraction=0.5,
    )
    dm.setup()
    assert dm.store is not None
    table = dm.store.table
    assert dm.sites == ["A", "B", "C"]
    assert dm.lost == {}
    assert table["y"].sum() == table.loc[table["y"] == 1, "diameter_mm"].notna().sum() == 8
    # a solid nodule is denser than the lung around it, a granuloma denser still
    middle = np.asarray(dm.store.volume_hu)[:, 10:14, 10:14, 10:14].mean(axis=(1, 2, 3))
    around = np.median(np.asarray(dm.store.volume_hu), axis=(1, 2, 3))
    solid = (table["kind"] == "solid").to_numpy()
    assert (middle[solid] > around[solid] + 200).all()
    assert float(dm.rows("test").x.max()) <= 1


def test_without_air_and_muscle_the_reference_is_asked_for(archive: Path) -> None:
    with pytest.raises(ValueError, match="needs columns air_hu and muscle_hu"):
        from_series(archive, harmonise="reference")


def some(candidates: Candidates) -> pd.DataFrame:
    """Return all nodules and a tenth of all rows."""
    table = candidates.table
    return table[(table["y"] == 1) | (table.index % 10 == 0)]


def own(candidates: Candidates, folder: Path, table: pd.DataFrame | None = None) -> str:
    """Write somebody's own folder of patches."""
    rows = some(candidates)
    np.save(folder / "volume_hu.npy", candidates.volume_hu[rows.index])
    table = rows if table is None else table
    table.to_csv(folder / "candidates.csv", index=False)
    return str(folder)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("y", 2, "y must be 0 or 1 .*; row 3 below the header has '2'"),
        ("site", "", "site must be given in each row; row 3 below the header is empty"),
        ("exam", None, "exam must be given"),
        ("air_hu", "low", "air_hu must be a finite number or nothing .*; row 3 .* has 'low'"),
    ],
)
def test_a_bad_cell_of_a_folder_of_patches_is_named(
    candidates: Candidates, tmp_path: Path, column: str, value: object, said: str
) -> None:
    table = some(candidates).astype(object)
    table.iloc[2, table.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=f"candidates.csv: {said}"):
        ready(own(candidates, tmp_path, table))


@pytest.mark.parametrize("column", ["y", "site", "exam", "candidate"])
def test_a_folder_of_patches_without_a_column_is_refused(
    candidates: Candidates, tmp_path: Path, column: str
) -> None:
    table = some(candidates).drop(columns=column)
    with pytest.raises(ValueError, match=rf"\['{column}'\] are not among"):
        ready(own(candidates, tmp_path, table))


def test_an_empty_file_is_named(candidates: Candidates, tmp_path: Path) -> None:
    folder = own(candidates, tmp_path)
    (tmp_path / "candidates.csv").write_text("")
    with pytest.raises(ValueError, match=r"candidates\.csv must be a table .* can't be read"):
        ready(folder)
    own(candidates, tmp_path, candidates.table.iloc[:0])
    with pytest.raises(ValueError, match=r"must have a row for each candidate"):
        ready(folder)
    own(candidates, tmp_path)
    (tmp_path / "volume_hu.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"volume_hu\.npy must hold a patch .* can't be read"):
        ready(folder)


def test_only_what_the_kit_wrote_is_to_be_removed(candidates: Candidates, tmp_path: Path) -> None:
    folder = own(candidates, tmp_path, candidates.table.iloc[:50])
    with pytest.raises(ValueError, match=r"found .* Leave out the rows"):
        ready(folder)
    (tmp_path / "SHA256SUMS").write_text("")
    with pytest.raises(ValueError, match="The folder is torn: remove it"):
        ready(folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": 32}, "of 24 voxels along an axis, and size would change nothing"),
        ({"images_dir": "images"}, "images_dir would change nothing"),
        ({"spacing_mm": 2.0}, "patches of 1.0 mm voxels"),
    ],
)
def test_what_would_be_ignored_beside_a_folder_of_patches_is_refused(
    folder: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ready(folder, **settings)


def test_the_spacing_of_ones_own_patches_can_be_said(
    candidates: Candidates, tmp_path: Path
) -> None:
    store = ready(own(candidates, tmp_path), spacing_mm=2.0).store
    assert store is not None
    assert store.spacing_mm == 2


def test_a_changed_patch_is_other_data_and_the_sums_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_candidates(tmp_path, seed=1, sites={"A": 200})
    before = ready(str(tmp_path), test_site=None).data_sha256
    assert not caplog.text
    volumes = np.load(tmp_path / "volume_hu.npy", mmap_mode="r+")
    volumes[100, 3, 3, 3] += 1
    volumes.flush()
    assert ready(str(tmp_path), test_site=None).data_sha256 != before
    assert "volume_hu.npy was changed after SHA256SUMS was written" in caplog.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"test_site": "Z"}, r"got 'Z'; the candidates are from \['A', 'B', 'C'\]"),
    ],
)
def test_a_split_that_cannot_be_says_what_to_change(
    folder: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as error:
        ready(folder, **settings)
    assert "folds" not in str(error.value)
    assert "site=:" not in str(error.value)


def test_a_part_without_nodules_says_how_many_patients_there_are(
    candidates: Candidates, tmp_path: Path
) -> None:
    table = some(candidates).copy()
    table["y"] = (np.arange(len(table)) == 5).astype(int)
    said = "the val part must hold nodules and .* 0 of them nodules, .* 1 of them with a nodule"
    with pytest.raises(ValueError, match=said):
        ready(own(candidates, tmp_path, table), test_site=None)


def test_too_few_patients_with_nodules_at_a_hospital_are_named(folder: str, archive: Path) -> None:
    whole = ready(folder, test_site=None, val_fraction=0.5)
    assert whole.require_each_site() is whole
    said = (
        r"each site, and of ([AB]) it does not: .*, 2 at \1\. With val_fraction=0.25 .* needs 4 at"
    )
    with pytest.raises(ValueError, match=said):
        from_series(archive, val_fraction=0.25).require_each_site()


def test_one_patient_cannot_be_split(candidates: Candidates, tmp_path: Path) -> None:
    table = some(candidates).assign(exam="A0000")
    with pytest.raises(ValueError, match="2 parts needs as many patients at least; found 1"):
        ready(own(candidates, tmp_path, table), test_site=None)


def test_hu_before_the_window_is_what_the_window_makes_rows_of(folder: str) -> None:
    dm = ready(folder)
    rows = dm.rows("test", added_hu=100)
    hu = dm.hu(rows.row, added_hu=100)
    assert hu.shape == rows.x.shape
    assert float(hu.min()) < -500, "HU, not windowed"
    torch.testing.assert_close(dm.window(hu.clone()), rows.x, rtol=0, atol=0)


def test_fewer_rows_than_a_batch_are_refused(archive: Path) -> None:
    dm = from_series(archive)
    with pytest.raises(ValueError, match="a batch of training rows at least, 32; found 12"):
        dm.train_dataloader()
