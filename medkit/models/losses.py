"""Losses that compare the rows of a batch with one another."""

from __future__ import annotations

import torch
from torch import Tensor


def cox_terms(eta: Tensor, time: Tensor, event: Tensor) -> tuple[Tensor, float]:
    """Return the negative log partial likelihood of Cox's model, summed, and the number of events.

    At each event the patient who had it is compared with all who were still followed then: the
    risk set. Patients who had theirs on the same day are taken as if in random order, averaged
    (Efron 1977). Risk sets are those *within the rows given*: the sum over two halves of a table
    is not that of the whole, and a batch of 8 with one event compares one patient with 7 at most.
    Where nobody had an event the sum is 0, and its gradient too.

    Args:
        eta: Log relative hazards, ``(B,)``; higher dies earlier.
        time: When the patient had the event or was last seen, ``(B,)``.
        event: 1 where it was the event, 0 where the patient was last seen without, ``(B,)``.
    """
    order = torch.argsort(time, stable=True)
    eta = eta.float().index_select(0, order)  # whatever the autocast: sums of bf16 lose rows
    time, had = time.index_select(0, order), event.index_select(0, order) > 0
    events = int(had.sum())
    if events == 0:
        return eta.sum() * 0.0, 0.0
    first = torch.searchsorted(time, time)  # of those with the same time
    last = torch.searchsorted(time, time, right=True) - 1
    counted = torch.cat([had.new_zeros(1, dtype=torch.long), had.long().cumsum(0)])
    tied = counted[last + 1] - counted[first]
    place = counted[:-1] - counted[first]  # 0, 1, ... among the events of this time

    log_risk = torch.logcumsumexp(eta.flip(0), 0).flip(0).index_select(0, first)
    total = (log_risk - eta)[had].sum()
    if int(tied.max()) > 1:
        # a share of the risk set's sum, so that nothing overflows however far apart eta is
        share = torch.where(had, torch.exp(eta - log_risk), torch.zeros_like(eta))
        of_tied = torch.zeros_like(share).index_add(0, first, share).index_select(0, first)
        total = total + torch.log1p(-(place / tied.clamp(min=1)) * of_tied)[had].sum()
    return total, float(events)
