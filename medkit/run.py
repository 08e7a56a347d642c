"""One run as its notebook holds it: its folder, seeds, stages and results, until it is closed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from medkit import keyed as keys
from medkit.callbacks.fingerprint import SettingsChangedError, describe_changes
from medkit.record import identity as identities
from medkit.record.attempts import add_cost, used_cpu_s
from medkit.record.checkpoints import newest_sound
from medkit.record.files import safe_name, sha256_text
from medkit.record.folder import RunFolder, now
from medkit.record.ledger import Ledger
from medkit.record.lock import RunLock
from medkit.record.pseudonym import pseudonym
from medkit.record.results import METRICS_NAME, Metric, write_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)


class StageFinishedError(RuntimeError):
    """A finished stage was to be fitted again."""


class Run:
    """What a notebook holds of its run; made by ``medkit.start.start_run``.

    Attributes:
        dir: The run folder.
        seed: Decides initial weights, order, augmentation and dropout.
        split_seed: Decides who is in which split.
        quick: Whether this is the short path; ``run/quick`` in metrics.json says so.
        folder: ``run.json`` and subfolders.
        resumed: Whether this process goes on with a run that another began.
        cpu_before: CPU time [s] that this process had used when the run began.
    """

    def __init__(
        self, folder: RunFolder, lock: RunLock | None, *, seed: int, split_seed: int, quick: bool
    ) -> None:
        self.folder = folder
        self.dir = folder.path
        self.seed = seed
        self.split_seed = split_seed
        self.quick = quick
        self.resumed = False
        self.allow_inexact = False
        self.launched = False
        self._lock = lock
        self._finished_here: set[str] = set()
        self._metrics: dict[str, Metric | float] = {}
        self._began = time.monotonic()
        self.cpu_before = used_cpu_s()
        self._open = True

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.folder.ledger

    @contextmanager
    def init(self, stage: str) -> Iterator[None]:
        """Build a net inside: its weights depend on seed and stage, not on earlier cells."""
        with keys.globals_keyed(self.seed, "init", stage):
            yield

    def resume(self, stage: str) -> str | None:
        """Return the newest sound checkpoint of ``stage`` for ``fit(ckpt_path=...)``, or None.

        A damaged checkpoint is named in the log and the ledger and passed over. The ledger's lines
        after the point are cut by the fit itself: it lives through those events again.

        Raises:
            StageFinishedError: When this process has finished the stage already.
        """
        if stage in self._finished_here:
            raise StageFinishedError(
                f"stage {stage!r} of {self.dir} is finished. Run the start_run cell again for a "
                "new run, or give the fit another name: stable_trainer(run, name=...)."
            )

        def on_damaged(path: Path) -> None:
            self.ledger.append(
                "damaged checkpoint", action="passed over", stage=stage, detail=path.name
            )

        path = newest_sound(self.folder.stage_dir(stage), on_damaged)
        if path is None:
            if self.resumed:
                _log.warning("stage %r has no resume point yet: it starts at its first step", stage)
                self.count_wasted(stage, from_step=0)
            self.ledger.cut_after(stage, -1)
            return None
        return str(path)

    def metrics(self, metrics: Mapping[str, Metric | float]) -> None:
        """Add named numbers and write ``metrics.json``."""
        self._metrics.update(metrics)
        self._metrics["run/quick"] = Metric(float(self.quick))
        write_metrics(self.dir / METRICS_NAME, self._metrics)

    def predictions(
        self,
        name: str,
        *,
        row_ids: Sequence[object],
        y: ArrayLike,
        score: ArrayLike,
        site: Sequence[str] | None = None,
        patient_ids: Sequence[object] | None = None,
    ) -> Path:
        """Write ``predictions/<name>.parquet``: row pseudonym, site, y, score, patient pseudonym.

        Name the patients where some have several rows: ``medkit compare`` then resamples patients.
        """
        import pandas as pd

        path = self.folder.subfolder("predictions") / f"{safe_name(name)}.parquet"
        table = pd.DataFrame(
            {
                "row": [pseudonym(row) for row in row_ids],
                "site": list(site) if site is not None else [""] * len(row_ids),
                "y": np.asarray(y),
                "score": np.asarray(score),
            }
        )
        if patient_ids is not None:
            table["patient"] = [pseudonym(patient) for patient in patient_ids]
        table.to_parquet(path, index=False)
        return path

    def figure(self, figure: Figure, name: str) -> Path:
        """Write ``figures/<name>.png``."""
        path = self.folder.subfolder("figures") / f"{safe_name(name)}.png"
        figure.savefig(path, dpi=150, bbox_inches="tight")
        return path

    def data(self, **digests: str) -> None:
        """Note what was read: name -> SHA-256; a resume on other data is refused.

        Raises:
            SettingsChangedError: When an earlier attempt of this run read other bytes.
        """
        known = dict(self.folder.read().get("data", {}))
        was = {name: known[name] for name in digests if name in known}
        self.compare({"data": was}, {"data": {name: digests[name] for name in was}})
        self.folder.update(data=known | digests)

    def mark_inexact(self, reason: str) -> None:
        """Say in run.json that the promises do not hold, and why."""
        with self.folder.editing() as content:
            reasons = content.setdefault("inexact_reasons", [])
            if reason not in reasons:
                reasons.append(reason)
                _log.warning("this run is not exact: %s", reason)
            content["exact"] = False

    def stage_done(
        self, stage: str, *, step: int, weights_sha256: str, not_finite: Sequence[str] = ()
    ) -> None:
        """Note that a stage has ended, and what its weights are.

        With weights that are not finite it has failed, and so has the run, whatever its best
        checkpoint says.
        """
        self._finished_here.add(stage)
        with self.folder.editing() as content:
            stages = content.setdefault("stages", {})
            stages[stage] = {"status": "done", "step": step, "weights_sha256": weights_sha256}
            if not_finite:
                stages[stage] |= {"status": "failed", "not_finite": list(not_finite)[:20]}
                _log.error(
                    "stage %r failed: %d weights are not finite, such as %s",
                    stage,
                    len(not_finite),
                    not_finite[0],
                )
            ends = {k: v["weights_sha256"] for k, v in stages.items() if "weights_sha256" in v}
            lines = "".join(f"{name} {ends[name]}\n" for name in sorted(ends))
            content["weights_sha256"] = sha256_text(lines) if len(ends) > 1 else weights_sha256

    def count_wasted(self, stage: str, *, from_step: int) -> None:
        """Add the steps to the run's cost that an attempt trained after its last resume point."""
        with self.folder.editing() as content:
            if content.get("last_seen", {}).get("stage") == stage:
                wasted = max(0, int(content.pop("last_seen")["step"]) - from_step)
                cost = content.setdefault("cost", {})
                cost["steps_wasted"] = cost.get("steps_wasted", 0) + wasted

    def stage_begun(self, stage: str) -> None:
        """Note that a stage is under way."""
        safe_name(stage)
        with self.folder.editing() as content:
            known = content.setdefault("stages", {}).setdefault(stage, {"step": 0})
            if "error" in known or "status" not in known:  # an error is over once it goes on
                content["stages"][stage] = {"status": "running", "step": known["step"]}
            content["interrupted_by"] = None  # whoever pressed Stop has gone on

    def stage_failed(self, stage: str, error: Exception, *, step: int) -> None:
        """Note that an error ended a stage's fit: the run has failed even if somebody catches it.

        Only its type is kept: its words may hold rows or paths. A stage that has ended stays done.
        """
        with self.folder.editing() as content:
            known = content.setdefault("stages", {}).get(stage, {})
            if known.get("status", "running") == "running":
                what = {"status": "failed", "error": type(error).__name__, "step": step}
                content["stages"][stage] = known | what

    def note_signal(self, name: str) -> None:
        """Note which signal ended this attempt, for whoever started the job."""
        self.folder.update(interrupted_by=name)

    def finish(self, status: str | None = None) -> str:
        """Close the run: cost, status and end; the lock is let go.

        Called by itself when the process ends or a new run is started. A launched job's status is
        its launcher's to say.

        Returns:
            "done", "interrupted" or "failed" (a stage ended in an error, or in weights that are
            not finite); "running" in a launched job. A script ends with it as others expect by
            ``sys.exit(run.finish() != "done")``.
        """
        if not self.folder.exists():  # removed by hand: there is nothing to close
            if self._open:
                _log.warning("%s is gone, and with it what its run has left", self.dir)
            self.abandon()
            return status or "interrupted"
        if not self._open:
            return str(self.folder.read()["status"])
        self._open = False
        try:
            self.ledger.flush()
        except OSError as error:  # the run's end must be noted all the same, if it can be
            _log.error("lines of the ledger are lost: %s", error)
        with self.folder.editing() as content:
            _add_cost(content, time.monotonic() - self._began, used_cpu_s() - self.cpu_before)
            if not self.launched:
                stages = content.get("stages", {}).values()
                whole = all(stage["status"] == "done" for stage in stages)
                whole = whole and not content.get("interrupted_by")
                if any(stage["status"] == "failed" for stage in stages):
                    status = "failed"
                content["status"] = status or ("done" if whole else "interrupted")
                content["end"] = now()
                content["attempts"][-1] |= {"end": content["end"], "how": content["status"]}
        if self._lock is not None:
            self._lock.release()
        return str(content["status"])

    def abandon(self) -> None:
        """Let the lock go and leave the folder as it is: the run was refused there."""
        self._open = False
        if self._lock is not None:
            self._lock.release()

    def compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Refuse a resume under other settings, or go on and mark it."""
        differences = identities.compare(old, new)
        if not differences:
            return
        if not self.allow_inexact:
            raise SettingsChangedError(
                f"{self.dir} must be resumed under the settings it was started with, but "
                + "; ".join(differences)
                + ". Set them back, start a new run, or pass allow_inexact=True to "
                "start_run (a job: --allow-inexact): it then goes on and is marked exact: false."
            )
        for difference in differences:
            self.mark_inexact(f"resumed although {difference}")

    def changed(self, found: dict[str, Any]) -> None:
        """Take the differences a resume point found: refuse them, or mark the run."""
        if not self.allow_inexact:
            raise SettingsChangedError(describe_changes(found))
        for key, value in found.items():
            self.mark_inexact(
                f"resumed although {identities.difference(key, value['was'], value['is'])}"
            )


def _add_cost(content: dict[str, Any], wall_s: float, cpu_s: float) -> None:
    import resource

    cost = add_cost(content, wall_s=wall_s, cpu_s=cpu_s)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cost["peak_memory_mb"] = max(cost.get("peak_memory_mb", 0), round(peak))
    cost.setdefault("steps_wasted", 0)
