from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("peft", reason="the extra vlm is not installed")
pytest.importorskip("bitsandbytes", reason="the extra qlora is not installed")

import bitsandbytes as bnb
import pytorch_lightning as pl

from medkit.data.chat import ChatEncoder
from medkit.data.reports import ReportDataModule
from medkit.synth.reports import make_studies, write_reports
from medkit.vlm import adapters
from medkit.vlm.adapters import Adapters, merged
from medkit.vlm.groups import groups_of, linear_layers
from medkit.vlm.model import LitVLM
from medkit.vlm.quantised import Quantised, weight_of
from medkit.vlm.tutorial import tutorial_model, tutorial_pictures
from tests.vlm.families import EACH, internvl, llava
from tests.vlm.test_adapters import drawn, logits
from tests.vlm.test_model import TOKENIZER, bits, fitted, same
from tests.vlm.test_packing import conversations

Build = Callable[[], Any]
WIDE: dict[str, Any] = {  # rows of whole blocks of 64
    "model": "medkit.vlm.tutorial:tutorial_model",
    "model_args": {"vocabulary": len(TOKENIZER), "hidden": 192, "layers": 1},
}
QLORA: dict[str, Any] = {"groups": ["llm"], "lora_rank": 4, "quant_bits": 4}
HAS_AVX512_BF16 = bnb.functional.has_avx512bf16()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports"), make_studies(80))


def in_four_bits(model: nn.Module) -> set[str]:
    return {name for name, one in model.named_modules() if isinstance(one, bnb.nn.Linear4bit)}


@pytest.mark.parametrize("build", EACH)
def test_the_linear_layers_of_a_group_alone_are_in_four_bits(build: Build) -> None:
    model = build()
    wanted = set(linear_layers(model, ["llm"]))
    Quantised(quant_bits=4).apply_to(model)
    assert in_four_bits(model) == wanted
    assert {group for name, group in groups_of(model).items() if name[:-7] in wanted} == {"llm"}


def test_a_weight_is_what_it_was_but_for_a_tenth() -> None:
    model = llava()
    before = model.model.language_model.layers[0].mlp.up_proj.weight.detach().clone()
    Quantised(quant_bits=4, bnb_4bit_use_double_quant=False).apply_to(model)
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert (weight_of(layer) - before).norm() / before.norm() < 0.12
    assert layer.weight.numel() == before.numel() / 2


@pytest.mark.skipif(not HAS_AVX512_BF16, reason="this processor reads all rows as written")
def test_rows_that_are_misread_are_refused_with_the_layers_to_skip() -> None:
    args = {"vocabulary": 64, "hidden": 192, "layers": 1}
    model = tutorial_model(**args)
    model.model.language_model.layers[0].self_attn.v_proj = nn.Linear(80, 192, bias=False)
    v_proj = "model.language_model.layers.0.self_attn.v_proj"
    with pytest.raises(ValueError, match=rf"misreads 1 of 7 .* rows of 80 .*\['{v_proj}'\]"):
        Quantised(quant_bits=4).apply_to(model)
    model = tutorial_model(**args)
    model.model.language_model.layers[0].self_attn.v_proj = nn.Linear(80, 192, bias=False)
    Quantised(quant_bits=4, quant_skip=(v_proj,)).apply_to(model)
    assert len(in_four_bits(model)) == 6


def test_layers_to_skip_are_whole_names() -> None:
    layer = "model.language_model.layers.1"
    model = internvl()
    Quantised(quant_bits=4, quant_skip=(layer,)).apply_to(model)
    assert in_four_bits(model)
    assert not any(name.startswith(layer) for name in in_four_bits(model))
    with pytest.raises(ValueError, match=r"skip must name layers as a whole; \['vision_tower'\]"):
        Quantised(quant_bits=4, quant_skip=("vision_tower",)).apply_to(internvl())
    with pytest.raises(ValueError, match=r"leaves no linear layer of \('llm',\). Name fewer"):
        Quantised(quant_bits=4, quant_skip=("model.language_model",)).apply_to(internvl())


