"""``medkit predict``: a run's model on a new table, and which rows it was not made for.

Nothing is fitted, and the run folder stays as it is. The table is gone through twice, some rows at
a time: once for what each site is like, once to judge and score its rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from medkit.data.contract.schema import Contract
from medkit.data.outside import Outside
from medkit.data.table_files import PARQUET, table_chunks, table_file
from medkit.data.table_module import TableDataModule
from medkit.data.table_writer import writing
from medkit.data.tables import Table, read_table
from medkit.models.predict_notes import notes_on, threshold_of
from medkit.models.predict_table import contract_of, require_columns
from medkit.models.saved import SavedClassifier, SavedCox, load
from medkit.record.folder import RunFolder

ROWS = 16_384  # at a time: a net's inner layers are wider than its rows
_SHOWN = 12  # reasons on the terminal
_OWN = {"row", "prob", "prob_logistic", "risk", "risk_cox", "spread", "positive", "outside"}


class OutsideError(ValueError):
    """Rows are outside of what the model was trained on, and none may be."""


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        out: The file written.
        model: The model, with its name and stages.
        outside: Counts of what was outside.
        mean_risk: Mean predicted probability of the event; NaN where none was asked for.
        notes: What to know before the numbers are used.
    """

    out: Path
    model: SavedClassifier | SavedCox
    outside: Outside
    mean_risk: float
    notes: tuple[str, ...]

    def text(self) -> str:
        """Return the summary for a terminal."""
        rows, flagged = self.outside.rows, self.outside.flagged
        stages = ", ".join(self.model.stages)
        lines = [f"{self.out}: {rows:,} rows, scored by {stages}"]
        if np.isfinite(self.mean_risk):
            until = f" until {self.model.horizons[0]:g}" if isinstance(self.model, SavedCox) else ""
            lines.append(f"mean predicted risk{until}: {self.mean_risk:.3f}")
        lines.append(f"outside what it was trained on: {flagged:,} of {rows:,} rows")
        return (
            "\n".join([*lines, *reason_lines(self.outside), *(f"note: {n}" for n in self.notes)])
            + "\n"
        )


def reason_lines(outside: Outside) -> list[str]:
    """Return how many rows each reason has, the most first."""
    counts = outside.reasons_of.most_common()
    lines = [f"  {n:>9,}  {reason}{outside.why(reason)}" for reason, n in counts[:_SHOWN]]
    return lines + ([f"  and {len(counts) - _SHOWN} more reasons"] if counts[_SHOWN:] else [])


def predict(
    run_dir: str | Path,
    table: str | Path,
    *,
    out: str | Path | None = None,
    stage: str | None = None,
    horizons: Sequence[float] = (),
    contract: str | Path | None = None,
    strict: bool = False,
    force: bool = False,
) -> Predicted:
    """Score a table with what a run has trained, and write a row for each of its rows.

    The columns written: those of patient and site, as they are in the table (``table_row`` where
    the table calls one as one of those that follow is called); ``row`` (1 is the
    first below the header); ``prob``, ``prob_logistic`` and ``spread`` (standard deviation over
    members, empty for one), or ``risk`` (log relative hazard), ``risk_cox``, ``spread`` (of the
    risk) and ``survival_<horizon>``;
    ``positive`` (1 from the run's threshold on, where its metrics.json has one); ``outside`` (why
    the row is outside of what was trained on; empty where it is not).

    Args:
        run_dir: The run folder.
        table: CSV or Parquet with the columns that were trained on; needs no labels.
        out: CSV or Parquet by its suffix; None: ``<table>.predicted`` beside the table.
        stage: See :func:`medkit.models.saved.load`.
        horizons: Times for survival; none: the run's parameter ``horizon``, if it has one.
        contract: The stored contract with further sites in it.
        strict: Refuse the table where a row is outside.
        force: Replace ``out``.

    Raises:
        FileNotFoundError: Where there is no run, model or table.
        FileExistsError: Where ``out`` is there already.
        ValueError: Where the table can't be read as the one that was trained on. Whatever is
            raised, nothing is written.
        OutsideError: When ``strict``, for rows outside.
    """
    folder, source = RunFolder(run_dir), Path(table)
    if not folder.exists():
        raise FileNotFoundError(
            f"a prediction needs a run folder with a run.json in it, and {folder.path} has none. "
            "`medkit runs DIR` lists the run folders below DIR."
        )
    target = _target(table_file(source), out, folder, force=force)
    model = load(folder.path, stage=stage, horizons=horizons or _horizons(folder))
    dm: TableDataModule = model.dm
    agreed = contract_of(dm, contract)
    if dm.preprocessing is None:
        raise RuntimeError("a loaded DataModule must have its scales, and has none. Report this.")
    outside = Outside(agreed, dm.preprocessing, dm.sites, held_out=dm.plan.test_site)
    for _, read in _chunks(source, dm, agreed, "reading"):
        outside.see(read)
    threshold = threshold_of(folder, model.name) if isinstance(model, SavedClassifier) else None
    total, ids = 0.0, [name for name in (dm.spec.patient, dm.spec.site) if name is not None]
    with writing(target) as writer:
        for frame, read in _chunks(source, dm, agreed, "predicting", outside.rows):
            scores = model.score(read)
            risk = model.risk(scores)
            total += np.nan if risk is None else float(risk.sum())
            columns = {
                f"table_{name}" if name in _OWN else name: frame[name].to_numpy()
                for name in ids
                if name in frame
            }
            columns["row"] = np.arange(len(frame)) + writer.rows + 1
            columns |= scores
            if threshold is not None:
                columns["positive"] = (scores["prob"] >= threshold).astype(np.int64)
            columns["outside"] = outside.reasons(frame, read)
            writer.write(pd.DataFrame(columns))
        if strict and outside.flagged:
            raise OutsideError(
                f"with --strict each row must be like those trained on, and {outside.flagged:,} of "
                f"{outside.rows:,} are not:\n" + "\n".join(reason_lines(outside)) + "\nCorrect the "
                "table, or leave --strict out and look at the column `outside`."
            )
    notes = tuple(notes_on(folder, model, agreed, outside, threshold))
    return Predicted(target, model, outside, total / outside.rows, notes)


