"""What a report says of each finding: there, possible, not there, or nothing."""

from __future__ import annotations

import pytest

from medkit.synth.reports import make_studies
from medkit.vlm.finding_terms import FINDINGS, NORMAL_SIGNS
from medkit.vlm.labeller import STATUSES, is_normal, label, mentions, places, sizes_mm


def said(report: str, *findings: str) -> tuple[str, ...]:
    return tuple(label(report)[name] for name in findings)


@pytest.mark.parametrize(
    ("report", "finding"),
    [
        ("Small left pleural effusion.", "Effusion"),
        ("The heart is mildly enlarged.", "Cardiomegaly"),
        ("Complete collapse of the left lung.", "Atelectasis"),
        ("Bilateral pneumothoraces.", "Pneumothorax"),
        ("Biapical pleural thickening.", "Pleural_Thickening"),
    ],
)
def test_what_is_asserted_is_present(report: str, finding: str) -> None:
    assert said(report, finding) == ("present",)


@pytest.mark.parametrize(
    "report",
    [
        "No pleural effusion.",
        "The lungs are without effusion.",
        "Lungs are clear of effusion.",
        "Negative for effusion.",
        "The effusion has resolved.",
        "Pleural effusion is not seen.",
        "Effusion is no longer identified.",
        "Costophrenic angles are sharp.",
        "The pleural spaces are unremarkable.",
    ],
)
def test_what_is_denied_before_or_after_is_absent(report: str) -> None:
    assert said(report, "Effusion") == ("absent",)


def test_a_denial_reaches_over_a_list() -> None:
    report = "No consolidation, effusion, or pneumothorax."
    assert said(report, "Consolidation", "Effusion", "Pneumothorax") == ("absent",) * 3


def test_a_denial_after_a_list_reaches_all_of_it() -> None:
    report = "Edema, effusion and consolidation have resolved."
    assert said(report, "Edema", "Effusion", "Consolidation") == ("absent",) * 3


@pytest.mark.parametrize(
    "report",
    [
        "No pneumothorax, but a small effusion.",
        "No pneumothorax; small effusion.",
        "No pneumothorax and a small effusion.",
        "No pneumothorax, small left effusion.",
        "The pneumothorax has resolved, however there is an effusion.",
        "There is an effusion, the pneumothorax has resolved.",
    ],
)
def test_a_denial_ends_with_its_clause(report: str) -> None:
    assert said(report, "Pneumothorax", "Effusion") == ("absent", "present")


@pytest.mark.parametrize(
    "report",
    [
        "No change in the effusion.",
        "No significant interval change in right effusion.",
        "Not only effusion but also edema.",
        "The effusion is not well seen.",
        "Near-complete resolution of the effusion.",
    ],
)
def test_a_no_that_denies_something_else_does_not_deny_the_finding(report: str) -> None:
    assert said(report, "Effusion") == ("present",)


@pytest.mark.parametrize(
    "report",
    [
        "This may represent pneumonia.",
        "Possible pneumonia.",
        "Opacity suggestive of pneumonia.",
        "Pneumonia cannot be excluded.",
        "Cannot exclude pneumonia.",
        "Pneumonia is suspected.",
        "Pneumonia versus atelectasis.",
        "Atelectasis versus pneumonia.",
    ],
)
def test_what_is_hedged_is_uncertain(report: str) -> None:
    assert said(report, "Pneumonia") == ("uncertain",)


def test_what_suggests_something_is_itself_there() -> None:
    assert said("A nodule suggests old granulomatous disease.", "Nodule") == ("present",)


def test_what_was_there_once_is_not_mentioned() -> None:
    assert said("History of pneumonia.", "Pneumonia") == ("not mentioned",)


@pytest.mark.parametrize(
    ("report", "finding"),
    [
        ("Pericardial effusion.", "Effusion"),
        ("Subcutaneous emphysema.", "Emphysema"),
        ("Cystic fibrosis.", "Fibrosis"),
        ("Massive hiatus.", "Mass"),
    ],
)
def test_a_lookalike_is_not_the_finding(report: str, finding: str) -> None:
    assert said(report, finding) == ("not mentioned",)


def test_normal_signs_deny_their_findings() -> None:
    report = "Heart size is normal. The lungs are clear."
    assert said(report, "Cardiomegaly", "Nodule", "Effusion") == (
        *("absent", "absent", "not mentioned"),
    )


def test_lungs_clear_of_one_thing_are_not_clear_of_all() -> None:
    assert said("The lungs are clear of effusion.", "Nodule") == ("not mentioned",)


def test_one_assertion_outweighs_a_denial() -> None:
    assert said("No other nodule. Nodule in the left lung.", "Nodule") == ("present",)


def test_a_mention_says_where_it_was_found() -> None:
    (one,) = mentions("Old films. No Pleural Effusion.")
    assert (one.words, one.sentence) == ("effusion", "no pleural effusion.")


def test_an_empty_report_says_nothing() -> None:
    assert set(label("").values()) == {STATUSES[-1]}
    assert not is_normal(" ")


def test_a_report_is_normal_where_nothing_abnormal_is_named() -> None:
    assert is_normal("The lungs are clear. No fracture. No effusion.")
    assert not is_normal("The lungs are clear. Degenerative changes of the spine.")
    assert not is_normal("Possible pneumonia.")


def test_normal_signs_deny_findings_that_exist() -> None:
    assert {name for denied in NORMAL_SIGNS.values() for name in denied} <= set(FINDINGS)


def test_made_up_reports_are_read_without_an_error() -> None:
    studies = make_studies(100, seed=3)
    read = [label(study.report)["Nodule"] for study in studies]
    assert read == ["present" if study.finding.nodule else "absent" for study in studies]


def test_a_place_belongs_to_what_is_asserted_in_its_sentence() -> None:
    found = places("Small bilateral effusions. No left pneumothorax. Right nodule.")
    assert found == {("Effusion", "left"), ("Effusion", "right"), ("Nodule", "right")}


@pytest.mark.parametrize(
    ("report", "sizes"),
    [
        ("A 7 mm nodule.", [(7.0,)]),
        ("0.7 cm nodule.", [(7.0,)]),
        ("A 7-mm nodule.", [(7.0,)]),
        ("5 x 7 mm", [(7.0, 5.0)]),
        ("7 mm by 5 mm", [(7.0, 5.0)]),
        ("1.2 x 0.8 x 1 cm", [(12.0, 10.0, 8.0)]),
        ('{"nodule":true,"size_mm":7}', [(7.0,)]),
        ("Now 8 mm, previously 5 mm.", [(8.0,)]),
        ("T7 fracture, 4 mmol.", []),
    ],
)
def test_sizes_are_read_in_millimetres(report: str, sizes: list[tuple[float, ...]]) -> None:
    assert sizes_mm(report) == [pytest.approx(one) for one in sizes]
