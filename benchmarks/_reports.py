"""Made-up reports and the tutorial model, as several benchmarks train and score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _kills import Kill, KillAt

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
    path: Path,
    run_dir: Path,
    *,
    seed: int,
    steps: int = STEPS,
    chat: ChatEncoder | None = None,
    make: Callable[[], LitVLM] | None = None,
    every: int | None = None,
    kill: Kill | None = None,
    **data: Any,
) -> LitVLM:
    """Train the tutorial model as the README does, or another module, from where it was cut.

    Args:
        path: JSONL; a tenth of the patients is held back.
        run_dir: Of the run; one that is there is resumed.
        seed: Of the run.
        steps: Of the whole training.
        chat: Of :func:`encoder`.
        make: Makes the module.
        every: Steps between resume points.
        kill: Where the process dies.
        **data: More arguments of the DataModule.
    """
    chat = chat or encoder()
    dm = ReportDataModule(path, chat, val_fraction=0.05, test_fraction=0.05, **data)
    run = start_run(run_dir, seed=seed)
    with run.init("fit"):
        args = {"vocabulary": len(chat.tokenizer)}
        lit = make() if make else LitVLM(FACTORY, args, total_steps=steps, warmup=WARMUP)
    trainer = stable_trainer(
        run,
        max_epochs=-1,
        max_steps=steps,
        gradient_clip_val=CLIP,
        enable_progress_bar=False,
        limit_val_batches=0,
        checkpoint_every_n_steps=every,
        checkpoint_every_s=None,
        callbacks=[KillAt(kill)],
    )
    trainer.fit(lit, keyed(dm), ckpt_path=run.resume("fit"))
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
