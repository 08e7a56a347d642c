from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.vlm.grpo import LitGRPO
from medkit.vlm.hub import encoder, pretrained
from medkit.vlm.model import LitVLM
from medkit.vlm.preference import LitDPO
from tests.vlm.families import EACH, llava

Build = Callable[[], Any]


@pytest.mark.parametrize("build", EACH)
def test_what_was_saved_comes_back(build: Build, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    model.save_pretrained(tmp_path)
    again = pretrained(model_id=str(tmp_path))
    assert type(again) is type(model)
    own = dict(model.named_parameters())
    assert {name for name, _ in again.named_parameters()} == set(own)
    for name, value in again.named_parameters():
        assert torch.equal(value, own[name])


def test_a_module_is_made_of_it_and_wakes_it_for_training(tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path)
    args = {"model_id": str(tmp_path), "dtype": "bfloat16"}
    lit = LitVLM("medkit.vlm.hub:pretrained", args, freeze={"freeze_vit": True})
    assert next(lit.model.parameters()).dtype == torch.bfloat16
    assert not lit.model.training  # as the library leaves it
    lit.frozen.set_modes()
    assert lit.model.model.language_model.training
    assert not lit.model.model.vision_tower.training


@pytest.mark.parametrize("kind", [LitDPO, LitGRPO])
def test_what_is_aligned_comes_back_from_its_checkpoint_with_all_settings(
    kind: Any, tmp_path: Path
) -> None:
    llava().save_pretrained(tmp_path)
    lora = {"groups": ["llm"], "lora_rank": 2}
    settings = {"lora": lora, "beta": 0.3, "total_steps": 7, "lr": 2e-3, "vit_lr": 1e-4}
    lit = kind("medkit.vlm.hub:pretrained", {"model_id": str(tmp_path)}, **settings, warmup=0.5)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(lit)
    trainer.save_checkpoint(tmp_path / "aligned.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "aligned.ckpt", weights_only=True)
    assert dict(again.hparams) == dict(lit.hparams)
    assert again.lr == {"llm": 2e-3, "vision": 1e-4, "aligner": 2e-3}
    assert (again.beta, again.total_steps, again.warmup) == (0.3, 7, 0.5)
    for name, value in lit.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    with pytest.raises(TypeError, match="unexpected keyword argument 'freeze'"):
        kind("medkit.vlm.hub:pretrained", {"model_id": str(tmp_path)}, freeze={})


def test_what_is_not_there_or_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        pretrained(model_id=str(tmp_path))
    with pytest.raises(ValueError, match=r"dtype must be one of .*got 'float64'"):
        pretrained(model_id=str(tmp_path), dtype="float64")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the text is the library's
        encoder(model_id=str(tmp_path / "nowhere"))
    assert "there is no folder of that name" in caught.value.__notes__[0]
    llava().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "pytorch_model.bin")  # a pickle
    with pytest.raises(OSError, match="safetensors"):
        pretrained(model_id=str(tmp_path))
