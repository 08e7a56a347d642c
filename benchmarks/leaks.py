"""Leaks: twelve planted kinds found by the right check, none found in clean splits.

Each kind is planted in the kit's made-up hospitals the way it happens; the clean splits are by
patient and by hospital, of the same hospitals and of the UCI heart table where
``MEDKIT_REAL_DATA`` names a folder that holds it. A false alarm is any finding but a note. Beside
them stand clean tables made to look like copies: questionnaires whose items all go one way, coarse
and repeated columns, aggregates of one measurement, stays of a patient in order.

    python benchmarks/leaks.py [--quick] [--json FILE]
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from report import Report

from medkit import keyed
from medkit.data import splits
from medkit.data.leakage.audit import Finding, audit, split_digests
from medkit.data.preprocessing import Preprocessing, digest_ids, fit
from medkit.data.splits import Split
from medkit.data.tables import Table, TableSpec, read_table
from medkit.synth.ehr import MISSING_CODES, make_hospitals

HOSPITALS = TableSpec("died", site="site", missing_codes=MISSING_CODES)
HEART = TableSpec("num", None, "site", missing_codes={"chol": [0], "*": ["?"]}, target_above=0)
KNOWN = "three measurements, nine formulas"  # called copies, see medkit.data.leakage.surprise
Planted = tuple[Table, Split, Preprocessing, dict[str, Any]]


def frame_of(seed: int) -> pd.DataFrame:
    """Return the hospitals' table as people have it before they read it with the kit."""
    csv = make_hospitals(seed=seed).encounters_csv()
    return pd.read_csv(StringIO(csv), dtype={"patient_id": str})


def by_patient(table: Table, seed: int, *, test: float = 0.2) -> Split:
    stratum = np.char.add(np.char.add(table.site, "/"), table.y.astype(np.str_))
    return splits.by_patient(
        table.patient, val_fraction=0.2, test_fraction=test, split_seed=seed, stratum=stratum
    )


def fitted(table: Table, rows: Any) -> Preprocessing:
    return fit(
        table.values[rows], table.features, clip=4.0, fitted_on=digest_ids(table.patient[rows])
    )


def finished(frame: pd.DataFrame, seed: int, **changes: Any) -> Planted:
    """Read, split by patient and fit as the kit does: only the table is at fault."""
    table = read_table(frame, replace(HOSPITALS, **changes))
    split = by_patient(table, seed)
    return table, split, fitted(table, split.train), {}


def ids_in_two_ways(frame: pd.DataFrame, seed: int) -> Planted:
    """A patient's later stays come from another system, which drops zeros and capitals."""
    later = frame["patient_id"].duplicated()
    frame.loc[later, "patient_id"] = "p" + frame.loc[later, "patient_id"].str[1:].str.lstrip("0")
    return finished(frame, seed)


def exported_twice(frame: pd.DataFrame, seed: int) -> Planted:
    """One in ten records is in a second export too, under ids of that export."""
    again = frame.sample(frac=0.1, random_state=seed)
    again["patient_id"] = [f"E{number:06d}" for number in range(len(again))]
    return finished(pd.concat([frame, again], ignore_index=True), seed)


def jittered(frame: pd.DataFrame, seed: int) -> Planted:
    """A fifth of the records is augmented with small noise before the split."""
    again = frame.sample(frac=0.2, random_state=seed)
    again["patient_id"] = [f"E{number:06d}" for number in range(len(again))]
    draw = keyed.generator(seed, "synth", "jitter")
    for name in ("heart_rate", "sbp", "sodium", "platelets", "glucose", "lactate", "haemoglobin"):
        real = again[name].notna() & ~again[name].isin(MISSING_CODES.get(name, []))
        noise = draw.normal(scale=0.01 * frame[name].abs().median(), size=len(again))
        again[name] = again[name].astype(float) + noise * real
    return finished(pd.concat([frame, again], ignore_index=True), seed)


def oversampled(frame: pd.DataFrame, seed: int) -> Planted:
    """Deaths are repeated until classes are even; then rows are split at random."""
    deaths = frame[frame["died"] == 1]
    more = deaths.sample(n=len(frame) - 2 * len(deaths), replace=True, random_state=seed)
    return finished(
        pd.concat([frame, more], ignore_index=True), seed, patient=None, ignore=("patient_id",)
    )


def fitted_on_all(frame: pd.DataFrame, seed: int) -> Planted:
    """``scaler.fit(X)`` stands above ``train_test_split(X)``."""
    table, split, _, _ = finished(frame, seed)
    return table, split, fitted(table, np.arange(len(table.y))), {}


def fitted_on_all_under_a_right_digest(frame: pd.DataFrame, seed: int) -> Planted:
    """The same, by code that writes the digest of the training rows down all the same."""
    table, split, right, _ = finished(frame, seed)
    wrong = fitted(table, np.arange(len(table.y)))
    return table, split, replace(wrong, fitted_on=right.fitted_on, rows=right.rows), {}


