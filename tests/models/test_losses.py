from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medkit.models.losses import cox_terms


def by_hand(eta: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Efron's negative log partial likelihood, written as the paper says it, in plain loops."""
    total = 0.0
    for t in sorted(set(time[event == 1])):
        risk = sum(math.exp(e) for e, s in zip(eta, time, strict=True) if s >= t)
        tied = [i for i in range(len(time)) if time[i] == t and event[i] == 1]
        of_tied = sum(math.exp(eta[i]) for i in tied)
        total -= sum(eta[i] for i in tied)
        total += sum(math.log(risk - k / len(tied) * of_tied) for k in range(len(tied)))
    return total


def followed(seed: int = 0, count: int = 40, days: int = 12) -> tuple[torch.Tensor, ...]:
    draw = np.random.default_rng(seed)
    eta, event = draw.normal(size=count), draw.random(count) < 0.6
    time = draw.integers(1, days, size=count)  # many ties
    return tuple(torch.tensor(np.asarray(v, np.float32)) for v in (eta, time, event))


def test_three_patients_by_hand() -> None:
    # who dies first is compared with all three, who dies second with two
    eta = torch.tensor([1.0, 0.0, -1.0])
    total, events = cox_terms(eta, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 0.0]))
    e = math.e
    want = math.log(e + 1 + 1 / e) - 1 + math.log(1 + 1 / e)
    assert events == 2
    assert total.item() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("days", [4, 12, 10_000])
def test_the_sum_is_efrons_whatever_the_ties(days: int) -> None:
    eta, time, event = followed(days=days)
    total, events = cox_terms(eta, time, event)
    want = by_hand(*(v.double().numpy() for v in (eta, time, event)))
    assert events == event.sum()
    assert total.item() == pytest.approx(want, rel=1e-5)


def test_the_order_of_the_rows_does_not_matter() -> None:
    eta, time, event = followed()
    at = torch.from_numpy(np.random.default_rng(1).permutation(len(eta)))
    there, _ = cox_terms(eta[at], time[at], event[at])
    torch.testing.assert_close(there, cox_terms(eta, time, event)[0])


def test_a_constant_added_to_all_changes_nothing() -> None:
    eta, time, event = followed()
    moved, _ = cox_terms(eta + 5.0, time, event)
    torch.testing.assert_close(moved, cox_terms(eta, time, event)[0], rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_small_differences() -> None:
    eta, time, event = followed(count=12, days=5)
    eta.requires_grad_()
    cox_terms(eta, time, event)[0].backward()
    points, found = eta.detach().double().numpy(), []
    for i in range(len(points)):
        up, down = points.copy(), points.copy()
        up[i], down[i] = up[i] + 1e-5, down[i] - 1e-5
        rest = time.numpy(), event.numpy()
        found.append((by_hand(up, *rest) - by_hand(down, *rest)) / 2e-5)
    np.testing.assert_allclose(eta.grad.numpy(), found, atol=1e-5)


def test_hazards_a_hundred_logs_apart_neither_overflow_nor_vanish() -> None:
    eta = torch.tensor([-300.0, 0.0, 300.0, 300.0], requires_grad=True)
    total, _ = cox_terms(eta, torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.ones(4))
    total.backward()
    # the first two die although the others had the higher hazard; the last two are tied
    assert total.item() == pytest.approx(600 + 300 + 3 * math.log(2), rel=1e-5)
    assert eta.grad.isfinite().all()


def test_without_an_event_there_is_nothing_to_learn() -> None:
    eta = torch.randn(5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    total, events = cox_terms(eta, torch.arange(5.0), torch.zeros(5))
    total.backward()
    assert (total.item(), events) == (0.0, 0.0)
    assert eta.grad.tolist() == [0.0] * 5


def test_half_a_batch_knows_only_its_own_risk_sets() -> None:
    eta, time, event = followed(count=40)
    whole, _ = cox_terms(eta, time, event)
    halves = [cox_terms(eta[at], time[at], event[at])[0] for at in (slice(20), slice(20, 40))]
    assert sum(halves).item() < whole.item() - 1
