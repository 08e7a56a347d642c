"""The language part of an image-text model as a model of text, and what that part reads.

For engines that know nothing of a family's pictures or adapters: they are given merged weights and
embeddings, which the family's own code makes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkit.data.encoded import Encoded, given, padded
from medkit.vlm.quantised import weight_of

__all__ = ["language_model", "prompt_embeddings"]

_TEXTS = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def language_model(model: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return the language part as a model of text: its configuration, and its weights on the host.

    The weights are copies, into which the adapters that are in effect are merged; the model stays
    as it is to the bit.

    Args:
        model: Of Hugging Face, with adapters or without.

    Raises:
        ValueError: For a part that is not known to read token by token, in the order of places; for
            DoRA on four-bit weights, and an output layer with adapters.
    """
    config = copy.deepcopy(model.config.get_text_config())
    if config.model_type not in _TEXTS:
        raise ValueError(
            f"a language part that stands alone must be one of {sorted(_TEXTS)}; that of "
            f"{model.config.model_type} is {config.model_type!r}. Qwen-VL counts places by row and "
            "column, and PaliGemma reads a question in both directions: alone, such a part would "
            "answer otherwise. Draw answers by HFSampler."
        )
    parts = {f"model.{name}": module for name, module in model.get_decoder().named_modules()}
    parts["lm_head"] = model.get_output_embeddings()
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in parts.items():
            if ".lora_" not in name and not name.endswith(".base_layer"):
                for own, value in _weights(module).items():
                    state[f"{name}.{own}"] = value.to("cpu", copy=True).contiguous()
    head = state["lm_head.weight"]
    config.architectures, config.tie_word_embeddings = [_TEXTS[config.model_type]], False
    config.vocab_size, config.dtype = len(head), head.dtype
    return config, state


def prompt_embeddings(model: Any, prompts: Sequence[Encoded], pad: int) -> list[Tensor]:
    """Return what the language part reads of each prompt, ``(L, width)``, on the host.

    Pictures are in their places, as the model's present weights and adapters see them. The language
    part itself is not run.

    Args:
        model: In the mode it is to see them in.
        prompts: One batch.
        pad: Number of the padding token.

    Raises:
        ValueError: Where that part is told more than embeddings: other places, or what sees what.
    """
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in given(padded(prompts, pad)).items()}
    handle = model.get_decoder().register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**batch, use_cache=False)
    except _ReachedError as reached:
        told: dict[str, Any] = reached.args[0]
    else:
        raise RuntimeError(f"{type(model).__name__} answers without calling its get_decoder().")
    finally:
        handle.remove()
    embeddings, seen = told.pop("inputs_embeds"), batch["attention_mask"]
    order = torch.arange(seen.shape[1], device=device).expand_as(seen)
    plain = {"attention_mask": seen, "position_ids": order}
    odd = [
        name
        for name, value in told.items()
        if isinstance(value, Tensor | dict | list | tuple)
        and not (name in plain and _is_as(value, plain[name], seen))
    ]
    if odd:
        raise ValueError(
            "a language part that stands alone reads embeddings token by token, in the order of "
            f"places from 0; {type(model).__name__} tells its own more, by {odd}. Draw answers by "
            "HFSampler."
        )
    return [one[: len(prompt.ids)].cpu() for one, prompt in zip(embeddings, prompts, strict=True)]


class _ReachedError(Exception):
    """The language part was reached."""


def _stop(_: nn.Module, __: Any, told: dict[str, Any]) -> None:
    raise _ReachedError(told)


def _is_as(found: Any, wanted: Tensor, seen: Tensor) -> bool:
    """Whether it is what is wanted, wherever there is a token."""
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != wanted.shape[1]:
        return False
    return bool(((found == wanted) | (seen == 0)).all())


def _weights(layer: Any) -> dict[str, Tensor]:
    """Return a layer's own weights, its adapters merged as they are in effect now."""
    if not hasattr(layer, "base_layer"):
        return _floating(layer)
    base = layer.get_base_layer()
    names = [] if layer.disable_adapters or layer.merged else layer.active_adapters
    if not names:
        return _floating(base)
    if not hasattr(base.weight, "quant_state"):
        merged = copy.deepcopy(layer)
        merged.merge(adapter_names=names)
        return _floating(merged.get_base_layer())
    if any(layer.use_dora.get(name) for name in names):
        raise ValueError(
            "DoRA on four-bit weights has no copy that it is merged into. Set use_dora to False, "
            "or draw answers by HFSampler."
        )
    own = _floating(base)  # PEFT would round what it merges to four bits again
    for name in names:
        own["weight"] = own["weight"] + layer.get_delta_weight(name).to(own["weight"].dtype)
    return own


def _floating(layer: nn.Module) -> dict[str, Tensor]:
    own = {name: value.detach() for name, value in layer.named_parameters(recurse=False)}
    if hasattr(getattr(layer, "weight", None), "quant_state"):
        own["weight"] = weight_of(layer)
    return own
