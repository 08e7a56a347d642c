"""The command line as a caller sees it: words, exit codes, and no heavy imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import medkit
from medkit import cli

JOBS = ("run", "sweep", "params", "runs", "logs", "check")
COMMANDS = (*JOBS, "audit", "predict", "compare", "deidentify", "doctor")


def test_help_lists_every_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"    {command}" in said
    for code in ("0 ", "1 ", "2 ", "124", "130", "143"):
        assert f"  {code}" in said


@pytest.mark.parametrize("words", [[], ["fly"], ["run"], ["run", "x.ipynb", "-p", "seed"]])
def test_a_command_that_is_none_is_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2


def test_a_missing_notebook_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "nowhere/none.ipynb"]) == 2
    assert "there is no notebook at 'nowhere/none.ipynb'" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"medkit {medkit.__version__}\n"


def test_params_lists_type_default_and_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "seed: int = 0  # first seed\\nlr = 1e-3"
    cell = f'{{"cell_type": "code", "metadata": {{"tags": ["parameters"]}}, "source": "{source}"}}'
    (tmp_path / "n.ipynb").write_text(f'{{"cells": [{cell}], "metadata": {{}}}}')
    assert cli.main(["params", str(tmp_path / "n.ipynb")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["seed", "int", "0", "first", "seed"],
        ["lr", "float", "0.001"],
    ]


@pytest.mark.parametrize(
    "words", [["--help"], ["predict", "--help"], ["params", "none.ipynb"], ["run", "none.ipynb"]]
)
def test_help_and_refusals_import_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom medkit import cli\n"
        f"try:\n    cli.main({words!r})\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    heavy = {"torch", "numpy", "pandas", "papermill", "nbformat", "nbclient", "jupyter_client"}
    assert "medkit" in loaded
    assert not loaded & heavy


def test_ctrl_c_in_a_listing_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("medkit.jobs.listing.runs_command", interrupted)
    assert cli.main(["runs", "."]) == 130


def test_audit_proposes_a_contract_for_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f"P{n},{90 + n % 9},{n % 2}\n" for n in range(60))
    (tmp_path / "stays.csv").write_text("patient_id,heart_rate,died\n" + rows)
    out = tmp_path / "contract.yaml"
    assert cli.main(["audit", str(tmp_path / "stays.csv"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "target: died" in said
    assert out.read_text() == said


@pytest.mark.parametrize("path", ["nope.csv", "."])
def test_audit_of_neither_a_table_nor_a_run_is_wrong_usage(
    path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["audit", path]) == 2
    assert capsys.readouterr().err.startswith("medkit: a")
