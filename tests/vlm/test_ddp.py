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

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
from medkit.data.chat import ChatEncoder
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.model import LitVLM
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

folder, processes, lora = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "lora"

class Seen(pl.Callback):
    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, lit, batch, *_):
        self.rows.append(batch["row"].tolist())

tokenizer = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
dm = ReportDataModule(
    folder.parent / "train.jsonl", ChatEncoder(tokenizer, tutorial_pictures), batch_size=8
)
run = start_run(folder, seed=0)
args = {"vocabulary": len(tokenizer), "hidden": 32, "layers": 1}
with run.init("fit"):
    adapted = {"lora": {"groups": ["llm"], "lora_rank": 4, "lora_dropout": 0.0}}
    what = adapted if lora else {"freeze": {"freeze_vit": True}}
    lit = LitVLM("medkit.vlm.tutorial:tutorial_model", args, **what)
before = {n: v.clone() for n, v in lit.model.named_parameters()}
seen = Seen()
trainer = stable_trainer(
    run, max_epochs=2, callbacks=[seen], accelerator="cpu", devices=processes,
    strategy="ddp" if processes > 1 else "auto", enable_progress_bar=False, gradient_clip_val=1.0,
    accumulate_grad_batches=2 // processes,
)
trainer.fit(lit, keyed(dm), ckpt_path=run.resume("fit"))
values = dict(lit.model.named_parameters())
(folder.parent / f"{processes}-{trainer.global_rank}.json").write_text(json.dumps({
    "rows": seen.rows,
    "weights": {n: v.double().flatten().tolist() for n, v in values.items()},
    "moved": sorted({lit.groups[n] for n, v in values.items() if not (v == before[n]).all()}),
    "val": {n: v.item() for n, v in trainer.callback_metrics.items()},
    "steps": trainer.global_step,
}))
run.finish()
"""


def trained(folder: Path, processes: int, kind: str) -> list[dict[str, Any]]:
    """Train in a process, or two, and return what each of them saw and has."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder / f"run{processes}"), str(processes), kind]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{processes}-{n}.json").read_text()) for n in range(processes)]


@pytest.mark.parametrize("kind", ["freeze", "lora"])
def test_two_processes_do_what_one_does_that_gathers_two_batches(kind: str, tmp_path: Path) -> None:
    write_reports(tmp_path, make_studies(72))  # an even number of batches an epoch
    (one,) = trained(tmp_path, 1, kind)
    first, second = trained(tmp_path, 2, kind)
    assert first["weights"] == second["weights"]
    assert first["moved"] == second["moved"] == one["moved"]
    assert "vision" not in one["moved"]
    both = [rows for pair in zip(first["rows"], second["rows"], strict=True) for rows in pair]
    assert both == one["rows"]
    assert first["steps"] == one["steps"] == len(first["rows"])
    for name, values in one["weights"].items():
        assert first["weights"][name] == pytest.approx(values, rel=1e-4, abs=1e-6), name
    assert first["val"] == pytest.approx(one["val"], rel=1e-4)
