"""PhysioNet/CinC Challenge 2012: long records and outcomes of 12,000 ICU stays.

Silva et al., Computing in Cardiology 39:245 (2012). Set A (4,000 stays) has outcomes. A record
holds Age, Gender, Height, ICUType and Weight at 00:00 and up to 36 time series over 48 hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medkit.data.long.events import FILE_NAME
from medkit.data.long.wide import AGGREGATES, wide_from_long
from medkit.data.table_files import load_table

COLUMNS = {
    **{"subject_id": "RecordID", "time": "Time", "code": "Parameter", "numeric_value": "Value"}
}
STATIC = ("Age", "Gender", "Height", "ICUType")
MISSING = {"Age": [-1], "Gender": [-1], "Height": [-1], "ICUType": [-1], "Weight": [-1]}
SERIES = (
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine"),
    *("DiasABP", "FiO2", "GCS", "Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent"),
    *("Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na", "PaCO2", "PaO2", "Platelets", "RespRate"),
    *("SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC", "Weight", "pH"),
)
OUTCOMES = ("SAPS-I", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")


def read_records(
    path: str | Path | Sequence[str | Path],
    *,
    time_limit: float = 48.0,
    aggregates: Sequence[str] = AGGREGATES,
) -> pd.DataFrame:
    """Return one row per stay.

    Heights, weights and genders of -1 are missing, as the challenge says.

    Args:
        path: A CSV (also .gz) or Parquet file with the columns RecordID, Time, Parameter, Value;
            or a folder of the challenge, such as set-a, with one text file per stay.
        time_limit: Hours from admission, 48 at most in these data.
        aggregates: Per time series; the four descriptors have one column each.

    Returns:
        Index ``subject_id`` (RecordID, int64), columns Age, Gender, Height, ICUType and
        ``<series>_<aggregate>`` in a fixed order.
    """
    columns = dict(COLUMNS)
    if isinstance(path, str | Path) and Path(path).is_dir():
        columns["subject_id"] = FILE_NAME
    return wide_from_long(
        path,
        time_limit=time_limit,
        codes=SERIES,
        aggregates=aggregates,
        static=STATIC,
        missing_codes=MISSING,
        columns=columns,
    )


def read_outcomes(path: str | Path) -> pd.DataFrame:
    """Return the outcomes, index ``subject_id``; -1 is NaN.

    SAPS-I and SOFA of -1 were not computed; a Survival of -1 means that no death was recorded.
    Length_of_stay [days] and Survival [days] are known after the outcome and are no features.

    Raises:
        ValueError: When the file has other columns, a record twice, or deaths that are not 0/1.
    """
    frame = load_table(path)
    wanted = ["RecordID", *OUTCOMES]
    if list(frame.columns) != wanted:
        raise ValueError(
            f"{path} must have the columns {wanted}, found {list(frame.columns)}. "
            "Is it the challenge's Outcomes file?"
        )
    twice = int(frame["RecordID"].duplicated().sum())
    died = frame["In-hospital_death"]
    if twice or not died.isin([0, 1]).all():
        raise ValueError(
            f"{path} must have one line per record and deaths of 0 or 1; found {twice} records "
            f"again and deaths {sorted(set(died))[:5]}. Take the challenge's own file."
        )
    table = frame.set_index(frame["RecordID"].rename("subject_id"))[list(OUTCOMES)]
    return table.mask(table == -1, np.nan).astype({"In-hospital_death": np.int64})


def read_table_2012(
    records: str | Path, outcomes: str | Path, *, time_limit: float = 48.0
) -> pd.DataFrame:
    """Return features, ``ICUType`` and ``In-hospital_death`` per stay, ready for a CSV.

    Scores, length of stay and survival are left out: they are computed from, or known after, what
    is predicted.

    Raises:
        ValueError: When records and outcomes are not of the same stays.
    """
    wide, known = read_records(records, time_limit=time_limit), read_outcomes(outcomes)
    lost = wide.index.symmetric_difference(known.index)
    if len(lost):
        raise ValueError(
            f"records and outcomes must be of the same stays; {len(lost)} of {len(wide)} and "
            f"{len(known)} are in one of them alone. Take both of the same set (a, b or c)."
        )
    return wide.join(known["In-hospital_death"]).reset_index()
