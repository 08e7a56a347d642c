"""Rewards of generated reports by name and weight, each part kept for the log.

    rewards = Rewards({"validity": 1.0, "fields": 2.0, "my_package.rewards:tone": 0.5})
    scored = rewards(texts, fields=fields)
    scored.total, scored.parts["fields"]

Every one can be had without a look at the image. The constant text that earns most of it: validity
any allowed object; fields the commonest finding with its commonest fields; findings, anatomy, size,
negatives and restraint a normal report, where most are; length any words, as many as usual. So
weigh what pays for saying (fields, findings, anatomy, size) above what pays for silence (restraint,
negatives), log the parts, and score with shuffled images.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from medkit.vlm import reward_functions

__all__ = ["REWARDS", "Rewards", "Scored"]

Reward = Callable[..., list[float]]
REWARDS: dict[str, Reward] = {
    name: getattr(reward_functions, name) for name in reward_functions.__all__
}


@dataclass(frozen=True)
class Scored:
    """What completions earned.

    Attributes:
        total: Weighted sum, one a completion.
        parts: The same of each reward, before its weight.
    """

    total: list[float]
    parts: dict[str, list[float]]


class Rewards:
    """Several rewards by name, with weights.

    Args:
        weights: Name in :data:`REWARDS`, or "package.module:function" of one's own (ms-swift's
            classes too), to weight.
        settings: Such as ``{"schema": LUNG_NODULE, "tolerance_mm": 1.0}``, for those that take it.

    Raises:
        ValueError: For an unknown name, a name or weight that is none, or a setting nobody takes.
    """

    def __init__(
        self, weights: Mapping[str, float], *, settings: Mapping[str, Any] | None = None
    ) -> None:
        named = isinstance(weights, Mapping) and all(isinstance(name, str) for name in weights)
        if not weights or not named or not all(_is_number(one) for one in weights.values()):
            raise ValueError(
                f"rewards need names with finite weights, got {weights!r}. Known names: "
                f"{sorted(REWARDS)}; weights are numbers; name a function of your own as "
                "'package.module:function'."
            )
        self.weights = dict(weights)
        self._functions = {name: _resolve(name) for name in weights}
        self._takes = {
            name: inspect.signature(one).parameters for name, one in self._functions.items()
        }
        self._settings = dict(settings or {})
        idle = [
            key for key in self._settings if not any(key in one for one in self._takes.values())
        ]
        if idle:
            raise ValueError(
                f"a setting must be one that a reward takes; {idle} is taken by none of "
                f"{list(weights)}. Leave it out or correct its name."
            )

    def __call__(self, completions: Sequence[str], **columns: Sequence[Any]) -> Scored:
        """Score completions against columns of the same length.

        Raises:
            ValueError: For a column of another length or one that is missing, and for a reward that
                returns anything but one finite number a completion.
        """
        for column, values in columns.items():
            if len(values) != len(completions):
                raise ValueError(
                    f"column {column!r} must have one value a completion, got {len(values)} for "
                    f"{len(completions)}. Repeat each as often as its prompt was answered."
                )
        parts = {name: self._part(name, completions, columns) for name in self.weights}
        total = [
            sum(self.weights[name] * part[k] for name, part in parts.items())
            for k in range(len(completions))
        ]
        return Scored(total, parts)

    def _part(
        self, name: str, completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> list[float]:
        takes = self._takes[name]
        settings = {key: value for key, value in self._settings.items() if key in takes}
        whole = any(one.kind is one.VAR_KEYWORD for one in takes.values())
        given = {key: value for key, value in columns.items() if whole or key in takes} | settings
        _, *rest = takes.values()
        missing = [
            one.name
            for one in rest
            if one.default is one.empty
            and one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)
            and one.name not in given
        ]
        if missing:
            raise ValueError(
                f"reward {name!r} needs column {missing[0]!r}; got {sorted(columns)}. "
                "Add it to the data set's lines, or leave the reward out."
            )
        scores = list(self._functions[name](completions, **given))
        if len(scores) != len(completions) or not all(_is_number(one) for one in scores):
            raise ValueError(
                f"reward {name!r} must return one finite number a completion ({len(completions)}), "
                f"got {scores[:4]} ... ({len(scores)}). Return 0.0 where it does not apply."
            )
        return [float(one) for one in scores]


def _resolve(name: str) -> Reward:
    if name in REWARDS:
        return REWARDS[name]
    module, colon, function = name.partition(":")
    if not colon:
        close = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"a reward must be one of {sorted(REWARDS)}, got {name!r}. {hint}"
            "One of your own is 'package.module:function'."
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"reward {name!r} must be a function that can be imported; {error}. "
            "Write 'package.module:function', and have the package on the path."
        ) from error
    reward: Reward = found() if isinstance(found, type) else found
    return reward


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
