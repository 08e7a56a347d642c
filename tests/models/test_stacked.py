"""What a stack is made of: its nets, masks, batches and metrics."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from medkit import keyed
from medkit.data.batches import Batch
from medkit.data.table_loader import TableLoader
from medkit.models.masks import LeanDropout, MemberMasks
from medkit.models.member_metrics import of_members
from medkit.models.nets import activation_named, cnn2d, mlp
from medkit.models.stacked import StackedNet, filled_up
from medkit.models.stacked_loader import StackedLoader, stacked
from medkit.models.tabular import warm_mlp

SEEDS = (5, 2, 9)


def rows(count: int = 40) -> Batch:
    x = torch.from_numpy(keyed.generator(0, "test").normal(size=(count, 3))).float()
    return Batch(x, (torch.arange(count) % 4 == 0).long(), torch.arange(count), torch.arange(count))


def made(periodic: int | None, activation: str, **settings: Any) -> nn.Module:
    settings |= {"activation": activation}
    if periodic is None:
        return mlp(inputs=3, **settings)
    return warm_mlp(coef=[1.0, -2.0, 0.5], intercept=0.3, periodic=periodic, **settings)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("periodic", [None, 0, 2])
def test_a_stack_says_what_its_nets_say(periodic: int | None, activation: str) -> None:
    def net() -> nn.Module:
        return made(periodic, activation, hidden=(5,))

    nets = [net().eval() for _ in range(3)]
    for one in nets:
        nn.init.normal_([layer for layer in one.modules() if isinstance(layer, nn.Linear)][-1].bias)
    stack, x = StackedNet(nets), rows().x
    together = stack(filled_up(x))[:, : len(x)]
    for number, one in enumerate(nets):
        torch.testing.assert_close(together[number], one(x)[:, 0])
        state = stack.state_of(number)
        assert state.keys() == one.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in one.state_dict().items())


def test_a_stack_has_two_nets_at_least() -> None:
    with pytest.raises(ValueError, match="two members or more, got 1"):
        StackedNet([mlp(inputs=3)])


def test_nets_with_other_layers_are_trained_in_processes() -> None:
    with pytest.raises(ValueError, match=r"found Conv2d.*medkit sweep"):
        StackedNet([cnn2d(), cnn2d()])


@pytest.mark.parametrize("behind", [[nn.Linear(5, 2)], [nn.Linear(5, 1), nn.Sigmoid()]])
def test_a_net_that_does_not_end_in_one_logit_is_refused(behind: list[nn.Module]) -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), *behind)
    with pytest.raises(ValueError, match=r"ends in a linear layer of one logit.*outputs=1"):
        StackedNet([net, net])


def test_a_layer_used_twice_is_refused() -> None:
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"each linear layer once.*at '2' again.*medkit sweep"):
        StackedNet([nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 1))] * 2)


def dropout_first(activation: str) -> nn.Module:
    first = [nn.Linear(3, 5), nn.Dropout(0.3), activation_named(activation)]
    return nn.Sequential(*first, nn.Linear(5, 1))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("periodic", [None, 2, "dropout first"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_a_stack_is_that_of_its_nets(
    periodic: Any, masked: bool, activation: str
) -> None:
    def net() -> nn.Module:
        if periodic == "dropout first":
            return dropout_first(activation)
        return made(periodic, activation, hidden=(5, 4), dropout=0.3)

    nets, batch = [net() for _ in range(3)], rows()
    for one in nets:
        nn.init.normal_(
            [layer for layer in one.modules() if isinstance(layer, nn.Linear)][-1].weight
        )
    stack, masks = StackedNet(nets), []
    if masked:
        masks = MemberMasks(SEEDS, stack.dropouts).draw(40, 1, 4, 0, 0, padded=64)
    y = batch.y.float()
    stack.loss(filled_up(batch.x.expand(3, -1, -1)), y.expand(3, -1), masks).backward()
    own = []
    for seed, one in zip(SEEDS, nets, strict=True):
        one.train(masked)
        keyed.set_globals(keyed.seed_of(seed, "step", 1, 4, 0, 0))
        F.binary_cross_entropy_with_logits(one(batch.x)[:, 0], y).backward()
        own.append({name: value.grad for name, value in one.named_parameters()})
    row = torch.cat(stack.gradients(), dim=1)
    for number, gradients in enumerate(own):
        together = stack.state_of(number, row)
        for name, gradient in gradients.items():
            torch.testing.assert_close(together[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_of_several_batches_add_up() -> None:
    stack, batch = StackedNet([mlp(inputs=3, dropout=0.0) for _ in range(2)]), rows(32)
    x, y = batch.x.expand(2, -1, -1), batch.y.float().expand(2, -1)
    stack.loss(x, y).backward()
    once = torch.cat(stack.gradients(), dim=1)
    (3 * stack.loss(x, y)).backward()
    torch.testing.assert_close(torch.cat(stack.gradients(), dim=1), 4 * once)


def test_a_stack_is_computed_in_full_under_autocast() -> None:
    stack, x = StackedNet([mlp(inputs=3, dropout=0.0) for _ in range(2)]), rows(32).x
    with torch.autocast("cpu", torch.bfloat16):
        low = stack(x)
    assert torch.equal(low, stack(x))


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), LeanDropout(0.3)])
def test_masks_are_those_that_a_run_alone_draws(layer: nn.Dropout) -> None:
    masks = MemberMasks(SEEDS, [(layer, 5), (layer, 3)])
    first, second = masks.draw(7, 1, 4, 0, 0, padded=32)
    for number, seed in enumerate(SEEDS):
        keyed.set_globals(keyed.seed_of(seed, "step", 1, 4, 0, 0))
        assert torch.equal(first[number, :7], layer(torch.ones(7, 5)))
        assert torch.equal(second[number, :7], layer(torch.ones(7, 3)))
    assert not first[:, 7:].any()


def test_a_dropout_layer_used_twice_draws_twice() -> None:
    drop = LeanDropout(0.3)
    net = nn.Sequential(nn.Linear(3, 5), drop, nn.Linear(5, 4), drop, nn.Linear(4, 1))
    assert StackedNet([net, net]).dropouts == [(drop, 5), (drop, 4)]


def test_lean_dropout_drops_its_share_and_keeps_the_mean() -> None:
    keyed.set_globals(1)
    layer = LeanDropout(0.3)
    out = layer(torch.ones(100_000))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    assert len(out.unique()) == 2
    assert torch.equal(layer.eval()(out), out)


@pytest.mark.parametrize("balanced", [False, True])
def test_each_member_goes_through_the_rows_as_its_own_loader_does(balanced: bool) -> None:
    whole = rows()
    at = torch.arange(0, 40, 2)
    by = whole.y[at] if balanced else None

    def loader(seed: int) -> TableLoader:
        return TableLoader(whole, 6, rows=at, shuffle=not balanced, balanced_by=by, seed=seed)

    together = StackedLoader(loader(0), SEEDS)
    together.set_epoch(3)
    batches = list(together)
    for number, seed in enumerate(SEEDS):
        alone = loader(seed)
        alone.set_epoch(3)
        for batch, own in zip(batches, alone, strict=True):
            assert all(
                torch.equal(mine[number], field) for mine, field in zip(batch, own, strict=True)
            )
    assert torch.equal(together.batch_at(3, 2).x, batches[2].x)
    assert together.rows(3, 3) == [int(row) // 2 for row in batches[3].row.flatten()]


def test_rows_in_order_are_in_order_for_each_member() -> None:
    batch = next(iter(StackedLoader(TableLoader(rows(), 6), SEEDS)))
    assert batch.row.tolist() == [list(range(6))] * 3


def test_members_need_rows_in_memory() -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader[int]:
            return DataLoader(range(4))  # type: ignore[arg-type]

    with pytest.raises(TypeError, match=r"a TableLoader, or .* found a list"):
        stacked([], SEEDS)
    with pytest.raises(TypeError, match="train_dataloader that returns DataLoader"):
        stacked(Data(), SEEDS).train_dataloader()


def test_metrics_of_all_members_are_those_of_torchmetrics() -> None:
    draw = keyed.generator(0, "test")
    logits = torch.from_numpy(draw.normal(size=(4, 60))).float()
    logits[1] = logits[1].round()  # ties
    logits[2] = 0.0
    y = torch.from_numpy(draw.integers(0, 2, 60))
    found = of_members(logits, y)
    prob = torch.sigmoid(logits)
    for number, one in enumerate([*prob, prob.mean(0)]):
        assert found["auroc"][number].item() == pytest.approx(binary_auroc(one, y).item(), abs=1e-6)
        precision = binary_average_precision(one, y).item()
        assert found["auprc"][number].item() == pytest.approx(precision, abs=1e-6)
        loss = F.binary_cross_entropy(one, y.float()).item()
        assert found["loss"][number].item() == pytest.approx(loss, abs=1e-6)
        assert found["brier"][number].item() == pytest.approx((one - y).square().mean().item())
