from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkit.data.long.physionet2012 import (
    SERIES,
    STATIC,
    read_outcomes,
    read_records,
    read_table_2012,
)

HEAD = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"
RECORDS = """\
RecordID,Time,Parameter,Value
1,00:00,RecordID,1
1,00:00,Age,54
1,00:00,Height,-1
1,00:00,Weight,-1
1,00:07,HR,73
1,48:00,HR,80
1,48:01,HR,99
2,00:00,Age,76
"""


def test_a_record_becomes_a_row(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text(RECORDS)
    got = read_records(path)
    assert got.shape == (2, len(STATIC) + 6 * len(SERIES))
    assert got.loc[1, ["Age", "HR_first", "HR_last", "HR_count"]].tolist() == [54, 73, 80, 2]
    assert np.isnan(got.loc[1, "Height"])
    assert got.loc[1, "Weight_count"] == 0
    assert got.loc[2, "HR_count"] == 0


def test_a_folder_of_text_files_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(RECORDS)
    folder = tmp_path / "set-a"
    folder.mkdir()
    for stay in ("1", "2"):
        rows = [r[2:] for r in RECORDS.splitlines() if r.startswith(f"{stay},")]
        (folder / f"{stay}.txt").write_text("\n".join(["Time,Parameter,Value", *rows, ""]))
    want, got = read_records(tmp_path / "set.csv"), read_records(folder)
    pd.testing.assert_frame_equal(got, want, check_exact=True)


def test_an_outcome_of_minus_1_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.txt"
    path.write_text(HEAD + "1,6,-1,5,-1,0\n2,16,8,8,9,1\n")
    got = read_outcomes(path)
    assert np.isnan(got.loc[1, ["SOFA", "Survival"]].to_numpy(np.float64)).all()
    assert got["In-hospital_death"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RecordID,SOFA\n1,2\n", r"must have the columns .*found \['RecordID', 'SOFA'\]"),
        (HEAD + "1,1,1,1,1,0\n1,1,1,1,1,0\n", r"one line per record .* found 1 records again"),
        (HEAD + "1,1,1,1,1,2\n", r"deaths of 0 or 1; found 0 records again and deaths \[2\]"),
    ],
)
def test_other_outcomes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "outcomes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_outcomes(path)


def test_records_and_outcomes_of_other_stays_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(RECORDS)
    (tmp_path / "outcomes.txt").write_text(HEAD + "1,1,1,1,1,0\n")
    with pytest.raises(ValueError, match=r"must be of the same stays; 1 of 2 and 1 are"):
        read_table_2012(tmp_path / "set.csv", tmp_path / "outcomes.txt")


def test_set_a_has_the_published_counts(real_data: Path) -> None:
    """4,000 stays, 554 deaths (13.85 %) and 37 variables, as the challenge says."""
    folder = real_data / "physionet2012_a"
    packed = folder / "physionet2012_set_a.csv.gz"
    table = read_table_2012(packed, folder / "Outcomes-a.txt")
    assert len(table) == table["subject_id"].nunique() == 4000
    assert table["In-hospital_death"].sum() == 554
    raw = pd.read_csv(packed)
    known = Counter(raw["Parameter"])
    assert set(known) == {*SERIES, *STATIC, "RecordID"}
    for name in SERIES:
        coded = int((raw["Value"][raw["Parameter"] == name] == -1).sum()) if name == "Weight" else 0
        assert table[f"{name}_count"].sum() == known[name] - coded, name
    hr = raw[raw["Parameter"] == "HR"].groupby("RecordID")["Value"].agg(["min", "max", "mean"])
    got = table.set_index("subject_id").loc[hr.index, ["HR_min", "HR_max", "HR_mean"]]
    np.testing.assert_allclose(got, hr, rtol=1e-12)
    assert (
        table["Height"].isna().sum()
        == ((raw["Parameter"] == "Height") & (raw["Value"] == -1)).sum()
    )
