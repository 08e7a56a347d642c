from __future__ import annotations

import numpy as np
import pytest

from medkit.saliency.truth import cell_shares, true_shares
from medkit.synth.ehr import features_of, row_probability

GAP = np.nan


def average(rows: int) -> np.ndarray:
    """Average patients of hospital A, nothing missing but BNP."""
    table = np.array([[f.center for f in features_of("additive")]] * rows)
    table[:, 15], table[:, 16:] = GAP, 0
    return table


def column(name: str) -> int:
    return [f.name for f in features_of("additive")].index(name)


def test_a_gap_is_a_cell_like_any_other() -> None:
    def rule(cells: np.ndarray) -> np.ndarray:  # a missing first value counts as 10
        first = np.where(np.isnan(cells[:, 0]), 10.0, cells[:, 0])
        return 2 * first + cells[:, 1]

    found = cell_shares(
        rule, [[1.0, 5.0], [GAP, 5.0]], references=[[3.0, 4.0], [GAP, 2.0]], names=["a", "b"]
    )
    # the references say 3 and 10 of a: 6.5 in the mean; 3 of b
    np.testing.assert_allclose(found.values, [[2 * (1 - 6.5), 2.0], [2 * (10 - 6.5), 2.0]])
    assert found.names == ("a", "b")


@pytest.mark.parametrize("family", ["additive", "interacting"])
def test_true_shares_add_up_to_the_true_log_odds(family: str) -> None:
    rows, references = average(2), average(1)
    rows[0, column("lactate")], rows[1, column("age")] = 6.0, 85.0
    references[0, column("sodium")] = GAP
    found = true_shares(rows, ["A", "B"], references=references, family=family, permutations=2)
    want = []
    for row, site in zip(rows, ["A", "B"], strict=True):
        cells = np.vstack([row, references])
        prob = row_probability(cells, np.array([site] * 2), family=family)
        odds = np.log(prob / (1 - prob))
        want.append(odds[0] - odds[1:].mean())
    np.testing.assert_allclose(found.values.sum(1), want, atol=1e-5)
    assert found.verdict == "the truth"


def test_the_one_column_that_differs_has_all_of_the_share() -> None:
    rows = average(1)
    rows[0, column("lactate")] = 6.0
    found = true_shares(rows, ["A"], references=average(1), permutations=2).values[0]
    assert found.argmax() == column("lactate")
    assert found[column("lactate")] == pytest.approx(found.abs().sum())


def test_references_that_cannot_be_at_a_row_s_site_are_refused() -> None:
    strange = average(1)
    strange[0, column("age")] = GAP
    with pytest.raises(ValueError, match=r"possible at its site .* Take rows, and background rows"):
        true_shares(average(1), ["A"], references=strange, permutations=2)