def drawn_from_all(frame: pd.DataFrame, seed: int) -> Planted:
    """The weighted sampler is made from all labels, before the split is applied."""
    table, split, fit_, _ = finished(frame, seed)
    weight = np.where(table.y == 1, 0.5 / table.y.mean(), 0.5 / (1 - table.y.mean()))
    rows = keyed.generator(seed, "order").choice(
        len(table.y), len(split.train), p=weight / weight.sum()
    )
    return table, split, fit_, {"sampler_rows": rows}


def charted_at_death(frame: pd.DataFrame, seed: int) -> Planted:
    """A lab is drawn daily by those who live; the last day's is missing for who died."""
    draw = keyed.generator(seed, "synth", "last")
    last = frame["creatinine"].where(frame["creatinine"] > 0, 1.0) * draw.normal(1, 0.1, len(frame))
    forgotten = draw.random(len(frame)) < 0.005
    frame["creatinine_last_day"] = last.where((frame["died"] == 0) & ~forgotten)
    return finished(frame, seed)


def coded_at_discharge(frame: pd.DataFrame, seed: int) -> Planted:
    """A billing code of the discharge letter, right in four of five cases, is a feature."""
    draw = keyed.generator(seed, "synth", "code")
    wrong = draw.random(len(frame)) < 0.2
    frame["icd_at_discharge"] = np.where(wrong, 1 - frame["died"], frame["died"])
    return finished(frame, seed)


def numbered_by_cohort(frame: pd.DataFrame, seed: int) -> Planted:
    """Cases were enrolled first, controls after them, and numbered as they came."""
    died = frame.groupby("patient_id")["died"].transform("max")
    order = frame.assign(died_ever=died).sort_values(["died_ever", "patient_id"], ascending=False)
    number = {name: i + 1 for i, name in enumerate(dict.fromkeys(order["patient_id"]))}
    frame["patient_id"] = [f"S{number[name]:05d}" for name in frame["patient_id"]]
    return finished(frame, seed)


def chosen_on_test(frame: pd.DataFrame, seed: int) -> Planted:
    """The split column is read for the training rows alone; the rest is all used to validate."""
    table = read_table(frame, HOSPITALS)
    given = by_patient(table, seed)
    words = np.full(len(table.y), "train")
    words[given.val], words[given.test] = "val", "test"
    both = np.sort(np.concatenate([given.val, given.test]))
    split = Split(given.train, both, given.test)
    return replace(table, split=words), split, fitted(table, given.train), {}


def split_drawn_again(frame: pd.DataFrame, seed: int) -> Planted:
    """The split is drawn anew by a second script, and what was tuned on the first is kept."""
    table, split, fit_, _ = finished(frame, seed)
    return table, split, fit_, {"stored": split_digests(table, by_patient(table, seed + 1000))}


KINDS: dict[str, list[Callable[[pd.DataFrame, int], Planted]]] = {
    "patient ids": [ids_in_two_ways],
    "exact duplicates": [exported_twice],
    "near duplicates": [jittered],
    "oversampled before the split": [oversampled],
    "fitted on training rows": [fitted_on_all, fitted_on_all_under_a_right_digest],
    "sampler": [drawn_from_all],
    "single feature": [charted_at_death],
    "recorded after the outcome": [coded_at_discharge],
    "order and ids": [numbered_by_cohort],
    "split column": [chosen_on_test],
    "stored split": [split_drawn_again],
    "label shuffle": [oversampled, drawn_from_all],
}


def heart_table() -> Table | None:
    folder = os.environ.get("MEDKIT_REAL_DATA", "")
    path = Path(folder) / "uci_heart4" / "heart4.csv"
    return read_table(path, HEART) if folder and path.is_file() else None


