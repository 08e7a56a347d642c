from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler

from medkit.data import preprocessing
from medkit.data.preprocessing import Preprocessing, digest_ids, fit

NAN = np.nan


def table(seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    values = (draw.normal(size=(200, 3)) * [1, 10, 100] + [0, 5, 50]).astype(np.float32)
    values[draw.random(values.shape) < 0.3] = NAN
    return values


def test_missing_values_become_the_median_and_a_flag() -> None:
    values = np.array([[1.0], [NAN], [3.0], [8.0]], np.float32)
    fitted = fit(values, ["a"], fitted_on="")
    assert fitted.fill == (3.0,)
    assert fitted.names == ["a", "a missing"]
    np.testing.assert_array_equal(fitted.apply(values)[:, 1], [0, 1, 0, 0])
    assert fitted.apply(values)[1, 0] == 0  # the median is the centre


def test_robust_scale_equals_scikit_learns_on_the_values_that_are_there() -> None:
    values = table()
    got = fit(values, ["a", "b", "c"], indicators=False, fitted_on="").apply(values)
    scaler = RobustScaler(unit_variance=True).fit(values)
    want = scaler.transform(SimpleImputer(strategy="median").fit_transform(values))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_standard_scale_equals_scikit_learns() -> None:
    values = table()
    got = fit(values, ["a", "b", "c"], scale="standard", indicators=False, fitted_on="")
    complete = values[~np.isnan(values).any(axis=1)]
    pipeline = make_pipeline(SimpleImputer(strategy="median"))
    want = StandardScaler().fit(values).transform(pipeline.fit(values).transform(complete))
    np.testing.assert_allclose(got.apply(complete), want, atol=1e-5)


def test_new_rows_get_the_training_rows_median() -> None:
    fitted = fit(np.array([[1.0], [3.0], [5.0]], np.float32), ["a"], fitted_on="")
    new = np.array([[NAN], [100.0]], np.float32)
    assert fitted.apply(new)[0, 0] == 0


def test_values_are_cut_where_asked() -> None:
    fitted = fit(table(), ["a", "b", "c"], clip=4.0, fitted_on="")
    huge = np.full((1, 3), 1e30, np.float32)
    np.testing.assert_array_equal(fitted.apply(huge)[0, :3], [4, 4, 4])


@pytest.mark.parametrize("column", [[NAN, NAN, NAN], [7.0, 7.0, NAN]])
def test_a_column_that_says_nothing_in_training_is_0_everywhere_and_named(
    column: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = fit(np.array([column], np.float32).T, ["bnp"], fitted_on="")
    assert "column 'bnp' is not used" in caplog.text
    assert fitted.apply(np.array([[1234.0]], np.float32))[0, 0] == 0


def test_a_rare_binary_column_keeps_a_scale() -> None:
    values = np.r_[np.zeros(95), np.ones(5)].astype(np.float32)[:, None]
    assert fit(values, ["a"], fitted_on="").scale[0] == pytest.approx(np.std(values))


def test_indicators_can_be_switched_off() -> None:
    assert fit(table(), ["a", "b", "c"], indicators=False, fitted_on="").names == ["a", "b", "c"]


def test_state_is_plain_and_comes_back_equal() -> None:
    fitted = fit(table(), ["a", "b", "c"], clip=4.0, fitted_on="0123")
    assert Preprocessing.from_state(json.loads(json.dumps(fitted.state()))) == fitted


def test_digest_knows_patients_and_counts_and_not_the_order() -> None:
    one = digest_ids(np.array(["a", "b", "b"]))
    assert one == digest_ids(np.array(["b", "a", "b"]))
    assert one != digest_ids(np.array(["a", "a", "b"]))
    assert one != digest_ids(np.array(["a", "b"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "minmax"}, r"scale must be one of \['robust', 'standard'\], got 'minmax'"),
        ({"clip": 0.0}, r"clip must be positive or None, got 0.0"),
    ],
)
def test_an_unknown_setting_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(table(), ["a", "b", "c"], fitted_on="", **arguments)  # type: ignore[arg-type]


def test_training_rows_may_be_named_instead_of_cut_out() -> None:
    values, rows = np.asfortranarray(table()), np.arange(0, 200, 3)
    names = ["a", "b", "c"]
    assert fit(values, names, fitted_on="", rows=rows) == fit(values[rows], names, fitted_on="")


def test_a_row_is_treated_alike_in_a_long_table_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit(table(), ["a", "b", "c"], clip=1.0, fitted_on="")
    whole = fitted.apply(table())
    monkeypatch.setattr(preprocessing, "_BLOCK", 7)
    np.testing.assert_array_equal(fitted.apply(table()), whole)


def test_the_digest_is_that_of_sorted_lines_of_patient_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands in checkpoints: another way to compute it must give the same."""
    monkeypatch.setattr(preprocessing, "_BLOCK", 2)
    patient = np.array(["b", "a b", "a", "Ä", "b"])
    lines = "a\t1\na b\t1\nb\t2\nÄ\t1"
    assert digest_ids(patient) == hashlib.sha256(lines.encode()).hexdigest()
