"""A small training with one thing in it that does not repeat: ``python _planted.py BUG RUN_DIR``.

Each bug is one that trainings have in earnest; ``BUGS`` says what a certificate must blame for it.
"""

from __future__ import annotations

import datetime
import logging
import os
import random
import sys
import threading
import time
import uuid
import warnings
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, library, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medkit import keyed as keys
from medkit.trainer import keyed, stable_trainer, start_run

for _name in ("pytorch_lightning", "lightning", "medkit"):
    logging.getLogger(_name).setLevel(logging.ERROR)

ORDER, SETUP, AUGMENTATION = "data order", "data set-up", "augmentation"
INIT, DRAWS, UNWRITTEN = "initial weights", "draws in the step", "uninitialised memory"
FORWARD, BACKWARD, STEPPER = "operation (forward)", "operation (backward)", "optimizer"
BUGS = {
    "none": "",
    "generator made in __getitem__": AUGMENTATION,
    "private generator no key finds": AUGMENTATION,
    "wall clock in augmentation": AUGMENTATION,
    "os.urandom in augmentation": AUGMENTATION,
    "set order by PYTHONHASHSEED": ORDER,
    "order by id()": ORDER,
    "os.listdir order": ORDER,
    "two threads fill a list": ORDER,
    "random split in __init__": SETUP,
    "net outside run.init": INIT,
    "uuid in the step": DRAWS,
    "dropout from its own generator": DRAWS,
    "two threads add floats": DRAWS,
    "torch.empty read": UNWRITTEN,
    "sum in random order": FORWARD,
    "atomic add in backward": BACKWARD,
    "noise in the optimizer": STEPPER,
    "thread count 1 against 2": "thread count",
}
SAMPLES = 48
NAMES = [f"patient-{number:02}" for number in range(SAMPLES)]


class Hidden:
    """A generator behind slots and a function: nothing that walks over attributes finds it."""

    __slots__ = ("_draw",)

    def __init__(self) -> None:
        numbers = np.random.default_rng()
        self._draw = iter(lambda: numbers.normal(), None)

    def __call__(self) -> float:
        """Draw one number."""
        return next(self._draw)


class Images(Dataset[tuple[Tensor, int]]):
    """Made-up images in the order of ``names``."""

    def __init__(self, bug: str) -> None:
        self.bug = bug
        self.images = keys.generator(0, "planted").normal(size=(SAMPLES, 1, 12, 12))
        self.names = _names(bug)
        if bug == "random split in __init__":
            chosen = np.random.default_rng().permutation(SAMPLES)[:40]
            self.names = [NAMES[number] for number in sorted(chosen)]
        self.hidden = Hidden()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image with noise, and its class."""
        number = int(self.names[index][-2:])
        noise = 0.0 if self.bug in _NO_NOISE else np.random.normal()  # noqa: NPY002 - what people write
        if self.bug == "generator made in __getitem__":
            noise = np.random.default_rng().normal()
        elif self.bug == "private generator no key finds":
            noise = self.hidden()
        elif self.bug == "wall clock in augmentation":
            noise = time.time() % 1.0
        elif self.bug == "os.urandom in augmentation":
            noise = os.urandom(1)[0] / 256
        return torch.tensor(self.images[number] + 0.1 * noise).float(), number % 2


# noise by position: another order would be other samples
_NO_NOISE = ("set order by PYTHONHASHSEED", "order by id()", "os.listdir order")
_NO_NOISE += ("two threads fill a list",)


class _Patient:
    def __init__(self, name: str) -> None:
        self.name = name


def _names(bug: str) -> list[str]:
    if bug == "set order by PYTHONHASHSEED":
        return list(set(NAMES))
    if bug == "order by id()":
        patients = [_Patient(name) for name in NAMES]
        return [patient.name for patient in set(patients)]  # they are hashed by their addresses
    if bug == "os.listdir order":
        # stands for a folder that another file system lists otherwise
        listed = list(NAMES)
        random.SystemRandom().shuffle(listed)
        return listed
    if bug == "two threads fill a list":
        found: list[str] = []

        def read(names: list[str]) -> None:
            for name in names:
                time.sleep(random.SystemRandom().random() / 500)  # a disk takes its time
                found.append(name)

        readers = [threading.Thread(target=read, args=(NAMES[k::2],)) for k in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return found
    return NAMES


@library.custom_op("planted::sum_in_some_order", mutates_args=())
def sum_in_some_order(x: Tensor) -> Tensor:
    """Add rows up in an order that nobody fixed, as atomic additions on a GPU do."""
    order = list(range(len(x)))
    random.SystemRandom().shuffle(order)
    total = torch.zeros_like(x[0])
    for number in order:
        total += x[number]
    return total


class MeanOverBatch(torch.autograd.Function):
    """The identity; its backward adds a mean that is summed in some order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return the input."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient less its mean."""
        (grad,) = grads
        return grad - sum_in_some_order(grad) / len(grad)


