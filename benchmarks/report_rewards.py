"""Real chest X-ray reports: a rule labeller against human labels, and what templates earn.

OpenI's reports carry 14 findings coded by people from each whole report. The reports were split
by a hash of their number, with :func:`half`, before any rule of the labeller was written; rules
were written from the development half alone, and the test half is scored here. Macro-F1 is the
mean over all 14; nobody coded a hernia, though reports have some, so that one counts 0 at once.
What a labeller holds uncertain, counts as absent: coders took it so on the development half.

    MEDKIT_REAL_DATA=FOLDER python benchmarks/report_rewards.py [--quick] [--json FILE]

FOLDER holds openi_reports/reports_gold14_dev.csv.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from report import Report

from medkit.metrics.resample import interval
from medkit.vlm.labeller import is_normal, label
from medkit.vlm.rewards import Rewards

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
WEIGHTS = {
    **{"findings": 2.0, "anatomy": 1.0, "size": 0.5},
    **{"negatives": 0.5, "restraint": 0.5, "length": 0.25},
}
TEMPLATES = {
    "normal": "The heart size is normal. The lungs are clear. There is no pleural effusion or "
    "pneumothorax. No acute cardiopulmonary disease.",
    "all denied": "No atelectasis, cardiomegaly, effusion, infiltrate, mass, nodule, pneumonia, "
    "pneumothorax, consolidation, edema, emphysema, fibrosis, pleural thickening or hernia.",
    "commonest finding": "The heart is enlarged. There is no pleural effusion or pneumothorax.",
    "hedged": "Possible cardiomegaly. Atelectasis, effusion or pneumonia cannot be excluded.",
    "empty": "",
}
Floats = NDArray[np.float64]
Table = NDArray[np.bool_]
Labeller = Callable[[str], dict[str, bool]]
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


def by_labeller(text: str) -> dict[str, bool]:
    """Say a finding is present where the kit's labeller does."""
    return {name: status == "present" for name, status in label(text).items()}


def by_labeller_with_hedges(text: str) -> dict[str, bool]:
    """The same, with what may be there as present."""
    return {name: status in ("present", "uncertain") for name, status in label(text).items()}


def table(cases: Sequence[Case], labeller: Labeller) -> Table:
    """Return what is said of each report and finding, ``(N, 14)``."""
    said = [labeller(case.text) for case in cases]
    return np.array([[one[name] for name in FINDINGS] for one in said])


def f1(said: Table, true: Table, weights: Floats) -> Floats:
    """Return F1 of each resample and finding, ``(B, K)``; NaN where nothing is said or true."""
    hits = weights @ (said & true)
    whole = weights @ said.astype(np.float64) + weights @ true.astype(np.float64)
    return np.divide(2 * hits, whole, out=np.full_like(hits, np.nan), where=whole > 0)


def score_labellers(
    report: Report, cases: Sequence[Case], draws: int, *, read: frozenset[str] = frozenset()
) -> None:
    """Print every labeller's figures; ``read`` are texts of the other half."""
    true = np.array([[case.truth[name] for name in FINDINGS] for case in cases])
    coded = true.any(axis=0)
    n = len(cases)
    by_name: dict[str, Labeller] = {
        "keywords": by_keyword,
        "keywords and one rule": by_one_rule,
        "labeller": by_labeller,
        "labeller, hedged as present": by_labeller_with_hedges,
    }
    said = {name: table(cases, one) for name, one in by_name.items()}

    def macro(name: str, kept: Table) -> Callable[[Floats], Floats]:
        return lambda weights: np.nanmean(f1(said[name][:, kept], true[:, kept], weights), axis=1)

    every = np.ones_like(coded)
    for name in by_name:
        value, low, high = interval(macro(name, every), n, draws=draws)
        bar = 0.70 if name == "labeller" else None
        report.figure(f"{name}/macro_f1", value, (low, high), at_least=bar)
    new = np.array([case.text not in read for case in cases])
    value, low, high = interval(
        lambda weights: np.nanmean(f1(said["labeller"][new], true[new], weights), axis=1),
        int(new.sum()),
        draws=draws,
    )
    text = f"without {n - new.sum()} whose text is in the other half word for word"
    report.figure("labeller/macro_f1, new texts", value, (low, high), peers=text)
    left_out = [name for name, any_coded in zip(FINDINGS, coded, strict=True) if not any_coded]
    report.note(f"the same over the findings that were coded, so without {left_out}")
    for name in by_name:
        value, low, high = interval(macro(name, coded), n, draws=draws)
        report.figure(f"  {name}/macro_f1", value, (low, high))
    ours, rule = macro("labeller", every), macro("keywords and one rule", every)
    value, low, high = interval(lambda weights: ours(weights) - rule(weights), n, draws=draws)
    report.figure("labeller/minus_one_rule", value, (low, high), at_least=0.0, on_limit=True)

    report.note("F1 by finding: the labeller's, with what one rule reaches on the same reports")
    for k, name in enumerate(FINDINGS):
        one, true_one = said["labeller"][:, [k]], true[:, [k]]
        hits, false, missed = (
            int(np.sum(part)) for part in (one & true_one, one & ~true_one, ~one & true_one)
        )
        text = f"coded {hits + missed}, found {hits}, false {false}, missed {missed}; one rule "
        ones = np.ones((1, n))
        text += f"{f1(said['keywords and one rule'][:, [k]], true_one, ones)[0, 0]:.3f}"
        if not coded[k]:
            report.figure(f"  {name}/f1", float(f1(one, true_one, ones)[0, 0]), peers=text)
            continue
        value, low, high = interval(
            lambda weights, a=one, b=true_one: f1(a, b, weights)[:, 0], n, draws=draws
        )
        report.figure(f"  {name}/f1", value, (low, high), peers=text)
    normal = np.array([[is_normal(case.text)] for case in cases])
    true_normal = np.array([[case.normal] for case in cases])
    value, low, high = interval(
        lambda weights: f1(normal, true_normal, weights)[:, 0], n, draws=draws
    )
    text = f"coded {true_normal.sum()}"
    report.figure("  normal report/f1", value, (low, high), peers=text)


