from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="the extra vlm is not installed")
pytest.importorskip("pytorch_optimizer", reason="the extra galore is not installed")

from medkit.synth.reports import make_studies, write_reports
from medkit.vlm.galore import GaLore
from medkit.vlm.model import LitVLM
from tests.vlm.test_model import SMALL, bits, fitted, same

RANK: dict[str, Any] = {"galore_rank": 4, "galore_update_proj_gap": 5}  # not when resumed


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports"), make_studies(80))


def numbers(optimizer: torch.optim.Optimizer, value: nn.Parameter) -> int:
    own = optimizer.state[value]
    held = [*own.values(), *([own["projector"].ortho_matrix] if "projector" in own else [])]
    return sum(one.numel() for one in held if isinstance(one, torch.Tensor))


def test_matrices_are_projected_and_embeddings_are_not() -> None:
    lit = LitVLM(**SMALL, galore=RANK)
    optimizer: Any = lit.configure_optimizers()
    sum(value.square().sum() for value in lit.model.parameters()).backward()
    optimizer.step()
    named = dict(lit.model.named_parameters())
    for name in lit.projected:
        rows, columns = named[name].shape
        most = 2 * 4 * max(rows, columns) + 4 * max(rows, columns)
        assert numbers(optimizer, named[name]) <= most < 2 * named[name].numel()
    rest = set(named) - lit.projected
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= rest
    assert any("conv" in name or "layers.0.weight" in name for name in rest)
    assert all(numbers(optimizer, named[name]) == 2 * named[name].numel() for name in rest)


def test_what_is_frozen_is_not_projected() -> None:
    lit = LitVLM(**SMALL, galore=RANK, freeze={"freeze_llm": True})
    assert lit.projected
    assert {lit.groups[name] for name in lit.projected} == {"aligner"}


def test_what_is_not_projected_moves_as_under_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 9), nn.Linear(6, 9)
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(16, 6), torch.randn(16, 9)
    groups = [{"params": [*ours.parameters()], "lr": 1e-2, "weight_decay": 0.0}]
    one = GaLore(galore_rank=6).optimizer(groups, [])
    two = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0)
    for net, optimizer in ((ours, one), (theirs, two)):
        for _ in range(5):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-5)


def test_a_fit_that_is_resumed_is_the_same_to_the_bit(path: Path, tmp_path: Path) -> None:
    whole = bits(fitted(path, tmp_path / "whole", galore=RANK))
    with pytest.raises(RuntimeError, match="crashed"):
        fitted(path, tmp_path / "parts", stop=5, galore=RANK)
    assert same(bits(fitted(path, tmp_path / "parts", galore=RANK)), whole) == set(whole)
    plain = bits(fitted(path, tmp_path / "plain"))
    assert not torch.equal(
        plain["model.language_model.layers.0.mlp.up_proj.weight"],
        whole["model.language_model.layers.0.mlp.up_proj.weight"],
    )


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"galore has the keys .*found \['rank'\]"):
        GaLore.of({"rank": 4})
    with pytest.raises(ValueError, match="GaLore needs a galore_rank"):
        GaLore(galore_rank=0)
    with pytest.raises(ValueError, match="a galore_proj_type of"):
        GaLore(galore_proj_type="random")
    with pytest.raises(ValueError, match=r"above galore_rank 128; the sides .* are \[32\]"):
        LitVLM(**SMALL, galore={})
    with pytest.raises(ValueError, match="galore goes with freeze alone"):
        LitVLM(**SMALL, galore=RANK, lora={})


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'medkit\[galore\]'"):
        LitVLM(**SMALL, galore=RANK).configure_optimizers()
