"""Train an image-text model on conversations, under a Lightning Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric

from medkit.data.encoded import IGNORED, PACKING, given
from medkit.models.lean_module import LeanModule
from medkit.models.nets import build
from medkit.models.schedules import require_steps, warmup_cosine
from medkit.vlm.adapters import Adapters
from medkit.vlm.galore import GaLore
from medkit.vlm.groups import FreezePolicy, Frozen, groups_of
from medkit.vlm.packs import packed_for, require_exact_packing
from medkit.vlm.settings import mapping, require_known
from medkit.vlm.sharding import shard

__all__ = ["LitVLM", "given", "loss_sum", "token_logprobs"]

Inputs = Mapping[str, Tensor]


class LitVLM(LeanModule):
    """Fine-tune a model of Hugging Face's on what the assistant says.

    What is frozen has no gradient, is in evaluation mode (``from_pretrained`` leaves all of a model
    in it, ``train()`` none), is not in the checkpoint, and is compared at the end of the fit with
    what it was: its SHA-256 must not have moved.

    A batch that says so (:class:`~medkit.data.reports.ReportDataModule`'s ``packing``) is packed
    before the model is called, and the first one is asked whether that is exact for this model.

    Logs ``train/loss`` once an epoch; per validation ``val/loss``, ``val/token_accuracy`` and
    ``val/exact`` (share of answers all of whose tokens are the likeliest, those before them given:
    more than is right when the model writes on its own).

    Args:
        model: Factory of the model, as "package.module:name", which a checkpoint can call again.
        model_args: The factory's arguments, plain types.
        freeze: Keys of :class:`~medkit.vlm.groups.FreezePolicy`, as ms-swift has them.
        lora: Keys of :class:`~medkit.vlm.adapters.Adapters`: train low-rank adapters, and of the
            model itself only what its ``full`` names. Instead of ``freeze``.
        galore: Keys of :class:`~medkit.vlm.galore.GaLore`: AdamW's state in few directions.
            Instead of ``lora``.
        prefixes: Group -> names of modules, for a family that is not known.
        total_steps: Optimizer steps of the whole training, for warm-up and cosine; None: a
            constant rate.
        lr: AdamW's highest learning rate.
        vit_lr: Of the vision part; None: ``lr``.
        aligner_lr: Of the aligner; None: ``lr``.
        weight_decay: AdamW's, of matrices.
        warmup: Share of ``total_steps`` in which the rate rises.
    """

    def __init__(
        self,
        model: str,
        model_args: Mapping[str, Any] | None = None,
        *,
        freeze: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        galore: Mapping[str, Any] | None = None,
        prefixes: Mapping[str, Sequence[str]] | None = None,
        total_steps: int | None = None,
        lr: float = 1e-3,
        vit_lr: float | None = None,
        aligner_lr: float | None = None,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        model_args, freeze = mapping(model_args, "model_args"), mapping(freeze, "freeze")
        lora = None if lora is None else mapping(lora, "lora")
        galore = None if galore is None else mapping(galore, "galore")
        self.save_hyperparameters()  # plain types: the checkpoint loads with weights_only=True
        require_steps(total_steps)
        self.model: Any = build(model, model_args)
        if lora is not None:
            if freeze or galore is not None:
                raise ValueError(
                    "what is trained is said by freeze or by lora, not by both: beside adapters, "
                    "lora's full names the groups that are trained as a whole. Adapters are of low "
                    "rank already, so galore goes with freeze alone."
                )
            self.model = Adapters.of(lora).add_to(self.model, prefixes)
            self.frozen = Frozen(self.model, groups_of(self.model, prefixes))
        else:
            self.frozen = _policy(freeze).apply(self.model, prefixes)
        self.groups = groups_of(self.model, prefixes)
        self.galore = None if galore is None else GaLore.of(galore)
        self.projected = self.galore.projected(self.model, prefixes) if self.galore else set()
        self.total_steps = total_steps
        self.lr = {"llm": lr, "vision": vit_lr or lr, "aligner": aligner_lr or lr}
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.val_loss, self.val_tokens, self.val_exact = MeanMetric(), MeanMetric(), MeanMetric()
        self._train_sum: Tensor | None = None  # of the running epoch
        self._train_weight = 0.0
        self._digest = ""
        self._packs_exactly = False  # as far as is known

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return logits, ``(B, L, vocabulary)``, for the model's own inputs."""
        found: Tensor = self.model(**inputs, use_cache=False).logits
        return found

    def loss_terms(self, batch: Inputs) -> tuple[Tensor, float]:
        """Return the sum of the tokens' losses, and how many are learnt."""
        _refuse_pairs(self, batch)
        if PACKING in batch:
            batch = packed_for(self.model, batch, longest=int(batch[PACKING]))
        total, weight = loss_sum(self(**given(batch)), batch["labels"])
        return total, float(weight)

    def training_step(self, batch: Inputs, batch_idx: int) -> Tensor:
        """Return the mean loss of the batch's tokens."""
        total, weight = self.loss_terms(batch)
        seen = total.detach()
        self._train_sum = seen if self._train_sum is None else self._train_sum + seen
        self._train_weight += weight
        return total / max(self._mean_weight(weight), 1.0)

    def configure_model(self) -> None:
        """Spread the weights over devices where the strategy is ``ModelParallelStrategy``."""
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh)

    def on_fit_start(self) -> None:
        """Remember what is frozen, and wake what is trained."""
        self.frozen.set_modes()
        self._digest = self.frozen.digest()

    def on_train_epoch_start(self) -> None:
        """Wake what is trained, and that alone."""
        self.frozen.set_modes()

    def on_train_batch_start(self, batch: Inputs, batch_idx: int) -> None:
        """Ask once whether packing is exact for this model."""
        if PACKING in batch and not self._packs_exactly:
            require_exact_packing(self.model, batch, longest=int(batch[PACKING]))
            self._packs_exactly = True

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss of a token."""
        if self._train_sum is not None:
            self.log("train/loss", self._train_sum / self._train_weight, sync_dist=True)
        self._train_sum, self._train_weight = None, 0.0

    def on_fit_end(self) -> None:
        """Refuse a fit that moved what is frozen.

        Raises:
            RuntimeError: Where it has.
        """
        if self.frozen.digest() != self._digest:
            raise RuntimeError(
                "what is frozen must not change, and its SHA-256 has. Something writes to "
                "weights beside the optimizer: a callback that averages weights, say, or a hook."
            )

    def on_validation_model_train(self) -> None:
        """Go on in the modes that training has, not with all of the model awake."""
        super().train(True)
        self.frozen.set_modes()

    def validation_step(self, batch: Inputs, batch_idx: int) -> None:
        """Collect loss, tokens and answers."""
        _refuse_pairs(self, batch)
        logits, labels = self(**given(batch)), batch["labels"]
        total, weight = loss_sum(logits, labels)
        right = logits[:, :-1].argmax(-1) == labels[:, 1:]
        learnt = labels[:, 1:] != IGNORED
        self.val_loss.update(total / max(weight, 1), weight)
        self.val_tokens.update(right[learnt].float())
        self.val_exact.update((right | ~learnt).all(1)[learnt.any(1)].float())

    def on_validation_epoch_end(self) -> None:
        """Log them."""
        found = {"loss": self.val_loss, "token_accuracy": self.val_tokens, "exact": self.val_exact}
        if not self.trainer.sanity_checking:
            self.log_dict({f"val/{name}": metric.compute() for name, metric in found.items()})
        for metric in found.values():
            metric.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer | OptimizerLRSchedulerConfig:
        """Return AdamW or GaLore, a rate a group, decay for matrices alone, warm-up and cosine."""
        several: dict[tuple[float, float], list[Tensor]] = {}
        for name, value in self.model.named_parameters():
            if value.requires_grad:
                decay = self.weight_decay if value.ndim > 1 else 0.0
                several.setdefault((self.lr[self.groups[name]], decay), []).append(value)
        parameters = [
            {"params": own, "lr": lr, "weight_decay": decay} for (lr, decay), own in several.items()
        ]
        if self.galore is not None:
            some = [v for name, v in self.model.named_parameters() if name in self.projected]
            projecting = self.galore.optimizer(parameters, some)
            return warmup_cosine(projecting, self.total_steps, warmup=self.warmup)
        mixed = self._trainer is not None and str(self._trainer.precision).endswith("-mixed")
        optimizer = torch.optim.AdamW(parameters, fused=not mixed)
        return warmup_cosine(optimizer, self.total_steps, warmup=self.warmup)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave what is frozen out; keep its names and SHA-256, and the running epoch's loss.

        Where weights are spread over devices all stay in: the strategy loads them before it asks.
        """
        if self.device_mesh is None:
            kept = self._frozen_names()
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in kept}
            checkpoint["frozen"] = {"names": sorted(kept), "sha256": self.frozen.digest()}
        if self._train_sum is not None:
            checkpoint["train_loss"] = [self._train_sum.item(), self._train_weight]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what was frozen back from this model, if it is the same.

        Raises:
            ValueError: Where other weights are frozen here, or the same of other values.
        """
        said, kept = checkpoint.get("frozen"), self._frozen_names()
        if said is not None:
            if set(said["names"]) != kept or said["sha256"] != self.frozen.digest():
                raise ValueError(
                    f"a checkpoint without frozen weights needs the model they were of: "
                    f"{len(said['names'])} are missing in it, {len(kept)} are frozen here, and "
                    "names or values differ. Load it with the same model and freeze policy."
                )
            # the scales of four-bit weights are theirs, and are not loaded
            own, loaded = self.state_dict(), [*self.named_parameters(), *self.named_buffers()]
            there = kept & {name for name, _ in loaded}
            checkpoint["state_dict"] |= {name: own[name] for name in there}
        total, weight = checkpoint.get("train_loss", (None, 0.0))
        self._train_sum = None if total is None else torch.tensor(total, device=self.device)
        self._train_weight = weight

    def _mean_weight(self, weight: float) -> float:
        """Return the mean over processes: they average gradients, whoever has more tokens."""
        if self._trainer is None or self._trainer.world_size == 1:
            return weight
        all_of_them: Any = self.all_gather(torch.tensor(weight, device=self.device))
        return float(all_of_them.mean())

    def _frozen_names(self) -> set[str]:
        return {f"model.{name}" for name in self.frozen.names()}


def loss_sum(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the cross entropy of what is learnt, summed over tokens, and their number.

    Args:
        logits: ``(B, L, vocabulary)``; those at a place speak of the next one.
        labels: ``(B, L)``, ``IGNORED`` where nothing is learnt.
    """
    following = labels[:, 1:]
    learnt = following != IGNORED
    # of the places that count alone: most are pictures and questions
    picked, wanted = logits[:, :-1][learnt], following[learnt]
    return F.cross_entropy(picked.float(), wanted, reduction="sum"), int(learnt.sum())


def token_logprobs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each learnt token's log-likelihood, 0 elsewhere, and which these are.

    Args:
        logits: ``(B, L, vocabulary)``.
        labels: ``(B, L)``, ``IGNORED`` where nothing is learnt.

    Returns:
        float32 and bool, ``(B, L - 1)``.
    """
    following = labels[:, 1:]
    learnt = following != IGNORED
    wanted = following.where(learnt, torch.zeros_like(following))
    each = logits[:, :-1].float().log_softmax(-1).gather(2, wanted[:, :, None])[:, :, 0]
    return each * learnt, learnt


def _refuse_pairs(lit: LitVLM, batch: Inputs) -> None:
    if "chosen" in batch:
        raise ValueError(
            f"{type(lit).__name__} learns from one answer a conversation; got a batch of pairs, "
            f"{list(batch)}. Make it by ReportDataModule(..., pairs=False), or train by LitDPO."
        )


def _policy(freeze: Mapping[str, Any]) -> FreezePolicy:
    require_known(freeze, list(FreezePolicy.__dataclass_fields__), "freeze")
    several = ("freeze_parameters", "trainable_parameters")
    settings: dict[str, Any] = {k: tuple(v) if k in several else v for k, v in freeze.items()}
    return FreezePolicy(**settings)
