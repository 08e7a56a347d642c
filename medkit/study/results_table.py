"""Published results: a metric per method, test set and seed, without predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit.record.folder import run_folders
from medkit.study import columns
from medkit.study.columns import LAYOUTS, tables_in
from medkit.study.predictions import Predictions, from_tables
from medkit.study.runs import from_runs, from_study, study_members


@dataclass(frozen=True)
class Results:
    """What is published of one method.

    Attributes:
        name: Of the table and the method.
        values: Test set -> seed -> metric.
    """

    name: str
    values: dict[str, dict[str, float]]


def load(
    path: str | Path, *, method: str | None = None, part: str | None = None
) -> Predictions | Results:
    """Read what there is of one recipe: runs, predictions in any layout, or published results.

    Args:
        path: A run folder, a folder of runs, of a study's recipe (and split), a file, or a folder
            with a file per seed.
        method: Which, where a table holds several.
        part: Which predictions of a run, such as "test".

    Raises:
        FileNotFoundError: When there is nothing there.
        ValueError: When it is none of these.
    """
    path = Path(path)
    if path.is_dir():
        runs = run_folders(path)
        if runs:
            return from_runs(path, runs, part)
        members = study_members(path)
        if members:
            return from_study(path, members, part)
        files = tables_in(path)
        if not files:
            raise ValueError(
                f"{path} must hold runs or tables, and holds neither; found "
                f"{sorted(p.name for p in path.iterdir())[:5]}. {LAYOUTS}"
            )
    else:
        files = [path]
    tables = [(file, *columns.read(file)) for file in files]
    name = str(path) if method is None else f"{path}: {method}"
    chosen = [(file, _of_method(frame, method, file), wide) for file, frame, wide in tables]
    if all("metric" in frame and "score" not in frame and not wide for _, frame, wide in chosen):
        return _results(name, [(file, frame) for file, frame, _ in chosen])
    return from_tables(name, chosen)


def _of_method(frame: pd.DataFrame, method: str | None, path: Path) -> pd.DataFrame:
    known = frame["method"].unique().tolist() if "method" in frame else []
    if method is None and len(known) < 2:
        return frame
    if method not in known:
        raise ValueError(
            f"{path} must say which of its methods is meant; found {known}"
            f"{f' and not {method!r}' if method else ''}. Name two of them: --methods A B."
            if known
            else f"{path} has no column for method, so {method!r} is not in it; found "
            f"{list(frame.columns)}. Leave --methods out."
        )
    return frame[frame["method"] == method]


def _results(name: str, tables: Sequence[tuple[Path, pd.DataFrame]]) -> Results:
    values: dict[str, dict[str, float]] = {}
    for path, frame in tables:
        if "seed" not in frame or not pd.api.types.is_numeric_dtype(frame["metric"]):
            raise ValueError(
                f"{path} must have a column seed and a number in each cell of its column metric; "
                f"found {list(frame.columns)}. {LAYOUTS}"
            )
        tests = frame["test"].tolist() if "test" in frame else [""] * len(frame)
        rows = zip(tests, frame["seed"].tolist(), frame["metric"].tolist(), strict=True)
        for test, seed, value in rows:
            of_test = values.setdefault(str(test), {})
            if seed in of_test or value != value:
                raise ValueError(
                    f"{path} must hold one number for each method, test set and seed; found "
                    f"{'none' if value != value else 'two'} for test {test!r} and seed {seed}. "
                    "A run that died is to be counted and named, not averaged or left out."
                )
            of_test[seed] = float(value)
    return Results(name, values)
