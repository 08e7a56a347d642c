"""Labels that go with de-identified files, and what the command says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medkit import cli
from medkit.dicom.index import scan

TABLE = """seriesuid,coordX,class,patient_id,site,nurse,age
{uid},-1.50,1,PHANTOM-1,A,Jane Doe,93
{uid},2.25,0,PHANTOM-1,NA,Jane Doe,93
"""


@pytest.fixture
def table(tmp_path: Path, series: list[Any]) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(TABLE.format(uid=series[0].SeriesInstanceUID))
    return path


def written(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "labels.csv", dtype=str, keep_default_na=False)


def test_labels_join_the_files_again(tmp_path: Path, table: Path, run) -> None:
    done = run(tables=[table], keep=["site"])
    (found,) = scan(tmp_path / "out").series
    rows = written(tmp_path)
    assert rows["seriesuid"].tolist() == [found.uid] * 2
    assert rows["patient_id"].tolist() == [found.patient] * 2
    assert rows["coordX"].tolist() == ["-1.50", "2.25"]
    assert rows["site"].tolist() == ["A", "NA"]
    assert done.tables == {"labels.csv": "2 of 2 rows stay; columns left out: nurse, age"}


def test_only_ids_and_numbers_of_places_stay_unless_a_column_is_named(
    tmp_path: Path, table: Path, run
) -> None:
    table.write_text(table.read_text().replace("2.25", "Jane Doe's"))
    run(tables=[table])
    assert list(written(tmp_path)) == ["seriesuid", "class", "patient_id"]
    assert "Doe" not in (tmp_path / "out" / "labels.csv").read_text()


def test_rows_of_series_that_are_not_written_stay_behind(tmp_path: Path, table: Path, run) -> None:
    with table.open("a") as handle:
        handle.write("1.2.3,7,0,SOMEBODY-ELSE,B,,\n")
    assert run(tables=[table]).tables["labels.csv"].startswith("2 of 3 rows stay")
    assert "7" not in written(tmp_path)["coordX"].tolist()


def test_a_column_of_ids_is_never_kept_as_it_was(tmp_path: Path, table: Path, run) -> None:
    run(tables=[table], keep=["seriesuid", "patient_id"])
    assert "PHANTOM" not in (tmp_path / "out" / "labels.csv").read_text()


def test_a_table_without_ids_of_these_files_fails_and_is_not_written(
    tmp_path: Path, table: Path, run
) -> None:
    table.write_text("coordX,class\n1,0\n")
    assert run(tables=[table]).failed == {"labels.csv": "no column has ids of these files"}
    assert not (tmp_path / "out" / "labels.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "No columns"), ("a,b\n1,2\n1,2,3\n", "Expected 2"), ("a,b\n1,2,3\n", "more cells")],
)
def test_what_is_no_table_is_refused_before_anything_is_written(
    text: str, message: str, tmp_path: Path, table: Path, run
) -> None:
    table.write_text(text)
    with pytest.raises(ValueError, match=f"labels.csv must be a CSV table .*{message}"):
        run(tables=[table])
    assert not (tmp_path / "out").exists()


def test_two_tables_of_one_name_are_refused(table: Path, run) -> None:
    with pytest.raises(ValueError, match=r"names of their own, found two labels\.csv"):
        run(tables=[table, table])


def call(tmp_path: Path, *words: str) -> int:
    return cli.main(["deidentify", str(tmp_path / "in"), str(tmp_path / "out"), *words])


def test_the_command_takes_tables_and_names_the_key_at_its_end(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    key = tmp_path / "secret"
    monkeypatch.setenv("MEDKIT_KEY_FILE", str(key))
    assert call(tmp_path, "--table", str(table), "--keep", "site") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"the key of the pseudonyms is {key}, made now: keep it"
    assert "  2 of 2 rows stay; columns left out: nurse, age: labels.csv" in lines
    other = str(tmp_path / "again")
    assert cli.main(["deidentify", str(tmp_path / "in"), other, "--key-file", str(key)]) == 0
    assert capsys.readouterr().out.endswith(f"the key of the pseudonyms is {key}\n")


def test_nothing_that_is_printed_says_a_cell(
    tmp_path: Path, table: Path, capsys, caplog, recwarn
) -> None:
    assert call(tmp_path, "--table", str(table)) == 0
    said = capsys.readouterr()
    logged = [*(str(one.message) for one in recwarn.list), *caplog.messages]
    assert "Doe" not in " ".join([said.out, said.err, *logged])


def test_help_says_which_key_is_the_default(capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["deidentify", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "MEDKIT_KEY_FILE names, else ~/.config/medkit/pseudonym.key" in said


@pytest.mark.parametrize("files", [0, 2])
def test_a_folder_without_any_dicom_file_is_refused_and_leaves_nothing(
    files: int, tmp_path: Path, capsys
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(files):
        (tmp_path / "in" / f"{number}.txt").write_text("no image")
    assert call(tmp_path) == 2
    assert f"must hold DICOM files, and none of its {files} file(s)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
