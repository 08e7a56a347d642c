"""The audit of a finished run: what its folder, and the table if it is still there, can show."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medkit.data.ehr import EHRDataModule
from medkit.data.leakage import held_out
from medkit.data.leakage.audit import audit, recorded
from medkit.data.leakage.findings import Finding, grouped, report, worst_first
from medkit.data.preprocessing import Preprocessing
from medkit.data.splits import Split
from medkit.data.survival import SurvivalDataModule
from medkit.data.table_module import TableDataModule
from medkit.data.tables import Table
from medkit.record.checkpoints import newest_sound
from medkit.record.files import sha256_file
from medkit.record.folder import RunFolder

NEVER_SEEN = (
    "what was done to the table before it was written: values imputed, columns chosen or made on "
    "all rows (medkit audit RUN_DIR --label-shuffle trains on shuffled labels and shows it)",
    "one person under two ids whose values differ",
)


@dataclass
class RunAudit:
    """What the audit of a run found, and how far it could look.

    Attributes:
        findings: Worst first.
        checked: What was looked at.
        unchecked: What could not be, and why.
    """

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> int:
        """How many findings are leaks."""
        return sum(finding.severity == "leak" for finding in self.findings)

    def text(self) -> str:
        """Return the findings, what was checked and what could not be, as text."""
        lines = [report(self.findings).rstrip()]
        lines += [f"checked: {what}" for what in self.checked]
        lines += [f"could not be checked: {what}" for what in (*self.unchecked, *NEVER_SEEN)]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class _Stored:
    """What a checkpoint says of the data it was trained on."""

    stage: str
    state: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def data(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """What stages on the same data have in common."""
        return self.state, self.settings


def audit_run(run_dir: str | Path, *, csv_path: str | Path | None = None) -> RunAudit:
    """Audit a run by its checkpoints and predictions; its folder stays as it is.

    Args:
        run_dir: The run folder.
        csv_path: The table, where it is not at its old place any more. It must be the same bytes.

    Raises:
        FileNotFoundError: When ``run_dir`` is no run folder.
    """
    folder = RunFolder(run_dir)
    if not folder.exists():
        raise FileNotFoundError(
            f"an audit needs a run folder with a run.json in it, and {folder.path} has none. "
            "`medkit runs DIR` lists the run folders below DIR."
        )
    found = RunAudit()
    stages: list[tuple[str, Table, Split]] = []
    alike: list[tuple[_Stored, list[str]]] = []  # stages on the same data: the first, all names
    of_stages: list[tuple[list[str], Finding]] = []
    for stored in _checkpoints(folder, found):
        names = next((n for s, n in alike if s.data == stored.data), None)
        if names is not None:
            found.checked.append(f"stage {stored.stage}: data as in an earlier stage")
            names.append(stored.stage)
            continue
        alike.append((stored, names := [stored.stage]))
        at = _audit_stage(stored, folder, csv_path, found)
        if at is not None:
            stages.append((stored.stage, *at[:2]))
            of_stages += [(names, finding) for finding in at[2]]
    if not alike:
        found.unchecked.append("table, split and transformers: no checkpoint knows them")
    known = {stage for stage, _, _ in stages}
    count = sum(len(names) for stored, names in alike if stored.stage in known)
    found.findings += grouped(of_stages, count)
    _predictions(folder, stages, found)
    found.findings = worst_first(found.findings)
    return found


def require_no_options(given: Mapping[str, str | None]) -> None:
    """Refuse options for a table where a run is audited, name -> what was said."""
    if wrong := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ValueError(
            f"a run is audited by the columns it was trained with, and {', '.join(wrong)} was "
            "given. Leave it out, or name the table instead of the run."
        )


def audit_command(run_dir: str | Path, *, csv_path: str | Path | None) -> int:
    """Audit a run, and say what was found; return the exit code.

    Raises:
        ValueError: Where there is nothing to judge by.
    """
    found = audit_run(run_dir, csv_path=csv_path)
    if not (found.findings or found.checked):
        status = RunFolder(run_dir).read().get("status")
        raise ValueError(
            "an audit needs a checkpoint with its data, or predictions, and in this run there is "
            f"nothing to judge by (its status is {status!r}): {'; '.join(found.unchecked)}. "
            "Finish the run, or audit its table: medkit audit TABLE."
        )
    sys.stdout.write(found.text())
    return 1 if found.leaks else 0


def _checkpoints(folder: RunFolder, found: RunAudit) -> Iterator[_Stored]:
    """Yield what the newest checkpoint of each stage keeps of its DataModule."""
    import torch

    stages = folder.path / "checkpoints"
    for stage in sorted(path for path in stages.glob("*") if path.is_dir()):
        # a ModelCheckpoint of the notebook's own has no digest beside it
        path = newest_sound(stage) or max(stage.glob("*.ckpt"), default=None)
        if path is None:
            continue
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            found.unchecked.append(f"stage {stage.name}: {path.name} can't be read ({reason})")
            continue
        states = [v for v in content.values() if isinstance(v, dict) and "preprocessing" in v]
        settings = content.get("datamodule_hyper_parameters") or {}
        if states and "csv_path" in settings:
            yield _Stored(stage.name, states[0], settings)
        else:
            found.unchecked.append(
                f"stage {stage.name}: its data are of neither EHRDataModule nor "
                "SurvivalDataModule, which store what an audit needs"
            )


def _audit_stage(
    stored: _Stored, folder: RunFolder, csv_path: str | Path | None, found: RunAudit
) -> tuple[Table, Split, list[Finding]] | None:
    """Set the data up again and audit them with the transformers that the checkpoint keeps."""
    path = _table_path(stored, folder, csv_path)
    if path is None:
        found.unchecked.append(
            f"stage {stored.stage}: the table {Path(str(stored.settings['csv_path'])).name} is "
            "gone; say where it is now (--table)"
        )
        return None
    digest = sha256_file(path)
    if digest != stored.state.get("data_sha256"):
        found.unchecked.append(
            f"stage {stored.stage}: {path.name} is no longer the table that was trained on "
            f"(SHA-256 {digest[:12]}, then {str(stored.state.get('data_sha256'))[:12]})"
        )
        return None
    try:
        kind = SurvivalDataModule if "event" in stored.settings else EHRDataModule
        dm: TableDataModule = kind(**{**stored.settings, "csv_path": str(path)})
        dm.setup()
    except (TypeError, ValueError) as error:  # settings of another version; a table it refuses
        found.unchecked.append(f"stage {stored.stage}: its data can't be set up again: {error}")
        return None
    table, split = dm.table, dm.split
    if table is None or split is None:
        raise RuntimeError("setup() must leave table and split, and it left none. Report this.")
    after, known = recorded(dm.contract)
    findings = audit(
        table,
        split,
        Preprocessing.from_state(stored.state["preprocessing"]),
        stored=stored.state.get("digests"),
        recorded_after=after,
        known=known,
        without=dm.not_audited,
        time=dm.times,
    )
    found.checked.append(
        f"stage {stored.stage}: {path.name}, {len(table.y)} rows, its split and transformers"
    )
    return table, split, findings


def _table_path(stored: _Stored, folder: RunFolder, given: str | Path | None) -> Path | None:
    """Return where the table is: as given, as noted, or from the notebook's folder."""
    noted = Path(str(stored.settings["csv_path"]))
    notebook = Path(str(folder.read().get("notebook") or "")).parent
    places = [Path(given)] if given is not None else [noted, notebook / noted]
    return next((place for place in places if place.is_file()), None)


