from __future__ import annotations

import numpy as np
import pytest

from medkit.synth.ehr import Hospitals, features_of, make_hospitals, row_probability


def values_of(drawn: Hospitals) -> np.ndarray:
    """Every column in one unit, NaN where missing or coded."""
    table = np.empty((len(drawn.y), len(drawn.cells)))
    for index, feature in enumerate(features_of(drawn.family)):
        gone = drawn.missing[feature.name]
        cells = np.where(gone, "nan", np.array(drawn.cells[feature.name]))
        factor = [feature.unit_at(site)[0] for site in drawn.site]
        table[:, index] = cells.astype(float) / factor
    return table


@pytest.mark.parametrize("family", ["additive", "interacting"])
def test_a_file_s_rows_have_their_known_probability_but_for_rounding(family: str) -> None:
    drawn = make_hospitals(seed=4, stays={"A": 150, "B": 150, "C": 150}, family=family)
    found = row_probability(values_of(drawn), drawn.site, family=family)
    assert np.median(np.abs(found - drawn.prob)) < 0.005
    assert np.corrcoef(found, drawn.prob)[0, 1] > 0.998


def test_a_higher_lactate_is_a_higher_risk_and_one_that_is_missing_lies_between() -> None:
    rows = np.array([[f.center for f in features_of("additive")]] * 3)
    rows[:, 16:] = 0  # yes-or-no columns
    lactate = [f.name for f in features_of("additive")].index("lactate")
    rows[:, lactate] = 0.8, np.nan, 6.0
    low, missing, high = row_probability(rows, np.array(["A"] * 3))
    assert low < missing < high


def test_a_row_that_cannot_be_at_its_site_is_refused() -> None:
    rows = np.array([[f.center for f in features_of("additive")]] * 2)
    rows[:, 16:] = 0
    rows[1, 0] = np.nan  # the age
    with pytest.raises(ValueError, match=r"possible at its site .* 1 of 2 are not.* row 1 at A\."):
        row_probability(rows, np.array(["A", "A"]))
