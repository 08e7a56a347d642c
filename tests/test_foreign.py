"""Projects that know nothing of the kit: five lines are added, and they survive kills."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = ROOT / "tests" / "foreign"
PROJECTS = ["icu", "lesions", "films"]
IMPORT = "from medkit.trainer import keyed, stable_trainer, start_run"
# what each of the five lines is about, in DESIGN's order
FIVE = ["start_run(", "keyed(", 'with run.init("fit"):', "stable_trainer(run", 'run.resume("fit")']


def changed_lines(project: str) -> tuple[list[str], list[str]]:
    """Return the lines added and removed, whatever their indentation."""
    plain, ours = (
        [line.strip() for line in (FOREIGN / project / name).read_text().splitlines()]
        for name in ("train.py", "train_medkit.py")
    )
    diff = [line for line in difflib.ndiff(plain, ours) if line[2:].strip()]
    added = [line[2:] for line in diff if line.startswith("+ ")]
    return added, [line[2:] for line in diff if line.startswith("- ")]


@pytest.mark.parametrize("project", PROJECTS)
def test_five_lines_and_the_import_are_all_that_was_added(project: str) -> None:
    added, removed = changed_lines(project)
    assert added.pop(added.index(IMPORT)) == IMPORT
    assert len(added) == 5
    assert all(sum(word in line for line in added) == 1 for word in FIVE)
    # three of the five stand where a line of the project's own stood
    assert len(removed) == 3


@pytest.mark.parametrize("project", PROJECTS)
def test_the_project_itself_never_mentions_the_kit(project: str) -> None:
    files = [p for p in (FOREIGN / project).glob("*.py") if p.name != "train_medkit.py"]
    assert len(files) == 2
    assert not [path.name for path in files if "medkit" in path.read_text()]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Run the small version of the benchmark once."""
    path = tmp_path_factory.mktemp("foreign") / "figures.json"
    script = ROOT / "benchmarks" / "foreign_projects.py"
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert path.exists(), done.stdout + done.stderr
    return {figure["name"]: figure for figure in json.loads(path.read_text())["figures"]}


@pytest.mark.parametrize("what", ["weights", "metrics.csv"])
@pytest.mark.parametrize("project", PROJECTS)
def test_a_killed_project_ends_in_the_same_bits(figures, project: str, what: str) -> None:
    assert figures[f"{project}/kills with the same {what}"]["value"] == 1.0


def test_clean_projects_pass_the_check(figures) -> None:
    assert figures["check/clean projects passed"]["value"] == 1.0


def test_the_check_names_every_planted_draw_and_its_line(figures) -> None:
    assert figures["check/planted draws named, with line"]["value"] == 1.0