def _predictions(
    folder: RunFolder, stages: list[tuple[str, Table, Split]], found: RunAudit
) -> None:
    """Predictions for val and test must be of val and test rows, and of different ones."""
    import pandas as pd

    files: dict[str, list[str]] = {}
    for path in sorted((folder.path / "predictions").glob("*.parquet")):
        try:
            rows = pd.read_parquet(path, columns=["row"])["row"].tolist()
        except (OSError, ValueError, KeyError) as error:  # pyarrow's too: torn, or another's file
            reason = " ".join(str(error).split())[:120]
            found.unchecked.append(f"predictions/{path.name} can't be read ({reason})")
            continue
        if held_out.part_of(path.stem) in {"val", "test"}:
            files[path.stem] = rows
    tables = held_out.tables_of(stages) if files else []
    judged = {name: held_out.judge(name, rows, tables) for name, rows in files.items()}
    why = "the pseudonyms' key is another" if stages else "no table to compare with"
    for name, known in judged.items():
        if known is None:
            found.unchecked.append(f"predictions/{name}.parquet: which rows they are ({why})")
        else:
            found.checked.append(f"predictions/{name}.parquet: {known.rows} rows and their part")
    if len({held_out.part_of(name) for name in files}) == 2:
        found.checked.append("predictions: whether rows are in both val and test")
    found.findings += held_out.of_predictions(files, judged)
