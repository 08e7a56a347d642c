"""The tutorial's image-text model: seeds, reruns, kills, and models that never look.

As the README trains it: 1,000 steps of 32 on 3,600 made-up studies, one thread; scored under the
schema on 400 held-out studies of other patients. *Blind* models are planted: trained with another
study's pictures, with one for all, and with an aligner that lets nothing through; they answer
without a schema, validly all the same. A model is flagged as blind where the fall of its share of
right fields with another study's pictures has no lower limit above 0. Trainings run in forked
children; each of the four recipes is repeated, and killed (SIGKILL) at two fifths of its steps, and
again a quarter further on, and resumed: weights, optimizer, schedule and logs are compared bit for
bit.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it is forked
warnings.filterwarnings("ignore")

import _reports as reports
import torch
from _kills import Kill, differing, in_child, outcome, until_done
from report import Report
from torch import nn

from medkit.data.conversations import Conversation, write_conversations
from medkit.data.report_schema import NODULE
from medkit.metrics.spread import mean_over_seeds
from medkit.record.files import write_text
from medkit.record.results import Metric
from medkit.vlm.answers import FieldScores, looked, swapped
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.grpo import LitGRPO
from medkit.vlm.hub import pretrained
from medkit.vlm.model import LitVLM
from medkit.vlm.preference import LitDPO
from medkit.vlm.rewards import Rewards
from medkit.vlm.sampling import HFSampler
from medkit.vlm.tutorial import tutorial_model

DEAD = "__main__:dead"
ALIGNER_ENDS = "model.multi_modal_projector.linear_2"


def dead(*, vocabulary: int) -> nn.Module:
    """Return the tutorial model with an aligner that lets nothing through."""
    model: Any = tutorial_model(vocabulary=vocabulary)
    with torch.no_grad():
        for value in model.get_submodule(ALIGNER_ENDS).parameters():
            value.zero_()
    net: nn.Module = model
    return net


def trained(
    work: Callable[[Path], LitVLM], folder: Path, name: str
) -> tuple[Path, float, dict[str, str]]:
    """Train in a child; return the model's folder, CPU seconds of training, and the outcome."""
    out = folder / f"{name}.model"

    def child() -> None:
        began = time.process_time()
        lit = work(folder / name)
        write_text(folder / f"{name}.s", f"{time.process_time() - began}")
        lit.model.save_pretrained(out)

    log = folder / f"{name}.log"
    if in_child(child, log):
        raise RuntimeError(f"{name} ended early:\n{log.read_text()[-3000:]}")
    return out, float((folder / f"{name}.s").read_text()), outcome(folder / name)


def judged(
    model: Path, some: Sequence[Conversation], *, grammar: bool = True
) -> tuple[FieldScores, Metric]:
    """Score a model, and say what another study's pictures leave."""
    chat, net = reports.encoder(), pretrained(model_id=str(model))
    own = reports.scores(net, chat, some, grammar=grammar)
    return own, looked(own, reports.scores(net, chat, swapped(some), grammar=grammar))


def recipes(path: Path, base: Path, quick: bool) -> dict[str, tuple[Callable[..., LitVLM], int]]:
    """Return trainings that resume, and their steps: of the model, adapters, DPO and GRPO."""
    chat = reports.encoder()
    grammar = FieldGrammar(NODULE, chat.tokenizer)
    model, args = "medkit.vlm.hub:pretrained", {"model_id": str(base)}
    few, lora = 6 if quick else 40, {"lora_rank": 4, "convolutions": True}

    def grpo() -> LitVLM:
        sampler = HFSampler(chat.tokenizer, grammar.longest_tokens, 1.0, grammar.processor)
        rewards = Rewards({"fields": 1.0}, settings={"schema": NODULE})
        return LitGRPO(model, args, lora=lora, group=4, reuse=2).use(rewards, sampler)

    def work(
        run_dir: Path, kill: Kill | None = None, *, make: Any, steps: int, **data: Any
    ) -> LitVLM:
        return reports.train(
            path, run_dir, seed=3, steps=steps, make=make, every=3, kill=kill, chat=chat, **data
        )

    def one(make: Any, steps: int = few, **data: Any) -> tuple[Callable[..., LitVLM], int]:
        return lambda run, kill=None: work(run, kill, make=make, steps=steps, **data), steps

    return {
        "all weights": one(None, 6 if quick else reports.STEPS),
        "LoRA": one(lambda: LitVLM(model, args, lora=lora, total_steps=few)),
        "DPO": one(lambda: LitDPO(model, args, lora=lora, total_steps=few), pairs=True),
        "GRPO": one(grpo, 6 if quick else 16, batch_size=8),
    }


