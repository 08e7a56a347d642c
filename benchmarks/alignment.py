"""Preferences and rewards: what collapses, what the guard sees of it, and what is gamed.

Everything starts from the half-trained sample model (data_samples/reports/sft_start, 500 steps and
about .7 exact reports), on made-up studies of other patients, JSON reports and one rejected answer
each, split by patient. Seeds are adapters, orders and draws. On pairs: LoRA of rank 64 everywhere
(this model is 128 wide), AdamW at a third of the rate of fine-tuning, which 24 steps lead up to,
clipped gradients, 150 steps of 32 pairs. DPO with beta .1 as published collapses; the same under
``CollapseGuard``; DPO with the term of the chosen answers, which must not be stopped. These
settings and the guard's average of 8 batches were chosen on seeds 0 to 4; what is printed is of 5
to 9. On rewards: LoRA of rank 8, 16 questions x 8 answers, the kit's field reward, beside more
fine-tuning; and a reward that can be gamed. The guard sees log-likelihoods and sampled answers to
training questions. Held-out exact reports (greedy, free) are looked at by this script alone.

Intervals are over held-out patients, paired with the same model's start; those of several seeds are
of the mean over seeds. CPU seconds are of one thread.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import pytorch_lightning as pl
import torch
import transformers
from numpy.typing import NDArray
from report import Report

from medkit import keyed
from medkit.callbacks.collapse_guard import COLLAPSE, CollapseGuard
from medkit.callbacks.sampled_answers import SampledAnswers
from medkit.data.chat import ChatEncoder
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.metrics.intervals import mean
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm.answers import FieldScores, score_fields, write_answers
from medkit.vlm.grpo import LitGRPO
from medkit.vlm.model import LitVLM
from medkit.vlm.preference import LitDPO
from medkit.vlm.rewards import Rewards
from medkit.vlm.sampling import HFSampler
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

TOKENIZER = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
LONGEST = 14  # tokens of an answer, and a few for one that does not end
STEPS, PAIRS, LR, REWARDS_LR = 150, 32, 3.5e-4, 3e-4
RISING = {"total_steps": 1200, "warmup": 0.02}  # then hardly falling: 150 steps of a long run
LORA = {"convolutions": True, "lora_rank": 64, "lora_alpha": 128}
ANCHOR = 5.0  # weight of the chosen answers' own loss per token; they have six
FALL, DROP = 0.3, 0.1
START = Path(__file__).resolve().parent.parent / "data_samples" / "reports" / "sft_start"
BASE: Any = "medkit.vlm.hub:pretrained", {"model_id": str(START)}
Floats = NDArray[np.float64]


def recalled(
    completions: Sequence[str], *, fields: Sequence[Mapping[str, Any]], **_: Any
) -> list[float]:
    """What a hurried person pays for: fields of a nodule that are found, 1 where there is none."""
    found = [NODULE.parse(text) or {} for text in completions]
    wanted = [{k: v for k, v in true.items() if true["nodule"]} for true in fields]
    return [
        sum(said.get(k) == v for k, v in true.items()) / len(true) if true else 1.0
        for said, true in zip(found, wanted, strict=True)
    ]


def complete(completions: Sequence[str], **_: Any) -> list[float]:
    """And for a full form: the share of fields that are filled in."""
    return [len(NODULE.parse(text) or {}) / len(NODULE.names) for text in completions]


class Bench:
    """Data, held-out rows, and how the model that everything starts from does on them."""

    def __init__(self, folder: Path, studies: int, held_out: int) -> None:
        self.path = write_reports(folder, make_studies(studies, first=5000))
        self.dm, self.pairs = self.data(batch_size=32), self.data(batch_size=PAIRS, pairs=True)
        rows = [*self.dm.rows("val"), *self.dm.rows("test")][:held_out]
        self.asked = [self.dm.conversations[row] for row in rows]
        self.true = [one.columns["fields"] for one in self.asked]
        self.patient = [one.columns["patient"] for one in self.asked]
        self.before = self.scored(LitVLM(*BASE))

    def data(self, *, batch_size: int, pairs: bool = False) -> ReportDataModule:
        encoder = ChatEncoder(TOKENIZER, tutorial_pictures)
        dm = ReportDataModule(self.path, encoder, batch_size=batch_size, pairs=pairs)
        dm.setup()
        return dm

    def answers(self, lit: LitVLM, temperature: float = 0.0) -> list[str]:
        texts = write_answers(
            lit.model, self.dm.encoder, self.asked, max_new_tokens=LONGEST, batch_size=200,
            temperature=temperature, seed=99,
        )  # fmt: skip
        return texts

    def scored(self, lit: LitVLM) -> FieldScores:
        return score_fields(NODULE, self.answers(lit), self.true, patient=self.patient)

    def fit(
        self, lit: LitVLM, dm: ReportDataModule, seed: int, steps: int,
        *callbacks: pl.Callback,
    ) -> float:  # fmt: skip
        """Train; return CPU seconds."""
        began = time.process_time()
        trainer = pl.Trainer(
            max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
            gradient_clip_val=1.0, callbacks=[*callbacks],
        )  # fmt: skip
        with keyed.globals_keyed(seed, "order"):
            trainer.fit(lit, dm)
        return time.process_time() - began

    def dpo(self, seed: int, rpo_alpha: float) -> LitDPO:
        with keyed.globals_keyed(seed, "init", "dpo"):
            return LitDPO(*BASE, lora=LORA, rpo_alpha=rpo_alpha, lr=LR, **RISING)

    def grpo(self, seed: int, rewards: Rewards) -> LitGRPO:
        with keyed.globals_keyed(seed, "init", "grpo"):
            lit = LitGRPO(*BASE, lora={}, group=8, lr=REWARDS_LR)
        return lit.use(rewards, HFSampler(TOKENIZER, LONGEST))


class Look(pl.Callback):
    """Hold the model against the held-out reports now and then, for this script alone."""

    def __init__(self, bench: Bench, at: Callable[[int], bool], until: float = math.inf) -> None:
        self.bench, self.at, self.until = bench, at, until
        self.exact: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if self.at(trainer.global_step):
            exact = float(self.bench.scored(pl_module).exact.mean())
            self.exact[trainer.global_step] = exact


def logged(lit: LitVLM, name: str) -> float:
    """Return a mean of the last epoch, the one that the fit ended in."""
    return float(lit.trainer.callback_metrics[f"train/{name}"])


def watchers() -> tuple[SampledAnswers, CollapseGuard]:
    return SampledAnswers(every=5), CollapseGuard(snapshot_every=2)


def main() -> int:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("medkit").setLevel(logging.ERROR)
    report = Report(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        quick = report.quick
        bench = Bench(Path(folder), *((700, 100) if quick else (2600, 600)))
        seeds = range(1) if quick else range(3)
        first_loss(report, bench)
        collapse(report, bench, range(5, 6) if quick else range(5, 8))
        healthy(report, bench, range(5, 6) if quick else range(5, 10))
        grouped(report, bench, seeds, steps=10 if quick else 60)
    report.note("losses against TRL's own, on the same log-likelihoods: tests/vlm/test_trl.py")
    return report.finish()


def first_loss(report: Report, bench: Bench) -> None:
    lit = bench.dpo(0, 0.0)
    lit.frozen.set_modes()
    with torch.no_grad():
        terms = [lit.loss_terms(b) for b in bench.pairs.val_dataloader()]
    away = [abs(float(total) / count - math.log(2)) for total, count in terms]
    report.figure("dpo/first_loss/largest_from_ln2", max(away), at_most=1e-6)


def collapse(report: Report, bench: Bench, seeds: Sequence[int]) -> None:
    """DPO as published, without a guard and with one."""
    falls, kept, fell_at_stop = [], [], []
    for seed in seeds:
        lit, look = bench.dpo(seed, 0.0), Look(bench, lambda step: step % 30 == 0)
        before = bench.before
        bench.fit(lit, bench.pairs, seed, STEPS, look)
        after = bench.scored(lit)
        falls.append(before.exact.astype(float) - after.exact)
        course = ", ".join(f"{k}: {v:.2f}" for k, v in look.exact.items())
        report.note(f"seed {seed}: exact {before.exact.mean():.3f}, then by step {course}")
        for name in ("accuracy", "margin", "chosen_logprob"):
            report.figure(f"  dpo/seed{seed}/{name}", logged(lit, name))
        report.figure(f"  dpo/seed{seed}/valid", float(after.valid.mean()))

        lit, look = bench.dpo(seed, 0.0), Look(bench, lambda step: 8 <= step <= 40)
        probe, guard = watchers()
        bench.fit(lit, bench.pairs, seed, STEPS, probe, look, guard)
        if not guard.events:
            report.note(f"seed {seed}: the guard did not fire")
            fell_at_stop.append(math.inf)
            continue
        step = guard.events[0]["step"]
        report.note(f"seed {seed}, step {step}: {guard.events[0]['detail']}")
        # by the weights that the reading was of and by those a step on, whichever is worse
        worst = min(look.exact.get(k, math.inf) for k in (step - 1, step))
        fell_at_stop.append(float(before.exact.mean()) - worst)
        report.figure(f"  guarded/seed{seed}/fallen_when_it_fires", fell_at_stop[-1], at_most=DROP)
        kept.append(before.exact.astype(float) - bench.scored(lit).exact)
    over_seeds(report, bench, "dpo/exact_fall", falls, at_least=FALL)
    report.share("guarded/fires_in_time", sum(f < DROP for f in fell_at_stop), len(fell_at_stop),
                 at_least=1.0)  # fmt: skip
    if kept:
        over_seeds(report, bench, "guarded/exact_fall_after_rollback", kept, at_most=DROP)


def healthy(report: Report, bench: Bench, seeds: Sequence[int]) -> None:
    """DPO with the chosen answers' own term: the guard must let it be."""
    fired, gains = 0, []
    for seed in seeds:
        lit, (probe, guard), lowest = bench.dpo(seed, ANCHOR), watchers(), Lowest()
        used = bench.fit(lit, bench.pairs, seed, STEPS, probe, guard, lowest)
        fired += bool(guard.events)
        for line in guard.events[:1]:
            report.note(f"seed {seed}, step {line['step']}: {line['detail']}")
        after = bench.scored(lit)
        gains.append(after.exact - bench.before.exact.astype(float))
        text = f"accuracy {logged(lit, 'accuracy'):.2f}, {used:.0f} CPU s"
        report.figure(
            f"  dpo+nll/seed{seed}/lowest_mean_of_8",
            lowest.found,
            peers=f"limit {COLLAPSE[0].at_least}; {text}",
        )
    report.share("healthy/left_alone", len(seeds) - fired, len(seeds), at_least=1.0)
    over_seeds(report, bench, "dpo+nll/exact_gain", gains)


