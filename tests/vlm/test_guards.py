"""Guards cut a batch of conversations where its pictures are not one a conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra vlm is not installed")

import pytorch_lightning as pl

from medkit.callbacks.guard_rows import take, without
from medkit.callbacks.memory_guard import MemoryGuard
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.data.chat import ChatEncoder
from medkit.data.encoded import padded
from medkit.data.reports import ReportDataModule
from medkit.vlm import hub
from medkit.vlm.model import LitVLM
from tests.vlm.checkpoints import checkpoint, conversations

FAMILIES = ["qwen2_5_vl", "smolvlm"]  # patches one behind the other; pictures by conversation


class Tight(LitVLM):
    """A model that has no room for more than some conversations, and forgets nothing of a step."""

    most = 4
    gradient: Tensor
    data: ReportDataModule

    def loss_terms(self, batch: Any) -> tuple[Tensor, float]:
        if self.training and len(batch["input_ids"]) > self.most:
            raise torch.OutOfMemoryError("no room")
        return super().loss_terms(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad.flatten() for p in self.model.parameters() if p.grad is not None]
        self.gradient = torch.cat(grads) if grads else torch.zeros(0)


@pytest.fixture(scope="module", params=FAMILIES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(request.param, tmp_path_factory.mktemp(request.param))


def step(
    path: Path,
    pictures: Path,
    guard: pl.Callback,
    *,
    most: int = 4,
    poisoned: bool = False,
    epochs: int = 1,
) -> Tight:
    """Train a step an epoch on four conversations with one to three pictures."""
    encoder = hub.encoder(model_id=str(path))
    some = [*conversations(pictures), *conversations(pictures)]
    dm = ReportDataModule(
        some, encoder, batch_size=4, patient=None, val_fraction=0.25, test_fraction=0.25
    )
    dm.setup()
    if poisoned:
        dm.dataset.encoded[_worst(dm)][0].pictures["pixel_values"].fill_(torch.nan)
    lit = Tight("medkit.vlm.hub:pretrained", {"model_id": str(path)})
    lit.most, lit.data = most, dm
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=epochs,  logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[guard],
    )  # fmt: skip
    trainer.fit(lit, dm)
    return lit


def test_a_batch_in_parts_has_the_gradient_of_the_whole(path: Path, tmp_path: Path) -> None:
    whole = step(path, tmp_path, MemoryGuard())
    guard = MemoryGuard()
    parts = step(path, tmp_path, guard, most=1)
    assert guard.samples == 1
    assert not guard._reasons
    error = (parts.gradient - whole.gradient).norm() / whole.gradient.norm()
    assert error < 1e-6
    assert whole.gradient.norm() > 0


def test_the_conversation_with_a_picture_that_is_not_a_number_is_set_aside(
    path: Path, tmp_path: Path
) -> None:
    guard = SpikeGuard()
    lit = step(path, tmp_path, guard, poisoned=True, epochs=2)
    assert guard.policy.set_aside.keys() == {_worst(lit.data)}
    assert guard.policy.replaced == 1  # in the second epoch
    assert all(torch.isfinite(value).all() for value in lit.model.parameters())


def _worst(dm: ReportDataModule) -> int:
    """Return the training row with most pictures."""
    return max(dm.rows("train"), key=lambda row: len(dm.conversations[row].images))


def test_a_part_holds_the_pictures_of_its_conversations(path: Path, tmp_path: Path) -> None:
    encoder: ChatEncoder = hub.encoder(model_id=str(path))
    some = [encoder.encode(one) for one in conversations(tmp_path)]
    batch = padded(some, 0) | {"row": torch.arange(4)}
    for index in ([0, 1], [2], [3, 0]):
        part = take(batch, index, 4)
        alone = padded([some[at] for at in index], 0)
        for name in alone:
            if name in some[0].pictures and part[name].ndim < 4:
                assert torch.equal(part[name], alone[name])
            elif name in some[0].pictures:  # filled up for the conversation that has most
                filled = part[name][:, alone[name].shape[1] :]
                assert torch.equal(part[name][:, : alone[name].shape[1]], alone[name])
                assert not filled.any()
    again = without(batch, [0, 1, 2, 3], {2}, seed=0)
    assert len(again["row"]) == 4
    assert 2 not in again["row"]
    own = again["pixel_values_rows"].sum()
    assert len(again["pixel_values"]) == own


def test_conversations_without_pictures_are_taken_without_any() -> None:
    pixels = torch.arange(3.0)[:, None]
    batch = {
        "input_ids": torch.arange(8).view(4, 2), "pixel_values": pixels,
        "pixel_values_rows": torch.tensor([0, 2, 0, 1]),
    }  # fmt: skip
    assert "pixel_values" not in take(batch, [0, 2], 4)
    assert take(batch, [3, 1, 1], 4)["pixel_values"].flatten().tolist() == [2, 0, 1, 0, 1]
    pairs = {"chosen": batch, "rejected": batch}
    assert take(pairs, [1], 4)["rejected"]["pixel_values"].flatten().tolist() == [0, 1]
