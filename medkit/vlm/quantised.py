"""Frozen weights in four bits (QLoRA, Dettmers et al. 2023), by bitsandbytes.

A skip list that skips nothing, an adapter that stops learning after the first validation, and a
merge into weights the adapter was not trained on are what goes wrong in silence elsewhere; each is
an error here, or cannot be asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medkit.vlm.extra import require
from medkit.vlm.groups import GROUPS, linear_layers, without
from medkit.vlm.settings import require_flags

__all__ = ["Quantised", "dequantised", "keep_trainable"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Quantised:
    """Which linear layers are kept in four bits; keys as ms-swift has them, but for the last two.

    Attributes:
        quant_bits: 4; 0 leaves all weights as they are.
        quant_method: "bnb".
        bnb_4bit_quant_type: "nf4", or "fp4".
        bnb_4bit_use_double_quant: Keep the scales in eight bits too.
        bnb_4bit_compute_dtype: "float32", "bfloat16" or "float16"; None: that of what comes in.
        quant_groups: Whose layers. The vision part's, in four bits too, double the error.
        quant_skip: Layers left as they are, by whole names.
    """

    quant_bits: int = 0
    quant_method: str = "bnb"
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: str | None = None
    quant_groups: tuple[str, ...] = ("llm",)
    quant_skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_flags(self)
        if (
            self.quant_bits not in (0, 4)
            or self.quant_method != "bnb"
            or self.bnb_4bit_quant_type not in ("nf4", "fp4")
            or self.bnb_4bit_compute_dtype not in (None, *_DTYPES)
            or not self.quant_groups
            or not set(self.quant_groups) <= set(GROUPS)
        ):
            raise ValueError(
                "weights are quantised with quant_bits 4 (0: not at all), quant_method 'bnb', "
                f"bnb_4bit_quant_type 'nf4' or 'fp4', a compute dtype of {list(_DTYPES)} or None, "
                f"in groups of {list(GROUPS)}; got {self}."
            )

    def apply_to(self, model: Any, prefixes: Mapping[str, Sequence[str]] | None = None) -> None:
        """Quantise the model's layers where they are; ``lm_head`` and embeddings stay.

        What they hold is rounded on the host, so that it is the same wherever the model goes.

        Raises:
            ValueError: Where a name to skip fits no layer, where none is left, and where weights
                would be misread.
        """
        if not self.quant_bits:
            return
        names = without(linear_layers(model, self.quant_groups, prefixes), self.quant_skip)
        if not names:
            raise ValueError(
                f"something must be quantised; quant_skip {list(self.quant_skip)} leaves no linear "
                f"layer of {self.quant_groups}. Name fewer, or set quant_bits to 0."
            )
        misread = []
        for name in names:
            parent, _, last = name.rpartition(".")
            four = self._in_four_bits(model, name)
            setattr(model.get_submodule(parent), last, four)
            if not _read_as_written(four):
                misread.append(name)
        if misread:
            raise ValueError(
                "four-bit weights must be read as they were written, and bitsandbytes misreads "
                f"{len(misread)} of {len(names)} layers on this processor: rows of "
                f"{model.get_submodule(misread[0]).in_features} do not end with a block of 64. "
                f"Leave them out: quant_skip={misread}."
            )
        model.is_loaded_in_4bit = True  # PEFT asks, and it counts weights by this

    def _in_four_bits(self, model: nn.Module, name: str) -> nn.Module:
        bnb, layer = require("bitsandbytes"), model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"{name} is not a linear layer.")
        compute = self.bnb_4bit_compute_dtype
        four: Any = bnb.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=None if compute is None else _DTYPES[compute],
            device="meta",
        )
        four.weight = bnb.nn.Params4bit(
            layer.weight.detach(),
            requires_grad=False,
            compress_statistics=self.bnb_4bit_use_double_quant,
            quant_type=self.bnb_4bit_quant_type,
            module=four,
        )
        four.bias = layer.bias
        four.train(layer.training)
        quantised: nn.Module = four.to("cpu")
        return quantised


def keep_trainable(model: nn.Module) -> nn.Module:
    """Keep four-bit layers from being repacked for inference, which training does not survive.

    On processors with AVX512-BF16, bitsandbytes 0.50 repacks the weights at the first evaluation
    without gradients, Lightning's sanity check included, for a kernel that has none: layers without
    bias then pass no gradient on, with a warning, and those with one crash.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def dequantised(adapted: Any) -> Any:
    """Return a model with adapters whose four-bit weights are floating point numbers again.

    It answers as before, as far as rounding goes. To this base adapters can be merged; the weights
    before quantisation are not the ones they were trained on, and to quantise again moves them.

    Args:
        adapted: Of PEFT; it is used up.
    """
    peft = require("peft")
    config, state = adapted.peft_config["default"], peft.get_peft_model_state_dict(adapted)
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    training, base = adapted.training, adapted.unload()
    for name, module in list(base.named_modules()):
        if hasattr(module, "weight") and hasattr(module.weight, "quant_state"):
            parent, _, last = name.rpartition(".")
            setattr(base.get_submodule(parent), last, _floating(module))
    base.is_loaded_in_4bit = False
    again: Any = peft.get_peft_model(base, config)
    peft.set_peft_model_state_dict(again, state)
    for name, value in again.named_parameters():
        value.requires_grad_(name in trained)
    return again.train(training)


def _read_as_written(layer: Any) -> bool:
    """Whether each weight is read with its own scale.

    With AVX-512, bitsandbytes 0.50 takes the scale of a block of 64 by its place in the row, not in
    the weight: rows of 80 or 96 come back a quarter off (NF4's own error is 9 %).
    """
    state = copy.copy(layer.weight.quant_state)
    state.shape = torch.Size([1, layer.in_features * layer.out_features])
    flat = require("bitsandbytes").functional.dequantize_4bit(layer.weight.data, state)
    return torch.equal(flat.flatten(), weight_of(layer).flatten())


def weight_of(layer: Any) -> Tensor:
    """Return a four-bit layer's weight, ``(out, in)``, in the dtype it had."""
    functional = require("bitsandbytes").functional
    found: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return found


def _floating(layer: Any) -> nn.Linear:
    weight = weight_of(layer)
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = layer.bias
    return plain.train(layer.training)
