"""Units of laboratory values and vital signs, and the way from one to another.

A unit belongs to a dimension (mass concentration, temperature, ...), inside which it is converted
by a factor and, for temperatures, an offset. Between mass and amount of substance the way goes
through the analyte's molar mass; between amount and equivalents through its charge.

Sources: SI Brochure, 9th ed. (BIPM 2019) for factors of units, the pound and the inch by their
definition; IUPAC standard atomic weights (2021) for molar masses; for what a "mole" of a protein
or lipid means, the conversion factors of the AMA Manual of Style, 11th ed. (2020), chapter 17:
haemoglobin as its monomer (16,114 g/mol), triglycerides as triolein (885), phosphate as
phosphorus, urea nitrogen ("bun") as the nitrogen in urea (28 g per mole of urea). HbA1c between
NGSP [%] and IFCC [mmol/mol] by the master equation of Hoelzel et al., Clin Chem 50:166 (2004).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Unit:
    """A unit: ``value * factor + offset`` is the value in the base unit of its dimension."""

    dimension: str
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Analyte:
    """What is measured.

    Attributes:
        usual: Units that hospitals write, the first is the one proposed.
        typical: Median among adults in hospital, roughly, in the first of ``usual``: enough to
            tell mg/dL from umol/L, and for nothing else.
        molar_mass: [g/mol]; None: mass and amount can't be converted.
        charge: Equivalents per mole, for mEq/L.
        most: No value is above it, in the first of ``usual``.
        names: Other names of it, lower case.
    """

    usual: tuple[str, ...]
    typical: float
    molar_mass: float | None = None
    charge: int | None = None
    names: tuple[str, ...] = ()
    most: float = inf


_MASS, _AMOUNT, _CHARGE, _NITROGEN = "mass/volume", "amount/volume", "charge/volume", "N/volume"
_A1C_NGSP, _A1C_IFCC = "fraction", "amount/amount"

UNITS: dict[str, Unit] = {
    **{"g/L": Unit(_MASS), "g/dL": Unit(_MASS, 10), "mg/mL": Unit(_MASS)},
    **{"mg/dL": Unit(_MASS, 1e-2), "mg/L": Unit(_MASS, 1e-3), "ug/mL": Unit(_MASS, 1e-3)},
    **{"ug/dL": Unit(_MASS, 1e-5), "ug/L": Unit(_MASS, 1e-6), "ng/mL": Unit(_MASS, 1e-6)},
    **{"ng/dL": Unit(_MASS, 1e-8), "ng/L": Unit(_MASS, 1e-9), "pg/mL": Unit(_MASS, 1e-9)},
    **{"mol/L": Unit(_AMOUNT), "mmol/L": Unit(_AMOUNT, 1e-3), "umol/L": Unit(_AMOUNT, 1e-6)},
    **{"nmol/L": Unit(_AMOUNT, 1e-9), "pmol/L": Unit(_AMOUNT, 1e-12)},
    **{"mEq/L": Unit(_CHARGE, 1e-3), "mgN/dL": Unit(_NITROGEN, 1e-2)},
    **{"U/L": Unit("activity/volume"), "IU/L": Unit("activity/volume")},
    **{"ukat/L": Unit("activity/volume", 60), "nkat/L": Unit("activity/volume", 0.06)},
    **{"10^9/L": Unit("cells/volume", 1e9), "10^3/uL": Unit("cells/volume", 1e9)},
    **{"K/uL": Unit("cells/volume", 1e9), "1/uL": Unit("cells/volume", 1e6)},
    **{"10^12/L": Unit("cells/volume", 1e12), "10^6/uL": Unit("cells/volume", 1e12)},
    **{"mmHg": Unit("pressure"), "kPa": Unit("pressure", 7.50061683)},
    **{"hPa": Unit("pressure", 0.750061683), "cmH2O": Unit("pressure", 0.735559240)},
    **{"degC": Unit("temperature"), "degF": Unit("temperature", 5 / 9, -160 / 9)},
    **{"K": Unit("temperature", 1, -273.15)},
    **{"kg": Unit("mass"), "g": Unit("mass", 1e-3), "lb": Unit("mass", 0.45359237)},
    **{"m": Unit("length"), "cm": Unit("length", 1e-2), "mm": Unit("length", 1e-3)},
    **{"in": Unit("length", 0.0254), "ft": Unit("length", 0.3048)},
    **{"s": Unit("time"), "min": Unit("time", 60), "h": Unit("time", 3600)},
    **{"days": Unit("time", 86_400), "weeks": Unit("time", 604_800)},
    **{"months": Unit("time", 2_629_800), "years": Unit("time", 31_557_600)},
    **{"1/min": Unit("rate"), "1/s": Unit("rate", 60)},
    **{"fraction": Unit(_A1C_NGSP), "%": Unit(_A1C_NGSP, 1e-2), "mmol/mol": Unit(_A1C_IFCC, 1e-3)},
    **{"L": Unit("volume"), "mL": Unit("volume", 1e-3), "mL/min/1.73m2": Unit("filtration")},
    **{"mL/h": Unit("flow"), "mL/min": Unit("flow", 60), "L/min": Unit("flow", 60_000)},
    **{"points": Unit("points"), "0/1": Unit("0/1")},
}
_SPELLINGS = {
    **{"bpm": "1/min", "/min": "1/min", "min-1": "1/min", "breaths/min": "1/min"},
    **{"beats/min": "1/min", "c": "degC", "celsius": "degC", "f": "degF", "fahrenheit": "degF"},
    **{"10e9/l": "10^9/L", "x10^9/l": "10^9/L", "10*9/l": "10^9/L"},
    **{"10*3/ul": "10^3/uL", "x10^3/ul": "10^3/uL", "/ul": "1/uL", "cells/ul": "1/uL"},
    **{"/mm3": "1/uL", "10^3/mm3": "10^3/uL", "mm hg": "mmHg", "lbs": "lb", "inch": "in"},
    **{"year": "years", "y": "years", "yr": "years", "yrs": "years", "month": "months"},
    **{"day": "days", "d": "days", "week": "weeks", "hour": "h", "hours": "h", "minutes": "min"},
    **{"percent": "%", "l/l": "fraction", "1": "fraction", "mg n/dl": "mgN/dL"},
    **{"mg/dl bun": "mgN/dL", "mval/l": "mEq/L", "litre": "L", "seconds": "s"},
}

ANALYTES: dict[str, Analyte] = {
    "creatinine": Analyte(("mg/dL", "umol/L"), 1.0, 113.12, names=("creat", "crea", "scr")),
    "glucose": Analyte(("mg/dL", "mmol/L"), 125, 180.156, names=("glu", "blood sugar")),
    "urea": Analyte(("mg/dL", "mmol/L"), 40, 60.056),
    "bun": Analyte(("mg/dL", "mmol/L"), 19, 28.014, names=("urea nitrogen",)),
    "bilirubin": Analyte(("mg/dL", "umol/L"), 0.8, 584.67, names=("bili",)),
    "cholesterol": Analyte(("mg/dL", "mmol/L"), 200, 386.66, names=("chol",)),
    "hdl": Analyte(("mg/dL", "mmol/L"), 48, 386.66),
    "ldl": Analyte(("mg/dL", "mmol/L"), 110, 386.66),
    "triglycerides": Analyte(("mg/dL", "mmol/L"), 130, 885.4, names=("tg", "trig")),
    "lactate": Analyte(("mmol/L", "mg/dL"), 1.7, 90.08, names=("lac", "lactic acid")),
    "calcium": Analyte(("mg/dL", "mmol/L", "mEq/L"), 9.0, 40.078, 2, ("ca total",)),
    "magnesium": Analyte(("mg/dL", "mmol/L", "mEq/L"), 2.0, 24.305, 2, ("mg",)),
    "phosphate": Analyte(("mg/dL", "mmol/L"), 3.5, 30.974, names=("phosphorus",)),
    "sodium": Analyte(("mmol/L", "mEq/L"), 139, 22.990, 1, ("na",)),
    "potassium": Analyte(("mmol/L", "mEq/L"), 4.1, 39.098, 1, ("k",)),
    "chloride": Analyte(("mmol/L", "mEq/L"), 103, 35.45, 1, ("cl",)),
    "bicarbonate": Analyte(("mmol/L", "mEq/L"), 24, 61.017, 1, ("hco3",)),
    "uric acid": Analyte(("mg/dL", "umol/L"), 5.5, 168.11, names=("urate",)),
    "ammonia": Analyte(("umol/L", "ug/dL"), 35, 17.031, names=("nh3",)),
    "iron": Analyte(("ug/dL", "umol/L"), 80, 55.845),
    "albumin": Analyte(("g/dL", "g/L"), 3.5, names=("alb",)),
    "protein": Analyte(("g/dL", "g/L"), 6.8, names=("total protein",)),
    "haemoglobin": Analyte(
        ("g/dL", "g/L", "mmol/L"), 12, 16_114, names=("hemoglobin", "hb", "hgb")
    ),
    "hba1c": Analyte(("%", "mmol/mol"), 6.0, names=("a1c", "glycated haemoglobin")),
    "crp": Analyte(("mg/L", "mg/dL"), 20, names=("c reactive protein",)),
    "ferritin": Analyte(("ng/mL",), 150),
    "bnp": Analyte(("pg/mL", "pmol/L"), 250, 3_464),
    "ntprobnp": Analyte(("pg/mL", "pmol/L"), 900, 8_457, names=("nt probnp", "nt pro bnp")),
    "troponin": Analyte(("ng/mL", "ng/L"), 0.05, names=("troponint", "troponini")),
    "wbc": Analyte(("10^9/L", "1/uL"), 9, names=("leukocytes", "leucocytes", "white cells")),
    "platelets": Analyte(("10^9/L", "1/uL"), 220, names=("plt", "thrombocytes")),
    "rbc": Analyte(("10^12/L",), 4.3, names=("erythrocytes",)),
    "haematocrit": Analyte(("%", "fraction"), 36, names=("hematocrit", "hct")),
    "alt": Analyte(("U/L", "ukat/L"), 28, names=("gpt", "sgpt")),
    "ast": Analyte(("U/L", "ukat/L"), 31, names=("got", "sgot")),
    "alp": Analyte(("U/L", "ukat/L"), 80, names=("alkaline phosphatase",)),
    "ldh": Analyte(("U/L", "ukat/L"), 230),
    "temperature": Analyte(("degC", "degF"), 37, names=("temp", "body temperature")),
    "weight": Analyte(("kg", "lb"), 78, names=("body weight", "wt")),
    "height": Analyte(("cm", "m", "in"), 169, names=("body height",)),
    "heart rate": Analyte(("1/min",), 84, names=("hr", "pulse", "thalach")),
    "respiratory rate": Analyte(("1/min",), 18, names=("resp rate", "rr", "resprate")),
    "systolic pressure": Analyte(("mmHg", "kPa"), 124, names=("sbp", "sysabp", "trestbps")),
    "diastolic pressure": Analyte(("mmHg", "kPa"), 70, names=("dbp", "diasabp")),
    "oxygen saturation": Analyte(("%", "fraction"), 96, names=("spo2", "sao2")),
    "oxygen pressure": Analyte(("mmHg", "kPa"), 105, names=("pao2", "po2")),
    "carbon dioxide pressure": Analyte(("mmHg", "kPa"), 40, names=("paco2", "pco2")),
    "age": Analyte(("years",), 60, most=120),
}
_BY_NAME = {n: a for a, entry in ANALYTES.items() for n in (a, *entry.names)}
# Parts of a column's name that say nothing about what it measures.
_AGGREGATES = {
    "first",
    "last",
    "min",
    "max",
    "mean",
    "median",
    "lab",
    "value",
    "serum",
    "admission",
}
_NO_AMOUNT = {"count", "missing", "flag", "std", "sd", "slope", "n", "delta", "change", "number"}


def convert(values: Any, unit: str, to: str, analyte: str | None = None) -> Any:
    """Convert numbers, or arrays of them, from one unit to another.

    Args:
        values: Float or array [unit]; NaN stays NaN.
        unit: The unit they have.
        to: The unit wanted.
        analyte: What was measured: needed between mass and amount (mg/dL to mmol/L).

    Returns:
        A float for a number, float64 of the same shape for an array [to].

    Raises:
        ValueError: For an unknown unit or analyte, or units that measure different things.

    Example:
        >>> round(convert(1.0, "mg/dL", "umol/L", "creatinine"), 1)
        88.4
    """
    have, want = canonical(unit), canonical(to)
    exact: NDArray[np.float64] = np.asarray(values, np.float64)
    if have != want:
        scale, shift = _line(have, want, None if analyte is None else named(analyte))
        exact = exact * scale + shift
    return exact if np.ndim(values) else float(exact)


@cache
def _line(unit: str, to: str, analyte: str | None) -> tuple[float, float]:
    """Return the slope and the intercept of the way from ``unit`` to ``to``."""
    a, b = UNITS[unit], UNITS[to]
    if a.dimension == b.dimension:
        return a.factor / b.factor, (a.offset - b.offset) / b.factor
    if analyte == "hba1c" and {a.dimension, b.dimension} == {_A1C_NGSP, _A1C_IFCC}:
        # NGSP [%] = 0.09148 IFCC [mmol/mol] + 2.152
        if a.dimension == _A1C_IFCC:
            return 0.09148 * a.factor * 1e3 * 1e-2 / b.factor, 2.152e-2 / b.factor
        return a.factor * 1e2 / 0.09148 * 1e-3 / b.factor, -2.152 / 0.09148 * 1e-3 / b.factor
    moles = [_per_mole(one.dimension, analyte) for one in (a, b)]
    if moles[0] is None or moles[1] is None:
        raise ValueError(
            f"a conversion must stay within one quantity, and {unit!r} is {a.dimension} while "
            f"{to!r} is {b.dimension}"
            + (f" (analyte: {analyte}). " if analyte else ", without an analyte. ")
            + "Correct one of the units, or name the analyte: mg/dL and mmol/L meet through its "
            "molar mass."
        )
    return (a.factor / moles[0]) / (b.factor / moles[1]), 0.0


def _per_mole(dimension: str, analyte: str | None) -> float | None:
    """Return how much of a dimension's base unit one mole per litre is; None: nothing known."""
    if dimension == _AMOUNT:
        return 1.0
    if analyte is None:
        return None
    entry = ANALYTES[analyte]
    if dimension == _NITROGEN:
        return 28.014 if analyte in {"urea", "bun"} else None
    return {_MASS: entry.molar_mass, _CHARGE: entry.charge}.get(dimension)


