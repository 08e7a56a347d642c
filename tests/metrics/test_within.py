from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medkit.metrics.discrimination import auroc, auroc_difference
from medkit.metrics.summary import by_group, compared
from medkit.metrics.within import auroc_difference_within, auroc_within

Floats = NDArray[np.float64]


@pytest.fixture
def hospitals() -> tuple[Floats, Floats, Floats, NDArray[np.str_]]:
    """Three hospitals of other sizes, prevalences and levels of the two scores."""
    draw = np.random.default_rng(0)
    place = np.repeat(["a", "b", "c"], [60, 90, 150])
    y = (draw.random(300) < np.repeat([0.2, 0.5, 0.3], [60, 90, 150])).astype(float)
    level = np.repeat([3.0, 0.0, -2.0], [60, 90, 150])
    return y, y + draw.normal(size=300), y + level + draw.normal(size=300), place


def _wins(y: Floats, score: Floats) -> Floats:
    return np.sign(score[y == 1][:, None] - score[y == 0][None, :]) / 2 + 0.5


def test_value_and_variance_equal_the_definition_pair_by_pair(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]],
) -> None:
    y, a, b, place = hospitals
    wins = [
        _wins(y[place == p], a[place == p]) - _wins(y[place == p], b[place == p]) for p in "abc"
    ]
    pairs = sum(w.size for w in wins)
    value = sum(w.sum() for w in wins) / pairs
    sd = np.sqrt(
        sum(
            (w.size / pairs) ** 2
            * (w.mean(1).var(ddof=1) / w.shape[0] + w.mean(0).var(ddof=1) / w.shape[1])
            for w in wins
        )
    )
    got = auroc_difference_within(y, a, b, place)
    assert got.value == pytest.approx(value, abs=1e-12)
    assert (got.low, got.high) == pytest.approx((value - 1.959964 * sd, value + 1.959964 * sd))
    assert got.n == 300
    assert got.method.startswith("AUROC difference within 3 places, paired DeLong")


@pytest.mark.parametrize("several", [False, True], ids=["rows", "patients"])
def test_of_one_place_it_is_the_ordinary_auroc(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]], several: bool
) -> None:
    y, a, b, _ = hospitals
    groups = np.arange(300) // 3 if several else None
    one, plain = auroc_within(y, a, np.zeros(300), groups=groups), auroc(y, a, groups=groups)
    assert (one.value, one.low, one.high) == pytest.approx((plain.value, plain.low, plain.high))
    gap = auroc_difference_within(y, a, b, np.zeros(300), groups=groups)
    want = auroc_difference(y, a, b, groups=groups)
    assert (gap.value, gap.low, gap.high) == pytest.approx((want.value, want.low, want.high))


def test_what_shifts_all_scores_of_a_place_changes_nothing(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]],
) -> None:
    y, a, b, place = hospitals
    shifted = b + np.where(place == "b", 7.0, -3.0)
    assert auroc_within(y, shifted, place) == auroc_within(y, b, place)
    assert auroc_difference(y, a, shifted).value != auroc_difference(y, a, b).value
    assert auroc_difference_within(y, b, shifted, place).method.endswith("ranked otherwise")


def test_other_patients_of_the_same_places_vary_as_the_interval_says() -> None:
    draw = np.random.default_rng(3)
    place = np.repeat([0, 1], [80, 120])
    y = np.tile([0.0, 0.0, 0.0, 1.0], 50)
    drawn = [y * (1 + place) + draw.normal(size=200) for _ in range(400)]
    found = [auroc_within(y, score, place) for score in drawn]
    widths = [m.high - m.low for m in found if m.high is not None and m.low is not None]
    assert np.mean(widths) / 3.92 == pytest.approx(np.std([m.value for m in found]), rel=0.1)


def test_a_place_without_two_of_each_class_is_left_out_and_said(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]],
) -> None:
    y, a, _, place = hospitals
    y = y.copy()
    y[place == "a"] = 0
    y[0] = 1
    got = auroc_within(y, a, place)
    assert (got.n, got.value) == (240, auroc_within(y[60:], a[60:], place[60:]).value)
    assert got.method.startswith("AUROC within 2 of 3 places")
    none = auroc_difference_within([0, 1, 0, 1], [1, 2, 3, 4], [4, 3, 2, 1], list("aabb"))
    assert np.isnan(none.value)
    assert "within 0 of 2 places: none has two of each class" in none.method


def test_models_of_several_places_are_compared_within_them(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]],
) -> None:
    y, a, b, place = hospitals
    probs = {"": 1 / (1 + np.exp(-b)), "rival": 1 / (1 + np.exp(-a))}  # b: levels of three models
    pooled = compared(y, probs, stage="test")["test/auroc_minus_rival"]
    assert pooled.high is not None
    assert pooled.high < 0
    found = compared(y, probs, stage="test", within=place)
    gap = found["test/auroc_minus_rival"]
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < 0 < gap.high
    each = [by_group(y, prob, place, stage="test") for prob in probs.values()]
    own, rival = ([m[f"test/{p}/auroc"].value for p in "abc"] for m in each)
    assert min(own) <= found["test/auroc"].value <= max(own)
    assert min(rival) <= found["test/rival/auroc"].value <= max(rival)
    assert gap.value == pytest.approx(found["test/auroc"].value - found["test/rival/auroc"].value)
    assert not any(name.endswith("auprc") for name in found)


def test_of_one_place_a_comparison_is_as_without(
    hospitals: tuple[Floats, Floats, Floats, NDArray[np.str_]],
) -> None:
    y, a, *_ = hospitals
    probs = {"": 1 / (1 + np.exp(-a)), "rival": np.full(300, 0.5)}
    assert compared(y, probs, stage="test", within=["x"] * 300) == compared(y, probs, stage="test")
