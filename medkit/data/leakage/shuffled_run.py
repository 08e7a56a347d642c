"""``medkit audit RUN_DIR --label-shuffle``: a run's notebook as a job again, on shuffled labels."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from medkit.data.leakage.findings import report
from medkit.data.leakage.rerun import judge_shuffled, shuffled_parameters
from medkit.jobs.ending import exit_code, last_words
from medkit.jobs.notebook import Notebook, read_notebook
from medkit.jobs.parameters import read_parameters
from medkit.jobs.plan import Request, effective, make_plan
from medkit.jobs.redact import Redactor
from medkit.record.folder import RunFolder


def shuffle_command(
    run_dir: str | Path, *, out: str | Path | None = None, command: tuple[str, ...] = ()
) -> int:
    """Run a run's notebook again on shuffled labels, say what came out; return the exit code.

    The shuffled table lies in a private folder that is removed at the end, whatever the end is;
    the run is a job like any other, with its folder beside the first one's.

    Args:
        run_dir: The run folder; it stays as it is.
        out: Folder of the run on shuffled labels; None: ``<run_dir>-shuffled``.
        command: The command line, for ``run.json``.

    Returns:
        0: no leak shows; 1: one does; 124, 130 or 143: the job was stopped.

    Raises:
        ValueError: Where the run can't be run again, or was and predicted nothing.
        FileNotFoundError: Where there is no run or no notebook.
    """
    from medkit.jobs.launcher import launch

    first = RunFolder(run_dir)
    notebook = _notebook(first)
    with _private_folder() as private:
        values = shuffled_parameters(first.path, private)
        known = effective(read_parameters(notebook), {})
        given = {name: v for name, v in values.items() if name in known and v != known[name]}
        settings = Path(private) / "parameters.yaml"
        settings.write_text(yaml.safe_dump(given), encoding="utf-8")
        request = Request(
            notebook=str(notebook.path),
            values_file=str(settings),
            out=str(_beside(first.path) if out is None else out),
            command=command,
        )
        plan = make_plan(request)
        sys.stderr.write(f"training on shuffled labels; run folder: {plan.run_dir}\n")
        ending, folder = launch(plan, request)
    folder.update(labels_shuffled_from=str(first.path))
    code = exit_code(ending, folder)
    if code:
        words = Redactor(os.environ).clean("\n".join([*last_words(folder)[-8:], ending.error]))
        sys.stderr.write(f"{words}\nthe run on shuffled labels: {ending.status}\n")
        if ending.status != "failed":
            return code
    findings = judge_shuffled(folder.path)
    sys.stdout.write(report(findings))
    if code:
        sys.stdout.write(
            "judged by what was predicted before the notebook failed: a claim about the real "
            "labels that it checks need not hold for shuffled ones\n"
        )
    sys.stdout.write(f"report  {folder.path / 'report.html'}\n")
    return int(any(finding.severity == "leak" for finding in findings))


def _notebook(folder: RunFolder) -> Notebook:
    """Return the notebook that a run was made by."""
    if not folder.exists():
        raise FileNotFoundError(
            f"an audit needs a run folder with a run.json in it, and {folder.path} has none. "
            "`medkit runs DIR` lists the run folders below DIR."
        )
    content = folder.read()
    name = str(content.get("notebook") or "")
    if not name.endswith(".ipynb") or not content.get("notebook_sha256"):
        raise ValueError(
            "a run can be run again on shuffled labels where it was a notebook's, started by "
            f"`medkit run`; this one was started by {name or 'nobody knows what'!r}. Write a table "
            "by medkit.data.leakage.rerun.shuffled_table(...), run your script on it, and give "
            "its run folder to judge_shuffled(...)."
        )
    notebook = read_notebook(name)
    if notebook.digest != content["notebook_sha256"]:
        sys.stderr.write(
            f"{notebook.path.name} has changed since the run: it is run as it is now.\n"
        )
    return notebook


def _beside(path: Path) -> Path:
    """Return a folder beside a run's that is not there yet."""
    found, number = path.with_name(f"{path.name}-shuffled"), 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-shuffled-{number}")
    return found


@contextmanager
def _private_folder() -> Iterator[str]:
    """Yield a folder for this user's eyes; SIGTERM too ends with its removal."""

    def ended(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        with tempfile.TemporaryDirectory(prefix="medkit-shuffled-") as private:
            yield private
    finally:
        signal.signal(signal.SIGTERM, before)
