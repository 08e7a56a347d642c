"""How answers are drawn by vLLM, where it is installed.

vLLM has a process of its own, and is given the language part alone, as a model of text. What it
reads are embeddings of the training model: pictures go through that model's own code, weights and
adapters, so any vision part will do, and neither processor nor torchvision is needed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from medkit import keyed
from medkit.data.encoded import Encoded
from medkit.vlm.extra import require
from medkit.vlm.language_part import language_model, prompt_embeddings
from medkit.vlm.sampling import evaluating, placeholders

__all__ = ["VLLMSampler"]

_NEVER = float("-inf")


class _Engine:
    """A vLLM that runs from the first call on, and the folder it reads weights from."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._config = self._digest = ""

    def load(self, config: Any, state: Mapping[str, Tensor], more: Mapping[str, Any]) -> None:
        """Start it with these weights, or have it take them if they are others."""
        said, digest = config.to_json_string(), _digest(state)
        if self._llm is None:
            self._folder = tempfile.TemporaryDirectory(prefix="medkit-vllm-")
            config.save_pretrained(self._folder.name)
            self._write(state)
            own = {
                "model": self._folder.name,
                "dtype": str(config.dtype).removeprefix("torch."),
                "skip_tokenizer_init": True,  # it logs that no chat template can be tried
                "enable_prompt_embeds": True,
                "enable_prefix_caching": False,  # no answer depends on those before
                # a prompt read in two parts would draw once too often; on a CPU that even crashes
                "enable_chunked_prefill": False,
                "generation_config": "vllm",
            }
            self._llm = _vllm().LLM(**own | dict(more))
        elif said != self._config:
            raise ValueError(
                "a VLLMSampler draws from one model, with new weights at each call; this model has "
                "another configuration than that of the first. Make another sampler for it."
            )
        elif digest != self._digest:
            self._write(state)
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": self._folder.name})
            self._llm.reset_prefix_cache()
        self._config, self._digest = said, digest

    def answers(self, embeddings: Sequence[Tensor], asked: Sequence[Any]) -> list[Tensor]:
        """Return the tokens of an answer to each, the one that ends it included."""
        prompts = [{"prompt_embeds": one} for one in embeddings]
        made = self._llm.generate(prompts, list(asked), use_tqdm=False)
        return [torch.tensor([*one.outputs[0].token_ids], dtype=torch.int64) for one in made]

    def close(self) -> None:
        """Be as new."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._folder.cleanup()
        self._llm = None

    def _write(self, state: Mapping[str, Tensor]) -> None:
        path = Path(self._folder.name, "model.safetensors")
        require("safetensors.torch").save_file(dict(state), f"{path}.new", {"format": "pt"})
        os.replace(f"{path}.new", path)  # what was read before may still be open


@dataclass(frozen=True)
class VLLMSampler:
    """Answers by vLLM, whose engine starts at the first call and ends with the program, or before.

    Weights are handed over wherever they have changed, adapters merged into copies, through a
    temporary folder (``TMPDIR=/dev/shm`` is memory). Merged weights round otherwise than adapters
    beside their layers: in 16 bits the answers are of a policy a little off the one in training.

    Draws are a function of seed, place and the prompt's number, on the same machine and versions.
    There is no grammar here, as HFSampler's ``processor`` has, and an answer ends where the model
    has no more places. Works with Llama, Mistral, Qwen2 and Qwen3 as the language part, on one
    device; tried with vLLM 0.32. Copies and pickles start engines of their own, and a script needs
    ``if __name__ == "__main__":``, as vLLM's processes import it again.

    Attributes:
        tokenizer: Of the model.
        max_new_tokens: Of an answer.
        temperature: At most 2; 0 takes the likeliest token.
        batch_size: Prompts whose pictures are seen at once.
        engine: More arguments of ``vllm.LLM``, such as ``{"gpu_memory_utilization": 0.3,
            "max_model_len": 4096}``: it takes nearly all of a GPU otherwise, and a model in
            training has no room beside it.
    """

    tokenizer: Any
    max_new_tokens: int
    temperature: float = 1.0
    batch_size: int = 128
    engine: Mapping[str, Any] = field(default_factory=dict)
    _engine: _Engine = field(default_factory=_Engine, init=False, repr=False, compare=False)

    def __call__(
        self, model: Any, prompts: Sequence[Encoded], *, seed: int, place: tuple[keyed.Place, ...]
    ) -> list[Tensor]:
        """Return the tokens of one answer a prompt; see :class:`~medkit.vlm.sampling.Sampler`.

        Raises:
            ModuleNotFoundError: Where vLLM is not installed.
            RuntimeError: In a run of several processes.
            ValueError: For a model whose language part cannot stand alone, or that is another than
                at the first call.
        """
        _vllm()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise RuntimeError(
                "VLLMSampler draws for a run of one process, and this one has "
                f"{torch.distributed.get_world_size()}. Train on one device, or draw by HFSampler."
            )
        config, state = language_model(model)
        config.eos_token_id = self.tokenizer.eos_token_id
        embeddings: list[Tensor] = []
        with keyed.globals_keyed(seed, "sample", *place), evaluating(model):
            for first in range(0, len(prompts), self.batch_size):
                some = prompts[first : first + self.batch_size]
                embeddings += prompt_embeddings(model, some, self.tokenizer.pad_token_id)
            self._engine.load(config, state, self.engine)
        never = placeholders(model)
        asked = [self._asked(never, seed, place, number) for number in range(len(prompts))]
        return self._engine.answers(embeddings, asked)

    def _asked(
        self, never: Sequence[int], seed: int, place: tuple[keyed.Place, ...], number: int
    ) -> Any:
        return _vllm().SamplingParams(
            max_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=keyed.seed_of(seed, "sample", *place, number) >> 1,  # 63 bits are taken
            stop_token_ids=[self.tokenizer.eos_token_id],
            logit_bias=dict.fromkeys(never, _NEVER) or None,
            detokenize=False,
        )

    def close(self) -> None:
        """End the engine, which frees its memory; another starts at the next call."""
        self._engine.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_engine": _Engine()}


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _vllm() -> ModuleType:
    try:
        return import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ModuleNotFoundError(
            "VLLMSampler needs vllm, which is not installed; it is no extra of medkit, as it asks "
            "for versions of its own. Install both into a new environment: pip install "
            "'medkit[vlm]' vllm. HFSampler needs none of it.",
            name="vllm",
        ) from error