def main() -> int:
    """Print the figures."""
    report = Report(__doc__)
    torch.set_num_threads(1)
    quick = report.quick
    count, held, seeds = (400, 60, 2) if quick else (4000, 400, 5)
    steps = 30 if quick else reports.STEPS
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        path = reports.studies(folder, count)
        asked = reports.held_out(reports.studies(folder, held, first=20000))
        found, falls = [], []
        for seed in range(seeds):
            model, took, _ = trained(
                lambda run, seed=seed: reports.train(path, run, seed=seed, steps=steps),  # type: ignore[misc]
                folder,
                f"seed{seed}",
            )
            own, fall = judged(model, asked)
            found.append({name: value.value for name, value in own.metrics().items()})
            falls.append(fall)
            worst = min(found[-1][name] for name in NODULE.names)
            report.figure(f"seed {seed}/worst field", worst, at_least=0.9)
            report.figure(f"seed {seed}/CPU seconds", took, at_most=120, unit="s")
        for name in found[0]:
            value = mean_over_seeds([one[name] for one in found])
            values = [one[name] for one in found]
            limits = (min(values), max(values))
            report.figure(f"over seeds/{name}", value.value, limits, peers="range, not an interval")
        _blind(report, folder, path, asked, falls, quick)
        _exact(report, folder, recipes(path, folder / "seed0.model", quick))
    return report.finish()


def _blind(
    report: Report,
    folder: Path,
    path: Path,
    asked: Sequence[Conversation],
    falls: Sequence[Metric],
    quick: bool,
) -> None:
    own = reports.held_out(path)
    grey = replace(own[0]).images
    planted = {
        "another's pictures": (swapped(own, seed=5), reports.FACTORY),
        "one picture for all": ([replace(one, images=grey) for one in own], reports.FACTORY),
        "a dead aligner": (own, DEAD),
    }
    flagged = 0
    for name, (some, kind) in planted.items():
        data = folder / f"{name.replace(' ', '-')}.jsonl"
        write_conversations(data, some)

        steps = 10 if quick else 300

        def make(kind: str = kind, steps: int = steps) -> LitVLM:
            args, freeze = {"vocabulary": len(reports.encoder().tokenizer)}, {}
            if kind == DEAD:
                freeze = {"freeze_aligner": True}
            return LitVLM(kind, args, freeze=freeze, total_steps=steps)

        def work(run: Path, data: Path = data, make: Any = make, steps: int = steps) -> LitVLM:
            return reports.train(data, run, seed=1, steps=steps, make=make)

        model, _, _ = trained(work, folder, data.stem)
        scores, fall = judged(model, asked, grammar=False)
        assert fall.low is not None
        assert fall.high is not None
        flagged += fall.low <= 0
        report.figure(f"blind: {name}/fall", fall.value, (fall.low, fall.high))
        report.figure(f"blind: {name}/valid", float(scores.valid.mean()))
        report.figure(f"blind: {name}/exact", float(scores.exact.mean()))
    report.share("blind/flagged", flagged, len(planted), at_least=1.0)
    sighted = sum(fall.low is not None and fall.low > 0 for fall in falls)
    for number, fall in enumerate(falls):
        limits = (fall.low or 0.0, fall.high or 0.0)
        report.figure(f"sighted: seed {number}/fall", fall.value, limits)
    report.share("sighted/not flagged", sighted, len(falls), at_least=1.0)


def _exact(
    report: Report, folder: Path, each: dict[str, tuple[Callable[..., LitVLM], int]]
) -> None:
    for name, (train, steps) in each.items():
        stem = name.replace(" ", "-")
        whole, again, cut = (folder / f"{stem}-{what}" for what in ("whole", "again", "cut"))
        until_done(train, whole, [])
        until_done(train, again, [])
        kills = [Kill("batch_end", 2 * steps // 5), Kill("backward", max(1, steps // 4))]
        happened = until_done(train, cut, kills)
        apart = differing(outcome(whole), outcome(again))
        report.share(f"{name}/rerun, bits equal", 0 if apart else 1, 1, at_least=1.0)
        later = differing(outcome(whole), outcome(cut))
        report.share(f"{name}/resumed, bits equal", 0 if later else 1, 1, at_least=1.0)
        report.note(f"{name}: {happened} kills; different: {apart + later or 'nothing'}")


if __name__ == "__main__":
    sys.exit(main())
