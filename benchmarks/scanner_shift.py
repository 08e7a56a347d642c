"""A model moved to another scanner: what each freeze policy learns there, and what it forgets.

The tutorial model, trained at hospital A (1,000 steps), then 200 steps of 32 on 1,000 studies of
another one: C, whose rescale slope nobody applied (each value is halved), or B, a mild change of
contrast, offset, noise and blur. Exact answers under the schema on 300 held-out studies of either,
own patients. Rates are the probe's, 3e-3 for adapters and 1e-3 for the rest, with warm-up and
cosine; *slow* adapters have 1e-3. LoRA everywhere trains the norms beside, which *norms frozen*
does not. *Rehearsed* runs draw a quarter of each batch from A's training studies. Intervals are
Student's t over seeds, each with its own start, differences paired by seed; bars are on the lower
limit.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import _reports as reports
import pandas as pd
import torch
from report import Report

from medkit.metrics.spread import mean_over_seeds
from medkit.record.results import Metric
from medkit.vlm.answers import looked, swapped
from medkit.vlm.freeze_probe import POLICIES, probe_freeze_policy

REHEARSED = 0.25
BARRED = ("all", "vision", "LoRA everywhere")
LEAST = "LoRA llm"  # what habit adapts
BUT_NORMS = {"LoRA, norms frozen": {"lora": {"convolutions": True}}}


def probed(folder: Path, seed: int, *, quick: bool) -> pd.DataFrame:
    """Train a model at A and probe every policy from it; a row a policy and site."""
    train, new, held = (400, 200, 100) if quick else (4000, 1000, 300)
    steps = {"base": 60, "probe": 10} if quick else {"base": reports.STEPS, "probe": 200}
    chat = reports.encoder()
    own = reports.studies(folder, train)
    lit = reports.train(own, folder / f"run{seed}", seed=seed, steps=steps["base"], chat=chat)
    base = folder / f"base{seed}"
    lit.model.save_pretrained(base)
    a = reports.held_out(reports.studies(folder, held, first=20000))
    found = []
    for site in ("C", "B"):
        other = reports.held_out(reports.studies(folder, new, site=site, first=10000))
        there = reports.held_out(reports.studies(folder, held, site=site, first=20000))

        def judge(model: Any, there: list[Any] = there) -> dict[str, float]:
            own = reports.scores(model, chat, there)
            blind = reports.scores(model, chat, swapped(there))
            return {
                "new": float(own.exact.mean()),
                "old": float(reports.scores(model, chat, a).exact.mean()),
                "looked": looked(own, blind).value,
            }

        def probe(
            policies: Mapping[str, Mapping[str, Any]],
            judge: Callable[[Any], dict[str, float]] = judge,
            other: list[Any] = other,
            **more: Any,
        ) -> pd.DataFrame:
            return probe_freeze_policy(
                ("medkit.vlm.hub:pretrained", {"model_id": str(base)}),
                chat,
                other,
                judge,
                old=reports.held_out(own),
                policies=policies,
                seeds=(seed,),
                steps=steps["probe"],
                **more,
            )

        if site == "C":
            some = probe({**POLICIES, **BUT_NORMS}, rehearsal=(0.0, REHEARSED))
            adapters = {f"{n}, slow": how for n, how in POLICIES.items() if "lora" in how}
            slow = probe(adapters, adapter_lr=1e-3)
            some = pd.concat([some, slow[slow["policy"] != "as it is"]])
        else:
            some = probe({name: POLICIES[name] for name in (*BARRED, LEAST)})
        found.append(some.assign(site=site, seed=seed))
    return pd.concat(found)


def main() -> int:
    """Print the figures."""
    report = Report(__doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seeds = range(2) if report.quick else range(3)
    with tempfile.TemporaryDirectory() as temp:
        table = pd.concat([probed(Path(temp), seed, quick=report.quick) for seed in seeds])
    for (site, policy, share), some in table.groupby(["site", "policy", "rehearsal"], sort=False):
        trained = some["trained"].iloc[0]
        name = f"{site}/{policy}{' rehearsed' if share else ''}"
        for what, title in (("new", f"{site} exact"), ("old", "A exact after")):
            value = mean_over_seeds(some[what].tolist())
            report.figure(f"{name}/{title}", value.value, _limits(value), peers=f"{trained:.1%}")
        value = mean_over_seeds(some["looked"].tolist())
        report.figure(f"{name}/fall with another's picture", value.value, _limits(value))
    for share in (0.0, REHEARSED):
        least = _by_seed(table, "C", LEAST, share)
        for policy in BARRED:
            gain = mean_over_seeds((_by_seed(table, "C", policy, share) - least).tolist())
            name = f"C/{policy} less {LEAST}{', both rehearsed' if share else ''}"
            report.figure(name, gain.value, _limits(gain), at_least=0.3, on_limit=True)
    for policy in BARRED:
        gain = mean_over_seeds(
            (_by_seed(table, "B", policy, 0.0) - _by_seed(table, "B", LEAST, 0.0)).tolist()
        )
        report.figure(f"B/{policy} less {LEAST}", gain.value, _limits(gain))
    return report.finish()


def _by_seed(table: pd.DataFrame, site: str, policy: str, share: float) -> pd.Series[float]:
    own = (table["site"] == site) & (table["policy"] == policy) & (table["rehearsal"] == share)
    found: pd.Series[float] = table[own].set_index("seed")["new"]
    return found


def _limits(value: Metric) -> tuple[float, float]:
    assert value.low is not None
    assert value.high is not None
    return value.low, value.high


if __name__ == "__main__":
    sys.exit(main())