def score_rewards(report: Report, cases: Sequence[Case], draws: int) -> None:
    rewards = Rewards(WEIGHTS)
    columns = {
        "findings": [case.truth for case in cases],
        "reference": [case.text for case in cases],
    }
    texts = {name: [text] * len(cases) for name, text in TEMPLATES.items()}
    another = [case.text for case in cases[1:] + cases[:1]]
    scored = {
        name: rewards(one, **columns)
        for name, one in {
            "true report": columns["reference"],
            **texts,
            "another's": another,
        }.items()
    }
    parts = {
        name: {"total": np.array(one.total)} | {k: np.array(v) for k, v in one.parts.items()}
        for name, one in scored.items()
    }
    weights = ", ".join(f"{name} {weight:g}" for name, weight in WEIGHTS.items())
    report.note(
        f"rewards, weights {weights}; findings against what people coded, the others against the "
        "report itself, where the true report has all there is by definition"
    )
    for name, one in parts.items():
        means = ", ".join(f"{part} {values.mean():.3f}" for part, values in one.items())
        report.note(f"  {name}: {means}")
    for part in WEIGHTS:
        best = max(TEMPLATES, key=lambda name: parts[name][part].mean())
        value, true = parts[best][part].mean(), parts["true report"][part].mean()
        report.note(f"  {part} is fooled most by '{best}': {value:.3f} of {true:.3f}")
    abnormal = np.array([any(case.truth.values()) for case in cases])
    for name in (*TEMPLATES, "another's"):
        for part in ("total", "findings"):
            gap = parts["true report"][part] - parts[name][part]
            value, low, high = mean_of(gap, draws)
            bar = 0.0 if name == "normal" else None
            report.figure(
                f"true minus {name}/{part}",
                value,
                (low, high),
                at_least=bar,
                on_limit=bar is not None,
            )
    for name, rows in (("with", abnormal), ("without", ~abnormal)):
        gap = (parts["true report"]["findings"] - parts["normal"]["findings"])[rows]
        value, low, high = mean_of(gap, draws)
        text = f"{rows.sum()} reports {name} a coded finding"
        report.figure(f"true minus normal/findings, {name}", value, (low, high), peers=text)


def mean_of(values: Floats, draws: int) -> tuple[float, float, float]:
    """Return the mean over reports with its bootstrap interval."""
    return interval(
        lambda weights: weights @ values / weights.sum(axis=1), len(values), draws=draws
    )


def main() -> int:
    folder = data_folder()
    report = Report(__doc__)
    cases = read_cases(folder, "test")
    draws = 200 if report.quick else 2000
    read = [case.text for case in read_cases(folder, "development")]
    report.note(
        f"{len(cases)} reports of the test half; rules are from the {len(read)} of the other; "
        "intervals are over reports"
    )
    score_labellers(report, cases, draws, read=frozenset(read))
    score_rewards(report, cases, draws)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
