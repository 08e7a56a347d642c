"""A batch that does not fit is trained on in parts, as if it had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._memory import (
    FEATURES,
    Memory,
    Net,
    Trouble,
    cnn,
    deviation,
    fit,
    loader,
    lost_and_doubled,
    mlp,
)
from medkit.callbacks.guard_policy import GuardSettings
from medkit.callbacks.keyed_steps import KeyedSteps
from medkit.callbacks.memory_errors import is_out_of_memory
from medkit.callbacks.memory_guard import MemoryGuard
from medkit.callbacks.memory_norm import swap_batchnorm
from medkit.callbacks.memory_split import sizes_of_parts
from medkit.callbacks.spike_guard import SpikeGuard
from medkit.models.losses import cox_terms
from medkit.models.survival import LitCox

MIDDLE = (0, 2)  # epoch and batch; the last of three gathered


def trained(
    tmp_path: Path,
    trouble: Trouble,
    *,
    net: Any = mlp,
    kind: type[Net] = Net,
    lr: float = 0.0,
    guards: Sequence[pl.Callback] | None = None,
    memory: Memory | None = None,
    keyed: bool = True,
    **options: Any,
) -> tuple[Net, MemoryGuard, pl.Trainer]:
    torch.manual_seed(3)
    module = kind(net(), memory or Memory(trouble), lr=lr)
    guard = MemoryGuard()
    used = [guard] if guards is None else list(guards)
    trainer = fit(module, tmp_path, callbacks=[KeyedSteps(seed=1), *used][not keyed :], **options)
    return module, next((g for g in used if isinstance(g, MemoryGuard)), guard), trainer


def weights(module: nn.Module) -> list[Tensor]:
    return [value.detach() for value in module.state_dict().values()]


def actions(guard: MemoryGuard) -> list[str]:
    return [event["action"] for event in guard.events]


@pytest.mark.parametrize(
    ("where", "size", "most", "gathered"),
    [
        ("forward", 9, 5, 1),
        ("backward", 9, 1, 1),
        ("backward", 16, 3, 1),
        ("forward", 9, 1, 3),
        ("backward", 9, 5, 3),
    ],
)
def test_a_split_batch_has_the_gradient_of_the_whole(
    where: str, size: int, most: int, gathered: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"size": size, "accumulate_grad_batches": gathered, "epochs": 1}
    whole, _, _ = trained(tmp_path, {}, **options)
    split, guard, trainer = trained(tmp_path, {MIDDLE: (where, most)}, **options)
    assert deviation(split, whole) < 1e-6
    assert lost_and_doubled(split, whole) == (0, 0)
    assert split.losses == pytest.approx(whole.losses, rel=1e-6)
    assert guard.samples is not None
    assert guard.samples <= most
    assert len(split.gradients) == trainer.global_step


def test_nor_does_it_need_keyed_steps(tmp_path: Path) -> None:
    whole, _, _ = trained(tmp_path, {}, keyed=False, epochs=1)
    split, _, _ = trained(tmp_path, {MIDDLE: ("backward", 3)}, keyed=False, epochs=1)
    assert deviation(split, whole) < 1e-6


def test_group_norm_and_dropout_of_channels_are_split_exactly(tmp_path: Path) -> None:
    whole, _, _ = trained(tmp_path, {}, net=cnn, epochs=1)
    split, guard, _ = trained(tmp_path, {MIDDLE: ("forward", 4)}, net=cnn, epochs=1)
    assert deviation(split, whole) < 1e-6
    assert guard._reasons == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_the_next_batches_are_split_at_once(error: type[Exception], tmp_path: Path) -> None:
    memory = Memory({(0, 1): ("forward", 5)}, error)
    whole, _, _ = trained(tmp_path, {})
    split, guard, _ = trained(tmp_path, {}, memory=memory)
    assert len(memory.raised) == 1
    assert actions(guard) == [
        "batch split into parts of at most 5 samples",
        "5 batches of this epoch split",  # 9 9 9 9 9 8 samples, the first was whole
        "6 batches of this epoch split",
    ]
    assert deviation(split, whole) < 1e-6


@pytest.mark.parametrize("gathered", [1, 3])
def test_a_step_that_ran_out_half_way_is_taken_once(gathered: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "accumulate_grad_batches": gathered}
    whole, _, one = trained(tmp_path, {}, **options)
    for place in ((0, 2), (1, 5)):  # the first step makes the optimizer's state
        again, guard, other = trained(tmp_path, {place: ("step", 0)}, **options)
        assert actions(guard) == ["step taken back and tried once more"]
        for mine, theirs in zip(weights(again), weights(whole), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        states = [list(t.optimizers[0].state.values()) for t in (one, other)]
        for mine, theirs in zip(*states, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
        assert other.global_step == one.global_step


def test_a_step_that_never_fits_leaves_all_as_before_and_says_what_to_do(tmp_path: Path) -> None:
    class Never(Memory):
        def runs_out(self, where: str, samples: int = 0) -> None:
            if where == "step" and self.place == MIDDLE:
                raise torch.OutOfMemoryError("no")

    memory = Never({})
    torch.manual_seed(3)
    module, guard = Net(mlp(), memory), MemoryGuard()
    before: list[list[Tensor]] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            before.append([value.clone() for value in weights(module)])

    with pytest.raises(torch.OutOfMemoryError, match=r"needs room.*AdamW|Tight.*as before.*SGD"):
        fit(module, tmp_path, callbacks=[guard, Look()])
    torch.testing.assert_close(weights(module), before[-1], rtol=0, atol=0)
    assert actions(guard)[-1] == "training stopped"


def test_an_undisturbed_training_is_the_one_without_a_guard(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 1e-2, "accumulate_grad_batches": 2}
    one, guard, _ = trained(tmp_path, {}, **options)
    other, _, _ = trained(tmp_path, {}, guards=[], **options)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
    assert guard.events == []


@pytest.mark.parametrize("order", [0, 1])
def test_a_spike_in_a_split_batch_is_skipped_whatever_the_order_of_guards(
    order: int, tmp_path: Path
) -> None:
    class Poisoned(Net):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if self.memory.place == (1, 4) else loss

    spikes, guard = SpikeGuard(GuardSettings(snapshot_every=5)), MemoryGuard()
    both: list[pl.Callback] = [guard, spikes] if order else [spikes, guard]
    options: dict[str, Any] = {"lr": 1e-2, "accumulate_grad_batches": 2}
    _, _, trainer = trained(
        tmp_path, {(1, 1): ("backward", 3)}, kind=Poisoned, guards=both, **options
    )
    assert [event["action"] for event in spikes.events] == ["step skipped"]
    assert trainer.global_step == 2 * 3 - 1
    assert "5 batches of this epoch split" in actions(guard)
    assert len(spikes._losses._values) == 2 * 6 - 2  # none counted twice


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("void", [{(0, 0)}, {(0, 2), (0, 3)}], ids=["the first", "two in a row"])
def test_steps_that_a_spike_guard_holds_back_need_no_copies(
    void: set[tuple[int, int]], order: int, tmp_path: Path
) -> None:
    class Poisoned(Net):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.nan if self.memory.place in void else loss

    both: list[pl.Callback] = [SpikeGuard(), MemoryGuard()]
    _, _, trainer = trained(tmp_path, {}, kind=Poisoned, guards=both[:: 1 - 2 * order], lr=1e-2)
    assert trainer.global_step == 2 * 6 - len(void)


class Half(MixedPrecision):
    """16-mixed on a CPU."""

    def __init__(self) -> None:
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_a_loss_scale_reaches_the_parts(tmp_path: Path) -> None:
    def run(trouble: Trouble) -> tuple[Net, pl.Trainer]:
        module, _, trainer = trained(
            tmp_path, trouble, guards=[SpikeGuard(), MemoryGuard()], plugins=[Half()], lr=1e-2
        )
        return module, trainer

    whole, one = run({})
    split, other = run({(0, 2): ("backward", 3), (1, 2): ("step", 0)})
    assert deviation(split, whole) < 5e-3  # of half precision
    assert other.global_step == one.global_step == 2 * 6
    assert one.precision_plugin.state_dict() == other.precision_plugin.state_dict()


def test_batch_norm_is_said_and_is_not_given_a_single_sample(tmp_path: Path) -> None:
    reasons: list[str] = []
    guard = MemoryGuard(on_inexact=reasons.append)
    trained(tmp_path, {(0, 1): ("forward", 4)}, net=lambda: cnn(nn.BatchNorm1d), guards=[guard])
    assert len(reasons) == 1
    assert "batch normalisation (net.2)" in reasons[0]
    assert "swap_batchnorm" in reasons[0]
    assert "a split step is not the whole one" in actions(guard)
    assert sizes_of_parts(9, 2, least=2) == [3, 2, 2, 2]


def test_dropout_that_is_not_keyed_is_said(tmp_path: Path) -> None:
    reasons: list[str] = []
    guard = MemoryGuard(on_inexact=reasons.append)

    def plain() -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.Dropout(0.3), nn.Linear(16, 2))

    trained(tmp_path, {(0, 1): ("forward", 4)}, net=plain, guards=[guard])
    assert len(reasons) == 1
    assert "not keyed by sample" in reasons[0]


def test_statistics_and_means_of_a_failed_try_are_put_back(tmp_path: Path) -> None:
    class Counting(Net):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.register_buffer("batches", torch.zeros(()))
            self.total = torch.zeros(())

        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            self.batches += 1
            loss = super().training_step(batch, batch_idx)
            self.total = self.total + loss.detach()
            return loss

    whole, _, one = trained(tmp_path, {}, kind=Counting)
    split, _, other = trained(tmp_path, {(0, 3): ("backward", 2)}, kind=Counting)
    assert float(split.batches) == float(whole.batches) == 12
    torch.testing.assert_close(split.total, whole.total)
    logged = [float(t.callback_metrics["train/loss"]) for t in (one, other)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-6)


class Bare(pl.LightningModule):
    """No loss_terms."""

    automatic_optimization = True

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, 2)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_without_loss_terms_the_error_is_raised_again_with_advice(tmp_path: Path) -> None:
    guard = MemoryGuard()
    with pytest.raises(torch.OutOfMemoryError, match=r"9 samples.*Bare has no loss_terms.*Write"):
        fit(Bare(), tmp_path, callbacks=[guard])
    assert actions(guard) == ["training stopped"]


def test_a_step_that_does_not_ask_loss_terms_is_told_so(tmp_path: Path) -> None:
    class Beside(Bare):
        def loss_terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, float]:
            loss = F.cross_entropy(self.net(batch[0]), batch[1], reduction="sum")
            return loss, float(len(batch[1]))

    with pytest.raises(MemoryError, match=r"training_step does not call self\.loss_terms.*Let it"):
        fit(Beside(), tmp_path, callbacks=[MemoryGuard()])


def test_one_sample_that_does_not_fit_is_told_with_sizes(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"this one of 9 samples.*with 1 sample at once.*patch"):
        trained(tmp_path, {(0, 1): ("forward", 0)})


def test_losses_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    class Mean(Net):
        def loss_terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            total, weight = super().loss_terms(batch)
            return total / weight * len(batch[0]), torch.tensor(float(len(batch[0])))

    with pytest.raises(MemoryError, match=r"must return a sum.*of two halves.*Return the losses"):
        trained(tmp_path, {(0, 1): ("forward", 5)}, kind=Mean)


def test_a_sum_without_its_weight_is_refused(tmp_path: Path) -> None:
    class Alone(Net):
        def loss_terms(self, batch: Sequence[Tensor]) -> Any:
            return super().loss_terms(batch)[0]

        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            self.memory.place = (self.current_epoch, batch_idx)
            return self.loss_terms(batch)

    with pytest.raises(MemoryError, match=r"a sum and a weight.*returned a Tensor and.*Return the"):
        trained(tmp_path, {(0, 1): ("forward", 5)}, kind=Alone)


def test_a_module_without_loss_terms_is_named_as_the_fit_begins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Roomy(Bare):
        def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    fit(Roomy(), tmp_path, callbacks=[MemoryGuard()])
    assert "can't split the batches of this fit: Roomy has no loss_terms" in caplog.text
    caplog.clear()
    trained(tmp_path, {})
    assert "can't split" not in caplog.text


def test_cox_models_are_refused(tmp_path: Path) -> None:
    class Cox(Net):
        terms_add_up = LitCox.terms_add_up

        def loss_terms(self, batch: Sequence[Tensor]) -> tuple[Tensor, float]:  # type: ignore[override]
            return cox_terms(self.net(batch[0])[:, 0], batch[2].float(), batch[1])

    with pytest.raises(MemoryError, match=r"loss of Cox does not add up.*smaller"):
        trained(tmp_path, {(0, 1): ("forward", 5)}, kind=Cox)


def test_an_evaluation_that_runs_out_gets_advice(tmp_path: Path) -> None:
    class Evaluated(Bare):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            raise torch.OutOfMemoryError("no room")

    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[MemoryGuard()],
                         enable_progress_bar=False, default_root_dir=str(tmp_path))  # fmt: skip
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.predict(Evaluated(), loader(9))
    assert "smaller batch_size" in caught.value.__notes__[0]


def test_a_fit_that_cannot_be_guarded_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Manual(Bare):
        automatic_optimization = False

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        fit(Manual(), tmp_path, callbacks=[MemoryGuard()])
    assert "does not guard this fit: manual optimization" in caplog.text


def test_errors_are_told_by_their_type() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("any words"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("out of memory"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


def test_group_norm_takes_the_place_of_batch_norm_and_warns_of_its_trap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = nn.Sequential(
        nn.Conv3d(1, 12, 3), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 16, 3),
        nn.Sequential(nn.BatchNorm3d(16), nn.ReLU()), nn.AdaptiveAvgPool3d(1),
    )  # fmt: skip
    nn.init.constant_(net[1].weight, 2.0)
    assert swap_batchnorm(net, groups=8) == ["1", "4.0"]
    assert (net[1].num_groups, net[4][0].num_groups) == (4, 8)
    assert net[1].weight[0].item() == 2.0
    assert "does not learn" in caplog.text
    assert "Found at 4.0;" in caplog.text
    with pytest.raises(ValueError, match=r"at least 1, got 0.*8 suits"):
        swap_batchnorm(net, groups=0)


def test_a_group_norm_of_a_table_is_no_constant() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    swap_batchnorm(net, groups=8)
    assert net(torch.randn(3, 4)).std() > 0.1
