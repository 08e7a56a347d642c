from __future__ import annotations

import hashlib

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from medkit.synth import interacting
from medkit.synth.best import best_of, best_possible
from medkit.synth.columns import Column
from medkit.synth.ehr import Hospitals, dictionary_csv, features_of, make_hospitals
from medkit.synth.hospitals import MISSING_CODES
from medkit.synth.interacting import CAUSES, FEATURES, posterior, probability

ENCOUNTERS_SHA256 = "96396ef0e0752f0b94aa36df43816204dc3a70e45afb3070e6946d6546c8eda8"
TRUTH_SHA256 = "3020977e99740a93316a73057494dbaa361d15ccc36fa3ffede4f5e9151030de"


@pytest.fixture(scope="module")
def many() -> Hospitals:
    return make_hospitals(seed=3, stays=dict.fromkeys("ABC", 1500), family="interacting")


def columns(rows: int, values: dict[str, float], missing: tuple[str, ...] = ()) -> list[Column]:
    """Every column at its average (0 for yes-or-no ones) but for the scores in ``values``."""
    return [
        Column(
            f,
            np.full(rows, values.get(f.name, 0.0)),
            np.full(rows, f.name in missing),
            [""] * rows,
        )
        for f in FEATURES
    ]


def test_the_encounters_and_the_truth_are_the_same_bytes_as_ever() -> None:
    drawn = make_hospitals(family="interacting")
    found = [
        hashlib.sha256(text.encode()).hexdigest()
        for text in (drawn.encounters_csv(), drawn.truth_csv())
    ]
    assert found == [ENCOUNTERS_SHA256, TRUTH_SHA256]


def test_no_two_causes_share_a_column() -> None:
    named = [name for cause in CAUSES for name in cause.columns]
    assert len(named) == len(set(named))
    assert set(named) <= {f.name for f in FEATURES}


def test_units_and_codes_are_those_of_the_additive_family() -> None:
    assert dictionary_csv("interacting") == dictionary_csv("additive")
    codes = {
        f.name: sorted({float(c) for c in f.codes.values()})
        for f in features_of("interacting")
        if f.codes
    }
    assert codes == MISSING_CODES


def test_a_code_is_never_a_value(many: Hospitals) -> None:
    for feature in FEATURES:
        for site, code in (feature.codes or {}).items():
            there = ~many.missing[feature.name] & (many.site == site)
            values = [many.cells[feature.name][row] for row in np.flatnonzero(there)]
            assert values
            assert str(code) not in values, feature.name


def test_the_probability_of_a_row_is_calibrated_at_each_site(many: Hospitals) -> None:
    for site in "ABC":
        here = np.flatnonzero(many.site == site)
        for rows in np.array_split(here[np.argsort(many.prob[here])], 8):
            expected, found = many.prob[rows].mean(), many.y[rows].mean()
            error = np.sqrt(np.mean(many.prob[rows] * (1 - many.prob[rows])) / len(rows))
            assert abs(expected - found) < 4 * error, site


def test_the_mean_of_what_is_hidden_is_what_the_row_says(many: Hospitals) -> None:
    # no labels, so much sharper: E[P(y | all values) | row] = P(y | row)
    for rows in np.array_split(np.argsort(many.prob), 20):
        gap = many.prob_hidden[rows] - many.prob[rows]
        assert abs(gap.mean()) < 4.5 * gap.std() / np.sqrt(len(rows))


def test_a_missing_value_counts_as_what_it_may_have_been() -> None:
    """One cell missing: the sum over its nodes is the mean over draws of it, given the rest."""
    site = np.array(["A"])
    gone = posterior(columns(1, {"glucose": -2.0}, ("diabetes",)), site)[0]
    without, with_it = (
        posterior(columns(1, {"glucose": -2.0, "diabetes": known}), site)[0] for known in (0.0, 1.0)
    )
    assert min(without, with_it) <= gone <= max(without, with_it)


def test_with_every_value_there_only_the_severity_is_summed_over() -> None:
    site, severity = np.array(["A"]), np.array([0.0])
    there = columns(1, {})
    all_known = probability(there, site, severity)[0]
    assert posterior(there, site)[0] == pytest.approx(all_known, abs=0.02)


