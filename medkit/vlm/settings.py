"""Settings in plain values, as a configuration file has them: mappings, whose flags are flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

__all__ = ["adapters_alone", "mapping", "require_flags", "require_known"]


def mapping(settings: object, name: str) -> dict[str, Any]:
    """Return settings as a dict, an empty one for None.

    Raises:
        ValueError: For what is no mapping, such as a list of keys.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        example = {"freeze": '{"freeze_vit": True}', "lora": '{"groups": ["llm"]}'}.get(name)
        raise ValueError(
            f"{name} must be a mapping of keys to values, got {settings!r}. "
            + (f"Write {name}={example}." if example else f"Write {name}={{key: value}}.")
        )
    return dict(settings)


def adapters_alone(lora: object) -> dict[str, Any]:
    """Return the settings of adapters that are all that is trained, without dropout by default.

    The reference has none: dropout would lower the trained model's likelihoods beside it.

    Raises:
        ValueError: Where parts are trained in full beside them.
    """
    found = mapping(lora, "lora")
    beside = {key: found[key] for key in ("full", "norms") if found.get(key)}
    if beside:
        raise ValueError(
            "the reference is the model without its adapters, so nothing else may be trained; "
            f"lora has {beside}. Leave it out."
        )
    return {"lora_dropout": 0.0, **found}


def require_flags(settings: Any) -> None:
    """Refuse what is neither True nor False where a dataclass has a flag: any text would be true.

    Raises:
        ValueError: With the flag's name.
    """
    for one in fields(settings):
        value = getattr(settings, one.name)
        if isinstance(one.default, bool) and type(value) is not bool:
            raise ValueError(
                f"{one.name} must be True or False, got {value!r}. Write it without quotes: text "
                "counts as true whatever it says."
            )


def require_known(settings: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse keys that are not known: a misspelt one would change nothing.

    Raises:
        ValueError: With them and all that are known.
    """
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"{what} has the keys {list(known)}, as ms-swift's where these mean the same; found "
            f"{unknown}. Spell them alike."
        )
