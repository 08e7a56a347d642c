"""Many seeds at the price of one: members that are trained together, each as if it were alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pandas as pd
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from medkit import keyed
from medkit.data.batches import Batch
from medkit.models.classifier import LitClassifier, Scored
from medkit.models.lean_module import LeanModule
from medkit.models.masks import MemberMasks
from medkit.models.member_metrics import NAMES, of_members
from medkit.models.nets import build
from medkit.models.schedules import require_steps, warmup_cosine
from medkit.models.stacked import StackedNet, filled_up
from medkit.models.stacked_layers import aligned

# glibc gives freed memory of this size back to the system, and from then on keeps what is smaller:
# a stack's activations would else be mapped anew at each step, which takes as long as the step
_KEPT_BYTES = 31 << 20


class SeedEnsemble(LeanModule):
    """Train S nets for tables in one process, alike but for their seeds.

    ::

        dm = EHRDataModule(csv, target="died")
        dm.setup()
        lit = SeedEnsemble.of(warm_classifier(dm, max_epochs=30), seeds=range(20))
        trainer = stable_trainer(run, max_epochs=30)
        trainer.fit(lit, stacked(keyed(dm), lit.seeds), ckpt_path=run.resume("fit"))
        lit.table()                                    # each member, each epoch
        lit.member(7).prob(x)                          # an ordinary LitClassifier

    A member has the initial weights, the order of rows and the dropout masks that a run of its
    seed has alone, by the same keys, its own gradient norm where gradients are clipped
    (``gradient_clip_val`` of the Trainer) and its own best epoch. So it does not depend on the
    other members: on a CPU with one thread it is bit for bit the same in a stack of any size from
    two on. The run alone differs from it by rounding only (products are summed in another order):
    less than 1e-5 in probability over the budget of ``warm_classifier``. That needs its smooth
    activation. A ReLU whose input is within rounding of 0 switches its unit's gradient, of which
    Adam makes full steps: with ReLU 5 of 12 seeds ended up to 1e-2 from themselves when their
    initial weights differed by one rounding. On an accelerator a run alone draws other dropout
    masks: its own, not the CPU's.

    Logged are mean and sd over the members, and the metrics of the mean of their probabilities:
    ``val/auroc``, ``val/auroc_sd``, ``val/auroc_ensemble``; also loss, auprc and brier, and the
    same under ``test/``. ``train/loss`` is the members' mean. Prediction is the mean of the
    probabilities.

    A member whose weights become non-finite leaves the others as they are; it stays in the count.
    ``SpikeGuard`` does not guard this module, since it would skip the step of all members.

    Args:
        net: As :class:`LitClassifier`'s; a net that :class:`StackedNet` understands.
        net_args: The factory's arguments.
        seeds: One a member, different, two at least.
        stage: Initial weights are those of ``run.init(stage)`` in a run of the member's seed.
        total_steps: As LitClassifier's, like the next four.
        lr: AdamW's highest learning rate.
        weight_decay: AdamW's.
        warmup: Share of the steps in which the rate rises.
        logit_shift: Added to the logits outside training.
        best_epoch: Test, predict and take members out as they were at their epoch of least
            validation loss, not at the last.

    Raises:
        ValueError: For fewer than two seeds, equal ones, or a net that cannot be stacked.
    """

    best_weight: Tensor
    best_loss: Tensor
    best_at: Tensor
    trained_apart = True  # the kit's guards ask for it

    def __init__(
        self,
        net: str,
        net_args: Mapping[str, Any] | None = None,
        *,
        seeds: Sequence[int],
        stage: str = "fit",
        total_steps: int | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        warmup: float = 0.05,
        logit_shift: float = 0.0,
        best_epoch: bool = False,
    ) -> None:
        super().__init__()
        net_args, seeds = dict(net_args or {}), list(keyed.seeds_of(seeds))
        self.save_hyperparameters()  # plain types: the checkpoint loads with weights_only=True
        require_steps(total_steps)
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"members are trained by two or more different seeds, got {seeds}. Pass "
                "seeds=range(20), or train a LitClassifier where it is one."
            )
        self.seeds = tuple(seeds)
        nets = []
        for seed in seeds:
            with keyed.globals_keyed(seed, "init", stage):
                nets.append(build(net, net_args))
        self.net = StackedNet(nets)
        self.logit_shift = logit_shift
        self.best_epoch = best_epoch
        self._masks = MemberMasks(self.seeds, self.net.dropouts)
        members = len(seeds)
        self.register_buffer("best_weight", self.net.rows())
        self.register_buffer("best_loss", torch.full((members,), torch.finfo(torch.float32).max))
        self.register_buffer("best_at", torch.full((members,), -1))
        self._curves: list[list[Any]] = []  # of validation and test: stage, epoch, seed, metrics
        self._seen: list[tuple[Tensor, Tensor]] = []  # of the running evaluation
        self._train_sum: Tensor | None = None  # of the running epoch
        self._train_weight = 0.0

    @classmethod
    def of(cls, solo: LitClassifier, seeds: Sequence[int], **settings: Any) -> Self:
        """Train what ``solo`` would be, by many seeds; its own weights do not matter.

        Args:
            solo: Such as ``warm_classifier`` makes.
            seeds: One a member.
            **settings: More arguments: ``stage``, ``best_epoch``.

        Raises:
            ValueError: For another loss than cross entropy.
        """
        if solo.loss_name != "cross entropy":
            raise ValueError(
                f"members are trained by cross entropy, and this module by {solo.loss_name!r}. "
                "Train it once a seed, a process each: medkit sweep."
            )
        hyper = {k: v for k, v in solo.hparams.items() if k not in ("loss", "prior")}
        return cls(**hyper, seeds=seeds, **settings)

    def setup(self, stage: str) -> None:
        """Refuse to share members among processes; forget a fit that was stopped in the middle."""
        if self.trainer.world_size > 1:
            raise ValueError(
                "a SeedEnsemble trains in one process, and this Trainer has "
                f"{self.trainer.world_size}. Pass devices=1, and give each process seeds of its "
                "own: a member is the same whichever others it is trained with."
            )
        self._train_sum, self._train_weight = None, 0.0
        self._seen.clear()
        if stage == "fit" and self.device.type == "cpu":
            torch.empty(_KEPT_BYTES, dtype=torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the members' logits, ``(S, B)``, without ``logit_shift``.

        Args:
            x: ``(B, F)``, or rows of its own for each member, ``(S, B, F)``.
        """
        return self.net(filled_up(x))[:, : x.shape[-2]]

    def prob(self, x: Tensor) -> Tensor:
        """Return each member's P(y = 1), float32 ``(S, B)``; the ensemble's is their mean."""
        return torch.sigmoid(self(x).float() + self.logit_shift)

    def loss_terms(self, batch: Batch) -> tuple[Tensor, float]:
        """Return the sum of the members' losses without dropout, and the weight: rows a member."""
        rows = batch.y.shape[1]
        return self._loss(batch, ()) * rows, float(rows)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the sum over the members of their mean losses: each gets its own gradient.

        Args:
            batch: Rows of each member, ``x`` as ``(S, B, F)``, from ``stacked(dm, seeds)``.
            batch_idx: Its number in the epoch.
        """
        self._require_stacked(batch.x)
        rows = batch.x.shape[1]
        masks: list[Tensor] = []
        if self._masks.layers:
            trainer, attempt = self.trainer, 0
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                attempt = getattr(callback, "attempt", attempt)
            place = (trainer.current_epoch, batch_idx, trainer.global_rank, attempt)
            masks = self._masks.draw(rows, *place, padded=aligned(rows), device=self.device)
        loss = self._loss(batch, masks)
        seen = loss.detach() * rows
        self._train_sum = seen if self._train_sum is None else self._train_sum + seen
        self._train_weight += rows
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean over members of the epoch's mean training loss."""
        if self._train_sum is not None:
            self.log("train/loss", self._train_sum / (self._train_weight * len(self.seeds)))
        self._train_sum, self._train_weight = None, 0.0

    def on_train_start(self) -> None:
        """Refuse batches that were stacked for other members, or in another order."""
        found = getattr(self.trainer.train_dataloader, "seeds", self.seeds)
        if tuple(found) != self.seeds:
            raise ValueError(
                f"batches must be stacked for the members' seeds {list(self.seeds)}, in their "
                f"order; found {list(found)}. Fit with stacked(dm, lit.seeds)."
            )

    def on_fit_start(self) -> None:
        """Clip members apart, where the Trainer clips at all: the hook costs 5 % of a step."""
        if self.trainer.gradient_clip_val:
            self.configure_gradient_clipping = self._clip  # type: ignore[method-assign]

    def _clip(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradient by its own norm, or by value, as the Trainer is told."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.net.parameters(), gradient_clip_val)
        else:
            clip_each(self.net.gradients(), float(gradient_clip_val))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the validation rows."""
        self._seen.append((self(batch.x).float() + self.logit_shift, batch.y))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, and keep the weights of members that were never better."""
        found = self._report("val")
        if found is None:
            return
        loss = found["loss"][:-1].to(self.best_loss)
        better = loss < self.best_loss
        self.best_loss.copy_(loss.where(better, self.best_loss))
        self.best_at[better] = self.current_epoch
        self.best_weight[better] = self.net.rows()[better]

    def on_test_start(self) -> None:
        """Take each member's best epoch where that is asked for."""
        self._swap_best()

    on_predict_start = on_test_start

    def on_test_end(self) -> None:
        """Put the last epoch's weights back."""
        self._swap_best()

    on_predict_end = on_test_end

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the test rows."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the metrics over all test rows."""
        self._report("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Scored:
        """Return the mean of the members' P(y = 1), with row and site."""
        return Scored(self.prob(batch.x).mean(0), batch.y, batch.row, batch.site)

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """Return AdamW and the schedule of LitClassifier; AdamW is exact for each weight alone."""
        hyper = self.hparams
        mixed = str(self.trainer.precision).endswith("-mixed")  # see LitClassifier._fused
        optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=hyper["lr"],
            weight_decay=hyper["weight_decay"],
            fused=not mixed,
        )
        return warmup_cosine(optimizer, hyper["total_steps"], warmup=hyper["warmup"])

    def member(self, seed: int) -> LitClassifier:
        """Return the member of a seed, as the run of that seed alone would leave it, in eval mode.

        Raises:
            ValueError: Where no member has this seed.
        """
        if seed not in self.seeds:
            raise ValueError(
                f"a member is named by its seed, one of {list(self.seeds)}; got {seed!r}."
                " Pass one of these."
            )
        apart = {"seeds", "stage", "best_epoch"}
        with keyed.globals_keyed(seed, "init", self.hparams["stage"]):
            lit = LitClassifier(**{k: v for k, v in self.hparams.items() if k not in apart})
        chosen = self._best_weight() if self.best_epoch else None
        lit.net.load_state_dict(self.net.state_of(self.seeds.index(seed), chosen))
        return lit.to(self.device).eval()

    def table(self, stage: str = "val") -> pd.DataFrame:
        """Return the metrics of each member, and of the ensemble (seed -1), at each epoch."""
        columns = ["stage", "epoch", "seed", *NAMES]
        whole = pd.DataFrame(self._curves, columns=columns)
        return whole[whole["stage"] == stage].drop(columns="stage").reset_index(drop=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the members' curves, and the running epoch's losses."""
        checkpoint["members"] = {
            "curves": [list(row) for row in self._curves],
            "train_sum": self._train_sum,
            "train_weight": self._train_weight,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with them."""
        saved = checkpoint["members"]
        self._curves = [list(row) for row in saved["curves"]]
        total = saved["train_sum"]
        self._train_sum = None if total is None else total.to(self.device)
        self._train_weight = saved["train_weight"]

    def _loss(self, batch: Batch, masks: Sequence[Tensor]) -> Tensor:
        return self.net.loss(filled_up(batch.x), batch.y.float(), masks)

    def _report(self, stage: str) -> dict[str, Tensor] | None:
        """Log the metrics of the rows seen and return them; None in the sanity check."""
        logits = torch.cat([part for part, _ in self._seen], dim=1).cpu()
        y = torch.cat([part for _, part in self._seen]).cpu()
        self._seen.clear()
        if self.trainer.sanity_checking:
            return None
        found = of_members(logits, y)
        for name, values in found.items():
            self.log(f"{stage}/{name}", values[:-1].mean().float())
            self.log(f"{stage}/{name}_sd", values[:-1].std().float())
            self.log(f"{stage}/{name}_ensemble", values[-1].float())
        columns = [found[name].tolist() for name in NAMES]
        epoch = self.current_epoch
        self._curves += [
            [stage, epoch, seed, *values]
            for seed, *values in zip([*self.seeds, -1], *columns, strict=True)
        ]
        return found

    def _best_weight(self) -> Tensor:
        never = (self.best_at < 0)[:, None]  # not validated
        return torch.where(never, self.net.rows(), self.best_weight)

    def _swap_best(self) -> None:
        if self.best_epoch:
            last = self.net.rows()
            self.net.put(self._best_weight())
            self.best_weight.copy_(last)

    def _require_stacked(self, x: Tensor) -> None:
        if x.dim() != 3 or len(x) != len(self.seeds):
            raise ValueError(
                f"a training batch must hold rows for each of the {len(self.seeds)} members, "
                f"(S, B, F); found {tuple(x.shape)}. Fit with stacked(dm, lit.seeds)."
            )


def clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale each member's gradient to a norm of at most ``limit``, as torch does a net's."""
    norms = [torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale = (limit / (norm + 1e-6)).clamp_(max=1.0).unsqueeze(1)
    if scale.device.type == "cpu" and float(scale.min()) == 1.0:
        return
    for gradient in gradients:
        gradient.mul_(scale)
