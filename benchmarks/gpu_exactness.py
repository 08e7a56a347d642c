"""On an accelerator: a 3-D conv net, killed by SIGKILL and resumed, in the bits of the whole run?

In float32, bfloat16 and float16 (mixed), with BatchNorm, dropout and augmentation on the device.
Every training is a process of its own, as the state of a device does not outlive a fork. Where
torch sees no accelerator this says so and ends with 0. MEDKIT_ACCELERATOR=cpu tries the script
itself out, without float16.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from _kills import Kill, KillAt, differing, outcome
from report import Report
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medkit import keyed as keys
from medkit.trainer import keyed, stable_trainer, start_run

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SEED, ROWS, BATCH, EPOCHS, SIDE = 7, 96, 8, 3, 32
STUCK_S = 180


class Volumes(Dataset[tuple[Tensor, Tensor]]):
    """Made-up volumes, made noisy again at every fetch."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        fixed = keys.torch_generator(0, "synth", row)
        volume = torch.randn(1, SIDE, SIDE, SIDE, generator=fixed) + 0.1 * (row % 2)
        return volume + 0.1 * torch.randn_like(volume), torch.tensor(row % 2)


class Data(pl.LightningDataModule):
    """Two workers fetch the training volumes."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled."""
        return DataLoader(Volumes(), BATCH, shuffle=True, num_workers=2)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(Volumes(), BATCH)


class Lit3D(pl.LightningModule):
    """Three 3-D convolutions; the batch is flipped and made noisy once it is on the device."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64)):
            layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.BatchNorm3d(after)]
            layers += [nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 2))

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Any:
        """Draw on the device."""
        volume, y = batch
        if self.trainer.training:
            volume = volume + 0.1 * torch.randn_like(volume)
            volume = torch.where(torch.rand((), device=volume.device) < 0.5, volume.flip(2), volume)
        return volume, y

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self.head(self.net(batch[0]).mean(dim=(2, 3, 4))), batch[1])

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Log the running mean, whose sum lives on the device."""
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=BATCH)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Log the loss."""
        self.log("val/loss", self.loss(batch), batch_size=BATCH)

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(run_dir: Path, precision: Any, kill: Kill | None) -> None:
    """Train in this process, from the start or from where a kill left it."""
    run = start_run(run_dir, seed=SEED)
    with run.init("fit"):
        module = Lit3D()
    trainer = stable_trainer(
        run,
        max_epochs=EPOCHS,
        precision=precision,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        checkpoint_every_n_steps=2,
        enable_progress_bar=False,
        log_every_n_steps=1,
        callbacks=[KillAt(kill)],
    )
    trainer.fit(module, keyed(Data()), ckpt_path=run.resume("fit"))
    run.metrics({f"end/{name}": float(value) for name, value in trainer.callback_metrics.items()})
    run.finish()


def main() -> int:
    """Print the figures; 1 when a bar falls short."""
    report = Report(__doc__)
    tried_out = os.environ.get("MEDKIT_ACCELERATOR") == "cpu"
    if not tried_out and not torch.accelerator.is_available():
        report.note("NOT RUN: torch sees no accelerator on this machine; nothing is known here")
        return report.finish()
    device = "cpu, to try the script out" if tried_out else _device_name()
    report.note(f"device: {device}")
    folder = Path(tempfile.mkdtemp(prefix="gpu-exactness-"))
    try:
        for precision in PRECISIONS[: 2 if tried_out else None]:
            _one_precision(report, folder / precision, precision)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _one_precision(report: Report, folder: Path, precision: str) -> None:
    folder.mkdir()
    rng = random.Random(precision)
    _run(folder / "whole", precision)
    _run(folder / "again", precision)
    whole = outcome(folder / "whole")
    repeats = not differing(whole, outcome(folder / "again"))
    report.share(f"gpu/{precision}/two whole runs bitwise", int(repeats), 1, at_least=1.0)
    batches = EPOCHS * ROWS // BATCH
    count = equal = 0
    for number in range(1 if report.quick else 4):
        place = ("batch_end", "backward", "validation", "batch_start")[number]
        moment = rng.randint(4, batches)
        if _run(folder / str(number), precision, place, str(moment)) != -signal.SIGKILL:
            continue
        _run(folder / str(number), precision)
        found = differing(whole, outcome(folder / str(number)))
        count, equal = count + 1, equal + (not found)
        if found:
            report.note(f"{precision}: after {place} {moment} there differ {found}")
    report.share(f"gpu/{precision}/resumed bitwise", equal, count, at_least=1.0)


def _run(run_dir: Path, precision: str, *kill: str) -> int:
    command = [sys.executable, __file__, "--train", str(run_dir), precision, *kill]
    log = run_dir.with_name(run_dir.name + ".log")
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with log.open("a") as out:
        code = subprocess.run(
            command,
            stdout=out,
            stderr=out,
            timeout=STUCK_S,
            env=environment,
            start_new_session=True,
        ).returncode
    if code not in {0, -signal.SIGKILL}:
        raise RuntimeError(f"a training ended with {code}:\n{log.read_text()[-3000:]}")
    return code


def _device_name() -> str:
    device = torch.accelerator.current_accelerator()
    describe = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(describe()) if callable(describe) else str(device)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        _, _, _run_dir, _precision, *_kill = sys.argv
        train(Path(_run_dir), _precision, Kill(_kill[0], int(_kill[1])) if _kill else None)
    else:
        sys.exit(main())
