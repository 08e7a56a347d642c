"""Attempts of a run, in run.json: begun, and closed for one that was killed and could not itself.

Its progress file is the last that is heard of it.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

from medkit.record.files import read_json
from medkit.record.folder import now

PROGRESS_NAME = "progress.json"


def begun() -> dict[str, Any]:
    """Return an attempt that begins now."""
    return {"start": now(), "end": None, "how": "running"}


def close_killed(attempts: list[dict[str, Any]], logs: Path) -> list[dict[str, Any]]:
    """Close attempts that nobody was left to close, and return them.

    Each says what it had cost when it was last seen: less than it did cost, and it has no end.

    Args:
        attempts: The run's; changed in place. None of them is alive.
        logs: The run's log folder.
    """
    killed = [attempt for attempt in attempts if attempt["how"] == "running"]
    for attempt in killed:
        attempt |= {"how": "killed", **_last_seen(logs, attempt["start"])}
    return killed


def _last_seen(logs: Path, start: str) -> dict[str, float]:
    """Return what an attempt that was killed had cost when it was last seen.

    Its wall time ends with its youngest log; its CPU time is what it said in its last word on a
    training, so the loader workers of that moment and what came after it are left out.
    """
    began = datetime.fromisoformat(start).timestamp()
    youngest = max((p.stat().st_mtime for p in logs.rglob("*")), default=0.0)
    said = read_progress(logs / PROGRESS_NAME, since=began)
    return {
        "wall_s": max(0.0, round(youngest - began, 2)),
        "cpu_s": float(said.get("cpu_s") or 0.0),
    }


def read_progress(path: Path, *, since: float = 0.0) -> dict[str, Any]:
    """Return what a training last wrote; empty if there is nothing, or an earlier attempt's word.

    The file is not synced: after a power cut it may be empty, and no harm is done.
    """
    if not path.is_file():
        return {}
    try:
        state = dict(read_json(path))
    except (OSError, ValueError, TypeError):  # progress is shown, not trusted
        return {}
    return state if float(state.get("time") or 0.0) >= since else {}


def add_cost(content: dict[str, Any], *, wall_s: float, cpu_s: float) -> dict[str, Any]:
    """Add to a run's cost, in run.json's ``content``; return the cost."""
    cost: dict[str, Any] = content.setdefault("cost", {})
    cost["wall_s"] = round(cost.get("wall_s", 0.0) + wall_s, 1)
    cost["cpu_s"] = round(cost.get("cpu_s", 0.0) + cpu_s, 1)
    return cost


def used_cpu_s() -> float:
    """Return the CPU time this process and its ended children have used."""
    return sum(os.times()[:4])
