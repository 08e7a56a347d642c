"""Which part of an image-text model a weight belongs to, what is trained, and what stays as it is.

Every weight is in exactly one of vision, aligner and llm. Names are whole: ``model.layers.1`` is
not the beginning of ``model.layers.10``, and one that names nothing is an error, where ms-swift
freezes layers 10 to 19 with layer 1, and says nothing of a name that it does not find.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from medkit.vlm.settings import require_flags
from medkit.vlm.sharding import whole

__all__ = [
    *("GROUPS", "FreezePolicy", "Frozen", "groups_of", "linear_layers", "norm_layers", "without")
]

GROUPS: Mapping[str, tuple[str, ...]] = {  # the first that fits; aligners lie inside vision parts
    "aligner": (
        *("model.visual.merger", "model.visual.deepstack_merger_list"),  # Qwen-VL
        *("model.multi_modal_projector", "model.image_newline"),  # LLaVA, InternVL, PaliGemma
        "model.connector",  # SmolVLM, Idefics
        *("qformer", "language_projection", "query_tokens"),  # BLIP-2
    ),
    "vision": ("model.visual", "model.vision_tower", "model.vision_model", "vision_model"),
    "llm": ("model.language_model", "model.text_model", "language_model", "lm_head"),
}
_WRAPPED = "base_model.model."  # in front of all names of a model with adapters


def groups_of(
    model: nn.Module, prefixes: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """Return name -> group of every parameter.

    Args:
        model: Of Hugging Face, with adapters or without.
        prefixes: Group -> names of modules, for a family that is not known here.

    Raises:
        ValueError: For a parameter in no group, and a group without parameters.
    """
    table = GROUPS if prefixes is None else prefixes
    found: dict[str, str] = {}
    for name, _ in model.named_parameters():
        bare = name.removeprefix(_WRAPPED)
        for group, starts in table.items():
            if any(_within(bare, start) for start in starts):
                found[name] = group
                break
        else:
            raise ValueError(
                f"every parameter must be in one of the groups {list(table)}; {name!r} of "
                f"{type(model).__name__} is in none. Pass prefixes={{'vision': [...], ...}} for "
                "this family."
            )
    empty = [group for group in table if group not in found.values()]
    if empty:
        raise ValueError(
            f"each group must have parameters; {type(model).__name__} has none for {empty}. Pass "
            "prefixes= for this family."
        )
    return found


def linear_layers(
    model: nn.Module,
    groups: Sequence[str],
    prefixes: Mapping[str, Sequence[str]] | None = None,
    *,
    convolutions: bool = False,
) -> list[str]:
    """Return the names of the linear layers of some groups, but for the last one, ``lm_head``.

    With ``convolutions`` those of two dimensions are among them.

    That inside torch's MultiheadAttention is left out as well: its weight is read, its forward pass
    never called, so an adapter around it does nothing.
    """
    of, read_only = groups_of(model, prefixes), nn.modules.linear.NonDynamicallyQuantizableLinear
    kinds = (nn.Linear, nn.Conv2d) if convolutions else nn.Linear
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        and not isinstance(module, read_only)
        and of.get(f"{name}.weight") in groups
        and name.split(".")[-1] != "lm_head"
    ]


def norm_layers(
    model: nn.Module, groups: Sequence[str], prefixes: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """Return the names of the norms of some groups: layers with weights of a class named so."""
    of = groups_of(model, prefixes)
    return [
        name
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__ and of.get(f"{name}.weight") in groups
    ]


def without(names: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Return names of layers without those to skip, said by whole names of them or around them.

    Raises:
        ValueError: For a name to skip that fits none.
    """
    unknown = [one for one in skip if not any(_within(name, one) for name in names)]
    if unknown:
        raise ValueError(
            f"skip must name layers as a whole; {unknown} fit none of {len(names)}, such as "
            f"{[*names[:3]]}."
        )
    return [name for name in names if not any(_within(name, one) for one in skip)]


