"""A whole training on shuffled labels: what the fast checks can't see, it shows.

The table is written again with its labels dealt anew among patients, and the same notebook is run
on it (``medkit run NOTEBOOK -p csv_path SHUFFLED``). Whatever still predicts the labels of held-out
rows has seen them: columns chosen on all rows, values imputed with the label at hand, or the test
in the training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medkit import keyed
from medkit.data import leak_split
from medkit.data.leak_chance import ranked
from medkit.data.leak_findings import ALPHA, Finding
from medkit.data.tables import TableSpec, read_table
from medkit.metrics.discrimination import auroc
from medkit.record.folder import RunFolder


def shuffled_table(
    source: str | Path | pd.DataFrame, spec: TableSpec, *, seed: int
) -> pd.DataFrame:
    """Return the table with labels dealt anew: each patient gets the label of some row at random.

    All rows of a patient share it, as rows of one person do. A column that is made from the label
    stays as it is; one that the notebook makes is made from the new labels.

    Args:
        source: CSV, Parquet or DataFrame.
        spec: What its columns are; the split column, if any, stays.
        seed: Other labels for another seed.

    Raises:
        ValueError: For a table that can't be read.
    """
    table = read_table(source, spec)  # for its checks, and ids as the kit reads them
    if isinstance(source, pd.DataFrame):
        frame = source.copy()
    elif Path(source).suffix.lower() in {".parquet", ".pq"}:
        frame = pd.read_parquet(source)
    else:
        texts = [name for name in (spec.patient, spec.site, spec.split) if name is not None]
        frame = pd.read_csv(source, dtype=dict.fromkeys(texts, str), low_memory=False)
    patient = leak_split.normal_codes(table.patient)
    draw = keyed.generator(seed, "audit", "labels")
    giver = draw.integers(len(frame), size=int(patient.max()) + 1)
    frame[spec.target] = frame[spec.target].to_numpy()[giver[patient]]
    return frame


def judge_shuffled(run_dir: str | Path) -> list[Finding]:
    """Judge the predictions of a run on shuffled labels: AUROC must be 0.5 within its interval.

    Raises:
        FileNotFoundError: When the run wrote no predictions for held-out rows.
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
    return findings
