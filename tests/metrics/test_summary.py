from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medkit.metrics.discrimination import auroc_difference
from medkit.metrics.summary import binary, by_group, compared, survival
from medkit.record.results import read_metrics, write_metrics

Floats = NDArray[np.float64]

ALWAYS = {"auprc", "auroc", "brier", "prevalence"}
CALIBRATION = {"calibration_slope", "calibration_intercept", "ece"}
AT_A_THRESHOLD = {"sensitivity", "specificity", "ppv", "f1", "flagged"}


@pytest.fixture
def rows() -> tuple[Floats, Floats]:
    draw = np.random.default_rng(0)
    prob = draw.random(120)
    return (draw.random(120) < prob).astype(float), prob


def test_the_numbers_go_into_metrics_json_and_come_back(
    rows: tuple[Floats, Floats], tmp_path: Path
) -> None:
    found = binary(*rows, stage="test/site_b")
    assert set(found) == {f"test/site_b/{name}" for name in ALWAYS}
    write_metrics(tmp_path / "metrics.json", found)
    assert read_metrics(tmp_path / "metrics.json") == found


def test_with_a_threshold_what_it_does_is_reported_too(rows: tuple[Floats, Floats]) -> None:
    found = binary(*rows, stage="val", threshold=0.4)
    assert set(found) == {f"val/{name}" for name in ALWAYS | AT_A_THRESHOLD}


def test_calibration_is_reported_on_request(rows: tuple[Floats, Floats]) -> None:
    found = binary(*rows, stage="val", calibration=True)
    assert set(found) == {f"val/{name}" for name in ALWAYS | CALIBRATION}


@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_within_its_limits(seed: int) -> None:
    draw = np.random.default_rng(seed)
    prob = draw.beta(1, 3, 90)
    y = (draw.random(90) < prob).astype(float)
    for whose in (None, draw.integers(40, size=90)):
        found = binary(y, prob, stage="test", threshold=0.3, calibration=True, groups=whose)
        for name, metric in found.items():
            assert metric.low is not None, name
            assert metric.high is not None, name
            assert metric.low <= metric.value <= metric.high, name


def test_every_number_of_a_table_with_patients_knows_of_them(rows: tuple[Floats, Floats]) -> None:
    y, prob = (np.repeat(column, 4) for column in rows)
    wanted = {"stage": "test", "threshold": 0.4, "calibration": True}
    once = binary(*rows, **wanted)
    copied = binary(y, prob, **wanted, groups=np.repeat(np.arange(120), 4))
    for name, metric in copied.items():
        width, plain = (m.high - m.low for m in (metric, once[name]))  # type: ignore[operator]
        assert width == pytest.approx(plain, rel=0.05), name


def test_rivals_stand_beside_the_model_with_the_paired_difference(
    rows: tuple[Floats, Floats], tmp_path: Path
) -> None:
    y, prob = rows
    rival = np.round(prob, 1)
    patient = np.repeat(np.arange(40), 3)
    found = compared(y, {"": prob, "logistic": rival}, stage="test", groups=patient)
    want = binary(y, prob, stage="test", groups=patient)
    want |= binary(y, rival, stage="test/logistic", groups=patient)
    want["test/auroc_minus_logistic"] = auroc_difference(y, prob, rival, groups=patient)
    assert found == want
    write_metrics(tmp_path / "metrics.json", found)


def test_each_rival_may_have_its_own_threshold(rows: tuple[Floats, Floats]) -> None:
    y, prob = rows
    own = {"": 0.2, "rival": 0.7}
    found = compared(y, {"": prob, "rival": prob}, stage="test", threshold=own)
    assert found["test/flagged"].value == np.mean(prob >= 0.2)
    assert found["test/rival/flagged"].value == np.mean(prob >= 0.7)


def test_rows_of_one_class_have_a_difference_without_a_value() -> None:
    found = compared([1, 1, 1], {"": [0.1, 0.2, 0.3], "rival": [0.2, 0.2, 0.1]}, stage="test")
    assert np.isnan(found["test/auroc_minus_rival"].value)
    assert found["test/rival/brier"].value == pytest.approx((0.64 + 0.64 + 0.81) / 3)


def test_rivals_without_the_model_are_refused(rows: tuple[Floats, Floats]) -> None:
    with pytest.raises(ValueError, match=r'under the name ""; *|found \[\'net\'\]\. Pass'):
        compared(rows[0], {"net": rows[1]}, stage="test")


def test_groups_are_scored_on_their_own_rows(rows: tuple[Floats, Floats]) -> None:
    y, prob = rows
    site = np.where(np.arange(120) < 50, "A", "St. Mary's")
    found = by_group(y, prob, site, stage="test")
    assert set(found) == {f"test/{g}/{name}" for g in ("A", "St._Mary_s") for name in ALWAYS}
    alone = binary(y[:50], prob[:50], stage="test/A")
    assert {name: found[name] for name in alone} == alone


def test_a_group_of_one_class_stays_in_the_table_and_says_what_it_lacks(tmp_path: Path) -> None:
    y = [0, 1, 0, 1, 0, 0, 0]
    prob = [0.1, 0.6, 0.3, 0.2, 0.2, 0.1, 0.4]
    found = by_group(y, prob, list("AAAABBB"), stage="test", threshold=0.3, calibration=True)
    everything = ALWAYS | CALIBRATION | AT_A_THRESHOLD
    assert {name.split("/")[2] for name in found} == everything
    assert np.isnan(found["test/B/auroc"].value)
    assert found["test/B/auroc"].method == "auroc; no value: all 3 rows have label 0"
    assert found["test/B/brier"].value == pytest.approx((0.04 + 0.01 + 0.16) / 3)
    assert found["test/B/specificity"].value == pytest.approx(2 / 3)
    assert np.isnan(found["test/B/sensitivity"].value)
    write_metrics(tmp_path / "metrics.json", found)


def test_a_group_of_one_row_is_reported() -> None:
    found = by_group([0, 1, 1], [0.1, 0.6, 0.3], list("AAB"), stage="test", threshold=0.3)
    assert found["test/B/brier"].low is None
    assert found["test/B/prevalence"].value == 1


def test_a_row_without_its_site_is_refused(rows: tuple[Floats, Floats]) -> None:
    site = np.where(np.arange(120) == 7, np.nan, 1.0)
    with pytest.raises(ValueError, match=r"group must name every row; 1 of 120 are missing.*row 7"):
        by_group(*rows, site, stage="test")


def test_two_groups_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in more than punctuation; found.*Rename them"):
        by_group([0, 1], [0.1, 0.2], ["A b", "A_b"], stage="test")


def test_survival_is_reported_with_its_horizon(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rate = np.exp(draw.normal(-3, 1, 200))
    time, event = np.minimum(draw.exponential(1 / rate), 40), draw.random(200) < 0.8
    found = survival(time, event, rate, stage="test", prob=1 - np.exp(-rate * 12), horizon=12)
    names = {"harrell_c", "uno_c", "brier", "observed", "predicted"}
    names |= {"calibration_slope", "calibration_intercept"}
    assert set(found) == {f"test/{name}" for name in names}
    write_metrics(tmp_path / "metrics.json", found)


def test_a_risk_without_its_horizon_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prob and horizon go together.*got no horizon.*both"):
        survival([1, 2], [1, 1], [0.2, 0.1], stage="test", prob=[0.5, 0.4])
