"""Tell two classes apart, under a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from medkit.data.batches import Batch
from medkit.models.lean_module import LeanModule
from medkit.models.nets import build
from medkit.models.rare_losses import loss_sum, prior_shift, require_loss
from medkit.models.schedules import require_steps, warmup_cosine


class Scored(NamedTuple):
    """What :meth:`LitClassifier.predict_step` returns: P(y = 1) and whose row it is."""

    prob: Tensor
    y: Tensor
    row: Tensor
    site: Tensor


class LitClassifier(LeanModule):
    """Train a net to tell label 1 from label 0.

    Logs ``train/loss`` once an epoch (a log per step costs as much as a step of a small net);
    ``val/loss``, ``val/auroc``, ``val/auprc`` and ``val/brier`` per validation, and the same
    under ``test/``.

    Args:
        net: Factory of a net that maps ``x`` to logits ``(B, 1)`` or ``(B,)``, as
            "package.module:name", so that the checkpoint can rebuild it.
        net_args: The factory's arguments, plain types.
        total_steps: Optimizer steps of the whole training: the rate rises over the first
            ``warmup`` of them and falls along a cosine to zero at the last, which takes the
            noise of the batch order out of the result. None: a constant rate.
        lr: AdamW's highest learning rate.
        weight_decay: AdamW's decoupled weight decay. Below about 0.1 it does nothing at
            ``lr`` 1e-3 over some hundred steps.
        warmup: Share of ``total_steps`` in which the rate rises.
        logit_shift: Added to the logits outside training: ``dm.logit_shift`` puts the prior back
            that balanced draws took out.
        loss: "cross entropy", "focal", "pos_weight" or "logit adjusted"; see
            :mod:`~medkit.models.rare_losses`. Validation is cross entropy under all of them.
        prior: Share of label 1 in the training rows, which the last two need: they put it back
            themselves.
    """

    def __init__(
        self,
        net: str,
        net_args: Mapping[str, Any] | None = None,
        *,
        total_steps: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.05,
        logit_shift: float = 0.0,
        loss: str = "cross entropy",
        prior: float | None = None,
    ) -> None:
        super().__init__()
        net_args = dict(net_args or {})
        require_loss(loss, prior)
        self.save_hyperparameters()  # plain types: the checkpoint loads with weights_only=True
        require_steps(total_steps)
        self.net = build(net, net_args)
        self.total_steps = total_steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.loss_name, self.prior = loss, prior
        self.logit_shift = logit_shift + prior_shift(loss, prior)
        ranking = MetricCollection(
            {
                "auroc": BinaryAUROC(validate_args=False),
                "auprc": BinaryAveragePrecision(validate_args=False),
                "brier": MeanSquaredError(),
            }
        )
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_metrics = ranking.clone(prefix="val/")
        self.test_metrics = ranking.clone(prefix="test/")
        self._train_sum: Tensor | None = None  # of the running epoch
        self._train_weight = 0.0

    def setup(self, stage: str) -> None:
        """Forget a fit that was stopped in the middle; a resumed one is loaded after this."""
        self._train_sum, self._train_weight = None, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of label 1, ``(B,)``, as trained (without ``logit_shift``)."""
        return self.net(x).reshape(len(x))

    def prob(self, x: Tensor) -> Tensor:
        """Return P(y = 1), float32 ``(B,)``."""
        return torch.sigmoid(self(x).float() + self.logit_shift)

    def loss_terms(self, batch: Batch) -> tuple[Tensor, float]:
        """Return the sum of the losses and its weight: sums over parts of a batch add up."""
        loss = loss_sum(self.loss_name, self(batch.x), batch.y, self.prior)
        return loss, float(len(batch.y))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch."""
        total, weight = self.loss_terms(batch)
        seen = total.detach()
        self._train_sum = seen if self._train_sum is None else self._train_sum + seen
        self._train_weight += weight
        return total / weight

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean training loss, over the rows as they were drawn."""
        if self._train_sum is not None:
            self.log("train/loss", self._train_sum / self._train_weight, sync_dist=True)
        self._train_sum, self._train_weight = None, 0.0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the validation rows."""
        self._collect(batch, self.val_loss, self.val_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log loss, AUROC, AUPRC and Brier score over all validation rows."""
        self._report("val", self.val_loss, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the test rows."""
        self._collect(batch, self.test_loss, self.test_metrics)

    def on_test_epoch_end(self) -> None:
        """Log loss, AUROC, AUPRC and Brier score over all test rows."""
        self._report("test", self.test_loss, self.test_metrics)

    def predict_step(self, batch: Batch, batch_idx: int) -> Scored:
        """Return P(y = 1) with row and site; :func:`gather` puts the batches together."""
        return Scored(self.prob(batch.x), batch.y, batch.row, batch.site)

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """Return AdamW and, where ``total_steps`` is known, warm-up and cosine to zero."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=self._fused()
        )
        return warmup_cosine(optimizer, self.total_steps, warmup=self.warmup)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running epoch's loss, so that a resumed epoch logs the mean of all of it."""
        if self._train_sum is not None:
            checkpoint["train_loss"] = [self._train_sum.item(), self._train_weight]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the running epoch's loss."""
        total, weight = checkpoint.get("train_loss", (None, 0.0))
        self._train_sum = None if total is None else torch.tensor(total, device=self.device)
        self._train_weight = weight

    def _fused(self) -> bool:
        """One kernel for all parameters saves a third of a small net's step.

        Not under autocast: there Lightning takes a fused optimizer for one that unscales
        gradients itself, and refuses to clip them.
        """
        trainer = self._trainer
        return trainer is None or not str(trainer.precision).endswith("-mixed")

    def _collect(self, batch: Batch, loss: MeanMetric, metrics: MetricCollection) -> None:
        logits = self(batch.x).float() + self.logit_shift
        total = loss_sum("cross entropy", logits, batch.y, None)
        loss.update(total / len(batch.y), len(batch.y))
        prob = torch.sigmoid(logits)
        metrics.update(prob, batch.y)

    def _report(self, stage: str, loss: MeanMetric, metrics: MetricCollection) -> None:
        if not self.trainer.sanity_checking:  # two batches may hold one class only
            self.log_dict({f"{stage}/loss": loss.compute(), **metrics.compute()})
        loss.reset()
        metrics.reset()


def gather(batches: Iterable[Scored]) -> dict[str, NDArray[Any]]:
    """Put what ``trainer.predict`` returned together: ``prob``, ``y``, ``row``, ``site``."""
    columns = zip(*batches, strict=True)
    return {
        name: torch.cat(list(parts)).cpu().numpy()
        for name, parts in zip(Scored._fields, columns, strict=True)
    }
