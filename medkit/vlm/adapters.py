"""Low-rank adapters, by group: which layers get one is said by whole names, never by an ending.

``target_modules=["q_proj", "v_proj"]`` puts adapters into the vision tower too wherever that has
layers of these names, and ms-swift's freeze flags say nothing to a list. Here a group's linear
layers are looked up, and each is named to PEFT as a whole.

Adapters move no BatchNorm: one that is frozen keeps the mean and spread of the scanner it was
trained on, so a vision part of convolutions stays half blind to another one's pictures, wherever
its adapters lead. ``norms`` trains them beside the adapters; their weights are few.

LoRA is Hu et al. 2021, DoRA Liu et al. 2024, QLoRA Dettmers et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medkit.vlm.extra import require
from medkit.vlm.groups import GROUPS, groups_of, linear_layers, norm_layers, without
from medkit.vlm.quantised import Quantised, dequantised, keep_trainable
from medkit.vlm.settings import require_flags, require_known

__all__ = ["Adapters", "merged"]


@dataclass(frozen=True)
class Adapters:
    """What is adapted and how; ``lora_rank``, ``lora_alpha`` and ``lora_dropout`` as in ms-swift.

    Attributes:
        groups: Whose linear layers get an adapter.
        convolutions: Give their convolutions one too: a conv stem has nothing else.
        norms: Train their norms' own weights beside; those that keep means keep new ones.
        lora_rank: Of the two matrices.
        lora_alpha: What is learnt is scaled by ``lora_alpha / lora_rank``.
        lora_dropout: Before the first matrix.
        use_dora: Learn the length of each weight's columns apart from their direction.
        targets: Ends of names, such as "q_proj", that narrow the groups' layers; (): all.
        skip: Layers left out, by whole names.
        full: Groups trained as a whole instead, such as "aligner".
        quantised: What of the frozen weights is kept in four bits (QLoRA); its keys stand among
            these in :meth:`of`: ``{"lora_rank": 8, "quant_bits": 4}``.
    """

    groups: tuple[str, ...] = ("vision", "aligner", "llm")
    convolutions: bool = False
    norms: bool = False
    lora_rank: int = 8
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    use_dora: bool = False
    targets: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    quantised: Quantised = field(default_factory=Quantised)

    def __post_init__(self) -> None:
        require_flags(self)
        both = set(self.groups) & set(self.full)
        if not self.groups or not {*self.groups, *self.full} <= set(GROUPS) or both:
            raise ValueError(
                f"groups to adapt, at least one, and others to train in full are of {list(GROUPS)}"
                f"; got {self.groups} and {self.full}. Name each once."
            )
        if self.lora_rank < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                "adapters need a lora_rank of 1 or more and a lora_dropout from 0 to below 1, got "
                f"{self.lora_rank} and {self.lora_dropout}."
            )
        if self.quantised.quant_bits and set(self.quantised.quant_groups) & set(self.full):
            raise ValueError(
                "what is trained as a whole cannot be in four bits; "
                f"{self.quantised.quant_groups} and {self.full} overlap. Name each group once."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Adapters:
        """Read plain values.

        Raises:
            ValueError: For a key that is not known.
        """
        own = [name for name in cls.__dataclass_fields__ if name != "quantised"]
        require_known(settings, [*own, *Quantised.__dataclass_fields__], "lora")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()
        }
        four = Quantised(**{k: v for k, v in plain.items() if k not in own})
        return cls(**{k: v for k, v in plain.items() if k in own}, quantised=four)

    def add_to(
        self, model: nn.Module, prefixes: Mapping[str, Sequence[str]] | None = None
    ) -> nn.Module:
        """Return the model with adapters, which are trained, as is what ``full`` and norms name.

        Weights are quantised before. Four-bit layers, whoever made them, are kept trainable.

        Raises:
            ValueError: Where a target or a name to skip fits nothing, or there are no norms.
        """
        peft = require("peft")
        groups = groups_of(model, prefixes)
        names = linear_layers(model, self.groups, prefixes, convolutions=self.convolutions)
        for one in self.targets:
            if not any(name.split(".")[-1] == one for name in names):
                ends = sorted({name.split(".")[-1] for name in names})
                raise ValueError(
                    f"targets must be ends of names of layers in {self.groups}; {one!r} is "
                    f"none of {ends}."
                )
        if self.targets:
            names = [name for name in names if name.split(".")[-1] in self.targets]
        norms = norm_layers(model, self.groups, prefixes) if self.norms else []
        if self.norms and not norms:
            raise ValueError(
                f"norms asks for norms to train, and {self.groups} have none. Leave it out, or "
                "name more groups."
            )
        kept = set(without([*names, *norms], self.skip))
        self.quantised.apply_to(model, prefixes)
        keep_trainable(model)
        config = peft.LoraConfig(
            r=self.lora_rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            use_dora=self.use_dora,
            target_modules=[name for name in names if name in kept],
        )
        adapted: nn.Module = peft.get_peft_model(model, config)
        moving = kept & set(norms)
        for name, value in adapted.named_parameters():
            bare = name.removeprefix("base_model.model.")
            if groups.get(bare) in self.full or bare.rpartition(".")[0] in moving:
                value.requires_grad_(True)
        return adapted


def merged(model: Any, outputs: Callable[[Any], Tensor]) -> tuple[nn.Module, float]:
    """Return the model with its adapters put into its weights, and how far outputs then differ.

    Four-bit weights become floating point numbers first, those the adapters were trained on: put
    into the weights of before, or quantised again, adapters are off by 1 and 2 %.

    Args:
        model: Of :meth:`Adapters.add_to`; it is used up.
        outputs: Calls a model on an example, such as ``lambda m: m(**inputs).logits``.

    Returns:
        The plain model, and the largest difference over the largest output.
    """
    model.eval()
    with torch.no_grad():
        before = outputs(model)
        if getattr(model.base_model.model, "is_loaded_in_4bit", False):
            model = dequantised(model)
        plain: nn.Module = model.merge_and_unload()
        after = outputs(plain)
    return plain, float((after - before).abs().max() / before.abs().max())
