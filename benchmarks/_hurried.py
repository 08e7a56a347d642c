"""The script that a person in a hurry writes by hand: what the kit's recipe is measured against.

Median and standard deviation of the whole table, both classes drawn equally often, a net of two
layers, Adam at a constant rate, the last epoch, a threshold of 0.5. Whether codes and units were
read is up to who passes the values. It is not weakened: it trains what it should, at a batch size,
rate and width that are usual, and the rate being constant, what it is after 20 of its 40 epochs is
what a script of 20 epochs ends with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from medkit import keyed

EPOCHS = 40
LOOKS = 176  # 22 in the last quarter of 20 epochs; what is watched late only in that of 40


@dataclass(frozen=True)
class Scaled:
    """Medians, means and standard deviations of all rows at hand."""

    median: pd.Series
    mean: pd.Series
    sd: pd.Series

    @classmethod
    def of(cls, table: pd.DataFrame) -> Scaled:
        """Take them of a table of numbers."""
        filled = table.fillna(table.median())
        return cls(table.median(), filled.mean(), filled.std().replace(0, 1))

    def __call__(self, table: pd.DataFrame) -> Tensor:
        """Fill and standardise; a column that nobody ever measured is 0."""
        done = ((table.fillna(self.median) - self.mean) / self.sd).fillna(0)
        return torch.tensor(done.to_numpy(np.float32))


@dataclass
class Trained:
    """A training: what it said of watched rows on its way, and of new ones at some epochs.

    Attributes:
        logits: Of each group of watched rows, ``(T, rows)``.
        prob: Epoch -> P(y = 1) of the new rows.
        finite: Whether every weight still is.
    """

    logits: dict[str, Tensor] = field(default_factory=dict)
    prob: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    finite: bool = True


def train(
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    watch: dict[str, Tensor],
    new: Tensor,
    late: Sequence[str] = (),
    epochs: tuple[int, ...] = (EPOCHS,),
    batch_size: int = 64,
) -> Trained:
    """Train once. A script that seeds nothing is one whose ``seed`` nobody chose.

    Args:
        x: Training rows, ``(N, F)``.
        y: Their labels.
        seed: Initial weights and draws of this run.
        watch: Rows looked at ``LOOKS`` times.
        new: Rows scored after each of ``epochs``.
        late: Names of those looked at in the last quarter only.
        epochs: The last is where training ends.
        batch_size: Rows a step.
    """
    made = Trained()
    seen: dict[str, list[Tensor]] = {name: [] for name in watch}
    with keyed.globals_keyed(seed, "init", "hurried"):
        net = nn.Sequential(
            nn.Linear(x.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
        )
        rare = y.float().mean()
        weights = torch.where(y == 1, 1 / rare, 1 / (1 - rare)).tolist()
        sampler = WeightedRandomSampler(weights, num_samples=len(y))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        loss_of = nn.BCEWithLogitsLoss()
        step, total = 0, max(epochs) * -(-len(y) // batch_size)
        for epoch in range(1, max(epochs) + 1):
            for at in torch.tensor(list(sampler)).split(batch_size):
                loss = loss_of(net(x[at]).squeeze(1), y[at].float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if step * LOOKS // total > (step - 1) * LOOKS // total:
                    with torch.no_grad():
                        for name, rows in watch.items():
                            if name not in late or step > 0.75 * total:
                                seen[name].append(net(rows).squeeze(1))
            if epoch in epochs:
                with torch.no_grad():
                    made.prob[epoch] = torch.sigmoid(net(new).squeeze(1)).numpy()
    made.logits = {name: torch.stack(parts) for name, parts in seen.items() if parts}
    made.finite = all(bool(weight.isfinite().all()) for weight in net.parameters())
    return made
