from __future__ import annotations

import itertools

import numpy as np
import pytest

from medkit.data.contract.units import ANALYTES, UNITS, analyte_of, canonical, convert

# AMA Manual of Style, 11th ed., chapter 17: conventional unit x factor = SI unit
AMA = [
    ("creatinine", "mg/dL", "umol/L", 88.4),
    ("glucose", "mg/dL", "mmol/L", 0.0555),
    ("bun", "mg/dL", "mmol/L", 0.357),
    ("bilirubin", "mg/dL", "umol/L", 17.104),
    ("cholesterol", "mg/dL", "mmol/L", 0.0259),
    ("triglycerides", "mg/dL", "mmol/L", 0.0113),
    ("lactate", "mg/dL", "mmol/L", 0.111),
    ("calcium", "mg/dL", "mmol/L", 0.25),
    ("magnesium", "mg/dL", "mmol/L", 0.4114),
    ("magnesium", "mEq/L", "mmol/L", 0.5),
    ("phosphate", "mg/dL", "mmol/L", 0.323),
    ("sodium", "mEq/L", "mmol/L", 1.0),
    ("uric acid", "mg/dL", "umol/L", 59.48),
    ("ammonia", "ug/dL", "umol/L", 0.587),
    ("iron", "ug/dL", "umol/L", 0.179),
    ("haemoglobin", "g/dL", "g/L", 10.0),
    ("haemoglobin", "g/dL", "mmol/L", 0.6206),
    ("albumin", "g/dL", "g/L", 10.0),
    ("bnp", "pg/mL", "pmol/L", 0.289),
    ("alt", "U/L", "ukat/L", 0.0167),
    ("oxygen pressure", "mmHg", "kPa", 0.133),
]


@pytest.mark.parametrize(("analyte", "unit", "to", "factor"), AMA)
def test_factors_are_those_of_the_ama_manual(
    analyte: str, unit: str, to: str, factor: float
) -> None:
    assert convert(1.0, unit, to, analyte) == pytest.approx(factor, rel=0.005)


@pytest.mark.parametrize(
    ("value", "unit", "to", "expected"),
    [
        (98.6, "degF", "degC", 37.0),
        (37.0, "degC", "degF", 98.6),
        (310.15, "K", "degC", 37.0),
        (180.0, "lb", "kg", 81.6466266),
        (70.0, "in", "cm", 177.8),
        (5000.0, "1/uL", "10^9/L", 5.0),
        (0.95, "fraction", "%", 95.0),
        (24.0, "months", "years", 2.0),
    ],
)
def test_units_of_one_dimension_need_no_analyte(
    value: float, unit: str, to: str, expected: float
) -> None:
    assert convert(value, unit, to) == pytest.approx(expected, rel=1e-9)


def test_hba1c_follows_the_master_equation() -> None:
    assert convert(53.0, "mmol/mol", "%", "hba1c") == pytest.approx(0.09148 * 53 + 2.152)
    assert convert(7.0, "%", "mmol/mol", "hba1c") == pytest.approx((7.0 - 2.152) / 0.09148)


def test_urea_and_the_nitrogen_in_it_are_the_same_molecules() -> None:
    nitrogen = convert(60.0, "mg/dL", "mgN/dL", "urea")
    assert nitrogen == pytest.approx(60 * 28.014 / 60.056)
    assert convert(nitrogen, "mg/dL", "mmol/L", "bun") == pytest.approx(
        convert(60.0, "mg/dL", "mmol/L", "urea")
    )


def test_there_and_back_is_the_same_number() -> None:
    for analyte, entry in ANALYTES.items():
        for unit, to in itertools.permutations(entry.usual, 2):
            there = convert(12.5, unit, to, analyte)
            assert convert(there, to, unit, analyte) == pytest.approx(12.5), (analyte, unit, to)


def test_arrays_keep_their_shape_and_their_gaps() -> None:
    got = convert(np.array([[1.0, np.nan]]), "mg/dL", "umol/L", "creatinine")
    assert got.shape == (1, 2)
    np.testing.assert_allclose(got, [[88.4, np.nan]], rtol=1e-4)


def test_the_same_unit_changes_no_bit() -> None:
    assert convert(0.1 + 0.2, "mg/dl", "mg/dL") == 0.1 + 0.2


@pytest.mark.parametrize(
    ("written", "meant"),
    [("\u00b5mol/l", "umol/L"), ("mcg/dL", "ug/dL"), ("\u00b0C", "degC"), ("bpm", "1/min")],
)
def test_other_spellings_are_understood(written: str, meant: str) -> None:
    assert canonical(written) == meant


def test_no_two_units_differ_by_capitals_alone() -> None:
    assert len({name.lower() for name in UNITS}) == len(UNITS)


@pytest.mark.parametrize(
    ("column", "analyte"),
    [
        ("creatinine", "creatinine"),
        ("lab_Creatinine_last", "creatinine"),
        ("HGB", "haemoglobin"),
        ("chol", "cholesterol"),
        ("heart_rate", "heart rate"),
        ("glucose_count", None),
        ("glucose missing", None),
        ("stage", None),
        ("na_value", "sodium"),
    ],
)
def test_names_of_columns_say_what_is_measured(column: str, analyte: str | None) -> None:
    assert analyte_of(column) == analyte


def test_an_unknown_unit_is_refused_with_close_ones() -> None:
    with pytest.raises(
        ValueError, match=r"a unit must be .* got 'mmoll/L'\. Close: mmol/L.*Correct"
    ):
        convert(1.0, "mmoll/L", "mg/dL", "glucose")


def test_an_unknown_analyte_is_refused_with_close_ones() -> None:
    with pytest.raises(ValueError, match=r"an analyte must be .* got 'glukose'\. Close: glucose"):
        convert(1.0, "mmol/L", "mg/dL", "glukose")


@pytest.mark.parametrize(
    ("unit", "to", "analyte", "said"),
    [
        ("mg/dL", "mmol/L", None, "without an analyte"),
        ("mg/dL", "kg", "glucose", r"'kg' is mass \(analyte: glucose\)"),
        ("g/dL", "mmol/L", "albumin", "analyte: albumin"),
    ],
)
def test_units_of_different_things_are_refused(
    unit: str, to: str, analyte: str | None, said: str
) -> None:
    with pytest.raises(ValueError, match=f"stay within one quantity.*{said}.*Correct one"):
        convert(1.0, unit, to, analyte)
