from __future__ import annotations

import json

import pytest

from medkit.data.report_schema import LUNG_NODULE, NODULE, Field, ReportSchema
from medkit.synth.reports import make_studies

LUNG = {"nodule": True, "lobe": "left upper", "size_mm": 7, "category": "3"}


def test_made_up_reports_are_of_the_schema_word_for_word() -> None:
    for study in make_studies(100):
        assert NODULE.text(study.fields) == study.fields_json
        assert NODULE.parse(study.fields_json) == study.fields
        assert NODULE.parse(study.rejected) is not None
        assert all(NODULE.score(study.fields, study.fields).values())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "no nodule",
        '{"nodule":"false"}',
        '{"nodule":0}',
        '{"nodule":false,"side":"left"}',
        '{"nodule":true}',
        '{"nodule":true,"lobe":"left upper","size_mm":7}',
        '{"nodule":true,"lobe":"left upper","size_mm":7.0,"category":"3"}',
        '{"nodule":true,"lobe":"left upper","size_mm":true,"category":"3"}',
        '{"nodule":true,"lobe":"left upper","size_mm":1,"category":"3"}',
        '{"nodule":true,"lobe":"tail","size_mm":7,"category":"3"}',
        '{"nodule":true,"nodule":true,"lobe":"left upper","size_mm":7,"category":"3"}',
        '{"nodule":true,"lobe":"left upper","size_mm":7,"category":"3","side":"left"}',
    ],
)
def test_what_is_not_of_the_schema_is_no_report(text: str) -> None:
    assert LUNG_NODULE.parse(text) is None


def test_fields_are_right_one_by_one_and_numbers_when_they_are_near() -> None:
    right = LUNG_NODULE.score({**LUNG, "size_mm": 9, "lobe": "left lower"}, LUNG)
    assert right == {"nodule": True, "lobe": False, "size_mm": True, "category": True}
    assert not LUNG_NODULE.score({**LUNG, "size_mm": 10}, LUNG)["size_mm"]
    assert LUNG_NODULE.score({"nodule": False}, LUNG) == dict.fromkeys(LUNG, False)
    assert LUNG_NODULE.score(None, {"nodule": False}) == {"nodule": False}
    assert LUNG_NODULE.score(LUNG, {"nodule": False}) == {"nodule": False}


def test_every_report_is_made_of_the_pieces() -> None:
    for schema, report in ((NODULE, make_studies(5)[4].fields), (LUNG_NODULE, LUNG)):
        for one in (report, {"nodule": False}):
            left = schema.text(one)
            while left:
                fits = [piece for piece in schema.pieces() if left.startswith(piece)]
                assert fits
                left = left[len(max(fits, key=len)) :]


def test_the_longest_report_is_known() -> None:
    assert LUNG_NODULE.longest() == len(
        json.dumps(
            {"nodule": True, "lobe": "right middle", "size_mm": 60, "category": "4A"},
            separators=(",", ":"),
        )
    )


def test_a_schema_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="different values"):
        Field("side", ("left", "left"))
    with pytest.raises(ValueError, match="whole numbers from low to high"):
        Field("size_mm", low=5, high=5)
    with pytest.raises(ValueError, match="fields of different names"):
        ReportSchema("nodule", (Field("nodule", ("a",)),))
    with pytest.raises(ValueError, match=r"all of .*'lobe'"):
        LUNG_NODULE.text({"nodule": True})


def test_a_text_is_not_several_values() -> None:
    with pytest.raises(
        ValueError, match=r"must be several, got the text 'left'.*\('left', \.\.\.\)"
    ):
        Field("side", "left")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('{"nodule":false}', r"where a mapping of fields is allowed; json.loads reads text"),
        (None, r"None, where a mapping"),
        ({"Nodule": False}, r"no 'nodule', where true or false is allowed .*\['Nodule'\]"),
        ({"nodule": "yes"}, r"nodule='yes', where true or false"),
        ({"nodule": True, "side": "left"}, r"keys \['nodule', 'side'\], where nodule=True allows"),
        ({**LUNG, "lobe": "Left upper"}, r"lobe='Left upper', where one of \['right upper'"),
        ({**LUNG, "size_mm": 7.0}, r"size_mm=7.0, where whole numbers from 2 to 60"),
    ],
)
def test_a_truth_that_the_schema_does_not_allow_is_refused(wrong: object, said: str) -> None:
    LUNG_NODULE.require([LUNG, {"nodule": False}], "see there")
    with pytest.raises(ValueError, match=rf"row 1 has .*{said}.*Correct the data, or see there"):
        LUNG_NODULE.require([LUNG, wrong], "see there")