def clean_splits(count: int) -> Iterator[tuple[str, Table, Split]]:
    """Yield clean splits in three kinds: by patient, leave-one-site-out, the real table."""
    heart = heart_table()
    real = count * 3 // 10 if heart is not None else 0
    seeds = -(-(count - real) // 5)
    made = 0
    for seed in range(seeds):
        table = read_table(frame_of(100 + seed), HOSPITALS)
        for which in range(5):
            if made == count - real:
                break
            made += 1
            if which < 2:
                yield "by patient", table, by_patient(table, 7 * seed + which, test=0.2 * which)
            else:
                yield "by hospital", table, _without(table, "ABC"[which - 2], seed)
    for number in range(real):
        sites = [*sorted(set(heart.site.tolist())), ""]  # type: ignore[union-attr]
        site = sites[number % len(sites)]
        split = _without(heart, site, number) if site else by_patient(heart, number)  # type: ignore[arg-type]
        yield "UCI heart", heart, split  # type: ignore[misc]


def hard_tables(seed: int) -> Iterator[tuple[str, Table]]:
    """Yield clean tables whose rows are alike by nature."""
    draw, n = keyed.generator(seed, "synth", "hard"), 3000
    severity = draw.normal(size=n)
    y = draw.random(n) < 1 / (1 + np.exp(2 - 2 * severity))
    items = severity[:, None] + draw.normal(scale=0.1, size=(n, 25))
    lab = (100 + 15 * (0.6 * severity + 0.8 * draw.normal(size=n))).round()
    near = [lab + draw.integers(-1, 2, size=n) for _ in range(20)]
    answers = [np.eye(5)[draw.integers(5, size=n)] for _ in range(6)]
    centers = 3 * draw.normal(size=(40, 25))
    owner = np.sort(draw.integers(800, size=n))
    stays = draw.normal(size=(800, 20))[owner] + 0.2 * draw.normal(size=(n, 20))
    missing = np.where(draw.random((n, 30)) < 0.9, np.nan, draw.normal(size=(n, 30)).round(1))
    few = draw.normal(size=(n, 3)).round(1)
    tables = {
        "questionnaire": (5 + 2 * items).round(),
        "one lab, 30 aggregates": np.column_stack([*[lab] * 10, *near]),
        "one-hot answers": np.concatenate(answers, axis=1),
        "yes or no": (draw.normal(size=(n, 10)) > 1) * 1.0,
        "40 groups": centers[draw.integers(40, size=n)] + 0.15 * draw.normal(size=(n, 25)),
        "counts": draw.poisson(1, size=(n, 40)),
        "mostly missing": missing,
        "stays in order": stays.round(1),
        KNOWN: np.concatenate([*answers[:2], few, few**2, few[:, :1] * few, few / (1 + few**2)], 1),
    }
    for name, values in tables.items():
        same = name == "stays in order"
        labels = (draw.random(800) < 0.2)[owner] if same else y
        patient = np.array([f"P{number:05d}" for number in (owner if same else range(n))])
        columns = tuple(f"x{number}" for number in range(values.shape[1]))
        content = values.astype(np.float32)
        yield name, Table(columns, content, labels.astype(np.int64), patient, np.full(n, ""), None)


def _without(table: Table, site: str, seed: int) -> Split:
    stratum = np.char.add(np.char.add(table.site, "/"), table.y.astype(np.str_))
    return splits.leave_site_out(
        table.site,
        table.patient,
        test_site=site,
        val_fraction=0.2,
        split_seed=seed,
        stratum=stratum,
    )


def alarms(findings: list[Finding], check: str = "") -> list[Finding]:
    """Return the findings that are more than notes, of one check or of all."""
    return [f for f in findings if f.severity != "note" and check in ("", f.check)]


def main() -> int:
    report = Report(__doc__)
    seeds = 2 if report.quick else 10
    frames = [frame_of(seed) for seed in range(seeds)]
    whole = 0
    for check, plants in KINDS.items():
        hits = []
        for plant in plants:
            for seed, frame in enumerate(frames):
                table, split, fit_, more = plant(frame.copy(), seed)
                hits.append(bool(alarms(audit(table, split, fit_, **more), check)))
        names = ", ".join(plant.__name__ for plant in plants)
        report.share(f"planted/{check}", sum(hits), len(hits), peers=names)
        whole += all(hits)
    report.share("planted/kinds found in every draw", whole, len(KINDS), at_least=1.0)

    false: dict[str, list[bool]] = {}
    seconds = []

    def look(kind: str, table: Table, split: Split) -> None:
        before = time.process_time()
        wrong = alarms(audit(table, split, fitted(table, split.train)))
        seconds.append(time.process_time() - before)
        false.setdefault(kind, []).append(bool(wrong))
        report.note(*(f"{kind}: {finding}" for finding in wrong))

    for kind, table, split in clean_splits(30 if report.quick else 100):
        look(kind, table, split)
    median = float(np.median(seconds))
    for kind, alarm in false.items():
        report.share(f"clean/{kind}: no alarm", len(alarm) - sum(alarm), len(alarm))
    every = [alarm for kind in false.values() for alarm in kind]
    report.share("clean/no alarm", len(every) - sum(every), len(every), at_least=1.0)
    logging.disable()  # what is never measured there is not worth a line
    for seed in range(1 if report.quick else 5):
        for name, table in hard_tables(seed):
            look(name if name == KNOWN else "hard tables", table, by_patient(table, seed))
    for name in ("hard tables", KNOWN):
        hard = false[name]
        report.share(f"clean/{name}: no alarm", len(hard) - sum(hard), len(hard))
    report.figure("audit/median CPU time, clean splits", median, unit="s")
    report.figure("audit/CPU time, 2,000 rows x 40", _setup_seconds(), at_most=0.3, unit="s")
    return report.finish()


def _setup_seconds() -> float:
    """Median CPU time of an audit as it runs after each set-up."""
    draw = keyed.generator(0, "synth", "wide")
    values = draw.normal(size=(2000, 40)).astype(np.float32)
    values[draw.random(values.shape) < 0.35] = np.nan
    names = tuple(f"x{number}" for number in range(40))
    patient = np.array([f"P{number:05d}" for number in range(2000)])
    y = (draw.random(2000) < 0.12).astype(np.int64)
    table = Table(names, values, y, patient, np.full(2000, "A"), None)
    split = by_patient(table, 0)
    fit_ = fitted(table, split.train)
    seconds = []
    for _ in range(7):
        before = time.process_time()
        audit(table, split, fit_)
        seconds.append(time.process_time() - before)
    return float(np.median(seconds))


if __name__ == "__main__":
    sys.exit(main())
