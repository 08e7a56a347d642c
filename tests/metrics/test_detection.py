from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from medkit.metrics.detection import FALSE, FROC, IGNORED, RATES, froc, froc_of_labels, match
from medkit.metrics.resample import blocks
from medkit.record.results import write_metrics

Table = dict[str, Any]


def found(*rows: tuple[str, float, float]) -> Table:
    """Candidates as (exam, x, score)."""
    exam, x, score = zip(*rows, strict=True) if rows else ((), (), ())
    zero = np.zeros(len(x))
    return {"exam": np.array(exam, "<U8"), "x": x, "y": zero, "z": zero, "score": score}


def balls(*rows: tuple[str, float, float]) -> Table:
    """Nodules as (exam, x, diameter)."""
    table = found(*rows)
    table["diameter_mm"] = table.pop("score")
    return table


# Four scans; d has neither nodule nor candidate. Nodules at 0 in a, at 0 and 50 in b.
NODULES = balls(("a", 0, 10), ("b", 0, 10), ("b", 50, 10))
EXCLUDED = balls(("a", 100, 10), ("z", 0, 10))
CANDIDATES = found(
    ("a", 100, 0.95),  # on an excluded finding
    ("a", 1, 0.9),
    ("a", -2, 0.85),  # on the same nodule again
    ("a", 30, 0.8),
    ("b", 4.9, 0.7),
    ("c", 0, 0.6),
    ("c", 9, 0.5),
)
SCANS = ["a", "b", "c", "d"]


def values(said: FROC) -> list[float]:
    return [point.value for point in said.points.values()]