@pytest.mark.parametrize("build", EACH)
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_to_merge_into_the_dequantised_base_changes_nothing(build: Build, dora: bool) -> None:
    torch.manual_seed(0)
    model = build().eval()
    (one, *_) = conversations(model)
    settings = {"quant_bits": 4, "quant_groups": ["vision", "llm"], "lora_dropout": 0.0}
    adapted = Adapters.of(settings | {"use_dora": dora}).add_to(model)
    drawn(adapted)
    plain, error = merged(adapted, lambda m: logits(m, one))
    assert error <= 1e-6
    assert not in_four_bits(plain)
    assert not any("lora" in name for name, _ in plain.named_parameters())


def gradients_after_validation(path: Path) -> dict[str, Any]:
    """Return each adapter's first gradient of a fit that begins with Lightning's sanity check."""
    found: dict[str, Any] = {}

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, lit: Any, optimizer: Any) -> None:
            found.update({n: p.grad for n, p in lit.named_parameters() if "lora_B" in n})

    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8)
    trainer = pl.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Look()], accelerator="cpu",
    )  # fmt: skip
    trainer.fit(LitVLM(**WIDE, lora=QLORA), dm)
    return found


def test_every_adapter_learns_after_a_validation(path: Path) -> None:
    found = gradients_after_validation(path)
    assert len(found) == 7  # of one layer
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())


@pytest.mark.skipif(not HAS_AVX512_BF16, reason="this processor has no AVX512-BF16")
def test_without_care_they_do_not_where_the_processor_has_a_kernel_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "keep_trainable", lambda model: model)
    monkeypatch.setattr(LitVLM, "on_fit_end", lambda lit: None)  # it refuses repacked weights
    found = gradients_after_validation(path)
    assert not all(grad is not None and grad.abs().max() > 0 for grad in found.values())


def test_a_fit_that_is_resumed_is_the_same_to_the_bit(path: Path, tmp_path: Path) -> None:
    whole = bits(fitted(path, tmp_path / "whole", **WIDE, lora=QLORA))
    with pytest.raises(RuntimeError, match="crashed"):
        fitted(path, tmp_path / "parts", stop=5, **WIDE, lora=QLORA)
    again = fitted(path, tmp_path / "parts", **WIDE, lora=QLORA)
    assert same(bits(again), whole) == set(whole)
    assert any(name.endswith("weight.absmax") for name in whole)


def test_a_checkpoint_holds_adapters_alone_and_wants_the_same_base(
    path: Path, tmp_path: Path
) -> None:
    lit = LitVLM(**WIDE, lora=QLORA)
    checkpoint: dict[str, Any] = {"state_dict": lit.state_dict()}
    lit.on_save_checkpoint(checkpoint)
    assert all("lora_" in name or name.startswith("val_") for name in checkpoint["state_dict"])
    table = lit.frozen.table()
    assert table.loc["llm", "trained"] < 0.3 * table.loc["llm", "frozen"]
    whole = LitVLM(**WIDE, freeze={"freeze_vit": True}).frozen.table()
    adapters = table.loc["llm", "trained"]
    assert (
        table.loc["all", ["trained", "frozen"]].sum() - adapters
        == whole.loc["all", ["trained", "frozen"]].sum()
    )  # four-bit weights are counted one by one
    other = LitVLM(**WIDE, lora=QLORA)  # of other random weights
    with pytest.raises(ValueError, match=r"names or values differ. Load it with the same model"):
        other.on_load_checkpoint(checkpoint)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"quant_bits 4 \(0: not at all\)"):
        Adapters.of({"quant_bits": 3})
    with pytest.raises(ValueError, match="quant_method 'bnb'"):
        Adapters.of({"quant_bits": 4, "quant_method": "gptq"})
    with pytest.raises(ValueError, match="what is trained as a whole cannot be in four bits"):
        Adapters.of({"groups": ["vision"], "full": ["llm"], "quant_bits": 4})
    with pytest.raises(ValueError, match=r"lora has the keys .*found \['quant_bit'\]"):
        Adapters.of({"quant_bit": 4})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_they_learn_on_an_accelerator_too(path: Path) -> None:
    dm = ReportDataModule(path, ChatEncoder(TOKENIZER, tutorial_pictures), batch_size=8)
    trainer = pl.Trainer(
        max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="gpu", devices=1,
    )  # fmt: skip
    lit = LitVLM(**WIDE, lora=QLORA)
    trainer.fit(lit, dm)
    adapted = {n: p for n, p in lit.named_parameters() if "lora_B" in n}
    assert all(value.abs().max() > 0 for value in adapted.values())
