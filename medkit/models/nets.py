"""Nets that a checkpoint can rebuild: a factory's name and plain arguments."""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from typing import Any

from torch import nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": partial(nn.GELU, approximate="tanh"),  # smooth, and needs no error function
}


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the factory named ``"package.module:name"``.

    A checkpoint is a file from somewhere, and this runs what it names. So nothing is imported
    that was not imported before (medkit's own modules apart), and only a subclass of
    ``nn.Module``, or a function that says in its signature that it returns one, is ever called:
    ``os:system`` and ``torch.hub:load`` are not.

    Raises:
        ValueError: For anything else.
    """
    module_name, _, name = factory.partition(":")
    if module_name.split(".")[0] == "medkit":
        import_module(module_name)
    module = sys.modules.get(module_name)
    found: Any = getattr(module, name, None)
    known = {} if module is None else vars(module)
    there = sorted(key for key, one in known.items() if _is_own_net(one, module_name))
    if found is None and there:
        raise ValueError(
            f"a net is named 'package.module:factory', and {module_name} has no {name!r}; it has "
            f"{there}. Correct the name."
        )
    if not _makes_a_module(found):
        raise ValueError(
            "a net is named 'package.module:factory', a subclass of nn.Module or a function "
            f"annotated '-> nn.Module' in a module that is imported; got {factory!r}, which is "
            "not. Import your module first and annotate the factory; where the name came with a "
            "checkpoint and is not yours, don't load it."
        )
    return found(**arguments)


def activation_named(name: str) -> nn.Module:
    """Return a fresh activation.

    Raises:
        ValueError: For a name that is not in ``ACTIVATIONS``.
    """
    if name not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {list(ACTIVATIONS)}, got {name!r}. Another one needs a "
            "net of your own: name its factory."
        )
    return ACTIVATIONS[name]()


def mlp(
    *,
    inputs: int,
    hidden: Sequence[int] = (64, 32),
    dropout: float = 0.2,
    outputs: int = 1,
    activation: str = "relu",
) -> nn.Module:
    """Return linear layers with activation and dropout between: ``(B, inputs)`` to logits.

    Args:
        inputs: Columns of ``x``.
        hidden: Widths of the layers before the last.
        dropout: After each of them.
        outputs: Columns that come out.
        activation: After each of them, before dropout: a name in :data:`ACTIVATIONS`.

    Raises:
        ValueError: For an activation that is not known.
    """
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation_named(activation)]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def cnn2d(
    *, channels: int = 1, width: int = 8, dropout: float = 0.0, outputs: int = 1
) -> nn.Module:
    """Return two convolutions with BatchNorm and a mean: ``(B, channels, H, W)`` to logits."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, outputs),
    )


def _is_own_net(found: Any, module_name: str) -> bool:
    """Whether it can be named as a net, and is written in this module."""
    public = not getattr(found, "__name__", "_").startswith("_")
    return public and getattr(found, "__module__", "") == module_name and _makes_a_module(found)


def _makes_a_module(found: Any) -> bool:
    if not isinstance(found, type):
        try:
            found = typing.get_type_hints(found).get("return")
        except (TypeError, NameError, AttributeError):  # nothing that can be annotated
            return False
    return isinstance(found, type) and issubclass(found, nn.Module)
