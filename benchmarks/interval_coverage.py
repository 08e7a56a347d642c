"""How often the 95 % intervals of the metrics hold the truth: 93 to 97 % at 600 rows.

Truth is exact up to a quadrature: log odds L ~ Normal(-2.2, 1.6), y ~ Bernoulli(sigmoid(L)) (17 %
ones, AUROC .83, about as in the made-up hospitals), and a model that sees L and says sigmoid(0.25 +
1.3 L): it ranks as well as can be, is too sure of itself (slope 1 / 1.3) and off in the large.
Population values are integrals over L on a grid of 400,001 points, checked against a sample of
a million rows; those of F1 are at the threshold 0.25, those of ECE are for the model's ten
population deciles. c-indices: times are exponential at the rate exp(L), censored exponentially.

Bars, at n = 600: AUROC (DeLong, bootstrap), Brier, calibration slope and intercept. AUPRC, F1, ECE,
the other shares, the paired difference, patients with several rows and n = 100 and 200 have none.
Repetitions whose interval does not exist (no overlap, no such row) are counted as misses.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import sys
import time
from collections.abc import Iterable

import numpy as np
from report import Report
from scipy.special import expit
from scipy.stats import norm

from medkit import keyed
from medkit.metrics import resample, thresholds
from medkit.metrics.benefit import net_benefit
from medkit.metrics.calibration import brier, ece, equal_bins, slope_and_intercept
from medkit.metrics.checks import Floats
from medkit.metrics.discrimination import auprc, auroc, auroc_difference, prevalence
from medkit.metrics.ranking import Ranking
from medkit.metrics.recalibration import fit_logistic, log_odds
from medkit.metrics.survival import harrell_c, uno_c
from medkit.record.results import Metric

MEAN, SD = -2.2, 1.6  # of the true log odds
MODEL = (0.25, 1.3)  # shift and scale of the model's log odds
CALIBRATED, FAR_TOO_SURE = (0.0, 1.0), (0.25, 2.5)
NOISE = 0.8  # sd of what a second, worse score adds to them
THRESHOLD = 0.25
TAU, CENSORED = 8.0, 0.04  # horizon of Uno's c, rate of censoring
BARRED = ("auroc", "auroc_bootstrap", "brier", "calibration_slope", "calibration_intercept")
LOW, HIGH = 0.93, 0.97


def truth(model: tuple[float, float] = MODEL) -> dict[str, float]:
    """Return the population values for a model with this shift and scale of the log odds."""
    shift, scale = model
    odds = MEAN + SD * np.linspace(-9, 9, 400_001)
    density = norm.pdf(odds, MEAN, SD)
    density /= density.sum()
    true, said = expit(odds), expit(shift + scale * odds)
    ones, zeros = density * true, density * (1 - true)
    share = float(ones.sum())
    below = np.cumsum(zeros) - zeros / 2
    above_ones = ones[::-1].cumsum()[::-1] - ones / 2
    above_all = density[::-1].cumsum()[::-1] - density / 2
    flag = said >= THRESHOLD
    tp, fp = float(ones[flag].sum()), float(zeros[flag].sum())
    decile = np.minimum((np.cumsum(density) - density / 2) * 10, 9).astype(int)
    low, high = -5.0, 5.0  # the intercept: mean of sigmoid(it + said log odds) is the prevalence
    for _ in range(80):
        middle = (low + high) / 2
        too_low = np.sum(density * expit(middle + shift + scale * odds)) < share
        low, high = (middle, high) if too_low else (low, middle)
    area = float(np.sum(ones * below)) / (share * (1 - share))
    return {
        "auroc": area,
        "auroc_bootstrap": area,
        "auprc": float(np.sum(ones * above_ones / above_all)) / share,
        "auprc_bootstrap": float(np.sum(ones * above_ones / above_all)) / share,
        "prevalence": share,
        "brier": float(np.sum(density * (said**2 * (1 - true) + (1 - said) ** 2 * true))),
        "calibration_slope": 1 / scale,
        "calibration_intercept": low,
        "ece": float(np.abs(np.bincount(decile, density * (said - true))).sum()),
        "sensitivity": tp / share,
        "specificity": 1 - fp / (1 - share),
        "ppv": tp / (tp + fp),
        "f1": 2 * tp / (share + tp + fp),
        "net_benefit": tp - fp * THRESHOLD / (1 - THRESHOLD),
        "auroc_difference": area - _noisy_area(),
        "harrell_c": _c(censored=True),
        "uno_c": _c(censored=False),
    }


def _noisy_area() -> float:
    """Return the AUROC of the log odds with noise added, by quadrature over sums."""
    shift, scale = MODEL
    width = np.hypot(scale * SD, NOISE)
    score = shift + scale * MEAN + width * np.linspace(-8, 8, 4001)
    # the log odds given the score are normal
    center = MEAN + (scale * SD**2 / width**2) * (score - shift - scale * MEAN)
    spread = SD * NOISE / width
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    true = expit(center[:, None] + spread * node) @ (weight / weight.sum())
    density = norm.pdf(np.linspace(-8, 8, 4001))
    density /= density.sum()
    ones, zeros = density * true, density * (1 - true)
    return float(np.sum(ones * (np.cumsum(zeros) - zeros / 2))) / (ones.sum() * zeros.sum())


def _c(*, censored: bool) -> float:
    """Return the c-index of two patients, of whom the first has an event before tau and first.

    With rates a and b (and twice the censoring's where it counts) the first event seen is a's with
    probability a / (a + b + 2 c) x (1 - exp(-(a + b + 2 c) tau)).
    """
    odds = MEAN + SD * np.linspace(-8, 8, 1601)
    density = norm.pdf(np.linspace(-8, 8, 1601))
    rate = np.exp(odds)
    total = rate[:, None] + rate + (2 * CENSORED if censored else 0.0)
    seen = rate[:, None] / total * (1.0 if censored else -np.expm1(-total * TAU))
    pairs = density[:, None] * density * seen
    right = np.tril(pairs, -1).sum() + np.trace(pairs) / 2
    return float(right / pairs.sum())


def sample(
    rows: int, rep: int, patients: int | None = None, model: tuple[float, float] = MODEL
) -> dict[str, Floats]:
    """Draw rows; with ``patients``, each of them in several rows that differ in the noise."""
    draw = keyed.generator(0, "synth", "coverage", rows, rep, patients or 0)
    units = patients or rows
    odds = draw.normal(MEAN, SD, units)
    y = (draw.random(units) < expit(odds)).astype(np.float64)
    event = draw.exponential(1 / np.exp(odds))
    end = draw.exponential(1 / CENSORED, units)
    whose = np.arange(units) if patients is None else draw.integers(units, size=rows)
    said = model[0] + model[1] * odds[whose]
    return {
        "y": y[whose],
        "prob": expit(said),
        "noisy": said + NOISE * draw.normal(size=rows),
        "time": np.minimum(event, end)[whose],
        "event": (event <= end).astype(np.float64)[whose],
        "patient": whose,
    }


def cheap(rows: dict[str, Floats], groups: Floats | None = None) -> dict[str, Metric]:
    """Return what needs no bootstrap."""
    y, prob = rows["y"], rows["prob"]
    slope, intercept = slope_and_intercept(y, prob, groups=groups)
    found = {
        "auroc": auroc(y, prob, groups=groups),
        "auroc_difference": auroc_difference(y, prob, rows["noisy"], groups=groups),
        "auprc": auprc(y, prob, groups=groups),
        "prevalence": prevalence(y, groups=groups),
        "brier": brier(y, prob, groups=groups),
        "calibration_slope": slope,
        "calibration_intercept": intercept,
        "ece": ece(y, prob, groups=groups),
        "net_benefit": net_benefit(y, prob, [THRESHOLD], groups=groups)[0].model,
    }
    at = thresholds.at(y, prob, THRESHOLD, groups=groups)
    return found | {name: at[name] for name in ("sensitivity", "specificity", "ppv", "f1")}


def drawn(rows: dict[str, Floats]) -> dict[str, Metric]:
    """Return what needs a bootstrap, 1,000 draws each."""
    y, prob = rows["y"], rows["prob"]
    return {
        "auroc_bootstrap": auroc(y, prob, interval="bootstrap"),
        "auprc_bootstrap": auprc(y, prob, interval="bootstrap"),
    }


def ordered(rows: dict[str, Floats]) -> dict[str, Metric]:
    """Return the c-indices."""
    time_, event, risk = rows["time"], rows["event"], rows["prob"]
    return {"harrell_c": harrell_c(time_, event, risk), "uno_c": uno_c(time_, event, risk, tau=TAU)}


def usual(rows: dict[str, Floats]) -> dict[str, Metric]:
    """Return the intervals that are usual and that the kit does not use, beside its own."""
    y, prob = rows["y"], rows["prob"]
    n, ranking, bin_of = len(y), Ranking(y, prob), equal_bins(prob, 10)
    gaps = (prob - y)[:, None] * (bin_of[:, None] == np.arange(10))
    fit = fit_logistic(y, np.ones((n, 1)), offset=log_odds(prob))
    value, half = float(fit.coef[0]), 1.96 * float(fit.covariance[0, 0]) ** 0.5
    area = resample.interval(ranking.auroc, n, strata=y)
    error = resample.interval(lambda w: np.abs(w @ gaps).sum(1) / w.sum(1), n)
    return {
        "calibration_intercept": slope_and_intercept(y, prob)[1],
        "calibration_intercept_wald": Metric(value, value - half, value + half),
        "auroc_bootstrap": auroc(y, prob, interval="bootstrap"),
        "auroc_percentile": Metric(*area),
        "ece": ece(y, prob),
        "ece_percentile": Metric(*error),
    }


def covered(found: Iterable[dict[str, Metric]], values: dict[str, float]) -> dict[str, list[int]]:
    """Count, per metric, repetitions whose interval holds the truth, misses below and above."""
    counts: dict[str, list[int]] = {}
    for metrics in found:
        for name, metric in metrics.items():
            count = counts.setdefault(name, [0, 0, 0])
            if metric.low is None or metric.high is None:
                continue
            true = values[name]
            count[0 if metric.low <= true <= metric.high else 2 if metric.low > true else 1] += 1
    return counts


def main() -> int:
    report = Report(__doc__)
    values = truth()
    check(report, values)
    many, some = (400, 200) if report.quick else (4000, 1000)
    for rows in (600, 200, 100):
        for make, reps in ((cheap, many), (drawn, some), (ordered, some)):
            began = time.process_time()
            counts = covered((make(sample(rows, rep)) for rep in range(reps)), values)
            show(report, f"n{rows}", counts, reps, values, bars=rows == 600)
            spent = (time.process_time() - began) / reps
            report.note(f"n = {rows}, {make.__name__}: {spent * 1000:.0f} ms of CPU a repetition")
    reps = some
    found = (
        cheap(rows, groups=rows["patient"])
        for rows in (sample(600, rep, patients=300) for rep in range(reps))
    )
    show(report, "n600_of_300_patients", covered(found, values), reps, values, bars=False)
    report.note("the usual intervals beside the kit's")
    for name, model in (("calibrated", CALIBRATED), ("far_too_sure", FAR_TOO_SURE)):
        for rows in (600, 100):
            other = truth(model)
            other |= {"calibration_intercept_wald": other["calibration_intercept"]}
            other |= {"auroc_percentile": other["auroc"], "ece_percentile": other["ece"]}
            found = (usual(sample(rows, rep, model=model)) for rep in range(some // 2))
            show(report, f"{name}_n{rows}", covered(found, other), some // 2, other, bars=False)
    return report.finish()


def show(
    report: Report,
    where: str,
    counts: dict[str, list[int]],
    reps: int,
    values: dict[str, float],
    *,
    bars: bool,
) -> None:
    """Print one line per metric: the share covered with its Monte-Carlo interval."""
    for name, (inside, over, under) in counts.items():
        text = f"truth {values[name]:.4f}; truth above {over / reps:.1%}, below {under / reps:.1%}"
        barred = bars and name in BARRED
        report.share(f"{where}/{name}", inside, reps, at_least=LOW if barred else None, peers=text)
        if barred:
            report.figure(f"{where}/{name}_not_above", inside / reps, at_most=HIGH)


def check(report: Report, values: dict[str, float]) -> None:
    """Print the exact values beside those of a large sample, so that a wrong integral shows."""
    rows = sample(200_000 if report.quick else 1_000_000, 0)
    large = cheap(rows)
    few = sample(8_000, 1)
    large |= ordered(few)
    for name, metric in large.items():
        report.note(f"{name}: exact {values[name]:.5f}, large sample {metric.value:.5f}")


if __name__ == "__main__":
    sys.exit(main())
