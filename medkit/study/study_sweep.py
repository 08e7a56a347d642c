"""The runs of a ``medkit sweep`` as outcomes of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkit.jobs.grid import SWEEP_NAME
from medkit.metrics.checks import Floats
from medkit.record.files import read_json
from medkit.record.folder import RunFolder
from medkit.record.results import METRICS_NAME, read_metrics
from medkit.study import columns
from medkit.study.outcomes import Ints, Outcome

_OVER = {"done": "done", "failed": "failed", "timeout": "failed", "killed": "failed"}
_NO_CURVES = np.empty(0, np.int64)


def outcomes_of(folder: Path, *, split: str, site: str) -> tuple[list[Outcome], int]:
    """Return what the runs of a sweep left, and how many are not over.

    Args:
        folder: The sweep's.
        split: Grid parameter that decides the split; without it what ``run.json`` says.
        site: Grid parameter that names the hospital held out.

    Raises:
        ValueError: Where it is no sweep, or none of its runs is over.
    """
    if not (folder / SWEEP_NAME).is_file():
        raise ValueError(
            f"{folder} must be the folder of a sweep; it has no {SWEEP_NAME}. Name the folder that "
            "medkit sweep --out was given."
        )
    runs = read_json(folder / SWEEP_NAME)["runs"]
    found = []
    for run in runs:
        path, point = folder / run["path"], dict(run["point"])
        where = {name: point.pop(name, None) for name in (split, site)}
        outcome = _outcome(RunFolder(path), ",".join(f"{k}={v}" for k, v in point.items()) or "all")
        if outcome is None:
            continue
        fields: dict[str, Any] = {"seed": int(run["seed"] or 0), "site": str(where[site] or "")}
        if where[split] is not None:
            fields["split_seed"] = int(where[split])
        found.append(Outcome(**outcome | fields))
    if not found:
        raise ValueError(
            f"{folder} must hold runs that are over; none of its {len(runs)} is. Give the sweep's "
            f"command again with --out {folder}: it goes on."
        )
    return found, len(runs) - len(found)


def _outcome(run: RunFolder, recipe: str) -> dict[str, Any] | None:
    """Return a run's part of an outcome; None where it is not over."""
    status = _OVER.get(run.status) if run.exists() else None
    if status is None:
        return None
    facts = run.read()
    attempts, cost = facts.get("attempts") or [{}], facts.get("cost") or {}
    said = str(attempts[-1].get("error") or run.status)
    file = run.path / METRICS_NAME
    metrics = {n: m.value for n, m in (read_metrics(file) if file.is_file() else {}).items()}
    steps, curves, epochs = _curves(run.path / "logs")
    lines = run.ledger.read()
    return {
        "recipe": f"{recipe} (quick)" if metrics.get("run/quick") == 1 else recipe,
        "split_seed": int(facts.get("split_seed") or 0),
        "status": status,
        "reason": said[:500] if status == "failed" else "",
        "steps": steps,
        "curves": curves,
        # null in metrics.json is a number that is not defined: what diverged is marked as failed
        "metrics": {n: v for n, v in metrics.items() if np.isfinite(v) and n != "run/quick"},
        "predictions": _predictions(run.path / "predictions"),
        "threshold": next((v for n, v in metrics.items() if n.endswith("/threshold")), None),
        "cpu_s": float(cost.get("cpu_s") or 0),
        "skipped_steps": sum(line.get("action") == "step skipped" for line in lines),
        "wasted_steps": int(cost.get("steps_wasted") or 0),
        "epochs": epochs,
        "weights_sha256": str(facts.get("weights_sha256") or ""),
    }


def _curves(logs: Path) -> tuple[Ints, dict[str, Floats], int]:
    """Return steps, curves and epochs from the CSV log of the stage, where there is one."""
    files = sorted(logs.glob("*/metrics.csv"))
    files = [file for file in files if file.parent.name == "fit"] or files
    if len(files) != 1:  # members of a run have their own steps
        return _NO_CURVES, {}, 0
    table = pd.read_csv(files[0], dtype=str, keep_default_na=False)
    names = [name for name in table.columns if name.startswith(("val/", "monitor/"))]
    epochs = int(pd.to_numeric(table["epoch"]).max()) + 1 if "epoch" in table else 0
    there = (table[names] != "").any(axis=1)
    if not names or "step" not in table or not there.any():
        return _NO_CURVES, {}, epochs
    rows = table.loc[there, ["step", *names]].replace("", None)
    # last() passes over cells that are empty, not over the text "nan" of a loss that was none
    rows = rows.groupby(pd.to_numeric(rows.pop("step"))).last()
    curves = {name: rows[name].to_numpy(np.float64) for name in names}
    return rows.index.to_numpy(np.int64), curves, epochs


def _predictions(folder: Path) -> pd.DataFrame | None:
    files = columns.tables_in(folder) if folder.is_dir() else []
    tests = [file for file in files if file.stem.startswith("test")]
    files = [file for file in tests if file.stem == "test"] or tests or files
    return columns.read(files[0])[0] if len(files) == 1 else None