def canonical(unit: str) -> str:
    """Return the spelling of a unit that :data:`UNITS` uses, such as "umol/L" for "µmol/l".

    Raises:
        ValueError: For a unit that is not there, with the closest ones.
    """
    text = unit.strip()
    if text in UNITS:
        return text
    plain = text.lower().replace("µ", "u").replace("\u03bc", "u").replace("mcg", "ug")
    plain = plain.replace("°", "deg").replace("deg ", "deg").replace("³", "3")
    by_lower = {name.lower(): name for name in UNITS}
    if plain in by_lower:
        return by_lower[plain]
    if plain in _SPELLINGS:
        return _SPELLINGS[plain]
    close = difflib.get_close_matches(plain, by_lower, n=3, cutoff=0.5)
    raise ValueError(
        f"a unit must be one that medkit.data.contract.units knows, got {unit!r}. "
        + (f"Close: {', '.join(by_lower[name] for name in close)}. " if close else "")
        + "Correct it, or leave the unit out where no site needs a conversion."
    )


def named(analyte: str) -> str:
    """Return the name in :data:`ANALYTES` for an analyte, such as "haemoglobin" for "Hgb".

    Raises:
        ValueError: For one that is not there, with the closest ones.
    """
    found = _BY_NAME.get(_plain(analyte))
    if found is None:
        close = difflib.get_close_matches(_plain(analyte), _BY_NAME, n=3, cutoff=0.5)
        raise ValueError(
            f"an analyte must be one that medkit.data.contract.units knows, got {analyte!r}. "
            + (f"Close: {', '.join(close)}. " if close else "")
            + "Its molar mass is needed between mg/dL and mmol/L; other conversions need none."
        )
    return found


def most(analyte: str, unit: str) -> float:
    """Return what no value of an analyte is above [unit]; infinity where that is not known."""
    entry = ANALYTES[analyte]
    return float(convert(entry.most, entry.usual[0], unit, analyte))


def analyte_of(column: str) -> str | None:
    """Guess from a column's name what it measures; None where it says nothing.

    Example:
        >>> analyte_of("lab_creatinine_last"), analyte_of("HGB"), analyte_of("glucose_count")
        ('creatinine', 'haemoglobin', None)
    """
    words = _plain(column).split()
    if set(words) & _NO_AMOUNT:
        return None
    kept = [word for word in words if word not in _AGGREGATES]
    if (whole := _BY_NAME.get(" ".join(kept))) is not None:
        return whole
    for length in range(len(kept), 0, -1):
        for start in range(len(kept) - length + 1):
            name = " ".join(kept[start : start + length])
            if len(name) > 2 and name in _BY_NAME:
                return _BY_NAME[name]
    return None


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))
