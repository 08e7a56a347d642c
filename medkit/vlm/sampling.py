"""How answers are drawn: Hugging Face's ``generate``, vLLM, or anything that is called alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medkit import keyed
from medkit.data.encoded import Encoded, given, padded

__all__ = ["HFSampler", "Sampler"]


class Sampler(Protocol):
    """Draws answers to questions; :class:`~medkit.vlm.vllm_sampling.VLLMSampler` is another."""

    def __call__(
        self, model: Any, prompts: Sequence[Encoded], *, seed: int, place: tuple[keyed.Place, ...]
    ) -> list[Tensor]:
        """Return the tokens of one answer a prompt, int64 ``(n,)``, the one that ends it included.

        Args:
            model: That answers, with its present weights.
            prompts: Of :meth:`~medkit.data.chat.ChatEncoder.prompt`.
            seed: Of the run.
            place: Where in it: draws are a function of both.
        """
        ...


@dataclass(frozen=True)
class HFSampler:
    """Answers by ``model.generate``, in evaluation mode.

    Attributes:
        tokenizer: Of the model.
        max_new_tokens: Of an answer.
        temperature: 0 takes the likeliest token.
        processor: Makes a logits processor for each call: ``FieldGrammar(...).processor``.
        batch_size: Prompts at once.
    """

    tokenizer: Any
    max_new_tokens: int
    temperature: float = 1.0
    processor: Callable[[], Any] | None = None
    batch_size: int = 128

    def __call__(
        self, model: Any, prompts: Sequence[Encoded], *, seed: int, place: tuple[keyed.Place, ...]
    ) -> list[Tensor]:
        """Return the tokens of one answer a prompt; see :class:`Sampler`."""
        device = next(model.parameters()).device
        out: list[Tensor] = []
        with evaluating(model), torch.no_grad():
            for first in range(0, len(prompts), self.batch_size):
                some = prompts[first : first + self.batch_size]
                batch = _ends_alike(some, self.tokenizer.pad_token_id)
                with keyed.globals_keyed(seed, "sample", *place, first):
                    made = self._made(model, {k: v.to(device) for k, v in batch.items()})
                out += [self._ended(one) for one in made[:, batch["input_ids"].shape[1] :]]
        return out

    def _made(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        drawn = self.temperature > 0
        made: Tensor = model.generate(
            **batch,
            max_new_tokens=self.max_new_tokens,
            do_sample=drawn,
            temperature=self.temperature if drawn else None,
            top_k=0 if drawn else None,
            top_p=None,
            eos_token_id=self.tokenizer.eos_token_id,
            suppress_tokens=placeholders(model) or None,
            logits_processor=[self.processor()] if self.processor else None,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return made.cpu()

    def _ended(self, answer: Tensor) -> Tensor:
        """Cut what stands behind the end."""
        ends = (answer == self.tokenizer.eos_token_id).nonzero()
        return answer[: int(ends[0, 0]) + 1] if len(ends) else answer


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model in evaluation mode, and each of its modules back in its own after it."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def placeholders(model: Any) -> list[int]:
    """Return tokens that stand for pictures: said in an answer, it could not be learnt from."""
    names = ("image_token_id", "image_token_index", "video_token_id")
    found = (getattr(model.config, name, None) for name in names)
    return sorted({token for token in found if isinstance(token, int)})


def _ends_alike(prompts: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """Return questions as one batch that ends where the answers begin."""
    batch = given(padded(prompts, pad))
    for row, one in enumerate(prompts):
        missing = batch["input_ids"].shape[1] - len(one.ids)
        for name in ("input_ids", "attention_mask", *one.kinds):
            batch[name][row] = batch[name][row].roll(missing)
    return batch