@dataclass(frozen=True)
class FreezePolicy:
    """What is trained: keys as ms-swift has them, by group and then by name.

    Attributes:
        freeze_vit: Keep the vision part as it is.
        freeze_aligner: Keep what leads from pictures to the language model.
        freeze_llm: Keep the language model.
        freeze_parameters: Modules or parameters to keep besides, by whole names.
        trainable_parameters: Those to train nevertheless; they win.
    """

    freeze_vit: bool = False
    freeze_aligner: bool = False
    freeze_llm: bool = False
    freeze_parameters: tuple[str, ...] = ()
    trainable_parameters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_flags(self)

    def apply(
        self, model: nn.Module, prefixes: Mapping[str, Sequence[str]] | None = None
    ) -> Frozen:
        """Set what has a gradient; return what stays as it is.

        Raises:
            ValueError: For a name that no parameter has or lies in, and where nothing is trained.
        """
        groups = groups_of(model, prefixes)
        kept_groups = {
            group
            for group, frozen in (
                ("vision", self.freeze_vit),
                ("aligner", self.freeze_aligner),
                ("llm", self.freeze_llm),
            )
            if frozen
        }
        kept = {name for name, group in groups.items() if group in kept_groups}
        kept |= _named(groups, self.freeze_parameters, "freeze_parameters")
        kept -= _named(groups, self.trainable_parameters, "trainable_parameters")
        if len(kept) == len(groups):
            raise ValueError(
                f"something must be trained; {self} freezes all {len(kept)} parameters."
            )
        for name, value in model.named_parameters():
            value.requires_grad_(name not in kept)
        return Frozen(model, groups)


class Frozen:
    """What of a model stays as it is, now that it is said.

    Args:
        model: Whose parameters that are trained ask for a gradient.
        groups: Of :func:`groups_of`.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, str]) -> None:
        self._model = model
        self._groups = dict(groups)

    def table(self) -> pd.DataFrame:
        """Return the numbers that are trained and frozen, a group a row."""
        counts = {group: [0, 0] for group in dict.fromkeys(self._groups.values())}
        for name, value in self._model.named_parameters():
            # four-bit weights lie two in a byte
            shape = getattr(getattr(value, "quant_state", value), "shape", value.shape)
            counts[self._groups[name]][0 if value.requires_grad else 1] += math.prod(shape)
        table = pd.DataFrame.from_dict(counts, orient="index", columns=["trained", "frozen"])
        table.loc["all"] = table.sum()
        table["share"] = table["trained"] / (table["trained"] + table["frozen"])
        return table.rename_axis("group")

    def set_modes(self) -> None:
        """Put what is trained into training mode, and what is frozen as a whole into evaluation.

        ``from_pretrained`` returns a model in evaluation mode, and Lightning leaves it there: a
        whole fit without dropout. ``train()`` would wake the dropout and the BatchNorm of frozen
        parts as well.
        """
        _set_modes(self._model, training=True)

    def names(self) -> set[str]:
        """Return the names of what is frozen: parameters, and buffers of modules frozen whole.

        A four-bit weight's scales go with it, as ``...weight.absmax`` and the like.
        """
        values = dict(self._model.named_parameters())
        kept = {name for name, value in values.items() if not value.requires_grad}
        moving = {name.rpartition(".")[0] for name in values if name not in kept}
        modules = {name.rpartition(".")[0] for name in kept} - moving
        state = self._model.state_dict(keep_vars=True)
        buffers = {n for n in state if n not in values and n.rpartition(".")[0] in modules}
        buffers |= {n for n in state if f"{n.partition('.weight.')[0]}.weight" in kept}
        return {name for name in state if name in kept} | buffers

    def digest(self) -> str:
        """Return the SHA-256 of :meth:`names` and their values."""
        digest = hashlib.sha256()
        state = self._model.state_dict()
        for name in sorted(self.names()):
            digest.update(name.encode())
            flat = whole(state[name].detach()).cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _within(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}.")


def _named(names: Iterable[str], wanted: Sequence[str], what: str) -> set[str]:
    found: set[str] = set()
    for one in wanted:
        own = {name for name in names if _within(name.removeprefix(_WRAPPED), one)}
        if not own:
            near = sorted({n.rpartition(".")[0] for n in names if one.split(".")[-1] in n})[:5]
            raise ValueError(
                f"{what} must name modules or parameters as a whole; {one!r} is none. "
                f"{'Is it one of ' + str(near) + '?' if near else 'See named_parameters().'}"
            )
        found |= own
    return found


def _set_modes(module: nn.Module, *, training: bool) -> None:
    own = list(module.parameters())
    if own and not any(value.requires_grad for value in own):
        module.eval()
        return
    module.training = training
    for child in module.children():
        _set_modes(child, training=training)
