"""Re-trainings of one recipe called different: at most 5 %; a true gain of 0.010 found: 75 %.

Two nets for tables (a plain MLP; one that starts as logistic regression, as the kit's does) are
trained some 2,000 times each on hospitals A and B of one draw and scored on hospital C: on the
same 600 and 10,000 stays, and on 600 fresh stays for each comparison. A comparison is 5 trainings
against 5 others, no training used twice; every difference found in A/A is false. The true gain is
the same recipe with the log odds of the patients who died raised until AUROC is 0.010 higher.
Beside it stands what DeLong's test makes of one training against one.

The two nets against each other on fresh stays: how often a procedure rejects the true difference
(its mean over all of them), and how often it sees that there is one.

A bar of 5 % "within sampling error" is the largest share that so many comparisons at a true 5 %
show in 97.5 % of cases: 8 % of 204. The bar of 75 % is on the lower limit.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

warnings.filterwarnings("ignore")

import numpy as np
import torch
from hospital_tables import table_of
from report import Report, wilson
from scipy.stats import binom, ttest_rel
from torch import Tensor

from medkit import keyed
from medkit.data.ehr import EHRDataModule
from medkit.metrics.calibration import brier
from medkit.metrics.ranking import Ranking
from medkit.metrics.two_level import Placed, TwoLevel, bootstrap_difference
from medkit.models.schedules import rate_at
from medkit.synth.ehr import make_hospitals

SEEDS, GAIN = 5, 0.010
TOGETHER, BATCH, EPOCHS = 60, 64, 20  # nets in a stack
MANY, FEW = 10_000, 600


@dataclass(frozen=True)
class Recipe:
    """How a net is trained: widths of its layers, and whether it starts as logistic regression."""

    name: str
    hidden: tuple[int, ...]
    lr: float
    weight_decay: float
    dropout: float
    warm: bool = False


MLP = Recipe("mlp", (64, 32), 1e-3, 0.01, 0.2)
WARM = Recipe("warm", (32,), 2e-3, 1.0, 0.3, warm=True)


@dataclass(frozen=True)
class Rows:
    """Stays as a net sees them."""

    x: Tensor
    y: np.ndarray
    patient: np.ndarray
    linear: Tensor  # log odds of the logistic regression


class Stack:
    """Members that are trained at once and have nothing to do with each other.

    Args:
        recipe: Of all of them.
        members: How many.
        number: Which stack this is: the key of its weights, orders and masks.
        inputs: Columns of ``x``.
    """

    def __init__(self, recipe: Recipe, members: int, number: int, inputs: int) -> None:
        self.recipe, self.members = recipe, members
        self.draw = keyed.torch_generator(number, "stack", recipe.name)
        widths = (inputs, *recipe.hidden, 1)
        self.layers: list[tuple[Tensor, Tensor]] = []
        for n_in, n_out in pairwise(widths):
            last = 0.0 if recipe.warm and n_out == 1 else n_in**-0.5
            shapes = (members, n_in, n_out), (members, 1, n_out)
            pair = [torch.empty(s).uniform_(-1, 1, generator=self.draw) * last for s in shapes]
            self.layers.append((pair[0].requires_grad_(), pair[1].requires_grad_()))

    def logits(self, x: Tensor, linear: Tensor, *, training: bool = False) -> Tensor:
        """Return ``(members, rows)`` from ``x`` ``(members, rows, inputs)``."""
        hidden, keep = x, 1 - self.recipe.dropout
        for weight, bias in self.layers[:-1]:
            hidden = torch.baddbmm(bias, hidden, weight).relu()
            if training:
                mask = torch.empty_like(hidden).bernoulli_(keep, generator=self.draw)
                hidden = hidden * mask / keep
        found = torch.baddbmm(self.layers[-1][1], hidden, self.layers[-1][0]).squeeze(2)
        return found + linear if self.recipe.warm else found

    def fit(self, rows: Rows) -> None:
        """Train all members, each in an order of its own, to the end of the schedule."""
        weights = [tensor for pair in self.layers for tensor in pair]
        recipe, n = self.recipe, len(rows.x)
        optimizer = torch.optim.AdamW(
            weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True
        )
        per_epoch = n // BATCH
        total, y = EPOCHS * per_epoch, torch.as_tensor(rows.y, dtype=torch.float32)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(rate_at, total=total, rising=max(1, round(0.05 * total)))
        )
        loss = torch.nn.BCEWithLogitsLoss(reduction="sum")
        for _ in range(EPOCHS):
            order = torch.rand(self.members, n, generator=self.draw).argsort(dim=1)
            for at in order[:, : per_epoch * BATCH].split(BATCH, dim=1):
                optimizer.zero_grad(set_to_none=True)
                said = self.logits(rows.x[at], rows.linear[at], training=True)
                (loss(said, y[at]) / BATCH).backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def score(self, rows: Rows) -> np.ndarray:
        """Return the log odds of rows that all members see, ``(members, rows)``."""
        x = rows.x.expand(self.members, -1, -1)
        parts = [
            self.logits(x[:, at : at + 1000], rows.linear[at : at + 1000])
            for at in range(0, len(rows.x), 1000)
        ]
        return torch.cat(parts, dim=1).numpy()

    @torch.no_grad()
    def score_own(self, rows: Rows, own: np.ndarray) -> np.ndarray:
        """Return the log odds of each member's own rows: ``own`` is ``(members, FEW)``."""
        at = torch.as_tensor(own)
        return self.logits(rows.x[at], rows.linear[at]).numpy()


