"""Real chest X-ray reports: a rule labeller against human labels, and rewards that a template loses.

OpenI's reports carry 14 findings coded by people from each whole report. The reports were split
by a hash of their number, with :func:`half`, before any rule of the labeller was written; rules
were written from the development half alone, and the test half is scored here.

    MEDKIT_REAL_DATA=FOLDER python benchmarks/report_rewards.py [--quick] [--json FILE]

FOLDER holds openi_reports/reports_gold14_dev.csv.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

FILE = "openi_reports/reports_gold14_dev.csv"
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
    *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening"),
    "Hernia",
)
HALVES = ("test", "development")
# What anybody would look for first.
KEYWORDS = {
    "Atelectasis": r"atelecta",
    "Cardiomegaly": r"cardiomegaly|enlarged (heart|cardiac)|(heart|cardiac \w+) is enlarged",
    "Effusion": r"effusion",
    "Infiltration": r"infiltrat",
    "Mass": r"\bmass(es)?\b",
    "Nodule": r"nodul",
    "Pneumonia": r"pneumonia",
    "Pneumothorax": r"pneumothora",
    "Consolidation": r"consolidat",
    "Edema": r"edema",
    "Emphysema": r"emphysem",
    "Fibrosis": r"fibros|fibrotic",
    "Pleural_Thickening": r"pleural thickening|thickening of the pleura",
    "Hernia": r"hernia",
}
ONE_RULE = r"\b(no|not|without|negative for|free of|absence of|rather than)\b"


@dataclass(frozen=True)
class Case:
    """One report: its number, its text, and the findings people coded."""

    uid: str
    text: str
    truth: dict[str, bool]
    normal: bool


def half(uid: str) -> str:
    """Return which half a report is in: even SHA-256 of its number, test; odd, development."""
    return HALVES[int(hashlib.sha256(uid.encode()).hexdigest(), 16) % 2]


def read_cases(folder: Path, part: str) -> list[Case]:
    """Return the reports of one half that have findings or an impression."""
    with (folder / FILE).open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if half(row["uid"]) == part]
    cases = []
    for row in rows:
        text = " ".join(row[name].strip() for name in ("findings", "impression")).strip()
        if text:
            truth = {name: row[name] == "1" for name in FINDINGS}
            cases.append(Case(row["uid"], text, truth, row["normal"] == "1"))
    return cases


def by_keyword(text: str) -> dict[str, bool]:
    """Say a finding is present where its keyword is."""
    return {name: bool(re.search(word, text, re.I)) for name, word in KEYWORDS.items()}


def by_one_rule(text: str) -> dict[str, bool]:
    """The same, but for sentences in which a "no" comes before the keyword."""
    found = dict.fromkeys(KEYWORDS, False)
    for sentence in re.split(r"[.;]\s", text.lower()):
        for name, word in KEYWORDS.items():
            at = re.search(word, sentence)
            if at and not re.search(ONE_RULE, sentence[: at.start()]):
                found[name] = True
    return found


def data_folder() -> Path:
    """Return the folder of real data, or leave saying what is missing."""
    folder = Path(os.environ.get("MEDKIT_REAL_DATA", "not set"))
    if not (folder / FILE).is_file():
        sys.stderr.write(
            "report_rewards needs a folder of real data with openi_reports in it, which is not "
            f"part of the project; MEDKIT_REAL_DATA is {folder}, without {FILE}. Set it.\n"
        )
        sys.exit(2)
    return folder


def f1(hits: float, false: float, missed: float) -> float:
    """Return F1 from counts; 0 where there is nothing to count."""
    whole = 2 * hits + false + missed
    return 2 * hits / whole if whole else 0.0


def main() -> int:
    folder = data_folder()
    for part in HALVES[1:]:
        cases = read_cases(folder, part)
        for name, labeller in (("keyword", by_keyword), ("one rule", by_one_rule)):
            said = [labeller(case.text) for case in cases]
            scores = []
            for finding in FINDINGS:
                pairs = [(a[finding], c.truth[finding]) for a, c in zip(said, cases, strict=True)]
                counts = [pairs.count(one) for one in ((True, True), (True, False), (False, True))]
                scores.append(f1(*counts))
            print(part, len(cases), name, sum(scores) / len(scores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
