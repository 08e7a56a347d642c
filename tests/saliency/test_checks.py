from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medkit import keyed
from medkit.metrics.intervals import wilson
from medkit.models.ct_net import CandidateNet
from medkit.record.results import Metric
from medkit.saliency.checks import (
    Check,
    MapVerdict,
    cascade,
    examine,
    random_net,
    randomisation_checks,
    stability_check,
    usable,
)
from medkit.saliency.map_scores import (
    energy,
    flat,
    hits,
    likeness,
    localisation,
    mean_of,
    overlap,
    pointing_game,
    spheres,
)
from medkit.saliency.occlusion import occlusion
from medkit.saliency.removal import removal_curves
from medkit.saliency.volume_maps import NOT_CHECKED, VolumeMaps
from medkit.saliency.volume_net import VolumeNet
from medkit.saliency.volumes import integrated_gradients

SIDE, COUNT = 16, 12
occluded = partial(occlusion, side=4, stride=3)


def window(hu: Tensor) -> Tensor:
    return ((hu + 1000) / 1400).clamp(0, 1)


def planted(seed: int, count: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise with a ball in half of the volumes, and where the balls are."""
    draw = keyed.generator(seed, "planted")
    hu = torch.from_numpy(-850 + 60 * draw.standard_normal((count, 1, SIDE, SIDE, SIDE))).float()
    y = np.arange(count) % 2
    centre = draw.uniform(5, 10, (count, 3))
    ball = spheres(np.full(count, 5.0), (SIDE,) * 3, centre=centre, margin_mm=0)
    hu[:, 0][ball & torch.from_numpy(y == 1)[:, None, None, None]] = 30.0
    return hu, torch.from_numpy(y), centre


def trained(seed: int, *, shuffled: bool = False) -> nn.Module:
    """A small net after some steps on balls, or on labels that were dealt out anew."""
    hu, y, _ = planted(100 + seed, 128)
    if shuffled:
        y = y[torch.from_numpy(keyed.generator(seed, "shuffled").permutation(len(y)))]
    with keyed.globals_keyed(seed, "init"):
        net = CandidateNet(channels=(4, 8, 8), head="mean")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(40):
        rows = torch.arange(32) + 32 * (step % 4)
        loss = F.binary_cross_entropy_with_logits(net(window(hu[rows]))[:, 0], y[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def nets() -> list[nn.Module]:
    return [trained(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def shuffled() -> list[nn.Module]:
    return [trained(seed, shuffled=True) for seed in range(3)]


@pytest.fixture(scope="module")
def balls() -> tuple[Tensor, Tensor]:
    hu, y, centre = planted(0, 2 * COUNT)
    there = y == 1
    diameter = np.full(COUNT, 5.0)
    return hu[there], spheres(diameter, (SIDE,) * 3, centre=centre[there.numpy()])


def show_input(_: VolumeNet, hu: Tensor) -> VolumeMaps:
    """A bad method: the windowed volume, whatever the net."""
    return VolumeMaps(window(hu)[:, 0], "the input", "")


def maps_of(*values: list[float]) -> VolumeMaps:
    """Maps of volumes of 2 x 2 x 1 voxels."""
    return VolumeMaps(torch.tensor(values).view(-1, 2, 2, 1), "made", "")


def test_occlusion_passes_on_a_net_that_found_the_planted_balls(
    nets: list[nn.Module], shuffled: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    found = examine(
        occluded, VolumeNet(nets[0], window), balls[0], seeds=nets[1:], shuffled=shuffled,
        mask=balls[1], draws=3,
    )  # fmt: skip
    assert found.passed, str(found)
    assert len(found.checks) == 7
    assert str(found).startswith("occlusion passes: likeness to nets with random weights 0.")
    assert usable({"occlusion": found}) == ["occlusion"]


def test_the_same_method_fails_on_a_net_that_learnt_nothing(
    shuffled: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    with keyed.globals_keyed(5, "init"):
        net = CandidateNet(channels=(4, 8, 8), head="mean").eval()
    found = examine(
        occluded, VolumeNet(net, window), balls[0], seeds=shuffled, mask=balls[1], draws=3
    )
    assert not found.passed
    assert str(found).startswith("do not use occlusion: ")
    assert "another seed gives another map" in str(found)
    assert usable({"occlusion": found}) == []


def test_the_input_shown_as_a_map_fails_even_where_it_points_at_the_balls(
    nets: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    found = examine(show_input, VolumeNet(nets[0], window), balls[0], seeds=nets[1:], mask=balls[1])
    assert pointing_game(show_input(VolumeNet(nets[0], window), balls[0]), balls[1]).value == 1
    bad = [check.name for check in found.checks if not check.passed]
    assert bad[0] == "likeness to nets with random weights"
    assert "likeness to other seeds, beyond nets with random weights" in bad  # 1e-17 is not above 0
    assert "pointing game, beyond random nets" in bad
    assert "they show its input, not its reasons" in str(found)


def test_the_verdict_goes_with_the_maps(
    nets: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    of = VolumeNet(nets[0], window)
    maps = show_input(of, balls[0])
    assert str(maps).endswith(NOT_CHECKED)
    verdict = examine(show_input, of, balls[0])
    assert str(verdict.on(maps)).endswith(str(verdict))
    assert "do not use the input: likeness to nets with random weights 1.00" in str(verdict)


def test_a_random_net_has_weights_of_the_trained_ones_size_and_nothing_else_of_them(
    nets: list[nn.Module],
) -> None:
    of = VolumeNet(nets[0], window, baseline_hu=-900)
    blind = random_net(of, 1, seed=3)
    assert (blind.window, blind.baseline_hu) == (window, -900)
    known, drawn = (dict(one.net.state_dict()) for one in (of, blind))
    large = [name for name, one in known.items() if one.numel() > 400]
    for name in large:
        assert abs(np.corrcoef(known[name].flatten(), drawn[name].flatten())[0, 1]) < 0.2
        sizes = [float(one.square().mean()) for one in (known[name], drawn[name])]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.3)
    assert large
    again, another = (random_net(of, draw, seed=3).net.state_dict() for draw in (1, 2))
    assert torch.equal(again[large[0]], drawn[large[0]])
    assert not torch.equal(another[large[0]], drawn[large[0]])


def test_nothing_checked_is_not_passed() -> None:
    assert not MapVerdict("made", ()).passed
    assert str(MapVerdict("made", ())) == "made: not checked"


def test_too_few_volumes_or_exams_never_pass(nets: list[nn.Module]) -> None:
    hu, y, _ = planted(0, 2 * COUNT)
    of, hu = VolumeNet(nets[0], window), hu[y == 1]
    few = examine(occluded, of, hu[:1], draws=3)
    assert not few.passed
    assert str(few).startswith(
        "too few to judge occlusion: 1 volumes of 1 exams, at least 10 of 10 exams are needed; "
    )
    assert usable({"occlusion": few}) == []
    assert examine(occluded, of, hu, draws=3).passed, "the same with enough"
    of_few = examine(occluded, of, hu, draws=3, groups=np.arange(COUNT) // 2)
    assert not of_few.passed
    assert "12 volumes of 6 exams" in str(of_few)


def test_one_failed_check_is_enough() -> None:
    good = Check("a", Metric(0.1, 0.0, 0.2, 0.95, 9), "at most 0.5", True, "x")
    bad = Check("b", Metric(0.1, n=9), "above 0.2", False, "it is low")
    found = MapVerdict("made", (good, bad))
    assert str(found) == "do not use made: b 0.10 (n = 9; above 0.2): it is low"


def test_the_seed_alone_decides_a_verdict(
    nets: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    of, before = VolumeNet(nets[0], window), [p.clone() for p in nets[0].parameters()]

    def found(seed: int, state: int) -> MapVerdict:
        with keyed.globals_keyed(state, "elsewhere"):
            return examine(integrated_gradients, of, balls[0][:5], draws=3, seed=seed)

    assert found(0, 1) == found(0, 2)
    assert found(0, 1) != found(1, 1)
    assert all(torch.equal(p, q) for p, q in zip(nets[0].parameters(), before, strict=True))


def test_the_cascade_goes_from_the_output_down(
    nets: list[nn.Module], balls: tuple[Tensor, Tensor]
) -> None:
    stages = cascade(integrated_gradients, VolumeNet(nets[0], window), balls[0][:4])
    assert [stage.module for stage in stages][:2] == ["head", "features.13"]
    assert stages[-1].module == "features.0"
    assert cascade(show_input, VolumeNet(nets[0], window), balls[0][:4])[-1].similarity > 0.999


def test_empty_maps_of_random_nets_say_nothing_and_fail() -> None:
    some, none = maps_of([1, 2, 3, 4]), maps_of([0, 0, 0, 0])
    (check,) = randomisation_checks([some], [none] * 3)
    assert not check.passed
    assert "100% of the maps by nets with random weights are empty" in str(check.why)
    with pytest.raises(ValueError, match="needs three of them or more, got 2"):
        randomisation_checks([some], [none] * 2)


def test_likeness_is_spearmans_and_0_for_a_flat_map() -> None:
    one, other = maps_of([1, 2, 3, 4], [1, 2, 3, 4]), maps_of([10, 20, 40, 30], [5, 5, 5, 5])
    np.testing.assert_allclose(likeness(one, other), [0.8, 0.0])
    assert flat(other) == 0.5


def test_stability_is_the_mean_over_pairs_with_its_bar_on_the_lower_limit() -> None:
    same = maps_of([1, 2, 3, 4], [4, 3, 2, 1])
    assert stability_check([same] * 3).passed
    other = maps_of([4, 3, 2, 1], [4, 3, 2, 1])
    found = stability_check([same, same, other])
    assert found.found.value == pytest.approx((1 + 0 + 0) / 3)
    assert not found.passed


def test_scores_against_a_mask_are_those_worked_by_hand() -> None:
    mask = torch.tensor([[True, True, False, False]] * 3).view(3, 2, 2, 1)
    maps = maps_of([3, -1, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1])
    assert hits(maps, mask).tolist() == [1, 0, 0]  # a flat map points nowhere
    np.testing.assert_allclose(energy(maps, mask), [3 / 4, 1 / 6, 1 / 2])
    np.testing.assert_allclose(overlap(maps, mask)[:2], [1 / 3, 0])
    found = pointing_game(maps, mask)
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)
    assert 0 < (found.low or 0) < 1 / 3 < (found.high or 0) < 1


def test_localisation_is_the_mean_over_nets_and_volumes() -> None:
    mask = torch.tensor([[True, True, False, False]] * 2).view(2, 2, 2, 1)
    right, wrong = maps_of([3, -1, 1, 0], [3, -1, 1, 0]), maps_of([0, 1, 2, 3], [0, 1, 2, 3])
    found = localisation([right, right, wrong], mask, groups=["a", "b"])
    expected = {"hits": 2 / 3, "energy": 2 / 3 * 3 / 4 + 1 / 18, "overlap": 2 / 9}
    assert {name: one.value for name, one in found.items()} == pytest.approx(expected)
    assert {one.n for one in found.values()} == {2}
    always = localisation([right, right], mask)["hits"]  # two nets are not four nodules
    assert (always.low, always.high) == (pytest.approx(wilson(2, 2, level=0.95)[0]), 1)


def test_of_a_block_of_highest_voxels_the_middle_counts() -> None:
    values = torch.zeros(1, 9, 9, 9)
    values[0, 3:6, 3:6, 3:6] = 1
    mask = spheres([1.0], (9, 9, 9), margin_mm=0)
    assert int(mask.sum()) == 1
    assert hits(VolumeMaps(values, "", ""), mask).tolist() == [1]


def test_a_sphere_has_its_volume_in_millimetres() -> None:
    mask = spheres([12.0], (40, 40, 20), spacing_mm=(0.5, 0.5, 1.0), margin_mm=0)
    assert float(mask.sum()) * 0.25 == pytest.approx(4 / 3 * np.pi * 6**3, rel=0.02)


def test_exams_not_volumes_are_drawn_for_the_interval() -> None:
    values = np.repeat([0.0, 1.0, 2.0, 5.0], 10)
    alone, exams = mean_of(values), mean_of(values, groups=np.arange(40) // 10)
    assert alone.low is not None
    assert exams.low is not None
    assert exams.low < alone.low
    assert exams.method == "mean, bootstrap over exams"


def test_deletion_and_insertion_of_a_sum_are_those_worked_by_hand() -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum((1, 2, 3, 4))

    of = VolumeNet(Total(), lambda hu: (hu + 1000) / 100)
    hu = torch.tensor([400.0, 300, 200, 100]).view(1, 1, 2, 2, 1) - 1000
    maps = VolumeMaps(hu[:, 0] + 1000, "", "")
    found = removal_curves(of, maps, hu, steps=2)  # 0, 1 and 4 voxels
    assert found.removed.tolist() == [0, 0.25, 1]
    np.testing.assert_allclose(found.deletion, [[10, 6, 0]])
    np.testing.assert_allclose(found.insertion, [[0, 4, 10]])
    assert found.area("deletion").value == pytest.approx(8 * 0.25 + 3 * 0.75)
    with pytest.raises(ValueError, match="'deletion' or 'insertion', got 'both'"):
        found.area("both")
    with pytest.raises(ValueError, match="a map of each volume and at least one step"):
        removal_curves(of, maps, hu.expand(2, -1, -1, -1, -1))


def test_maps_of_other_volumes_are_refused() -> None:
    with pytest.raises(ValueError, match="Explain the same volumes"):
        likeness(maps_of([1, 2, 3, 4]), maps_of([1, 2, 3, 4], [1, 2, 3, 4]))
