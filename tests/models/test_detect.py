from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medkit.dicom.volume import Volume
from medkit.metrics.detection import froc, match
from medkit.models.classifier import LitClassifier
from medkit.models.detect import PatchForm, Search, detect, peaks, probability_map, refined
from medkit.models.patch_scores import scores_at

SIZE = 12
FORM = PatchForm(size=SIZE)
SEARCH = Search(FORM, stride_mm=4, most=3)
STRAIGHT = np.array([[0, -0.8, 0, 20.0], [-0.8, 0, 0, 16.0], [0, 0, 1.25, -30.0], [0, 0, 0, 1]])


def turned(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tilt by 20 degrees about x, and by 10 about z."""
    a, b = np.deg2rad([20, 10])
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    swing = np.eye(4)
    swing[:2, :2] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    return np.asarray(swing @ tilt @ affine)


class BallNet(nn.Module):
    """Linear: what is within 3 mm of the middle against the shell around it."""

    def __init__(self) -> None:
        super().__init__()
        at = np.indices((SIZE,) * 3) - (SIZE - 1) / 2
        away = np.sqrt((at**2).sum(axis=0))
        near, shell = np.exp(-((away / 2.5) ** 2)), np.exp(-((away / 5) ** 2))
        weight = torch.tensor((near / near.sum() - shell / shell.sum()).ravel(), dtype=torch.float)
        self.line = nn.Linear(SIZE**3, 1)
        self.line.weight.data, self.line.bias.data = 12 * weight[None], torch.tensor([-2.0])
        self.norm = nn.BatchNorm1d(1)
        self.seen: list[tuple[int, torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), x.dtype, torch.is_autocast_enabled(x.device.type)))
        return self.norm(self.line(x.flatten(1)))


def ball_model() -> LitClassifier:
    return LitClassifier(f"{__name__}:BallNet")


def volume_with(
    *balls: tuple[tuple[float, float, float], float],
    affine: NDArray[np.float64] = STRAIGHT,
    shape: tuple[int, int, int] = (40, 44, 28),
) -> Volume:
    """Lung with balls of 6 mm, each given by its voxel and its HU."""
    slices = np.full((shape[2], shape[0], shape[1]), -850, np.float32)
    volume = Volume(slices.transpose(1, 2, 0), affine, "HU")
    world = volume.world_of(np.stack(np.indices(shape), axis=-1))
    for voxel, hu in balls:
        away = np.linalg.norm(world - volume.world_of(voxel), axis=-1)
        soft = np.clip(3.5 - away, 0, 1)  # half voxels at the edge, as a scanner has them
        volume.array[...] += (soft * (hu + 850)).astype(np.float32)
    return volume


@pytest.mark.parametrize("affine", [STRAIGHT, turned(STRAIGHT)], ids=["straight", "oblique"])
def test_a_planted_ball_is_found_within_a_voxel(affine: NDArray[np.float64]) -> None:
    voxel = (23.4, 17.2, 11.7)
    volume = volume_with((voxel, 50), affine=affine)
    found = detect(ball_model(), volume, SEARCH)
    away = np.abs(volume.index_of(found.centres_mm[0]) - voxel)
    assert away.max() < 1
    assert found.score[0] > 0.5
    assert found.score[1:].max() < 0.2


def test_two_balls_come_in_the_order_of_their_scores() -> None:
    volume = volume_with(((12, 12, 8), -100), ((28, 32, 20), 100))
    found = detect(ball_model(), volume, SEARCH)
    near = np.rint(volume.index_of(found.centres_mm[:2]))
    assert np.abs(near - [(28, 32, 20), (12, 12, 8)]).max() <= 1
    assert (np.diff(found.score) <= 0).all()


def test_of_two_candidates_nearer_than_the_radius_the_better_stays() -> None:
    values = np.zeros((10, 1, 1), np.float32)
    values[[1, 3, 4, 9], 0, 0] = 0.5, 0.9, 0.8, 0.4
    line = Volume(values, np.diag([2.0, 1, 1, 1]), "probability")
    centres, score = peaks(line, Search(radius_mm=4, threshold=0.3))
    assert centres[:, 0].tolist() == [6, 18]
    assert score.tolist() == pytest.approx([0.9, 0.4])
    centres, _ = peaks(line, Search(radius_mm=3.9, threshold=0.3))
    assert centres[:, 0].tolist() == [6, 2, 18]
    assert len(peaks(line, Search(radius_mm=1, most=2))[1]) == 2
    assert len(peaks(line, Search(threshold=0.95))[1]) == 0


def test_the_map_says_what_the_net_says_of_each_of_its_places() -> None:
    volume, model = volume_with(((20, 20, 12), 0), affine=turned(STRAIGHT)), ball_model()
    found = probability_map(model, volume, replace(SEARCH, stride_mm=9))
    # 31.2, 34.4 and 33.75 mm between the outermost voxels
    assert found.array.shape == (4, 4, 4)
    np.testing.assert_allclose(found.spacing_mm, 9)
    index = np.argwhere(np.isfinite(found.array))
    np.testing.assert_allclose(
        scores_at(model, volume, found.world_of(index), FORM),
        found.array[tuple(index.T)],
        rtol=1e-5,
    )
    middle = volume.index_of(found.world_of([1.5, 1.5, 1.5]))
    np.testing.assert_allclose(middle, (np.array(volume.array.shape) - 1) / 2)
    assert found.slices.flags.c_contiguous


def test_nobody_looks_off_the_mask() -> None:
    volume = volume_with(((12, 12, 8), 0), ((28, 32, 20), 0))
    mask = np.zeros(volume.array.shape, bool)
    mask[:20] = True
    model = ball_model()
    found = detect(model, volume, replace(SEARCH, most=1), mask=mask)
    looked = np.isfinite(found.probability.array)
    rows = volume.index_of(found.probability.world_of(np.argwhere(looked)))[:, 0]
    assert rows.max() < 19.5
    assert 0.3 < looked.mean() < 0.7
    assert np.abs(volume.index_of(found.centres_mm[0]) - (12, 12, 8)).max() < 1
    none = detect(model, volume, SEARCH, mask=np.zeros_like(mask))
    assert none.centres_mm.shape == (0, 3)
    assert none.table("a")["score"].shape == (0,)


def test_the_closer_look_never_loses_and_ends_in_the_middle_of_a_plateau() -> None:
    volume = volume_with(((23.4, 17.2, 11.7), 50))
    model, search = ball_model(), replace(SEARCH, stride_mm=5)
    coarse = detect(model, volume, replace(search, refine_mm=None))
    fine = detect(model, volume, search)
    assert fine.score[0] > coarse.score[0]
    flat = LitClassifier("medkit.models.nets:mlp", {"inputs": 1, "hidden": []})
    flat.net = _Constant()
    centre = np.array([[0.0, 1.0, 2.0]])
    np.testing.assert_allclose(refined(flat, volume, centre, search)[0], centre)


class _Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


def test_what_is_found_is_held_against_nodules_in_their_millimetres() -> None:
    voxel = (23, 17, 11)
    volume = volume_with((voxel, 50))
    found = detect(ball_model(), volume, SEARCH)
    x, y, z = volume.world_of(voxel)
    nodules = {"exam": ["a"], "x": [x], "y": [y], "z": [z], "diameter_mm": [6.0]}
    matched = match(found.table("a"), nodules, exams=["a", "b"])
    assert matched.candidate_on.tolist() == [0, -1, -1]
    assert froc(matched).cpm.value == 1


def test_batches_of_any_size_say_the_same_and_are_no_larger() -> None:
    volume, model = volume_with(((20, 20, 12), 0)), ball_model()
    search = replace(SEARCH, stride_mm=8)
    want = probability_map(model, volume, search).array
    model.net.seen.clear()
    again = probability_map(model, volume, replace(search, patch=replace(FORM, batch_size=7)))
    np.testing.assert_allclose(again.array, want, rtol=1e-5)
    assert {rows for rows, _, _ in model.net.seen[:-1]} == {7}


def test_memory_does_not_grow_with_the_number_of_places() -> None:
    volume = volume_with(shape=(30, 30, 20))
    model, search = ball_model(), Search(replace(FORM, batch_size=16), stride_mm=1.25)
    tracemalloc.start()
    try:
        looks = probability_map(model, volume, search).array.size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert looks > 6000
    assert peak < 2e6  # all patches at once are 42 MB


def test_the_net_sees_values_corrected_and_windowed_as_in_training() -> None:
    hu = np.array([-1024.0, -1000.0, -300.0, 400.0, 1424.0], np.float32).reshape(5, 1, 1, 1)
    seen = FORM.seen(hu.copy())
    assert seen.shape == (5, 1, 1, 1, 1)
    torch.testing.assert_close(seen.ravel(), torch.tensor([0, 0, 0.5, 1, 1]))
    raw = replace(FORM, window_hu=None, scale=2.0, offset_hu=100.0).seen(hu.copy())
    torch.testing.assert_close(raw.ravel(), torch.tensor([-1.948, -1.9, -0.5, 0.9, 2.948]))
    model, volume = ball_model(), volume_with(((20, 22, 14), 50))
    off = Volume(volume.array + 1024, volume.affine, "HU")  # a rescale that was forgotten
    place = [volume.world_of((20, 22, 14))]
    np.testing.assert_allclose(
        scores_at(model, off, place, replace(FORM, offset_hu=-1024.0)),
        scores_at(model, volume, place, FORM),
        rtol=1e-5,
    )


def test_the_module_is_left_as_it_was() -> None:
    model = ball_model().train()
    model.net.line.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores_at(model, volume_with(), [[0, 0, 0]], FORM)
    assert model.training
    assert model.net.norm.training
    assert not model.net.line.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_weights_of_half_the_bits_see_patches_of_half_the_bits() -> None:
    model = ball_model().to(torch.bfloat16)
    score = scores_at(model, volume_with(), [[0, 0, 0]], FORM)
    assert model.net.seen[0][1] == torch.bfloat16
    assert score.dtype == np.float32


def test_the_precision_is_that_of_the_trainer() -> None:
    model = ball_model()
    model.trainer = pl.Trainer(
        accelerator="cpu", precision="bf16-mixed", logger=False, enable_checkpointing=False
    )
    scores_at(model, volume_with(), [[0, 0, 0]], FORM)
    assert model.net.seen[0][2]
    assert not torch.is_autocast_enabled("cpu")


def test_what_cannot_be_searched_is_refused() -> None:
    volume, model = volume_with(), ball_model()
    suv = Volume(volume.array, volume.affine, "BQML")
    with pytest.raises(ValueError, match=r"need a volume in HU, got 'BQML'. Convert"):
        detect(model, suv, SEARCH)
    with pytest.raises(TypeError, match=r"must be a medkit\.dicom\.Volume, got ndarray. Read it"):
        detect(model, volume.array, SEARCH)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mask must be bool of shape \(40, 44, 28\).*int64"):
        detect(model, volume, SEARCH, mask=np.ones(volume.array.shape, np.int64))
    volume.array[20, 22, 14] = np.nan
    with pytest.raises(FloatingPointError, match=r"probabilities must be numbers.*Look for NaN"):
        detect(model, volume, SEARCH)


def test_what_was_found_is_short_to_print() -> None:
    found = detect(ball_model(), volume_with(((20, 22, 14), 50)), SEARCH)
    assert repr(found).startswith(f"Detected(3 candidates, best score {found.score[0]:.3g}, Volume")
    assert len(repr(found)) < 250


def test_a_file_that_says_no_unit_is_taken_for_hu() -> None:
    volume, model = volume_with(((20, 22, 14), 50)), ball_model()
    unsaid = Volume(volume.array, volume.affine, "")
    assert (detect(model, unsaid, SEARCH).score == detect(model, volume, SEARCH).score).all()


def test_a_long_look_is_seen_without_a_terminal_and_a_short_one_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, model = volume_with(), ball_model()
    scores_at(model, volume, [[0, 0, 0]], FORM)
    assert not capsys.readouterr().err
    monkeypatch.setattr("medkit.models.patch_scores._LONG", 100)
    scores_at(model, volume, np.zeros((100, 3)), FORM)
    assert "scoring patches" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"stride_mm": 0}, {"refine_mm": 0}, {"most": 0}])
def test_a_search_without_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"needs strides and a radius above 0 mm"):
        replace(SEARCH, **wrong)  # type: ignore[arg-type]


def test_patches_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a window that rises; got .*\(400, -1000\)"):
        PatchForm(window_hu=(400, -1000))


@pytest.mark.gpu
def test_an_accelerator_says_the_same() -> None:
    volume, model = volume_with(((23, 17, 11), 50)), ball_model()
    want = detect(model, volume, SEARCH)
    device = torch.accelerator.current_accelerator()
    assert device is not None
    found = detect(model.to(device), volume, SEARCH)
    np.testing.assert_allclose(found.probability.array, want.probability.array, atol=1e-4)
    np.testing.assert_allclose(found.centres_mm[0], want.centres_mm[0], atol=1e-6)
    assert model.net.line.weight.device.type == device.type