@dataclass(frozen=True)
class Pool:
    """What the trainings of one recipe say: log odds of the shared stays, and of their own."""

    shared: np.ndarray  # (runs, MANY)
    fresh: np.ndarray  # (runs, FEW)


def main() -> int:
    """Train, compare, print."""
    report = Report(__doc__)
    pairs = 24 if report.quick else 204  # multiples of the pairs in one stack
    began = time.monotonic()
    train, shared, fresh = hospitals(pairs)
    own = np.arange(pairs * FEW).reshape(pairs, FEW)
    report.note(
        f"{len(train.x)} stays to train on, {shared.y[:FEW].sum()} of the first {FEW} and "
        f"{shared.y.sum()} of {MANY} shared stays died; {time.monotonic() - began:.0f} s"
    )
    pools = {}
    for recipe in (MLP, WARM):
        began = time.monotonic()
        whose = np.repeat(own, 2 * SEEDS, axis=0)
        pools[recipe.name] = pool = train_pool(recipe, train, shared, fresh, whose)
        wide = Placed.of(shared.y, pool.shared[:40]).auroc
        report.note(
            f"{recipe.name}: {len(pool.shared)} trainings in {time.monotonic() - began:.0f} s, "
            f"AUROC {wide.mean():.4f}, sd over seeds {wide.std(ddof=1):.4f} on {MANY} stays"
        )
    for recipe in (MLP, WARM):
        one_recipe(report, recipe.name, pools[recipe.name], shared, fresh, own)
    other_metrics(report, pools["mlp"], shared)
    two_recipes(report, pools["warm"], pools["mlp"], fresh, own)
    return report.finish()


def hospitals(pairs: int) -> tuple[Rows, Rows, Rows]:
    """Return the stays to train on, those all comparisons share, and fresh ones for each."""
    with tempfile.TemporaryDirectory() as folder:
        csv = Path(folder) / "table.csv"
        table_of(make_hospitals(seed=0)).to_csv(csv, index=False)
        dm = EHRDataModule(csv, target="died", site="site", test_site="C")
        dm.setup()
    start = dm.baseline
    coef = torch.tensor(start.coef, dtype=torch.float32)

    def rows(batch, patient: np.ndarray) -> Rows:
        linear = batch.x @ coef + start.intercept
        return Rows(batch.x, batch.y.numpy(), patient, linear)

    def drawn(seed: int, stays: int) -> Rows:
        new = make_hospitals(seed=seed, stays={"C": stays})
        return rows(dm.apply(table_of(new)), new.patient)

    train = dm.rows("train")
    return rows(train, np.arange(len(train.x))), drawn(50_000, MANY), drawn(50_001, pairs * FEW)


def train_pool(recipe: Recipe, train: Rows, shared: Rows, fresh: Rows, own: np.ndarray) -> Pool:
    """Train as many members as ``own`` has rows, a stack at a time."""
    said: list[np.ndarray] = []
    on_own: list[np.ndarray] = []
    for number, start in enumerate(range(0, len(own), TOGETHER)):
        whose = own[start : start + TOGETHER]
        stack = Stack(recipe, len(whose), number, train.x.shape[1])
        stack.fit(train)
        said.append(stack.score(shared))
        on_own.append(stack.score_own(fresh, whose))
    return Pool(np.concatenate(said), np.concatenate(on_own))


def one_recipe(
    report: Report, name: str, pool: Pool, shared: Rows, fresh: Rows, own: np.ndarray
) -> None:
    """A/A and a true gain, on the same stays and on fresh ones."""
    shift = raised(pool, shared)
    places = {
        f"same_{FEW}": lambda _: (shared, np.arange(FEW), pool.shared),
        f"same_{MANY}": lambda _: (shared, np.arange(MANY), pool.shared),
        f"fresh_{FEW}": lambda pair: (fresh, own[pair], pool.fresh),
    }
    for place, chosen in places.items():
        aa, aa_paired, one_run, gained, gained_one = [], [], [], [], []
        for pair in range(len(own)):
            rows, at, scores = chosen(pair)
            y, patient = rows.y[at], rows.patient[at]
            first = slice(2 * SEEDS * pair, 2 * SEEDS * pair + SEEDS)
            second = slice(first.stop, first.stop + SEEDS)
            a = Placed.of(y, scores[first][:, : len(at)], patient)
            b = Placed.of(y, scores[second][:, : len(at)], patient)
            aa.append(differs(b.minus(a, paired=False)))
            aa_paired.append(differs(b.minus(a, paired=True)))
            one_run += [differs(b.one_run(s, a, s)) for s in range(SEEDS)]
            if len(at) == FEW:
                better = Placed.of(y, scores[second][:, : len(at)] + shift * y, patient)
                gained.append(differs(better.minus(a, paired=False), sign=1))
                gained_one.append(differs(better.one_run(0, a, 0), sign=1))
        share(report, f"{name}/aa/{place}", aa, at_most=0.05, one_run=one_run)
        report.note(f"  the same taken as pairs: {sum(aa_paired)}/{len(aa_paired)}")
        if gained:
            share(report, f"{name}/gain_{GAIN}/{place}", gained, at_least=0.75, one_run=gained_one)


