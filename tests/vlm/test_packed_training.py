from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("transformers", reason="the extra vlm is not installed")

import pytorch_lightning as pl

from medkit.callbacks.guard_rows import take
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, Turn, read_conversations
from medkit.data.encoded import PACKING
from medkit.data.reports import ReportDataModule
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm import model as vlm_model
from medkit.vlm.model import LitVLM
from medkit.vlm.packs import packed_for, require_exact_packing
from medkit.vlm.tutorial import tutorial_pictures
from tests.vlm.test_model import SMALL, TOKENIZER, Stop, bits, same

ENCODER = ChatEncoder(TOKENIZER, tutorial_pictures)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Conversation]:
    """Short answers, and a few long ones."""
    path = write_reports(tmp_path_factory.mktemp("reports"), make_studies(120))
    found, draw = read_conversations(path), np.random.default_rng(0)
    longer = np.clip(draw.lognormal(3, 1.2, len(found)), 0, 200).astype(int).tolist()
    return [
        replace(one, turns=(*one.turns[:-1], Turn("assistant", one.answer + "a" * more)))
        for one, more in zip(found, longer, strict=True)
    ]


def data(reports: Sequence[Conversation], **settings: Any) -> ReportDataModule:
    found = {"packing": True, "packing_length": 256, "batch_size": 12, **settings}
    dm = ReportDataModule(reports, ENCODER, **found)
    dm.setup()
    return dm


def one_step(lit: LitVLM, dm: ReportDataModule) -> None:
    pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, accelerator="cpu",
    ).fit(lit, dm)  # fmt: skip


def gradient(lit: LitVLM, batch: dict[str, Any]) -> tuple[float, torch.Tensor]:
    lit.zero_grad()
    total, _ = lit.loss_terms(batch)
    total.backward()  # type: ignore[no-untyped-call]
    return float(total), torch.cat(
        [p.grad.flatten() for p in lit.parameters() if p.grad is not None]
    )


def test_packed_training_has_the_loss_and_gradient_of_padded_batches(reports: Any) -> None:
    lit = LitVLM(**SMALL).double()
    batch = next(iter(keyed(data(reports), seed=0).train_dataloader()))
    batch["pixel_values"] = batch["pixel_values"].double()
    packed_loss, packed_gradient = gradient(lit, batch)
    rows = packed_for(lit.model, batch, longest=256)["input_ids"].shape
    assert rows[0] < len(batch["row"])
    assert rows.numel() < batch["input_ids"].numel()
    del batch[PACKING]
    loss, whole = gradient(lit, batch)
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(packed_gradient, whole, rtol=1e-5, atol=1e-6)


def test_a_guard_can_take_conversations_out_of_a_packed_batch(reports: Any) -> None:
    lit = LitVLM(**SMALL, freeze={"freeze_vit": True}).double().eval()
    batch = next(iter(keyed(data(reports), seed=0).train_dataloader()))
    batch["pixel_values"] = batch["pixel_values"].double()
    size = len(batch["row"])
    parts = [take(batch, range(3), size), take(batch, range(3, size), size)]
    sums = [lit.loss_terms(part) for part in (batch, *parts)]
    assert float(sums[0][0]) == pytest.approx(float(sums[1][0] + sums[2][0]), rel=1e-6)
    assert sums[0][1] == sums[1][1] + sums[2][1]


def fitted(reports: Any, folder: Path, *, stop: int | None = None) -> LitVLM:
    run = start_run(folder, seed=0)
    dm = keyed(ReportDataModule(reports, ENCODER, batch_size=12, packing=True, packing_length=256))
    with run.init("fit"):
        lit = LitVLM(**SMALL, total_steps=12)
    trainer = stable_trainer(
        run, max_epochs=-1, max_steps=9, enable_progress_bar=False, gradient_clip_val=1.0,
        checkpoint_every_n_steps=3, callbacks=[] if stop is None else [Stop(stop)],
    )  # fmt: skip
    trainer.fit(lit, dm, ckpt_path=run.resume("fit"))
    return lit


def test_a_fit_that_is_resumed_is_the_same_to_the_bit(reports: Any, tmp_path: Path) -> None:
    whole = bits(fitted(reports, tmp_path / "whole"))
    with pytest.raises(RuntimeError, match="crashed"):
        fitted(reports, tmp_path / "parts", stop=5)
    assert same(bits(fitted(reports, tmp_path / "parts")), whole) == set(whole)


