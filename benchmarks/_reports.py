"""Made-up reports and the tutorial model, as several benchmarks train and score them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medkit.data.chat import ChatEncoder
from medkit.data.conversations import Conversation, read_conversations
from medkit.data.report_schema import NODULE
from medkit.data.reports import ReportDataModule
from medkit.synth.reports import make_studies, write_reports
from medkit.trainer import keyed, stable_trainer, start_run
from medkit.vlm.answers import FieldScores, score_fields, write_answers
from medkit.vlm.constrained import FieldGrammar
from medkit.vlm.model import LitVLM
from medkit.vlm.tutorial import tutorial_pictures, tutorial_tokenizer

STEPS, WARMUP, CLIP = 1000, 0.3, 1.0
FACTORY = "medkit.vlm.tutorial:tutorial_model"


def encoder() -> ChatEncoder:
    """Return the tutorial's: each piece of an answer is one token."""
    tokenizer = tutorial_tokenizer(["a"], pieces=NODULE.pieces())
    return ChatEncoder(tokenizer, tutorial_pictures)


def studies(folder: Path, count: int, *, site: str = "A", first: int = 0) -> Path:
    """Write studies of one hospital and return their JSONL; other numbers, other patients."""
    made = make_studies(count, site=site, first=first)
    return write_reports(folder, made, name=f"{site}{first}")


def held_out(path: Path) -> list[Conversation]:
    """Read the studies of a file."""
    return read_conversations(path)


def train(
    path: Path, run_dir: Path, *, seed: int, steps: int = STEPS, chat: ChatEncoder | None = None
) -> LitVLM:
    """Train the tutorial model as the README does, with a tenth of the patients held back."""
    chat = chat or encoder()
    data = ReportDataModule(path, chat, val_fraction=0.05, test_fraction=0.05)
    run = start_run(run_dir, seed=seed)
    with run.init("fit"):
        args = {"vocabulary": len(chat.tokenizer)}
        lit = LitVLM(FACTORY, args, total_steps=steps, warmup=WARMUP)
    trainer = stable_trainer(
        run,
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=CLIP,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(lit, keyed(data), ckpt_path=run.resume("fit"))
    run.finish()
    return lit


def scores(
    model: Any, chat: ChatEncoder, some: Sequence[Conversation], *, grammar: bool = True
) -> FieldScores:
    """Let a model answer, under the schema or freely, and hold it against the truth."""
    guide = FieldGrammar(NODULE, chat.tokenizer)
    texts = write_answers(
        model,
        chat,
        some,
        max_new_tokens=len(NODULE.pieces()),
        processor=guide.processor if grammar else None,
    )
    columns = [one.columns for one in some]
    patient = [column["patient"] for column in columns]
    return score_fields(NODULE, texts, [c["fields"] for c in columns], patient=patient)


def exact(found: FieldScores) -> NDArray[np.float64]:
    """Return 1 where an answer is right as a whole, by study."""
    return found.exact.astype(np.float64)
