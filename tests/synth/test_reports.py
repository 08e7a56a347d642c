from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medkit.synth.report_slices import SIZES_MM, draw_studies
from medkit.synth.reports import QUESTIONS, make_studies, write_reports


def test_a_study_is_a_function_of_seed_hospital_and_number() -> None:
    many = make_studies(70, seed=3)
    (one,) = make_studies(1, seed=3, first=65)
    assert np.array_equal(one.hu, many[65].hu)
    assert (one.finding, one.report, one.rejected) == (
        many[65].finding, many[65].report, many[65].rejected,
    )  # fmt: skip
    assert not np.array_equal(make_studies(1, seed=4, first=65)[0].hu, one.hu)
    assert not np.array_equal(make_studies(1, seed=3, first=65, site="B")[0].hu, one.hu)


def test_a_nodule_is_seen_where_its_fields_say() -> None:
    """On the lung's side, in the zone, as bright as its density has it."""
    hu, findings = draw_studies(0, "A", range(400))
    large = [n for n, f in enumerate(findings) if f.size == "large"]
    assert len(large) > 60
    for n in large:
        one = findings[n]
        assert one.row is not None
        assert one.column is not None
        seen = hu[n, 0, round(one.row), round(one.column)]
        assert (seen > -250) == (one.density == "solid")
        # as it is looked at, the patient's left is on the right
        assert (one.column > 32) == (one.side == "left")
        assert {"upper": 0, "middle": 1, "lower": 2}[str(one.zone)] == int((one.row - 11) // 14)


def test_fields_are_as_frequent_as_is_said() -> None:
    found = [f for f in draw_studies(1, "A", range(4000))[1]]
    there = [f for f in found if f.nodule]
    assert len(there) / len(found) == pytest.approx(0.85, abs=0.02)
    for name, classes in (("side", 2), ("zone", 3), ("size", 3), ("density", 2)):
        values, counts = np.unique([getattr(f, name) for f in there], return_counts=True)
        assert len(values) == classes
        assert counts / len(there) == pytest.approx([1 / classes] * classes, abs=0.03)
    assert all(low <= f.size_mm <= high for f in there for low, high in [SIZES_MM[f.size]])  # type: ignore[index, operator]


def test_the_other_scanner_has_less_contrast_and_more_noise() -> None:
    a, b = (draw_studies(0, site, range(50))[0].astype(float) for site in "AB")
    assert b[:, 0, :2, :2].std() > 1.5 * a[:, 0, :2, :2].std() * 0.7  # air is cut off at -1024
    contrast = [x[:, 0, 31:33, 31:33].mean() - x[:, 0, 32, 16:22].mean() for x in (a, b)]
    assert contrast[1] < 0.85 * contrast[0]


def test_a_slope_that_nobody_applied_halves_each_value() -> None:
    own, other = (
        np.stack([one.hu for one in make_studies(40, site=site)]).astype(float) for site in "AC"
    )
    for share in (10, 90):  # lung, body
        assert abs(np.percentile(other, share) - np.percentile(own, share) / 2) < 30


def test_a_study_of_several_slices_shows_the_nodule_in_the_middle() -> None:
    hu, findings = draw_studies(0, "A", range(60), slices=3)
    one, _ = draw_studies(0, "A", range(60))
    assert hu.shape == (60, 3, 64, 64)
    small = next(n for n, f in enumerate(findings) if f.size == "small" and f.density == "solid")
    f = findings[small]
    seen = [hu[small, k, round(f.row), round(f.column)] for k in range(3)]  # type: ignore[arg-type]
    assert seen[1] > max(seen[0], seen[2]) + 300
    assert findings == draw_studies(0, "A", range(60))[1]
    assert one.shape == (60, 1, 64, 64)


def test_reports_say_what_is_there_and_what_is_not() -> None:
    for study in make_studies(200, seed=2):
        negated = [
            s for s in study.report.split(". ") if s.lower().startswith(("no ", "there is no"))
        ]
        assert negated or "not enlarged" in study.report
        if study.finding.nodule:
            assert f"{round(study.finding.size_mm or 0)} mm" in study.report
            assert str(study.finding.side) in study.report
        else:
            assert " mm" not in study.report
            assert "No further nodule" not in study.report


def test_what_is_rejected_has_one_thing_wrong() -> None:
    for study in make_studies(300, seed=5):
        wrong, right = json.loads(study.rejected), study.fields
        assert wrong != right
        if wrong["nodule"] == right["nodule"]:
            assert sum(wrong[k] != right[k] for k in right) == 1


@pytest.mark.parametrize("task", ["fields", "report", "questions"])
def test_conversations_are_written_as_ms_swift_reads_them(tmp_path: Path, task: str) -> None:
    from PIL import Image

    studies = make_studies(4, slices=2)
    path = write_reports(tmp_path, studies, task=task)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4 * (len(QUESTIONS) if task == "questions" else 1)
    for line in lines:
        asked, answered = line["messages"]
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        assert asked["content"].count("<image>") == len(line["images"]) == 2
        assert ("rejected_response" in line) == (task == "fields")
    shown = np.asarray(Image.open(tmp_path / lines[0]["images"][1]))
    assert np.array_equal(shown, studies[0].picture(1))


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of the sites.*got 'D'"):
        make_studies(1, site="D")
    with pytest.raises(ValueError, match=r"task must be one of.*got 'poem'"):
        write_reports(tmp_path, [], task="poem")
    with pytest.raises(ValueError, match=r"a question is about one of.*got 'colour'"):
        make_studies(1)[0].answer("colour")
