"""What a batch moves before any optimizer does, put back; and good states to go back to."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torchmetrics import Metric

_LARGE = 1 << 16  # elements; a larger buffer is copied only when torch says that it was written
_HIDDEN = frozenset(vars(nn.Module())) | frozenset(vars(pl.LightningModule()))
_COUNTED = ("value", "cumulated_batch_size", "_update_count", "has_reset")


class Before:
    """Buffers, attributes, metrics and logged means of a fit as they were before a batch.

    Batch normalisation writes its statistics in the forward pass, without telling torch's version
    counter; ``self.total = self.total + loss`` and ``self.log`` go on with a NaN for the rest of an
    epoch. All of it is taken at each batch, so it must cost microseconds: small buffers in one
    fused copy, attributes by reference (lists by their length).

    Not seen: dicts and helper objects that a module changes in place.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._loop = trainer.fit_loop.epoch_loop
        self._module = module = trainer.lightning_module
        places = [
            (part, name)
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]
        self._small = [at for at in places if _buffer(at).numel() <= _LARGE]
        self._large = [(at, _Copy()) for at in places if _buffer(at).numel() > _LARGE]
        self._metrics = [part for part in module.modules() if isinstance(part, Metric)]
        self._were: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._counted: list[tuple[Metric, int, dict[str, Any]]] = []
        self._names: frozenset[str] = frozenset()
        self._shown: list[str] = []  # Lightning's own attributes change as they do
        self._attributes: list[Any] = []
        self._lengths: list[tuple[list[Any], int]] = []
        self._logged: dict[str, dict[str, Any]] = {}

    def take(self) -> None:
        """Remember now."""
        if self._small:
            now = [_buffer(at) for at in self._small]
            if self._copies and all(a is b for a, b in zip(now, self._were, strict=True)):
                torch._foreach_copy_(self._copies, now)
            else:  # the first time, or somebody has put other tensors there
                self._were, self._copies = now, [value.detach().clone() for value in now]
        for at, kept in self._large:
            kept.take(_buffer(at))
        if self._metrics:
            self._counted = [(m, m._update_count, _states(m)) for m in self._metrics]
        own = vars(self._module)
        if own.keys() != self._names:  # the first time, or there are others
            self._names = frozenset(own)
            self._shown = [name for name in own if name not in _HIDDEN]
        self._attributes = values = [own[name] for name in self._shown]
        self._lengths = [(value, len(value)) for value in values if type(value) is list]
        results = self._loop._results
        self._logged = {
            key: {name: vars(one).get(name) for name in _COUNTED} for key, one in results.items()
        }

    @torch.no_grad()
    def put_back(self) -> None:
        """Put everything back as it was at :meth:`take`."""
        for at, was, value in zip(self._small, self._were, self._copies, strict=True):
            at[0]._buffers[at[1]] = was.copy_(value)
        for at, kept in self._large:
            at[0]._buffers[at[1]] = kept.put_back()
        for metric, count, states in self._counted:
            if metric._update_count != count:
                metric.reset()
                for name, value in states.items():
                    setattr(metric, name, value)
                metric._update_count = count
        own = vars(self._module)
        for name in [name for name in own if name not in self._names]:
            del own[name]
        own.update(zip(self._shown, self._attributes, strict=True))
        for grown, length in self._lengths:
            del grown[length:]
        results = self._loop._results
        for key in [key for key in results if key not in self._logged]:
            del results[key]
        for key, values in self._logged.items():
            if results[key].is_tensor:  # a torchmetric's own state was put back above
                vars(results[key]).update({k: v for k, v in values.items() if v is not None})


class _Copy:
    """A copy of a large buffer, made anew when the buffer was written."""

    def __init__(self) -> None:
        self._was: Tensor | None = None
        self._version = -1
        self._value = torch.empty(0)

    def take(self, now: Tensor) -> None:
        if now is not self._was or now._version != self._version:
            self._was, self._version, self._value = now, now._version, now.detach().clone()

    def put_back(self) -> Tensor:
        was = self._was
        if was is None:
            raise RuntimeError("take() must come before put_back(). Call it as the batch begins.")
        if was._version != self._version:
            was.copy_(self._value)
            self._version = was._version
        return was


def _buffer(at: tuple[nn.Module, str]) -> Tensor:
    buffer = at[0]._buffers[at[1]]
    if buffer is None:
        raise RuntimeError(
            f"buffer {at[1]} of {type(at[0]).__name__} must stay a tensor during a fit, it was set "
            "to None. Register it as None before the fit, or switch the guard off."
        )
    return buffer


def _states(metric: Metric) -> dict[str, Any]:
    if metric._update_count == 0:
        return {}
    own = {name: getattr(metric, name) for name in metric._defaults}
    return {k: list(v) if isinstance(v, list) else v.detach().clone() for k, v in own.items()}


def snapshot(trainer: pl.Trainer) -> dict[str, Any]:
    """Return copies, in host memory, of weights, buffers, optimizers and averaged weights."""
    return {
        "weights": {name: _host(value) for name, value in _moving(trainer.lightning_module)},
        "optimizers": [_host(optimizer.state_dict()["state"]) for optimizer in trainer.optimizers],
        "averaged": [_host(dict(model.state_dict())) for model in _averaged(trainer)],
    }


@torch.no_grad()
def go_back(trainer: pl.Trainer, saved: dict[str, Any]) -> None:
    """Put a :func:`snapshot` back; rates, schedules and the step count stay as they are."""
    for name, value in _moving(trainer.lightning_module):
        if name in saved["weights"]:  # else unfrozen since
            value.copy_(saved["weights"][name])
    for optimizer, state in zip(trainer.optimizers, saved["optimizers"], strict=True):
        # load_state_dict may take the tensors as they are, and the next step would write into them
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": copy.deepcopy(state), "param_groups": groups})
    for model, state in zip(_averaged(trainer), saved["averaged"], strict=True):
        model.load_state_dict(state)


def _moving(module: nn.Module) -> list[tuple[str, Tensor]]:
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [*trained, *module.named_buffers()]


def _averaged(trainer: pl.Trainer) -> list[nn.Module]:
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averaging = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    return [each._average_model for each in averaging if each._average_model is not None]


def _host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _host(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_host(part) for part in value)
    return copy.deepcopy(value)


def not_finite(module: nn.Module) -> list[str]:
    """Return the parameters and buffers that are not finite; ``-inf`` in a buffer is a mask."""
    weights = [(name, _numbers(p)) for name, p in module.named_parameters()]
    buffers = [(name, _numbers(b)) for name, b in module.named_buffers() if b.is_floating_point()]
    bad = [name for name, value in weights if not bool(value.isfinite().all())]
    return bad + [name for name, b in buffers if bool((b.isnan() | (b == torch.inf)).any())]


def _numbers(value: Tensor) -> Tensor:
    value = value.detach()
    if value.layout == torch.strided:
        return value
    return value._values() if value.layout == torch.sparse_coo else value.values()
