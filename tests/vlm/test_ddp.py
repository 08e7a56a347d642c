"""Two processes train one image-text model: same weights, and the samples of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.synth.reports import make_studies, write_reports

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
from pytorch_lightning.strategies import ModelParallelStrategy
from medkit.data.chat import ChatEncoder
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.model import LitVLM
from medkit.vlm.sharding import whole
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

folder, processes, kind, strategy = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]

class Seen(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, lit, batch, *_):
        self.rows.append(batch["row"].tolist())

tokenizer = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
dm = ReportDataModule(
    folder.parent / "train.jsonl", ChatEncoder(tokenizer, tutorial_pictures),
    batch_size=16 // processes,
)
run = start_run(folder, seed=0)
args = {"vocabulary": len(tokenizer), "hidden": 32, "layers": 1}
adapted = {"lora": {"groups": ["llm"], "lora_rank": 4, "lora_dropout": 0.0}}
what = adapted if kind == "lora" else {"freeze": {"freeze_vit": True}}

def fresh():
    with run.init("fit"):
        return LitVLM("medkit.vlm.tutorial:tutorial_model", args, **what)

lit, seen = fresh(), Seen()
before = {n: v.clone() for n, v in lit.model.named_parameters()}
settings = dict(
    callbacks=[seen], accelerator="cpu", devices=processes, enable_progress_bar=False,
    gradient_clip_val=1.0,
)
if strategy == "fsdp2":  # a plain Trainer: the kit's resume does not read spread weights
    settings |= {"use_distributed_sampler": False, "logger": False, "enable_checkpointing": False}
    for epoch in (1, 2):  # the second goes on from the checkpoint of the first
        spread = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = pl.Trainer(max_epochs=epoch, strategy=spread, **settings)
        lit, last = fresh(), folder / f"{epoch - 1}.ckpt"
        trainer.fit(lit, keyed(dm), ckpt_path=last if last.exists() else None)
        trainer.save_checkpoint(folder / f"{epoch}.ckpt")
else:
    trainer = stable_trainer(run, max_epochs=2, strategy=strategy, **settings)
    trainer.fit(lit, keyed(dm), ckpt_path=run.resume("fit"))
values = {n: whole(v.detach()) for n, v in lit.model.named_parameters()}
(folder.parent / f"{processes}-{trainer.global_rank}.json").write_text(json.dumps({
    "rows": seen.rows,
    "weights": {n: v.double().flatten().tolist() for n, v in values.items()},
    "moved": sorted({lit.groups[n] for n, v in values.items() if not (v == before[n]).all()}),
    "val": {n: v.item() for n, v in trainer.callback_metrics.items()},
    "steps": trainer.global_step,
}))
run.finish()
"""


def trained(folder: Path, processes: int, kind: str, strategy: str) -> list[dict[str, Any]]:
    """Train in a process, or two, and return what each of them saw and has."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    run = folder / f"run{processes}"
    command = [sys.executable, str(script), str(run), str(processes), kind, strategy]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{processes}-{n}.json").read_text()) for n in range(processes)]


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("freeze", "ddp"),
        pytest.param("lora", "ddp", marks=pytest.mark.slow),
        pytest.param("freeze", "fsdp2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_do_what_one_does_with_batches_twice_as_large(
    kind: str, strategy: str, tmp_path: Path
) -> None:
    write_reports(tmp_path, make_studies(72))  # an even number of small batches an epoch
    (one,) = trained(tmp_path, 1, kind, "auto")
    first, second = trained(tmp_path, 2, kind, strategy)
    assert first["weights"] == second["weights"]
    assert first["moved"] == second["moved"] == one["moved"]
    assert "vision" not in one["moved"]
    both = zip(first["rows"], second["rows"], strict=True)
    assert [own + other for own, other in both] == one["rows"]
    assert first["steps"] == one["steps"] == len(one["rows"])
    for name, values in one["weights"].items():
        assert first["weights"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert first["val"]["val/loss"] == pytest.approx(one["val"]["val/loss"], rel=1e-4)
