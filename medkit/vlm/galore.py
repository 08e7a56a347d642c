"""All weights trained, with an optimizer state of low rank (GaLore, Zhao et al. 2024).

AdamW's two moments are as large as the weights twice over. GaLore keeps those of a matrix for a
projection of its gradient to a few directions, which are found anew every so many steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medkit.vlm.extra import require
from medkit.vlm.groups import linear_layers
from medkit.vlm.settings import require_known

__all__ = ["GaLore"]

_TYPES = ("std", "reverse_std", "right", "left", "full")
_DIRECTIONS, _FOUND_AT = "directions", "directions_found_at"


@dataclass(frozen=True)
class GaLore:
    """Which gradients are projected, and how; keys and defaults as in ms-swift.

    Attributes:
        galore_rank: Directions that are kept.
        galore_update_proj_gap: Steps after which they are found anew.
        galore_scale: Of what is learnt along them.
        galore_proj_type: "std" projects the longer side of a matrix; "reverse_std", "right",
            "left", "full". Not "random", which would draw from the global generator.
    """

    galore_rank: int = 128
    galore_update_proj_gap: int = 50
    galore_scale: float = 1.0
    galore_proj_type: str = "std"

    def __post_init__(self) -> None:
        if (
            self.galore_rank < 1
            or self.galore_update_proj_gap < 1
            or not self.galore_scale > 0
            or self.galore_proj_type not in _TYPES
        ):
            raise ValueError(
                "GaLore needs a galore_rank and a galore_update_proj_gap of 1 or more, a "
                f"galore_scale above 0, and a galore_proj_type of {_TYPES}; got {self}."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> GaLore:
        """Read plain values.

        Raises:
            ValueError: For a key that is not known.
        """
        require_known(settings, list(cls.__dataclass_fields__), "galore")
        return cls(**settings)

    def projected(
        self, model: nn.Module, prefixes: Mapping[str, Sequence[str]] | None = None
    ) -> set[str]:
        """Return the names of trained weights that are projected: linear layers' larger than that.

        Embeddings and ``lm_head`` are not: few of their rows have a gradient, others each step.

        Raises:
            ValueError: Where there is none.
        """
        layers = linear_layers(model, ("vision", "aligner", "llm"), prefixes)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        names = {f"{name}.weight" for name in layers} & set(trained)
        found = {name for name in names if min(trained[name].shape) > self.galore_rank}
        if not found:
            sides = sorted({min(trained[name].shape) for name in names})
            raise ValueError(
                "GaLore projects weights of linear layers whose shorter side is above galore_rank "
                f"{self.galore_rank}; the sides of what is trained are {sides}. Lower the rank, or "
                "train without galore."
            )
        return found

    def optimizer(
        self, groups: Sequence[dict[str, Any]], projected: Sequence[Tensor]
    ) -> torch.optim.Optimizer:
        """Return AdamW that projects some of its weights.

        Args:
            groups: Of parameters, as any optimizer takes them.
            projected: Those to project; each of them is in a group.
        """
        wanted = {id(value) for value in projected}
        keys = {
            "rank": self.galore_rank,
            "update_proj_gap": self.galore_update_proj_gap,
            "scale": self.galore_scale,
            "projection_type": self.galore_proj_type,
        }
        parted: list[dict[str, Any]] = []
        for group in groups:
            for inside, more in ((False, {}), (True, keys)):
                own = [value for value in group["params"] if (id(value) in wanted) == inside]
                if own:
                    parted.append({**group, **more, "params": own})
        made: torch.optim.Optimizer = require("pytorch_optimizer").GaLore(parted, eps=1e-8)
        made.register_state_dict_post_hook(_plain)
        made.register_step_pre_hook(_revive)
        return made


def _plain(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Put directions into a checkpoint as tensors: the library's object does not load safely."""
    whole = {}
    for number, own in state["state"].items():
        rest = {name: value for name, value in own.items() if name != "projector"}
        if "projector" in own:
            found = own["projector"]
            rest |= {_DIRECTIONS: found.ortho_matrix, _FOUND_AT: found.last_svd_step}
        whole[number] = rest
    return {**state, "state": whole}


def _revive(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Make the library's objects of what a checkpoint held, before the first step after it."""
    for group in optimizer.param_groups:
        for value in group["params"]:
            own = optimizer.state.get(value, {})
            if _DIRECTIONS in own:
                kind: Any = require("pytorch_optimizer.optimizer.utils.galore").GaLoreProjector
                own["projector"] = made = kind(
                    rank=group["rank"],
                    update_proj_gap=group["update_proj_gap"],
                    scale=group["scale"],
                    projection_type=group["projection_type"],
                )
                made.ortho_matrix, made.last_svd_step = own.pop(_DIRECTIONS), own.pop(_FOUND_AT)
