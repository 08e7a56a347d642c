"""Tell who has the event earlier, under a Lightning Trainer: Cox's model with any net in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from medkit.data.batches import Batch
from medkit.data.cox import CoxBaseline
from medkit.data.hazard import BaselineHazard, breslow
from medkit.metrics.survival import harrell_c
from medkit.models.lean_module import LeanModule
from medkit.models.losses import cox_terms
from medkit.models.nets import build
from medkit.models.schedules import require_steps, warmup_cosine

_MOST_RANKED = 20_000  # rows; every pair of them is compared at each validation


class Ranked(NamedTuple):
    """What :meth:`LitCox.predict_step` returns.

    Attributes:
        eta: Log relative hazard, ``(B,)``; higher has the event earlier.
        y: Time and event, ``(B, 2)``.
        row: Row number in the source, ``(B,)``.
        site: Index into the DataModule's ``sites``, ``(B,)``.
    """

    eta: Tensor
    y: Tensor
    row: Tensor
    site: Tensor


class LitCox(LeanModule):
    """Train a net to give patients log relative hazards, by Cox's partial likelihood.

    Ties are Efron's (1977). Risk sets are those within a batch, and the default of
    ``SurvivalDataModule`` is one batch of the whole training set: a step then sees the likelihood
    itself, and nothing depends on the order of the patients. **A small batch is another loss, not
    a noisy piece of this one**: an event is compared with the few others in its batch who were
    followed longer, a batch without an event teaches nothing, and the gradient's noise does not
    vanish at the best fit, so that a training without decay to zero ends anywhere around it. Where
    the table does not fit, take batches with at least some tens of events.

    The log hazards have no level of their own. Breslow's baseline hazard of the training patients
    (``hazard``) gives them one, and so probabilities (:meth:`survival`). It is fitted at the end
    and at each checkpoint to the weights as they are, where a DataModule with ``rows("train")`` is
    trained on; else call :meth:`fit_hazard`.

    Logs ``train/loss`` (mean per event, without the penalty) once an epoch; ``val/loss`` and
    ``val/c_index`` (Harrell; every n-th row where there are more than 20,000) over all validation
    rows; the same under ``test/``.

    Args:
        net: Factory of a net that maps ``x`` to ``(B, 1)`` or ``(B,)``, as "package.module:name",
            so that the checkpoint can rebuild it. :func:`warm_start` gives the default.
        net_args: The factory's arguments, plain types.
        total_steps: Optimizer steps of the whole training: the rate rises over the first
            ``warmup`` of them and falls along a cosine to zero at the last. None: a constant rate.
        lr: Adam's highest learning rate.
        l2: ``l2 / 2`` times the squared norm of every weight matrix is added to the mean loss per
            event, as in ``fit_cox``: a residual that gains less than it costs stays near zero.
        warmup: Share of ``total_steps`` in which the rate rises.
    """

    terms_add_up = False  # a batch that does not fit can't be trained on in parts

    def __init__(
        self,
        net: str,
        net_args: Mapping[str, Any] | None = None,
        *,
        total_steps: int | None = None,
        lr: float = 1e-3,
        l2: float = 0.1,
        warmup: float = 0.05,
    ) -> None:
        super().__init__()
        net_args = dict(net_args or {})
        self.save_hyperparameters()  # plain types: the checkpoint loads with weights_only=True
        require_steps(total_steps)
        if not l2 >= 0:
            raise ValueError(f"l2 must not be negative, got {l2}. 0 is no penalty.")
        self.net = build(net, net_args)
        self.total_steps = total_steps
        self.lr = lr
        self.l2 = l2
        self.warmup = warmup
        self.hazard: BaselineHazard | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []  # of the running evaluation
        self._train_sum = 0.0  # of the running epoch
        self._train_events = 0.0

    def setup(self, stage: str) -> None:
        """Forget a fit that was stopped in the middle; a resumed one is loaded after this.

        Raises:
            ValueError: For several devices: risk sets don't add up over parts of a batch.
        """
        if self.trainer.world_size > 1:
            raise ValueError(
                "LitCox compares the patients of one batch on one device; this Trainer has "
                f"{self.trainer.world_size} processes. Pass devices=1: a table needs no more."
            )
        self._train_sum, self._train_events, self._seen = 0.0, 0.0, []

    def forward(self, x: Tensor) -> Tensor:
        """Return log relative hazards, float32 ``(B,)``."""
        return self.net(x).reshape(len(x)).float()

    def survival(self, x: Tensor, horizon: float) -> Tensor:
        """Return P(no event until ``horizon``) of each row, float32 ``(B,)``.

        Raises:
            RuntimeError: Without a baseline hazard.
            ValueError: For a horizon beyond the training patients' follow-up.
        """
        if self.hazard is None:
            raise RuntimeError(
                "a probability needs the baseline hazard of the training patients, and none is "
                "there yet. Fit with a SurvivalDataModule, load a checkpoint, or call "
                "fit_hazard(dm.rows('train'))."
            )
        with torch.no_grad():
            eta = self(x.to(self.device)).cpu().numpy()
        return torch.from_numpy(self.hazard.survival(eta, horizon)).to(x)

    def fit_hazard(self, rows: Batch) -> BaselineHazard:
        """Fit the baseline hazard to the weights as they are, on the training rows."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad():
            eta = self(rows.x.to(self.device)).cpu().numpy()
        for module, mode in modes:
            module.training = mode
        time, event = rows.y.cpu().numpy().T
        self.hazard = breslow(time, event, eta)
        return self.hazard

    def loss_terms(self, batch: Batch) -> tuple[Tensor, float]:
        """Return the summed negative log partial likelihood of a batch, and its events.

        Unlike those of a classifier, the sums over parts of a batch do not add up.
        """
        return cox_terms(self(batch.x), batch.y[:, 0], batch.y[:, 1])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss per event, with the penalty."""
        total, events = self.loss_terms(batch)
        self._train_sum += float(total.detach())
        self._train_events += events
        matrices = (p for p in self.net.parameters() if p.ndim > 1)
        penalty = sum((p.square().sum() for p in matrices), torch.zeros_like(total))
        return total / max(events, 1.0) + self.l2 / 2 * penalty

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean training loss per event.

        Raises:
            ValueError: When no batch of the epoch held an event.
        """
        if not self._train_events:
            raise ValueError(
                "an epoch must hold an event, and none of its batches did. Train on patients with "
                "events, or on larger batches."
            )
        self.log("train/loss", self._train_sum / self._train_events)
        self._train_sum, self._train_events = 0.0, 0.0

    def on_train_end(self) -> None:
        """Fit the baseline hazard to the weights as they end."""
        self._fit_hazard_where_known()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the validation rows."""
        self._seen.append((self(batch.x).detach(), batch.y))

    def on_validation_epoch_end(self) -> None:
        """Log loss and c-index over all validation rows."""
        self._report("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the test rows."""
        self._seen.append((self(batch.x).detach(), batch.y))

    def on_test_epoch_end(self) -> None:
        """Log loss and c-index over all test rows."""
        self._report("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Ranked:
        """Return log relative hazards with row and site; :func:`gather` joins the batches."""
        return Ranked(self(batch.x), batch.y, batch.row, batch.site)

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """Return Adam and, where ``total_steps`` is known, warm-up and cosine to zero."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return warmup_cosine(optimizer, self.total_steps, warmup=self.warmup)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the baseline hazard of these weights, and the running epoch's loss."""
        self._fit_hazard_where_known()
        if self.hazard is not None:
            checkpoint["hazard"] = self.hazard.state()
        checkpoint["train_loss"] = [self._train_sum, self._train_events]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the baseline hazard, and go on with the running epoch's loss."""
        kept = checkpoint.get("hazard")
        if kept is not None:
            self.hazard = BaselineHazard.from_state(kept)
        self._train_sum, self._train_events = checkpoint.get("train_loss", (0.0, 0.0))

    def _fit_hazard_where_known(self) -> None:
        rows = getattr(getattr(self._trainer, "datamodule", None), "rows", None)
        if rows is not None:
            self.fit_hazard(rows("train"))

    def _report(self, stage: str) -> None:
        seen, self._seen = self._seen, []
        if self.trainer.sanity_checking or not seen:
            return
        eta, y = (torch.cat(parts) for parts in zip(*seen, strict=True))
        total, events = cox_terms(eta, y[:, 0], y[:, 1])
        time, event = y.cpu().numpy().T
        some = slice(None, None, -(-len(eta) // _MOST_RANKED))
        c_index = harrell_c(time[some], event[some], eta.cpu().numpy()[some]).value
        self.log_dict({f"{stage}/loss": total / max(events, 1.0), f"{stage}/c_index": c_index})


def warm_start(
    cox: CoxBaseline, *, hidden: Sequence[int] = (32,), dropout: float = 0.0
) -> dict[str, Any]:
    """Return ``net`` and ``net_args`` of a net that starts as a fitted linear Cox model.

    A residual MLP is trained beside the linear part, which stays as it was fitted; its last layer
    begins at zero. A net that starts from random weights spends its training on finding the linear
    part, and differs from seed to seed in how well it has.
    """
    arguments = {"coef": cox.coef.tolist(), "intercept": 0.0}  # hazards have no level of their own
    arguments |= {"hidden": list(hidden), "dropout": dropout}
    return {"net": "medkit.models.tabular:warm_mlp", "net_args": arguments}


def gather(batches: Iterable[Ranked]) -> dict[str, NDArray[Any]]:
    """Join what ``trainer.predict`` returned: ``eta``, ``time``, ``event``, ``row``, ``site``."""
    joined = Ranked(*(torch.cat(list(parts)).cpu() for parts in zip(*batches, strict=True)))
    time, event = joined.y.numpy().astype(np.float64).T
    whose = {"row": joined.row.numpy(), "site": joined.site.numpy()}
    return {"eta": joined.eta.numpy(), "time": time, "event": event} | whose
