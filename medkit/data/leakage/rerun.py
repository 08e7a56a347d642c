"""A whole training on shuffled labels: what the fast checks can't see, it shows.

The table is written again with its labels dealt anew among patients, and the same notebook is run
on it (``medkit audit RUN_DIR --label-shuffle``). Whatever still predicts the labels of held-out
rows has seen them: columns chosen on all rows, values imputed with the label at hand, or the test
in the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkit import keyed
from medkit.data.leakage import split as leak_split
from medkit.data.leakage.chance import ranked
from medkit.data.leakage.findings import ALPHA, Finding
from medkit.data.table_files import parquet_file
from medkit.metrics.discrimination import auroc
from medkit.record.folder import RunFolder

_TABLES = {".csv", ".parquet", ".pq"}


def shuffled_table(
    source: str | Path, out: str | Path, *, target: str, patient: str | None, seed: int
) -> Path:
    """Write a table with labels dealt anew: each patient gets the label of some row at random.

    All rows of a patient share it, as rows of one person do; every other cell stays as it is. A
    column that was made from the label before keeps its values, one that the notebook makes is
    made from the new labels.

    Args:
        source: CSV or Parquet.
        out: Folder to write into, under the same name.
        target: Column of the label, or of the grade it is made from.
        patient: Column of patient ids; None: each row is another patient.
        seed: Other labels for another seed.

    Raises:
        ValueError: Where the table has no such columns.
    """
    source = Path(source)
    parquet = source.suffix.lower() != ".csv"
    # as text: each cell is written as it was read
    frame = (
        pd.read_parquet(source)
        if parquet
        else pd.read_csv(source, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    )
    missing = [name for name in (target, patient) if name and name not in frame.columns]
    if missing:
        raise ValueError(
            f"a table must have its target and patients for labels to be shuffled; {source.name} "
            f"has no column {missing}, found {[str(c) for c in frame.columns][:20]}. Give target= "
            "and patient= as the run had them."
        )
    owner = np.arange(len(frame))
    if patient:
        owner = leak_split.normal_codes(frame[patient].astype(str).to_numpy(np.str_))
    draw = keyed.generator(seed, "audit", "labels")
    giver = draw.integers(len(frame), size=int(owner.max()) + 1)
    frame[target] = frame[target].to_numpy()[giver[owner]]
    path = Path(out) / source.name
    if parquet:
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def shuffled_parameters(run_dir: str | Path, out: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Return the parameters with which a run's notebook is run again on shuffled labels.

    Each parameter that names a CSV or Parquet file with the run's target in it names a shuffled
    copy in ``out`` instead; the others stay.

    Raises:
        ValueError: Where the run has no such parameter: its labels come from elsewhere.
    """
    content = RunFolder(run_dir).read()
    parameters = dict(content.get("parameters") or {})
    if "event" in parameters and "target" not in parameters:
        raise ValueError(
            "labels to be shuffled must be 0 or 1, or grades; this run has times and events "
            f"({parameters['event']!r}), which end together and can't be dealt anew one by one. "
            "`medkit audit RUN_DIR` alone looks for leaks in it without training."
        )
    target, patient = parameters.get("target"), parameters.get("patient", "patient_id")
    changed = {}
    for name, value in parameters.items():
        path = Path(str(value or "")).expanduser()
        if not path.is_absolute():
            path = Path(str(content.get("notebook") or "")).parent / path
        if target and path.suffix.lower() in _TABLES and path.is_file() and target in _names(path):
            found = shuffled_table(path, out, target=target, patient=patient or None, seed=seed)
            changed[name] = str(found)
    if not changed:
        raise ValueError(
            "labels can be shuffled where a run has the parameters `target` and one that names its "
            f"CSV or Parquet file; this one has {sorted(parameters)}, and no such file with the "
            "target in it is there. "
            "Write a table by shuffled_table(...) and run the notebook on it."
        )
    return parameters | changed


def _names(path: Path) -> list[str]:
    """Return the columns of a table, as :func:`shuffled_table` reads them."""
    if path.suffix.lower() == ".csv":
        return [str(name) for name in pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns]
    return list(parquet_file(path).schema_arrow.names)


def judge_shuffled(run_dir: str | Path) -> list[Finding]:
    """Judge the predictions of a run on shuffled labels: AUROC must be 0.5 within its interval.

    Raises:
        FileNotFoundError: When the run wrote no predictions for held-out rows.
        ValueError: When none of them holds both labels.
    """
    folder = RunFolder(run_dir).path / "predictions"
    files = [p for p in sorted(folder.glob("*.parquet")) if not p.stem.startswith("train")]
    if not files:
        raise FileNotFoundError(
            f"a run on shuffled labels is judged by its predictions, and {folder} has none. "
            "Call run.predictions(...) for validation and test rows in the notebook."
        )
    findings = []
    for path in files:
        rows = pd.read_parquet(path, columns=["y", "score"])
        rows = rows[rows["y"].isin([0, 1])]
        if len(set(rows["y"])) < 2:
            continue
        found = auroc(rows["y"], rows["score"])
        p = ranked(rows["y"].to_numpy(np.int64), rows["score"].to_numpy(np.float64)).p
        bad = found.value > 0.5 and p < ALPHA / len(files)
        words = f"AUROC {found} on {path.stem} ({found.n} rows) after training on shuffled labels"
        evidence: dict[str, object] = {
            "name": path.stem,
            "auroc": found.value,
            "low": found.low,
            "high": found.high,
        }
        evidence["p"] = p
        findings.append(
            Finding(
                "leak" if bad else "note",
                "label shuffle",
                f"{words}, where 0.5 is all that is honest." if bad else f"{words}, as it must be.",
                evidence,
                "Look for columns made, chosen or filled with held-out rows at hand."
                if bad
                else "",
            )
        )
    if not findings:
        raise ValueError(
            f"a run on shuffled labels is judged where both labels are, and no file in {folder} "
            "holds both. Predict larger parts in the notebook."
        )
    return findings