def test_batches_are_keyed_and_differ_between_epochs(reports: Any) -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        loader = keyed(data(reports), seed=seed).train_dataloader()
        loader.set_epoch(epoch)
        return [batch["row"].tolist() for batch in loader]

    torch.manual_seed(1)
    first = rows(3, 0)
    torch.manual_seed(2)
    assert rows(3, 0) == first
    assert rows(4, 0) != first != rows(3, 1)


def test_other_workers_give_the_same_batches(reports: Any) -> None:
    alone = data(reports).train_dataloader()
    shared = DataLoader(
        alone.dataset, batch_sampler=alone.batch_sampler, collate_fn=alone.collate_fn, num_workers=2
    )
    first, second = ([b["input_ids"] for b in keyed(one, seed=3)] for one in (alone, shared))
    assert len(first) == len(second) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_model_is_asked_once_whether_packing_is_exact(
    reports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def ask(model: Any, batch: Any, *, longest: int) -> None:
        asked.append(require_exact_packing(model, batch, longest=longest))

    monkeypatch.setattr(vlm_model, "require_exact_packing", ask)
    dm, lit = data(reports), LitVLM(**SMALL)
    one_step(lit, dm)
    one_step(lit, dm)
    assert len(asked) == 1


def test_a_model_for_which_it_is_not_is_refused_before_a_step(reports: Any) -> None:
    lit = LitVLM(**SMALL)
    lit.model.model.language_model.layers[0].self_attn.is_causal = False
    hooked = lit.model.register_forward_pre_hook(_sees_all, with_kwargs=True)
    before = bits(lit)
    with pytest.raises(ValueError, match="packed conversations must be what they are alone"):
        one_step(lit, data(reports))
    assert same(bits(lit), before) == set(before)
    hooked.remove()


def _sees_all(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if kwargs["attention_mask"].ndim == 4:  # a mask that a library overlooks
        kwargs["attention_mask"] = torch.ones_like(kwargs["input_ids"])
    return args, kwargs


def test_it_declines_where_packing_does_not_pay(
    reports: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pytorch_lightning"), "propagate", True)
    dm = data(reports, packing="auto")
    assert PACKING in next(iter(dm.train_dataloader()))
    assert dm.plan is not None
    assert f"packed: {dm.plan}" in caplog.text
    even = [replace(one, turns=(*one.turns[:-1], Turn("assistant", "a" * 30))) for one in reports]
    dm = data(even, packing="auto")
    batch = next(iter(dm.train_dataloader()))
    assert PACKING not in batch
    assert len(batch["row"]) == 12
    assert f"sorted by length: {dm.plan}" in caplog.text
    assert PACKING in next(iter(data(even).train_dataloader()))  # where one insists
    assert f"packed: {dm.plan}" in caplog.text


def test_batches_by_length_waste_less(reports: Any) -> None:
    def waste(packing: bool | str) -> float:
        batches = list(data(reports, packing=packing).train_dataloader())
        there = sum(int(batch["attention_mask"].sum()) for batch in batches)
        return 1 - there / sum(batch["attention_mask"].numel() for batch in batches)

    assert waste("by_length") < 0.5 * waste(False)


def test_wrong_settings_are_refused(reports: Any) -> None:
    with pytest.raises(ValueError, match=r'packing must be True, False, "auto" or "by_length"'):
        data(reports, packing="always")
    with pytest.raises(ValueError, match="and False for pairs"):
        data(reports, pairs=True)
    with pytest.raises(ValueError, match="Pass a greater length of a row"):
        data(reports, packing_length=64).train_dataloader()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="no flash-attn")
def test_flash_attention_packs_without_a_mask(reports: Any) -> None:
    lit = LitVLM(**SMALL).to("cuda", torch.bfloat16)
    lit.model.set_attn_implementation({"text_config": "flash_attention_2"})
    batch = next(iter(data(reports).train_dataloader()))
    there = {k: v.to("cuda") if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    there["pixel_values"] = there["pixel_values"].bfloat16()
    assert "attention_mask" not in packed_for(lit.model, there, longest=256)
    assert require_exact_packing(lit.model, there, longest=256) < 0.1