def raised(pool: Pool, shared: Rows) -> float:
    """Return what added to the log odds of those who died raises AUROC by ``GAIN``."""
    some = pool.shared[:20]
    was = Placed.of(shared.y, some).auroc.mean()
    low, high = 0.0, 2.0
    for _ in range(20):
        middle = (low + high) / 2
        gain = Placed.of(shared.y, some + middle * shared.y).auroc.mean() - was
        low, high = (middle, high) if gain < GAIN else (low, middle)
    return high


def other_metrics(report: Report, pool: Pool, shared: Rows) -> None:
    """A/A of the two-level bootstrap, 10 trainings against 10, on the same 600 stays."""
    y, patient = shared.y[:FEW].astype(np.float64), shared.patient[:FEW]
    prob = 1 / (1 + np.exp(-pool.shared[:, :FEW].astype(np.float64)))
    kinds = {
        "auprc": lambda p: Ranking(y, p).average_precision,
        "brier": lambda p: partial(_weighted_mean, (p - y) ** 2),
    }
    for name, scorer in kinds.items():
        called = []
        for start in range(0, len(prob) - 19, 20):
            a, b = ([scorer(p) for p in prob[at : at + 10]] for at in (start, start + 10))
            _, low, high = bootstrap_difference(
                a, b, FEW, paired=False, groups=patient, draws=400, seed=start
            )
            called.append(not low <= 0 <= high)
        share(report, f"mlp/aa/{name}_bootstrap_10_seeds", called)
    whole = brier(y, prob[0]).value
    if abs(whole - float(np.mean((prob[0] - y) ** 2))) > 1e-12:
        raise RuntimeError("the Brier score of the benchmark is not the kit's")


def two_recipes(report: Report, pool: Pool, other: Pool, fresh: Rows, own: np.ndarray) -> None:
    """How often the truth is rejected and a difference seen, on fresh stays for each trial."""
    trials = []
    for pair in range(len(own)):
        y, patient = fresh.y[own[pair]], fresh.patient[own[pair]]
        runs = slice(2 * SEEDS * pair, 2 * SEEDS * (pair + 1))
        trials.append(tuple(Placed.of(y, p.fresh[runs], patient) for p in (pool, other)))
    gaps = np.array([a.auroc.mean() - b.auroc.mean() for a, b in trials])
    truth = float(gaps.mean())
    error = float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    report.note(f"warm against mlp: true difference {truth:+.4f}, standard error {error:.4f}")
    for seeds in (SEEDS, 2 * SEEDS):
        some = range(seeds)
        parts = [(a.of_seeds(some), b.of_seeds(some)) for a, b in trials]
        found = [a.minus(b, paired=True).limits() for a, b in parts]
        alone = [a.one_run(0, b, 0).limits() for a, b in parts]
        t_test = [ttest_rel(a.auroc - truth, b.auroc).pvalue < 0.05 for a, b in parts]
        what = f"two_recipes/{seeds}_seeds"
        wrong = [not low <= truth <= high for low, high in found]
        one_run = [not low <= truth <= high for low, high in alone]
        share(report, f"{what}/truth_rejected", wrong, at_most=0.05, one_run=one_run)
        share(report, f"{what}/truth_rejected_by_t_over_seeds", t_test)
        seen = [low > 0 for low, _ in alone]
        share(report, f"{what}/difference_seen", [low > 0 for low, _ in found], one_run=seen)
        report.figure(f"{what}/half_width", float(np.median([(b - a) / 2 for a, b in found])))


def differs(found: TwoLevel, *, sign: int = 0) -> bool:
    """Whether the interval leaves 0 out, with ``sign`` 1 on the upper side only."""
    low, high = found.limits()
    return low > 0 or (sign == 0 and high < 0)


def share(
    report: Report,
    name: str,
    called: Sequence[bool],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    one_run: Sequence[bool] = (),
) -> None:
    """Print a share with its interval, and what DeLong makes of one training against one."""
    hits, of = int(np.sum(called)), len(called)
    if at_most is not None:  # within sampling error
        at_most = float(binom.ppf(0.975, of, at_most)) / of
    peers = f"one-run DeLong {100 * np.mean(one_run):.0f} % of {len(one_run)}" if one_run else ""
    report.figure(
        name,
        hits / of,
        wilson(hits, of),
        at_most=at_most,
        at_least=at_least,
        on_limit=at_least is not None,
        peers=peers,
    )


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


if __name__ == "__main__":
    sys.exit(main())
