"""Reports on made-up slices: fields, short clinical English, questions, and what is preferred.

Texts say what is there, and what is not ("No pleural effusion."), as reports do: a labeller that
does not heed negation is wrong on each of them. Every text is a function of seed, hospital and the
study's number.

Run as ``python -m medkit.synth.reports OUT`` to write pictures and ``train.jsonl`` in ms-swift's
form: ``messages``, ``images``, ``rejected_response``, and columns of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.record.files import write_text
from medkit.synth.exact import uniforms
from medkit.synth.report_slices import DENSITIES, SIDES, SIZES_MM, ZONES, Finding, draw_studies

__all__ = ["QUESTIONS", "TASKS", "Study", "make_studies", "write_reports"]

TASKS = ("fields", "report", "questions")
WINDOW_HU = (-1000.0, 400.0)
_PER_PATIENT = 2  # studies
_PROMPTS = {"fields": "Fill in the fields.", "report": "Describe the findings."}
QUESTIONS: Mapping[str, str] = {
    "nodule": "Is there a nodule?",
    "side": "In which lung is the nodule?",
    "zone": "In which zone is the nodule?",
    "size": "How large is the nodule?",
    "density": "What is the density of the nodule?",
}
_FOUND = (
    "There is a {mm} mm {density} nodule in the {zone} zone of the {side} lung.",
    "{density} nodule of {mm} mm in the {side} {zone} zone.",
    "The {side} lung shows a {density} nodule in its {zone} zone, measuring {mm} mm.",
)
_CLEAR = (
    "No pulmonary nodule is seen.",
    "The lungs are clear, without nodule.",
    "There is no evidence of a nodule.",
)
_ABSENT = (
    "No pleural effusion.",
    "There is no pneumothorax.",
    "No consolidation is seen.",
    "The heart is not enlarged.",
    "No further nodule.",
)


@dataclass(frozen=True, eq=False)
class Study:
    """One study.

    Attributes:
        name: Such as "A00017".
        patient: Whose it is; two studies each.
        site: Hospital.
        hu: int16 ``(slices, 64, 64)`` [HU].
        finding: What is in it.
        report: In English.
        rejected: The same form as ``fields``, with one of them wrong.
    """

    name: str
    patient: str
    site: str
    hu: NDArray[np.int16]
    finding: Finding
    report: str
    rejected: str

    @property
    def fields(self) -> dict[str, Any]:
        """The structured findings; those of a nodule are left out where there is none."""
        return fields_of(self.finding)

    @property
    def fields_json(self) -> str:
        """The same as text, without spaces."""
        return _json(self.finding)

    def answer(self, field: str) -> str:
        """Return the answer to one of :data:`QUESTIONS`."""
        if field not in QUESTIONS:
            raise ValueError(f"a question is about one of {list(QUESTIONS)}, got {field!r}.")
        if field == "nodule":
            return "yes" if self.finding.nodule else "no"
        return str(getattr(self.finding, field) or "there is no nodule")

    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return one slice as grey, windowed from -1000 to 400 HU, ``(64, 64)``."""
        low, high = WINDOW_HU
        share = (self.hu[number].astype(np.float64) - low) / (high - low)
        return np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)


def make_studies(
    count: int, *, seed: int = 0, site: str = "A", slices: int = 1, first: int = 0
) -> list[Study]:
    """Draw studies of one hospital, from number ``first`` on."""
    numbers = range(first, first + count)
    hu, findings = draw_studies(seed, site, numbers, slices=slices)
    return [
        _study(seed, site, number, one, finding)
        for number, one, finding in zip(numbers, hu, findings, strict=True)
    ]


