"""Small notebooks made on the spot, and the command line run on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from medkit import cli

KNOBS = """\
seed: int = 0  # decides all draws
lr: float = 1e-3  # AdamW learning rate
csv_path: str = "data.csv"  # one row per encounter
run_dir: str = ""  # where results go
quick: bool = False  # the short path
"""


@dataclass
class Outcome:
    """What a command said and left behind."""

    code: int
    out: str
    err: str
    run_dir: Path

    @property
    def run(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "run.json").read_text())

    @property
    def notebook(self) -> Any:
        return nbformat.read(self.run_dir / "notebook.ipynb", as_version=4)

    @property
    def cell_states(self) -> list[str]:
        """States of the notebook's own code cells, the parameters cell and its injection aside."""
        own = [
            c for c in self.notebook.cells if c.cell_type == "code" and not c.metadata.get("tags")
        ]
        return [cell.metadata.papermill.status for cell in own]

    @property
    def printed(self) -> str:
        return "".join(
            out.get("text", "") for cell in self.notebook.cells for out in cell.get("outputs", [])
        )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a notebook of the given code cells into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(*cells: str, knobs: str | None = KNOBS, name: str = "job.ipynb") -> Path:
        nb = nbformat.v4.new_notebook()
        if knobs is not None:
            nb.cells.append(nbformat.v4.new_code_cell(knobs, metadata={"tags": ["parameters"]}))
        nb.cells += [nbformat.v4.new_code_cell(source) for source in cells]
        path = tmp_path / name
        nbformat.write(nb, path)
        return path

    return write


@pytest.fixture
def medkit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command of the command line in this process; ``--out run`` unless it says so."""

    def call(*arguments: object) -> Outcome:
        words = [str(argument) for argument in arguments]
        if words[0] == "run" and "--out" not in words:
            words += ["--out", "run"]
        code = cli.main(words)
        said = capsys.readouterr()
        out = words[words.index("--out") + 1] if "--out" in words else "run"
        return Outcome(code, said.out, said.err, tmp_path / out)

    return call