class Net(pl.LightningModule):
    """Two layers with BatchNorm and dropout."""

    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug = bug
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(600, 2)
        self.strange = iter(torch.Generator().seed, None)  # anew from the operating system

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss, which the bug may reach."""
        x = self.dropout(self.features(batch[0]).flatten(1))
        if self.bug == "uuid in the step":
            x = x * (1 + (uuid.uuid4().int % 7) * 1e-3)
        elif self.bug == "dropout from its own generator":
            own = torch.Generator().manual_seed(next(self.strange))
            x = x * torch.empty_like(x).bernoulli_(0.9, generator=own)
        elif self.bug == "two threads add floats":
            x = x * (1 + _race())
        elif self.bug == "torch.empty read":
            x = x + _unwritten(x)
        elif self.bug == "sum in random order":
            x = x - sum_in_some_order(x.detach()) / len(x)
        elif self.bug == "atomic add in backward":
            x = MeanOverBatch.apply(x)  # type: ignore[no-untyped-call]
        return F.cross_entropy(self.head(x), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, or SGD with noise of its own."""
        if self.bug == "noise in the optimizer":
            return NoisySGD(self.parameters(), lr=1e-2)
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class NoisySGD(torch.optim.SGD):
    """A step whose length hangs on the microsecond."""

    def step(self, closure: Any = None) -> Any:
        """Step."""
        loss = closure() if closure is not None else None
        self.param_groups[0]["lr"] = 1e-2 * (1 + datetime.datetime.now().microsecond * 1e-9)
        super().step()
        return loss


def _race() -> float:
    """Add floats up in two threads, each in its own time."""
    total = [1e-3]

    def add(parts: list[float]) -> None:
        for part in parts:
            time.sleep(random.SystemRandom().random() / 2000)
            total[0] = total[0] * (1 + 1e-3) + part

    adders = [threading.Thread(target=add, args=([1e-2 * k, 1e-3],)) for k in (1, 2)]
    for adder in adders:
        adder.start()
    for adder in adders:
        adder.join()
    return total[0]


def _unwritten(x: Tensor) -> Tensor:
    """Return memory as it is found, after something that hangs on the address was in it."""
    used = x.detach().clone()
    used.numpy()[:] = id(used) % 9973
    del used
    return torch.empty_like(x).nan_to_num(0, 0, 0).clamp(-1e4, 1e4) * 1e-6


def main(bug: str, run_dir: str) -> None:
    """Train for two epochs."""
    run = start_run(run_dir, seed=5, threads=1)
    if bug == "thread count 1 against 2":
        first = Path(run_dir).name.endswith("-0")
        torch.set_num_threads(1 if first else 2)  # what a scheduler gives, or not
    if bug == "net outside run.init":
        torch.rand(1 + os.urandom(1)[0])  # an earlier cell, run now and then
        net = Net(bug)
    else:
        with run.init("fit"):
            net = Net(bug)
    trainer = stable_trainer(
        run,
        max_epochs=2,
        checkpoint_every_s=None,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(net, keyed(DataLoader(Images(bug), 8, shuffle=True)))


if __name__ == "__main__":
    main(*sys.argv[1:])
