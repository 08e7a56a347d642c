"""Which parts to train on a new scanner's pictures: ask by a few short runs, not by habit.

Adapters on the language model alone, the usual default, cannot mend what the vision part no longer
sees: on made-up slices of another scanner they reached .15 exact answers where training the vision
part reached .79, and adapters everywhere .81 with the norms trained beside them, .60 without. Every
policy also forgets the old scanner, unless its pictures are rehearsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from medkit import keyed as keys
from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation
from medkit.data.encoded import padded
from medkit.data.loader import keyed
from medkit.data.reports import ReportDataset
from medkit.vlm.model import LitVLM

__all__ = ["POLICIES", "probe_freeze_policy"]

POLICIES: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "vision": {"freeze": {"freeze_aligner": True, "freeze_llm": True}},
    "aligner": {"freeze": {"freeze_vit": True, "freeze_llm": True}},
    "llm": {"freeze": {"freeze_vit": True, "freeze_aligner": True}},
    "LoRA everywhere": {"lora": {"convolutions": True, "norms": True}},
    "LoRA llm": {"lora": {"groups": ["llm"]}},
}
"""Name -> ``freeze`` or ``lora`` of :class:`~medkit.vlm.model.LitVLM`."""


def probe_freeze_policy(
    model: tuple[str, Mapping[str, Any]],
    encoder: ChatEncoder,
    new: Sequence[Conversation],
    judge: Callable[[Any], Mapping[str, float]],
    *,
    old: Sequence[Conversation] = (),
    rehearsal: Sequence[float] = (0.0,),
    policies: Mapping[str, Mapping[str, Any]] = POLICIES,
    seeds: Sequence[int] = (0,),
    steps: int = 200,
    batch_size: int = 32,
    lr: float = 1e-3,
    adapter_lr: float = 3e-3,
) -> pd.DataFrame:
    """Train each policy for a few steps from one model, and judge it.

    Args:
        model: Factory of the trained model and its arguments, as LitVLM's, such as
            ``("medkit.vlm.hub:pretrained", {"model_id": FOLDER})``.
        encoder: For it.
        new: Conversations to adapt to.
        judge: Called with a model: figures by name, such as exact answers on held-out studies of
            either scanner.
        old: Conversations it was trained on, for rehearsal.
        rehearsal: Shares of the training rows that are old ones.
        policies: What is trained, by name.
        seeds: Of order, adapters and dropout.
        steps: Of each run; warm-up and cosine span them.
        batch_size: Conversations a step.
        lr: Highest rate.
        adapter_lr: The same of policies with ``lora``, whose thin matrices want a higher one: with
            1e-3, adapters everywhere are still learning after 200 steps.

    Returns:
        ``policy``, ``rehearsal``, ``seed``, ``trained`` (share of the parameters) and the figures;
        the first row is the model as it is.

    Raises:
        ValueError: For a rehearsal without old conversations, or none to train on.
    """
    if not new or not all(0 <= share < 1 for share in rehearsal) or (any(rehearsal) and not old):
        raise ValueError(
            "policies are probed on conversations of the new kind, and rehearsal is a share below "
            f"1 of old ones; got {len(new)} new, {len(old)} old and rehearsal {tuple(rehearsal)}. "
            "Pass old=, or leave rehearsal out."
        )
    factory, args = model
    before = LitVLM(factory, args).model.eval()
    rows: list[dict[str, Any]] = [
        {"policy": "as it is", "rehearsal": 0.0, "seed": None, "trained": 0.0, **judge(before)}
    ]
    runs = [(p, share, seed) for seed in seeds for share in rehearsal for p in policies]
    kinds = {"new": new, "old": old}
    encoded = {
        kind: [chosen for chosen, _ in ReportDataset(some, encoder).encoded]
        for kind, some in kinds.items()
    }
    for policy, share, seed in tqdm(runs, unit="policy", disable=None):
        data = list(encoded["new"])
        if share:
            count = round(share / (1 - share) * len(data))
            order = keys.generator(seed, "sample", "rehearsal").permutation(len(old))
            data += [encoded["old"][row] for row in np.resize(order, count).tolist()]
        with keys.globals_keyed(seed, "init", "probe"):
            rate = adapter_lr if "lora" in policies[policy] else lr
            lit = LitVLM(factory, args, total_steps=steps, lr=rate, **dict(policies[policy]))
            _train(lit, data, encoder.tokenizer.pad_token_id, seed, steps, batch_size)
        trained = float(lit.frozen.table()["share"].iloc[-1])
        where = {"policy": policy, "rehearsal": share, "seed": seed, "trained": trained}
        rows.append(where | dict(judge(lit.model.eval())))
    return pd.DataFrame(rows)


def _train(lit: LitVLM, data: list[Any], pad: int, seed: int, steps: int, batch_size: int) -> None:
    def together(samples: list[Any]) -> dict[str, Tensor]:
        return padded(samples, pad)

    size = min(batch_size, len(data))
    rows: Any = data  # a list is a dataset
    loader = keyed(
        DataLoader(rows, size, shuffle=True, drop_last=True, collate_fn=together), seed=seed
    )
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(lit, loader)