def _chunks(
    source: Path,
    dm: TableDataModule,
    contract: Contract | None,
    what: str,
    total: int | None = None,
) -> Iterator[tuple[pd.DataFrame, Table]]:
    """Yield the table some rows at a time, as they are and as the net's columns."""
    texts = [name for name in (dm.spec.patient, dm.spec.site) if name is not None]
    features = () if dm.preprocessing is None else dm.preprocessing.features
    first = 0
    with tqdm(total=total, desc=what, unit=" rows", unit_scale=True, disable=None) as bar:
        for frame in table_chunks(source, texts, rows=ROWS):
            if dm.spec.target in frame:  # outcomes are not looked at
                frame = frame.drop(columns=dm.spec.target)
            try:
                require_columns(frame, dm, contract)
                yield frame, read_table(frame, dm.spec, features=features, contract=contract)
            except ValueError as error:
                place = f" (its rows are counted from row {first + 1} on)" if first else ""
                raise ValueError(f"{source}{place}: {error}") from error
            first += len(frame)
            bar.update(len(frame))


def _target(source: Path, out: str | Path | None, folder: RunFolder, *, force: bool) -> Path:
    """Return where to write; refused where something would be lost or patients named."""
    suffix = source.suffix if source.suffix.lower() in PARQUET else ".csv"
    path = source.with_name(f"{source.stem}.predicted{suffix}") if out is None else Path(out)
    path = path.expanduser().absolute()
    if path.suffix.lower() not in {".csv", *PARQUET}:
        raise ValueError(
            f"predictions are written as .csv or .parquet, got {path.name!r}. Name a file that "
            "ends in one of them with --out."
        )
    if folder.path.resolve() in path.resolve().parents:
        raise ValueError(
            f"predictions hold patients' ids as the table has them, and {path} is inside the run "
            "folder, where ids are pseudonyms and nothing changes. Name another place with --out."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"predictions must be written into a folder that is there, and {path.parent} is none. "
            "Make it, or name another with --out."
        )
    if path.is_dir() or path.resolve() == source.resolve() or (path.exists() and not force):
        raise FileExistsError(
            f"predictions must go to a new file, and {path} is there already. Name another with "
            "--out" + ("." if path == source or path.is_dir() else ", or replace it with --force.")
        )
    return path


def _horizons(folder: RunFolder) -> tuple[float, ...]:
    """Return the horizon that a survival run was told to look at."""
    parameters = folder.read().get("parameters") or {}
    value = parameters.get("horizon")
    survival = "event" in parameters and "target" not in parameters
    return (float(value),) if survival and isinstance(value, int | float) and value > 0 else ()


def predict_command(run_dir: str, table: str, *, out: str | None, **options: Any) -> int:
    """Predict, and say how it went; return the exit code."""
    try:
        found = predict(run_dir, table, out=out, **options)
    except OutsideError as error:
        sys.stderr.write(f"medkit: {error}\n")
        return 1
    sys.stdout.write(found.text())
    return 0
