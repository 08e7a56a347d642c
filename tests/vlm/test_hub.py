from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra vlm is not installed")

from medkit.vlm.hub import pretrained
from medkit.vlm.model import LitVLM
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


def test_what_is_not_there_or_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        pretrained(model_id=str(tmp_path))
    with pytest.raises(ValueError, match=r"dtype must be one of .*got 'float64'"):
        pretrained(model_id=str(tmp_path), dtype="float64")
    llava().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "pytorch_model.bin")  # a pickle
    with pytest.raises(OSError, match="safetensors"):
        pretrained(model_id=str(tmp_path))
