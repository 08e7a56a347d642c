"""``medkit compare``: what a comparison says, on the terminal and as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkit.jobs.tables import as_text, interval, number
from medkit.record.files import write_json
from medkit.record.results import Metric
from medkit.study.compare import SIDES, compare
from medkit.study.compare_results import compare_results
from medkit.study.compared import Compared
from medkit.study.predictions import Predictions
from medkit.study.results_table import Results, load
from medkit.study.same_recipe import SameRecipe, compare_with_itself


def compare_command(
    a: str,
    b: str | None = None,
    *,
    aa: bool = False,
    methods: Sequence[str] | None = None,
    part: str | None = None,
    gain: float = 0.01,
    threshold: float | None = None,
    flag_rate: float = 0.2,
    fixed: Sequence[str] = (),
    json: str | None = None,
) -> int:
    """Compare A with B, or A with itself; print what is found, and write it to ``json``.

    Args:
        a: Runs, predictions or published results.
        b: The other; None: the same table (with ``methods``) or, with ``aa``, nothing.
        aa: Compare trainings of A with each other.
        methods: Which methods of the table, two names.
        part: Which predictions of the runs.
        gain: The difference in AUROC that matters.
        threshold: Where rows are flagged.
        flag_rate: Without it, the share of rows that each training flags.
        fixed: "A" or "B" draws nothing.
        json: Where to write the numbers.

    Raises:
        ValueError: Where the two can't be compared.
        FileNotFoundError: Where one is not there.
    """
    if aa and b is not None:
        raise ValueError(
            f"--aa compares trainings of one recipe with each other; got two, {a} and {b}. Leave "
            "--aa out to compare them, or B to look at A alone."
        )
    first, second = methods or (None, None)
    if aa or (b is not None and first == second and Path(a).resolve() == Path(b).resolve()):
        one = _of_kind(load(a, method=first, part=part))
        same = compare_with_itself(one, threshold=threshold, flag_rate=flag_rate)
        text, content = text_of_same(same), as_json(same)
    else:
        if b is None and methods is None:
            raise ValueError(
                "compare needs two recipes: A and B, or one table and --methods, or A and --aa; "
                f"got {a} alone."
            )
        mine, its = load(a, method=first, part=part), load(b or a, method=second, part=part)
        if isinstance(mine, Results) and isinstance(its, Results):
            found = compare_results(mine, its)
        else:
            found = compare(
                _of_kind(mine),
                _of_kind(its),
                gain=gain,
                threshold=threshold,
                flag_rate=flag_rate,
                fixed=fixed,
            )
        text, content = text_of(found), as_json(found)
    sys.stdout.write(text)
    if json is not None:
        write_json(json, _finite(content))
    return 0


def text_of(found: Compared) -> str:
    """Return a comparison as a terminal shows it."""
    lines = []
    for side, name, seeds in zip(SIDES, found.names, found.seeds, strict=True):
        lines.append(f"{side}  {name}: {_counted(seeds, 'seed') if seeds else 'draws nothing'}")
    pairing = "paired by seed" if found.paired else "seeds not paired"
    if not found.rows:
        lines.append(f"published results, no predictions; {pairing}")
    else:
        rows = "" if found.rows == found.patients else f" ({found.rows:,} rows)"
        lines.append(f"{found.patients:,} patients{rows}, {found.events:,} with y = 1; {pairing}")
    table = [
        [
            *(line.name, _with_sd(line.a, line.a_sd), _with_sd(line.b, line.b_sd)),
            *(f"{line.difference.value:+.4f}", _limits(line.difference), line.difference.method),
        ]
        for line in found.lines
    ]
    header = ["metric", "A (sd)", "B (sd)", "A - B", "95 %", "how"]
    text = "\n".join(lines) + "\n\n" + as_text(header, table)
    text += "sd over seeds; 95 % for other trainings and other patients, unless said otherwise\n\n"
    for name, chance in found.improvement.items():
        what = f"{name}: " if len(found.improvement) > 1 else ""
        text += f"{what}a training of A beats one of B in {chance.value:.0%} of pairs"
        text += f" {_percent(chance)}" if _has(chance) else ""
        text += " (these patients)\n"
    if found.one_run is not None:
        one = found.one_run
        text += (
            f"one-run DeLong would have called A better in {one.a_better} and B better in "
            f"{one.b_better} of {one.pairs} pairs of trainings\n"
        )
    if found.flips:
        shown = [f"{m.value:.1%} {name}" for name, m in found.flips.items() if m.value == m.value]
        method = next(iter(found.flips.values())).method
        whose = "patient" if found.rows == found.patients else "row"
        text += f"decisions flipped per {whose}: {', '.join(shown)} ({method})\n"
    text += _power_text(found) + "".join(f"note: {note}\n" for note in found.notes)
    return f"{text}\n{found.verdict}\n"


def text_of_same(found: SameRecipe) -> str:
    """Return an A/A comparison as a terminal shows it."""
    text = f"A/A  {found.name}: {found.seeds} trainings, {found.rows:,} rows\n\n"
    rows = [["called different by", "share", "95 %", "n", "how"]]
    kinds = {
        "one-run DeLong": found.one_run,
        "two-level t, 5 against 5": found.two_level,
        "the same, regrouped": found.regrouped,
    }
    rows += [
        [name, f"{m.value:.0%}", _percent(m), str(m.n), m.method]
        for name, m in kinds.items()
        if m is not None
    ]
    text += as_text(rows[0], rows[1:]) + "\n"
    if found.two_level is None:
        text += "two-level t: 10 trainings give one comparison of 5 with 5\n"
    text += f"AUROC: sd over seeds {number(found.spread.value)} {interval(found.spread)}\n"
    text += f"decisions flipped per row: {found.flips.value:.1%} ({found.flips.method})\n"
    text += "".join(f"note: {note}\n" for note in found.notes)
    one = found.one_run
    return (
        f"{text}\nEvery difference above is false: these are re-trainings of one recipe. One run "
        f"against one would have been called a gain or a loss in {one.value:.0%} of {one.n} "
        f"pairs {_percent(one)}.\n"
    )


def as_json(found: Compared | SameRecipe) -> dict[str, Any]:
    """Return plain types: what is in the text, and the variances behind it."""
    if isinstance(found, SameRecipe):
        metrics = {name: asdict(metric) for name, metric in found.metrics.items()}
        return {"name": found.name, "seeds": found.seeds, "rows": found.rows, "metrics": metrics}
    content = asdict(found)
    if found.auroc is not None:
        content["auroc"] |= {"freedom": found.auroc.freedom, "p": found.auroc.p}
    return content


def _power_text(found: Compared) -> str:
    if found.power is None:
        return ""
    p = found.power
    seeds = "more than seeds" if p.seeds is None else f"{p.seeds} seeds"
    patients = "more than patients" if p.patients is None else f"{p.patients:,} patients"
    return (
        f"a true gain of {p.gain:g} is found in {p.now:.0%} of such studies, one of "
        f"{p.smallest:.4f} in 80 %; {p.gain:g} in 80 % takes {seeds} on these patients, or "
        f"{patients} with these seeds\n"
    )


def _of_kind(found: Predictions | Results) -> Predictions:
    if isinstance(found, Results):
        raise ValueError(
            f"this needs predictions, row by row; {found.name} holds published results. Compare "
            "results with results of another method, and A/A from predictions."
        )
    return found


def _has(metric: Metric) -> bool:
    return metric.low is not None and metric.high is not None


def _limits(metric: Metric) -> str:
    return f"[{metric.low:+.4f}, {metric.high:+.4f}]" if _has(metric) else ""


def _with_sd(value: float, sd: float) -> str:
    return f"{value:.4f}" + (f" ({sd:.4f})" if math.isfinite(sd) else "")


def _percent(metric: Metric) -> str:
    return f"[{metric.low:.0%}, {metric.high:.0%}]" if _has(metric) else ""


def _counted(many: int, what: str) -> str:
    return f"{many} {what}{'' if many == 1 else 's'}"


def _finite(value: Any) -> Any:
    """Turn what JSON has no word for, NaN, into null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
