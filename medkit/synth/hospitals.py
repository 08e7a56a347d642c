"""What the three made-up hospitals are like: sites, columns, units, codes, habits of measuring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

STAYS = {"A": 850, "B": 550, "C": 600}
INTERCEPT = {"A": -4.53, "B": -4.82, "C": -4.04}  # of the outcome's logit: 12, 9 and 18 % die
SEVERITY_SHIFT = {"A": 0.0, "B": -0.1, "C": 0.15}  # of the mean severity [sd]
SLOPE = 3.4  # of the outcome's logit, per sd of severity
AGAIN = 0.17  # share of stays that are another stay of the same patient
CODED_SHARE = 0.8  # of the missing cells of a column that has a code at its site


@dataclass(frozen=True)
class Feature:
    """One column: how it follows severity and how it goes missing.

    Attributes:
        name: Column name.
        unit: Unit at a site not named in ``factor``; "0/1" for a binary column.
        center: Value of an average patient, or the share of ones.
        spread: Standard deviation [unit]; of the logarithm where ``skewed``; for a binary column
            the change of the share of ones per sd of severity.
        loading: Correlation with severity; unused for a binary column.
        missing: Share missing at A, B and C.
        ordered: How much likelier a value is to be there per sd that it is higher (MNAR), by site.
        decimals: Digits after the point in the file.
        skewed: Log-symmetric rather than symmetric.
        lowest: Smaller values are written as this one.
        highest: Larger values are written as this one.
        per_patient: Drawn once per patient rather than once per stay.
        codes: Site -> code written for a missing value.
        factor: Site -> (factor, unit, decimals) where that site uses another unit.
        meaning: One line for the data dictionary.
    """

    name: str
    unit: str
    center: float
    spread: float
    loading: float
    missing: tuple[float, float, float]
    ordered: tuple[float, float, float] = (0.0, 0.0, 0.0)
    decimals: int = 0
    skewed: bool = False
    lowest: float = 0.0
    highest: float = 1e9
    per_patient: bool = False
    codes: Mapping[str, int] | None = None
    factor: Mapping[str, tuple[float, str, int]] | None = None
    meaning: str = ""

    @property
    def binary(self) -> bool:
        """Say whether the column holds 0 and 1 only."""
        return self.unit == "0/1"

    @property
    def own(self) -> float:
        """Return how much of a standard score is the column's own noise."""
        return sqrt(1.0 - self.loading * self.loading)

    def unit_at(self, site: str) -> tuple[float, str, int]:
        """Return what to multiply by, the unit and the decimals in that site's files."""
        return (self.factor or {}).get(site, (1.0, self.unit, self.decimals))


_ORDERED = (0.15, 0.15, 0.15)

FEATURES = (
    Feature("age", "years", 64, 14, 0.45, (0.0, 0.0, 0.02), lowest=18,
            highest=100, per_patient=True, meaning="at entry"),
    Feature("heart_rate", "1/min", 86, 16, 0.52, (0.15, 0.25, 0.3), codes={"C": 999}),
    Feature("sbp", "mmHg", 124, 19, -0.55, (0.15, 0.25, 0.25), meaning="systolic blood pressure"),
    Feature("resp_rate", "1/min", 19, 4, 0.55, (0.3, 0.4, 0.35), codes={"B": 999, "C": 999}),
    Feature("temperature", "degC", 36.9, 0.7, 0.13, (0.2, 0.3, 0.3), decimals=1, codes={"C": 999}),
    Feature("spo2", "%", 95, 2.5, -0.49, (0.15, 0.3, 0.3), highest=100, meaning="O2 saturation"),
    Feature("creatinine", "mg/dL", 1.1, 0.42, 0.65, (0.4, 0.45, 0.4), _ORDERED, 2, skewed=True,
            codes={"A": 0, "B": 0}, factor={"C": (88.4, "umol/L", 0)}),
    Feature("urea", "mg/dL", 42, 0.45, 0.62, (0.45, 0.5, 0.45), _ORDERED, 0, skewed=True,
            codes={"B": 0}),
    Feature("sodium", "mmol/L", 138, 4, -0.20, (0.4, 0.45, 0.4), codes={"A": -1}),
    Feature("potassium", "mmol/L", 4.2, 0.5, 0.29, (0.4, 0.45, 0.4), decimals=1, codes={"A": -1}),
    Feature("glucose", "mg/dL", 128, 0.30, 0.29, (0.35, 0.45, 0.4), decimals=0, skewed=True,
            codes={"C": 0}, factor={"B": (1 / 18, "mmol/L", 1)}),
    Feature("lactate", "mmol/L", 1.6, 0.48, 0.72, (0.55, 0.6, 0.15), (0.15, 0.15, 0.0), 1,
            skewed=True, codes={"A": -1, "B": -1}, meaning="taken by routine at C"),
    Feature("wbc", "10^9/L", 9.6, 0.36, 0.39, (0.4, 0.45, 0.4), decimals=1, skewed=True,
            codes={"C": 0}, meaning="white cells"),
    Feature("platelets", "10^9/L", 225, 60, -0.36, (0.4, 0.45, 0.4), lowest=5, codes={"B": 0}),
    Feature("haemoglobin", "g/dL", 12.1, 1.9, -0.33, (0.4, 0.45, 0.4), decimals=1, lowest=3,
            codes={"B": 0}),
    Feature("bnp", "pg/mL", 300, 0.95, 0.65, (0.6, 0.65, 1.0), _ORDERED, 0, skewed=True,
            codes={"A": -1, "B": -1}, meaning="never taken at C"),
    Feature("sex_male", "0/1", 0.56, 0.0, 0.0, (0.0, 0.0, 0.02), per_patient=True),
    Feature("diabetes", "0/1", 0.27, 0.02, 0.0, (0.35, 0.45, 0.5), codes={"C": -1}),
    Feature("ventilated", "0/1", 0.22, 0.13, 0.0, (0.35, 0.5, 0.5), codes={"C": -1}),
    Feature("vasopressor", "0/1", 0.16, 0.11, 0.0, (0.35, 0.5, 0.5), codes={"C": -1}),
)  # fmt: skip

MISSING_CODES: dict[str, list[float]] = {
    f.name: sorted({float(code) for code in f.codes.values()}) for f in FEATURES if f.codes
}

# What a person would write into a data contract: beyond these a cell is an error [unit].
PLAUSIBLE: dict[str, tuple[float, float]] = {
    **{"age": (0, 120), "heart_rate": (20, 300), "sbp": (30, 300), "resp_rate": (2, 80)},
    **{"temperature": (25, 45), "spo2": (30, 100), "creatinine": (0.1, 30), "urea": (2, 500)},
    **{"sodium": (90, 200), "potassium": (1, 12), "glucose": (10, 1500), "lactate": (0.1, 40)},
    **{"wbc": (0.1, 500), "platelets": (1, 2000), "haemoglobin": (2, 25), "bnp": (1, 100_000)},
}
