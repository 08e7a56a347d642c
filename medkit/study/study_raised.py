"""What trainings of a study raised: each traceback once, and a bug of one's own as no result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medkit.record.files import read_json
from medkit.study.outcomes import OUTCOME_NAME
from medkit.study.study_job import TRACEBACK_NAME, Job

_log = logging.getLogger(__name__)


def raised_alike(study: Path, trained: Sequence[Job]) -> str:
    """Forget trainings that all raised the same exception; return what is to be said of them.

    What two or more trainings raise alike, and none gets past, is a bug of the code that trains,
    not a share of trainings that crash. Where others got past it, the failures stay in the
    count, and each distinct traceback is logged once.

    Args:
        study: Its folder.
        trained: Jobs whose members were all missing when the study was run.

    Returns:
        "" where the failures stay.
    """
    folders = [
        job.folder(study, seed) for job in trained for seed in job.seeds if job.stored(study, seed)
    ]
    reasons = {str(read_json(folder / OUTCOME_NAME)["reason"]) for folder in folders}
    traces: dict[str, list[Path]] = {}
    for folder in folders:
        if (folder / TRACEBACK_NAME).is_file():
            text = (folder / TRACEBACK_NAME).read_text(encoding="utf-8", errors="replace")
            traces.setdefault(text, []).append(folder)
    raised = sum(map(len, traces.values()))
    done = any(
        read_json(file)["status"] == "done" for file in study.glob(f"*/split*/s*/{OUTCOME_NAME}")
    )
    if len(folders) > 1 and raised == len(folders) and len(reasons) == 1 and not done:
        for folder in folders:
            (folder / OUTCOME_NAME).unlink()
        return (
            f"train must be able to train; all {raised} trainings raised the same, "
            f"{reasons.pop()}. None of them is stored: mend train, and run the study again.\n\n"
            f"{next(iter(traces))}"
        )
    for text, those in traces.items():
        _log.warning("%d of %d trainings raised:\n%s", len(those), len(folders), text)
    return ""