def test_four_scans_worked_by_hand() -> None:
    matched = match(CANDIDATES, NODULES, EXCLUDED, exams=SCANS)
    assert matched.exams == ("a", "b", "c", "d")
    assert matched.candidate_on.tolist() == [IGNORED, 0, 0, FALSE, 1, FALSE, FALSE]
    assert matched.nodule_score.tolist() == [0.9, 0.7, -np.inf]
    said = froc(matched)
    # found 1 of 3 before the first false positive (1/4 a scan), 2 of 3 after it, never the third
    assert values(said) == pytest.approx([1 / 3] + [2 / 3] * 6)
    assert said.cpm.value == pytest.approx(13 / 21)
    np.testing.assert_allclose(said.curve.false_per_scan, [0, 0, 0.25, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(said.curve.sensitivity, np.array([0, 1, 1, 2, 2, 2]) / 3)
    assert said.curve.score.tolist() == [np.inf, 0.9, 0.8, 0.7, 0.6, 0.5]
    assert (said.nodules, said.scans, said.cpm.n) == (3, 4, 3)


def test_points_past_the_last_false_positive_say_that_they_are_free() -> None:
    said = froc(match(CANDIDATES, NODULES, EXCLUDED, exams=SCANS))
    free = [rate for rate, point in said.points.items() if "free" in point.method]
    assert free == [1, 2, 4, 8]
    assert "there are only 0.75" in said.points[8].method
    assert "3 nodules in 4 scans" in said.points[8].method


def test_scans_that_nobody_named_are_missing_from_the_denominator() -> None:
    said = froc(match(CANDIDATES, NODULES, EXCLUDED))
    assert said.scans == 3
    assert said.curve.false_per_scan[-1] == 1  # 3 false positives in 3 scans


def test_a_candidate_on_the_surface_is_outside() -> None:
    matched = match(found(("a", 5.0, 0.9), ("a", 4.999, 0.8)), balls(("a", 0, 10)))
    assert matched.candidate_on.tolist() == [FALSE, 0]


def test_an_unknown_diameter_is_10_mm() -> None:
    matched = match(found(("a", 4, 0.9), ("a", 6, 0.8)), balls(("a", 0, -1)))
    assert matched.candidate_on.tolist() == [0, FALSE]


def test_a_candidate_on_two_nodules_finds_both_and_counts_as_no_false_positive() -> None:
    matched = match(found(("a", 3, 0.9)), balls(("a", 0, 10), ("a", 5, 10)))
    assert matched.nodule_score.tolist() == [0.9, 0.9]
    assert matched.candidate_on.tolist() == [1]  # the nearer


def test_on_a_nodule_and_an_excluded_finding_it_is_a_hit() -> None:
    matched = match(found(("a", 1, 0.9)), balls(("a", 0, 10)), balls(("a", 2, 10)))
    assert matched.candidate_on.tolist() == [0]


def test_ties_are_interpolated() -> None:
    said = froc_of_labels(["a", "a", "b", "b"], [1, 0, 1, 0], [0.5] * 4)
    # one point, at 1 false positive a scan and everything found; straight from (0, 0) to it
    assert values(said) == pytest.approx([0.125, 0.25, 0.5, 1, 1, 1, 1])


def test_without_false_positives_the_curve_is_flat_from_the_start() -> None:
    said = froc(match(found(("a", 0, 0.9)), balls(("a", 0, 9), ("b", 0, 9)), exams=SCANS))
    assert values(said) == [0.5] * 7
    assert "free: there are only 0" in said.points[0.125].method


def test_without_candidates_nothing_is_found() -> None:
    said = froc(match(found(), balls(("a", 0, 9), ("b", 0, 9))))
    assert values(said) == [0] * 7
    assert said.cpm.low is None
    assert "resamples all alike" in said.cpm.method


def test_one_scan_has_no_interval() -> None:
    said = froc(match(found(("a", 0, 0.9), ("a", 40, 0.8)), balls(("a", 0, 9), ("a", 60, 9))))
    assert said.cpm.low is said.cpm.high is said.band is None
    assert said.cpm.method.endswith("no interval from one scan")


def made(seed: int, scans: int = 15, each: int = 25, *, digits: int = 1) -> tuple[Table, Table]:
    """Candidates and nodules with overlaps, doubles, misses and ties."""
    rng = np.random.default_rng(seed)
    n, many = 2 * scans, scans * each
    axes = {name: rng.uniform(0, 40, n) for name in "xyz"}
    nodules = {"exam": rng.integers(0, scans, n), **axes, "diameter_mm": rng.uniform(3, 25, n)}
    near = rng.integers(0, n, many)
    places = {name: axes[name][near] + rng.normal(0, 8, many) for name in "xyz"}
    score = rng.normal(0, 1, many).round(digits)
    return {"exam": nodules["exam"][near], **places, "score": score}, nodules


def _reference(candidates: Table, nodules: Table, exams: list[int]) -> list[float]:
    """LUNA16's definition, nodule by nodule and threshold by threshold; exams may repeat."""
    hits: list[float] = []
    false: list[float] = []
    count = 0
    for exam in exams:
        mine = np.flatnonzero(candidates["exam"] == exam)
        used = set()
        for k in np.flatnonzero(nodules["exam"] == exam):
            count += 1
            best = None
            for i in mine:
                away = [candidates[axis][i] - nodules[axis][k] for axis in "xyz"]
                if sum(d * d for d in away) < (nodules["diameter_mm"][k] / 2) ** 2:
                    used.add(i)
                    best = max(candidates["score"][i], -np.inf if best is None else best)
            if best is not None:
                hits.append(best)
        false += [candidates["score"][i] for i in mine if i not in used]
    points = [(0.0, 0.0)]
    for t in sorted({*hits, *false}, reverse=True):
        points.append((sum(s >= t for s in false) / len(exams), sum(s >= t for s in hits) / count))
    result = []
    for rate in RATES:
        left = max(p for p in points if p[0] <= rate)
        right = min((p for p in points if p[0] > rate), default=None)
        share = 0.0 if right is None else (rate - left[0]) / (right[0] - left[0])
        result.append(left[1] if right is None else left[1] + share * (right[1] - left[1]))
    return result


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_a_slow_and_simple_reference_says(seed: int) -> None:
    candidates, nodules = made(seed, digits=seed % 3)
    said = froc(match(candidates, nodules, exams=range(15)), draws=2)
    assert values(said) == pytest.approx(_reference(candidates, nodules, list(range(15))))


def test_limits_are_percentiles_over_scans_drawn_anew() -> None:
    candidates, nodules = made(7, scans=8, each=12)
    said = froc(match(candidates, nodules, exams=range(8)), seed=5, draws=60)
    weights = next(islice(blocks(8, seed=5), 1))[:60].astype(int)
    drawn = [_reference(candidates, nodules, np.repeat(range(8), w).tolist()) for w in weights]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose([p.low for p in said.points.values()], low)
    np.testing.assert_allclose([p.high for p in said.points.values()], high)
    cpm = np.quantile(np.mean(drawn, axis=1), [0.025, 0.975])
    np.testing.assert_allclose([said.cpm.low, said.cpm.high], cpm)
    assert said.band is not None
    np.testing.assert_allclose(said.band.low[::8], low)


def test_candidates_beyond_the_eighth_false_positive_change_no_point() -> None:
    candidates, nodules = made(3, scans=6, each=2000, digits=6)
    said = froc(match(candidates, nodules, exams=range(6)), draws=50)
    rows = np.argsort(-np.asarray(candidates["score"]), kind="stable")[:4000]
    few = {name: np.asarray(column)[rows] for name, column in candidates.items()}
    assert froc(match(few, nodules, exams=range(6)), draws=50).points == said.points


def test_only_the_order_of_scores_matters() -> None:
    candidates, nodules = made(1)
    said = froc(match(candidates, nodules, exams=range(15)))
    other = candidates | {"score": 7 * np.exp(candidates["score"]) - 3}
    again = froc(match(other, nodules, exams=range(15)))
    assert (again.points, again.cpm) == (said.points, said.cpm)


def test_the_order_of_rows_does_not_matter() -> None:
    candidates, nodules = made(2)
    rng = np.random.default_rng(0)
    shuffled = []
    for table in (candidates, nodules):
        order = rng.permutation(len(table["exam"]))
        shuffled.append({name: np.asarray(column)[order] for name, column in table.items()})
    said = froc(match(candidates, nodules, exams=range(15)))
    again = froc(match(*shuffled, exams=np.arange(15)[::-1]))
    assert (again.points, again.cpm) == (said.points, said.cpm)


def test_a_frame_a_structured_array_and_a_dictionary_are_alike() -> None:
    candidates, nodules = made(2)
    want = froc(match(candidates, nodules), draws=9).cpm
    frames = pd.DataFrame(candidates), pd.DataFrame(nodules)
    assert froc(match(*frames), draws=9).cpm == want
    records = (frame.to_records(index=False) for frame in frames)
    assert froc(match(*records), draws=9).cpm == want


def test_the_seed_alone_decides_the_interval() -> None:
    matched = match(*made(4))
    first = froc(matched, seed=1).cpm
    assert froc(matched, seed=1).cpm == first
    other = froc(matched, seed=2).cpm
    assert other.value == first.value
    assert (other.low, other.high) != (first.low, first.high)


def test_scans_of_a_patient_are_drawn_together() -> None:
    matched = match(*made(4), exams=range(15))
    said = froc(matched, groups=[0] * 14 + [1])
    assert "bootstrap over 2 patients" in said.cpm.method
    assert froc(matched, groups=np.arange(15)).cpm.low == froc(matched).cpm.low
    assert froc(matched, groups=["one"] * 15).cpm.low is None


def labelled(seed: int, scans: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    exam = np.repeat(np.arange(scans), 20)
    y = (rng.random(len(exam)) < 0.06) * 1
    return exam, y, rng.normal(0, 1, len(exam)) + 1.8 * y + rng.normal(0, 0.5, scans)[exam]


def test_labels_do_as_well_as_places_where_each_nodule_has_one_candidate() -> None:
    exam, y, score = labelled(0, 30)
    at = np.arange(len(y)) * 10.0
    places = {"exam": exam, "x": at, "y": at, "z": at}
    nodules = {name: column[y == 1] for name, column in places.items()}
    nodules["diameter_mm"] = np.full(y.sum(), 5.0)
    want = froc(match(places | {"score": score}, nodules))
    said = froc_of_labels(exam, y, score)
    assert (said.cpm, said.points) == (want.cpm, want.points)
    more = froc_of_labels(exam, y, score, exams=range(60))
    assert more.scans == 60
    assert more.points[1].value == said.points[2].value


def _reference_sklearn_roc(exam: Any, y: Any, score: Any, rates: Any) -> Any:
    """As LUNA16's script does it: a ROC curve, its false positive rate turned into a count."""
    false, true, _ = roc_curve(y, score)
    return np.interp(rates, false * (y == 0).sum() / len(set(exam)), true)


@pytest.mark.parametrize("digits", [1, 9])
def test_it_is_scikit_learns_roc_curve_on_another_axis(digits: int) -> None:
    exam, y, score = labelled(3, 37)
    score = score.round(digits)
    rates = np.array(RATES) + 1e-6  # beside the steps, which rounding may move
    said = froc_of_labels(exam, y, score, rates=rates.tolist(), draws=2)
    assert values(said) == pytest.approx(_reference_sklearn_roc(exam, y, score, rates), rel=1e-9)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = froc_of_labels(*labelled(99, 20_000), draws=2).cpm.value
    inside = 0
    for seed in range(100):
        cpm = froc_of_labels(*labelled(seed, 40), seed=seed, draws=100).cpm
        assert cpm.low is not None
        assert cpm.high is not None
        inside += cpm.low <= truth <= cpm.high
    assert 85 <= inside <= 99


def test_metrics_are_named_for_metrics_json(tmp_path: Any) -> None:
    named = froc(match(*made(4))).metrics("test/site_b")
    assert list(named)[:2] == ["test/site_b/cpm", "test/site_b/sensitivity_at_0.125_fp"]
    assert len(named) == 8
    write_metrics(tmp_path / "metrics.json", named)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": [np.nan]}, r"score of candidates must be finite.*row 0.*failed run"),
        ({"x": [np.inf]}, r"must be finite"),
        ({"x": [1.0, 2.0]}, r"vectors of one length; got shapes"),
        ({"exam": ["q"]}, r"candidates must be in exams that were searched.*exam 'q'.*Add it"),
        ({"exam": ["a", "b"]}, r"one id for each of the 1 rows"),
    ],
)
def test_candidates_that_cannot_be_are_refused(change: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        match(found(("a", 0, 0.9)) | change, NODULES, exams=["a", "b"])


def test_nodules_in_scans_that_were_not_searched_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nodules must be .* 2 of 3 are not, .* exam 'b'"):
        match(found(), NODULES, EXCLUDED, exams=["a"])


def test_a_missing_column_is_named_as_luna16_calls_it() -> None:
    with pytest.raises(ValueError, match=r"there is no 'score'. LUNA16 calls them seriesuid"):
        match(NODULES, NODULES)
    with pytest.raises(ValueError, match=r"nodules must have columns .* no 'diameter_mm'"):
        match(CANDIDATES, pd.DataFrame(CANDIDATES).to_records())


def test_a_curve_without_nodules_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs nodules.* found 0 nodules in 3 scans.*Without"):
        froc(match(CANDIDATES, {name: column[:0] for name, column in NODULES.items()}))
    with pytest.raises(ValueError, match=r"rates \[-1\]"):
        froc(match(CANDIDATES, NODULES), rates=[-1])


def test_one_draw_is_no_bootstrap() -> None:
    with pytest.raises(ValueError, match=r"draws must be at least 2, got 1"):
        froc_of_labels(*labelled(0, 9), draws=1)
