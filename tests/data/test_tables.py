from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medkit.data.batches import Batch, TableDataset
from medkit.data.tables import TableSpec, read_table

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text)
        return path

    return _write


SPEC = TableSpec("died")


def test_blank_and_coded_cells_are_missing(write: Write) -> None:
    path = write("patient_id,chol,ca,died\n1,0,?,0\n2,200,1,1\n3,,-9,0\n")
    spec = TableSpec("died", missing_codes={"chol": [0], "*": ["?", -9]})
    got = read_table(path, spec)
    np.testing.assert_array_equal(got.values, [[np.nan, np.nan], [200, 1], [np.nan, np.nan]])
    assert got.features == ("chol", "ca")
    assert got.y.tolist() == [0, 1, 0]


def test_a_code_of_one_column_is_a_value_in_another(write: Write) -> None:
    path = write("patient_id,chol,fbs,died\n1,0,0,0\n2,200,1,1\n")
    got = read_table(path, TableSpec("died", missing_codes={"chol": 0}))
    np.testing.assert_array_equal(got.values, [[np.nan, 0], [200, 1]])


def test_ids_keep_their_leading_zeros(write: Write) -> None:
    path = write("patient_id,age,died\n007,50,0\n7,60,1\n")
    assert read_table(path, SPEC).patient.tolist() == ["007", "7"]


def test_without_patients_each_row_is_another(write: Write) -> None:
    path = write("age,died\n50,0\n60,1\n")
    assert read_table(path, TableSpec("died", patient=None)).patient.tolist() == ["0", "1"]


def test_grades_above_a_threshold_count_as_1(write: Write) -> None:
    path = write("patient_id,age,num\n1,50,0\n2,60,3\n3,70,1\n")
    assert read_table(path, TableSpec("num", target_above=0)).y.tolist() == [0, 1, 1]


def test_parquet_gives_the_same_table_as_csv(tmp_path: Path, write: Write) -> None:
    path = write("patient_id,site,age,died\n1,A,50,0\n2,B,,1\n")
    frame = pd.read_csv(path, dtype={"patient_id": str})
    frame.to_parquet(tmp_path / "table.parquet")
    spec = TableSpec("died", site="site")
    one, other = read_table(path, spec), read_table(tmp_path / "table.parquet", spec)
    np.testing.assert_array_equal(one.values, other.values)
    assert (one.features, one.site.tolist()) == (other.features, other.site.tolist())


def test_a_new_table_needs_its_features_only(write: Write) -> None:
    path = write("note,age\nx,50\ny,\n")
    got = read_table(path, SPEC, features=["age"])
    np.testing.assert_array_equal(got.values, [[50], [np.nan]])
    assert got.y.tolist() == [-1, -1]


def refusals() -> list[tuple[str, TableSpec, str]]:
    return [
        (
            "patient_id,age\n1,50\n",
            SPEC,
            r"has no column \['died'\]; found \['patient_id', 'age'\]. .*pass its name \(target=",
        ),
        (
            "age,died\n50,0\n",
            SPEC,
            r"has no column \['patient_id'\].*patient=None says that each row is another patient",
        ),
        (
            "patient_id,chol,died\n1,50,0\n",
            TableSpec("died", missing_codes={"chool": [0]}),
            r"has no column \['chool'\]; .*Did you mean 'chol'\?",
        ),
        (
            "patient_id,age,died\n1,50,0\n2,old,1\n3,old,1\n",
            SPEC,
            r"column 'age' must be numeric; found 'old' in 2 rows \(first: row 2 below the header\)"
            r".*missing_codes=\{'age': \[...\]\}.*ignore=\['age'\]",
        ),
        (
            "patient_id,age,died\n1,50,0\n2,inf,1\n3,1e300,0\n",
            SPEC,
            r"column 'age' must hold finite numbers; found infinite ones.*in 2 rows \(first: row 2",
        ),
        ("", SPEC, r"must begin with a line of column names, and it is empty.*Write the table"),
        (
            "patient_id,age,died\n",
            SPEC,
            r"must have at least one row below its column names, and it has none.*filter",
        ),
        (
            "patient_id,age,age,died\n1,50,51,0\n",
            SPEC,
            r"must name each column once, and \['age'\] stand there more than once.*Rename",
        ),
        (
            "patient_id,age,died\n1,50,0\n2,50,2\n3,50,\n",
            SPEC,
            r"the target 'died' must be 0 or 1 in each row; found '', '2.0' in 2 rows "
            r"\(first: row 2 below the header\). Pass target_above=T",
        ),
        (
            "patient_id,age,died\n1,50,no\n2,50,yes\n",
            SPEC,
            r"must be 0 or 1 in each row; found 'no', 'yes' in 2 rows .*Write 1 for the word that",
        ),
        (
            "patient_id;age;died\n1;50,5;0\n",
            SPEC,
            r"commas between its cells; .* and 2 of ';'\. Is it separated by ';'\? Save it with c",
        ),
        (
            'patient_id,age,died\n1,"50,5",0\n2,51,1\n',
            SPEC,
            r"must be numeric; found '50,5' \(such as '50,5': decimal commas\? Write points\) in 1",
        ),
        (
            "patient_id,age,died\n1,50,0\n,51,1\n",
            SPEC,
            r"column 'patient_id' must be filled in each row; it is empty in 1 row .*fill it in",
        ),
        (
            "patient_id,age,died\n1,50,0\n",
            TableSpec("died", patient=None),
            r"patient ids must not be a feature, and column 'patient_id' looks.*patient='patient_",
        ),
        (
            "patient_id,age,died\n1,50,0\n2,50,1,7\n",
            SPEC,
            r"as many cells in each row as in the first; found: .*Expected 3 fields.*CSV UTF-8",
        ),
    ]


@pytest.mark.parametrize(("text", "spec", "message"), refusals())
def test_a_bad_table_is_refused_with_its_remedy(
    write: Write, text: str, spec: TableSpec, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(text), spec)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"CSV or Parquet file, and .*none\.csv is none"):
        read_table(tmp_path / "none.csv", SPEC)


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes("patient_id,größe,died\n1,2,0\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"must be UTF-8 text.*Save it as CSV UTF-8"):
        read_table(path, SPEC)


def test_many_different_texts_are_counted_and_not_quoted(write: Write) -> None:
    rows = "\n".join(f"{i},Name{i},0" for i in range(9))
    with pytest.raises(ValueError, match=r"found 9 different texts in 9 rows") as caught:
        read_table(write(f"patient_id,who,died\n{rows}\n"), SPEC)
    assert "Name" not in str(caught.value)


def test_dates_are_not_taken_for_numbers() -> None:
    frame = pd.DataFrame({"patient_id": ["1"], "seen": [pd.Timestamp("2020-01-01")], "died": [0]})
    with pytest.raises(ValueError, match=r"column 'seen' must be numeric; found '2020-01-01"):
        read_table(frame, SPEC)


def test_a_batch_is_the_rows_one_by_one() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    dataset = TableDataset(Batch(x, torch.arange(6), torch.arange(6) + 10, torch.zeros(6)))
    batch = dataset.__getitems__([4, 0])
    for position, index in enumerate((4, 0)):
        for together, alone in zip(batch, dataset[index], strict=True):
            assert torch.equal(together[position], alone)
    assert dataset.draws_nothing