@pytest.mark.parametrize("name", ["glucose", "temperature", "potassium", "resp_rate"])
def test_both_ends_of_a_value_are_bad(name: str) -> None:
    rest = {"creatinine": 1.5, "wbc": 2.0}  # where the values do harm
    low, middle, high = (
        posterior(columns(1, rest | {name: score}), np.array(["A"]))[0]
        for score in (-2.2, 0.0, 2.2)
    )
    assert low > middle + 0.1
    assert high > middle + 0.1


def test_a_high_lactate_matters_more_in_the_old() -> None:
    def risk(age: float, lactate: float) -> float:
        scores = columns(1, {"age": age, "lactate": lactate})
        return float(posterior(scores, np.array(["A"]))[0])

    assert risk(1.0, 2.0) - risk(1.0, 0.0) > 3 * (risk(-1.0, 2.0) - risk(-1.0, 0.0))


def test_fast_breathing_says_nothing_on_a_ventilator() -> None:
    def risk(ventilated: float, rate: float) -> float:
        scores = columns(1, {"ventilated": ventilated, "resp_rate": rate})
        return float(probability(scores, np.array(["A"]), np.array([0.0]))[0])

    assert risk(1.0, 2.5) == risk(1.0, 0.0)
    assert risk(0.0, 2.5) > risk(0.0, 0.0) + 0.3


def test_sites_differ_in_prevalence(many: Hospitals) -> None:
    share = {site: many.y[many.site == site].mean() for site in "ABC"}
    assert share["B"] + 0.02 < share["A"] < share["C"] - 0.02


def test_another_seed_gives_other_patients() -> None:
    one, other = (
        make_hospitals(seed=seed, stays={"A": 50}, family="interacting") for seed in (1, 2)
    )
    assert one.encounters_csv() != other.encounters_csv()


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family must be one of .*got 'cubic'.*'additive' is"):
        make_hospitals(family="cubic")


def test_what_is_best_agrees_with_labels_drawn_from_the_truth(many: Hospitals) -> None:
    best = best_of(many.prob)
    assert best.auroc == pytest.approx(roc_auc_score(many.y, many.prob), abs=0.02)
    assert best.f1 == pytest.approx(f1_score(many.y, many.prob >= best.threshold), abs=0.04)
    assert best.brier == pytest.approx(np.mean((many.y - many.prob) ** 2), abs=0.01)
    assert best.rows == 4500


def test_what_is_best_for_three_rows_worked_by_hand() -> None:
    # ones 0.9 + 0.5 + 0.1; pairs in the right order 0.9*(0.5+0.9) + 0.5*0.9, ties 0.09+0.25+0.09
    best = best_of([0.5, 0.9, 0.1])
    assert best.auroc == pytest.approx((0.9 * 1.4 + 0.5 * 0.9 + 0.5 * 0.43) / (1.5 * 1.5))
    assert best.f1 == pytest.approx(2 * 1.4 / (2 + 1.5))
    assert best.threshold == 0.5
    assert best.brier == pytest.approx((0.09 + 0.25 + 0.09) / 3)


def test_ties_count_one_half() -> None:
    assert best_of([0.3, 0.3, 0.3, 0.3]).auroc == pytest.approx(0.5)


def test_best_possible_is_for_the_hospitals_asked_for() -> None:
    alone = best_possible(family="interacting", stays={"C": 1}, draw=1500)
    both = best_possible(family="interacting", stays={"A": 2, "B": 1}, draw=1500)
    assert alone.rows == both.rows == 1500
    assert alone.prevalence > both.prevalence + 0.02


@pytest.mark.parametrize("prob", [[], [0.2, 1.2], [0.0, 0.0], [float("nan"), 0.5]])
def test_what_is_no_probability_is_refused(prob: list[float]) -> None:
    with pytest.raises(ValueError, match=r"prob must hold probabilities .* found \d numbers.*Pass"):
        best_of(prob)


def test_the_family_says_of_itself_which_it_is() -> None:
    assert make_hospitals(stays={"A": 5}).family == "additive"
    assert make_hospitals(stays={"A": 5}, family="interacting").family == "interacting"
    assert features_of("interacting") is interacting.FEATURES