def write_reports(
    folder: Path | str, studies: Sequence[Study], *, name: str = "train", task: str = "fields"
) -> Path:
    """Write pictures and ``NAME.jsonl``, a line a conversation; return the latter's path.

    Args:
        folder: Where to; pictures go to its ``images``.
        studies: To be written.
        name: Of the file.
        task: "fields": structured extraction; "report": English; "questions": one line each.

    Raises:
        ValueError: For another task.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}. Write one file a task.")
    from PIL import Image

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for study in studies:
        files = [f"images/{study.name}_{k}.png" for k in range(len(study.hu))]
        for k, file in enumerate(files):
            Image.fromarray(study.picture(k)).save(folder / file)
        for line in _lines(study, files, task):
            lines.append(json.dumps(line) + "\n")
    path = folder / f"{name}.jsonl"
    write_text(path, "".join(lines))
    return path


def fields_of(finding: Finding) -> dict[str, Any]:
    """Return the structured findings of a study."""
    if not finding.nodule:
        return {"nodule": False}
    return {"nodule": True} | {k: getattr(finding, k) for k in ("side", "zone", "size", "density")}


def _lines(study: Study, files: list[str], task: str) -> Iterator[dict[str, Any]]:
    own = {"study": study.name, "patient": study.patient, "site": study.site}
    common = {"images": files, **own, "fields": study.fields}
    marks = "<image>" * len(files)
    if task == "questions":
        for field, question in QUESTIONS.items():
            yield {"messages": _turn(marks + question, study.answer(field)), **common}
        return
    answer = study.fields_json if task == "fields" else study.report
    line: dict[str, Any] = {"messages": _turn(marks + _PROMPTS[task], answer), **common}
    yield line | ({"rejected_response": study.rejected} if task == "fields" else {})


def _turn(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _study(seed: int, site: str, number: int, hu: NDArray[np.int16], finding: Finding) -> Study:
    u = uniforms(seed, "report", site, number, shape=(12,)).tolist()
    return Study(
        name=f"{site}{number:05d}",
        patient=f"{site}{number // _PER_PATIENT:05d}",
        site=site,
        hu=hu,
        finding=finding,
        report=_english(finding, u),
        rejected=_json(_wrong(finding, u[6:])),
    )


def _json(finding: Finding) -> str:
    return json.dumps(fields_of(finding), separators=(",", ":"))


def _english(finding: Finding, u: Sequence[float]) -> str:
    """Say what is there, then two or three things that are not."""
    if finding.nodule and finding.size_mm is not None:
        said = _FOUND[int(len(_FOUND) * u[0])].format(mm=round(finding.size_mm), **_words(finding))
    else:
        said = _CLEAR[int(len(_CLEAR) * u[0])]
    absent = list(_ABSENT if finding.nodule else _ABSENT[:-1])
    chosen = [absent.pop(int(len(absent) * u[k])) for k in range(2, 4 if u[1] < 0.5 else 5)]
    said = said[0].upper() + said[1:]
    return " ".join([said, *chosen])


def _words(finding: Finding) -> dict[str, str]:
    return {k: str(getattr(finding, k)) for k in ("side", "zone", "density")}


def _wrong(finding: Finding, u: Sequence[float]) -> Finding:
    """Return findings with one field wrong: missed, invented, or another side, zone, ..."""
    others = {"side": SIDES, "zone": ZONES, "size": tuple(SIZES_MM), "density": DENSITIES}
    if not finding.nodule:
        made: dict[str, Any] = {
            k: one[int(len(one) * u[n])] for n, (k, one) in enumerate(others.items())
        }
        return Finding(nodule=True, **made)
    kind = int((len(others) + 1) * u[4])
    if kind == len(others):
        return Finding(nodule=False)
    name = list(others)[kind]
    left = [one for one in others[name] if one != getattr(finding, name)]
    changed: dict[str, Any] = {name: left[int(len(left) * u[5])]}
    return replace(finding, **changed)


def main() -> None:
    """Write 400 studies with fields, reports and questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--site", default="A")
    parser.add_argument("--slices", type=int, default=1)
    asked = parser.parse_args()
    studies = make_studies(asked.count, seed=asked.seed, site=asked.site, slices=asked.slices)
    for task in TASKS:
        path = write_reports(asked.out, studies, name=task, task=task)
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