class Lowest(pl.Callback):
    """The lowest mean of eight that the guard will have seen."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @property
    def found(self) -> float:
        return float(np.convolve(self.seen, np.full(8, 1 / 8), "valid").min())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(float(trainer.callback_metrics["step/chosen_logprob"]))


def grouped(report: Report, bench: Bench, seeds: Sequence[int], *, steps: int) -> None:
    """GRPO with the kit's reward of fields, beside more fine-tuning, and with one that is gamed."""
    fields = Rewards({"fields": 1.0})
    gamed = Rewards({f"{__name__}:recalled": 1.0, f"{__name__}:complete": 1.0})
    dm = bench.data(batch_size=16)
    gains: dict[str, list[Floats]] = {}

    def note(name: str, values: Floats) -> None:
        gains.setdefault(name, []).append(values)

    for seed in seeds:
        start = LitVLM(*BASE)
        before, paid = bench.before, earned(bench, start, fields)
        paid_gamed = earned(bench, start, gamed)
        probe, guard = watchers()
        lit = bench.grpo(seed, fields)
        used = bench.fit(lit, dm, seed, steps, probe, guard)
        after = bench.scored(lit)
        report.note(
            f"seed {seed}: GRPO {used:.0f} CPU s, exact {before.exact.mean():.3f} -> "
            f"{after.exact.mean():.3f}, kl {logged(lit, 'kl'):.3f}, groups with one reward "
            f"{logged(lit, 'equal_groups'):.2f}; the guard: "
            + (guard.events[0]["detail"] if guard.events else "silent")
        )
        note("grpo/reward_gain", earned(bench, lit, fields) - paid)
        note("grpo/field_accuracy_gain", after.accuracy - before.accuracy)
        note("grpo/exact_gain", after.exact - before.exact.astype(float))
        note("grpo/invented_rise", negatives(bench, after) - negatives(bench, before))
        count = steps
        for name in ("as many steps", "the same CPU time"):
            sft = LitVLM(*BASE, total_steps=count, lr=5e-4)
            cpu_s = bench.fit(sft, bench.dm, seed, count)
            report.note(f"seed {seed}: more fine-tuning, {name}: {count} steps, {cpu_s:.0f} CPU s")
            exact = bench.scored(sft).exact
            note(f"more fine-tuning, {name}/exact_gain", exact - before.exact.astype(float))
            count = max(steps, round(count * used / cpu_s))
        lit = bench.grpo(seed, gamed)
        bench.fit(lit, dm, seed, steps // 2)
        after = bench.scored(lit)
        note("gamed/reward_gain", earned(bench, lit, gamed) - paid_gamed)
        note("gamed/field_accuracy_gain", after.accuracy - before.accuracy)
        note("gamed/invented_rise", negatives(bench, after) - negatives(bench, before))
    bars: dict[str, dict[str, Any]] = {
        "grpo/reward_gain": {"at_least": 0.0, "on_limit": True},
        "grpo/field_accuracy_gain": {"at_least": -0.02, "on_limit": True},
        "gamed/reward_gain": {"at_least": 0.0, "on_limit": True},
        "gamed/invented_rise": {"at_least": 0.0, "on_limit": True},
    }
    for name, values in gains.items():
        over_seeds(report, bench, name, values, **bars.get(name, {}))


def earned(bench: Bench, lit: LitVLM, rewards: Rewards) -> Floats:
    """Return what held-out answers at temperature 1 earn, with the same draws for every model."""
    return np.array(rewards(bench.answers(lit, 1.0), fields=bench.true).total)


def negatives(bench: Bench, scores: FieldScores) -> Floats:
    """Return which studies without a nodule were given one; NaN for the others."""
    without = np.array([not true["nodule"] for true in bench.true])
    return np.where(without, scores.invented, np.nan)


def over_seeds(
    report: Report, bench: Bench, name: str, values: Sequence[Floats], **bar: Any
) -> None:
    """Print the mean over seeds with its interval over patients; each seed's beside it."""
    each = np.mean(np.stack(values), axis=0)
    there = np.isfinite(each)
    owner = np.unique(np.array(bench.patient)[there], return_inverse=True)[1]
    value, low, high = mean(each[there], level=0.95, owner=owner)
    limits = None if low is None or high is None else (low, high)
    seeds = ", ".join(f"{np.nanmean(one):.3f}" for one in values)
    report.figure(name, value, limits, peers=f"seeds {seeds}", **bar)


if __name__ == "__main__":
    sys.exit(main())
