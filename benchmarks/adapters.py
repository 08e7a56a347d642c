"""Memory of ways to fine-tune: bytes of weights, gradients and optimizer state, one process each.

A Llama of 72 million weights (768 wide, 10 layers, float32), 4 x 256 tokens a step. The largest
memory of a process is mostly activations at this size, so bars are on bytes of gradients and
optimizer state, which scale with the model. LoRA and DoRA of rank 8 in all linear layers; QLoRA the
same over NF4 with double quantisation; GaLore of rank 32, all but embeddings and the last layer.
Merge error: adapters with drawn weights, largest difference of a logit over the largest logit, both
models computing in float64, so that it is that of the merged float32 weights (QLoRA's: into the
dequantised ones). In float32 a forward pass through ten layers is itself off by nearly 1e-6.
*By bitsandbytes alone* is QLoRA without the kit's care, after one evaluation without gradients.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)  # bitsandbytes speaks of kernels that it can do without

import bitsandbytes
import torch
import transformers
from report import Report
from torch import Tensor, nn

from medkit.vlm import adapters
from medkit.vlm.adapters import merged
from medkit.vlm.model import LitVLM
from medkit.vlm.quantised import dequantised

MIB = 2**20
RANK, GALORE_RANK = 8, 32
LORA: dict[str, Any] = {"groups": ["llm"], "lora_rank": RANK, "lora_dropout": 0.0}
FOUR: dict[str, Any] = {"quant_bits": 4}
ARMS: dict[str, dict[str, Any]] = {
    "full, AdamW": {},
    "full, AdamW8bit": {},
    "full, GaLore": {"galore": {"galore_rank": GALORE_RANK, "galore_update_proj_gap": 50}},
    "LoRA": {"lora": LORA},
    "DoRA": {"lora": LORA | {"use_dora": True}},
    "QLoRA": {"lora": LORA | FOUR},
    "QLoRA by bitsandbytes alone": {"lora": LORA | FOUR},
}


def llama() -> nn.Module:
    """A language model of 72 million weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=2048, num_hidden_layers=10,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def measured(name: str, size: tuple[int, int], steps: int) -> dict[str, float]:
    """Train a few steps in this process, which is fresh; return what it took."""
    torch.set_num_threads(1)
    if "alone" in name:
        adapters.keep_trainable = lambda model: model  # type: ignore[assignment]
    lit = LitVLM(f"{__name__}:llama", prefixes={"llm": ["model", "lm_head"]}, **ARMS[name])
    lit.frozen.set_modes()
    trained = [value for value in lit.parameters() if value.requires_grad]
    if "8bit" in name:
        optimizer: Any = bitsandbytes.optim.AdamW8bit(trained, lr=1e-3)
    else:
        optimizer = lit.configure_optimizers()
    batch = {"input_ids": torch.randint(3, 1000, size, generator=torch.Generator().manual_seed(0))}
    batch |= {"labels": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    lit.eval()
    with torch.no_grad():  # as Lightning's check before a fit does
        lit(input_ids=batch["input_ids"][:1])
    lit.train()
    lit.frozen.set_modes()
    seconds = []
    for _ in range(1 + steps):
        optimizer.zero_grad()
        began = time.process_time()
        lit.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.process_time() - began)
        if len(seconds) == 1:
            learning = [
                p.grad is not None and bool(p.grad.abs().max() > 0)
                for n, p in lit.named_parameters()
                if "lora_B" in n
            ]
    found = {
        "weights": weights_of(lit),
        "gradients": total(p.grad for p in trained if p.grad is not None),
        "state": state_of(optimizer),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        "seconds": statistics.median(seconds[1:]),
        "adapters": float(len(learning)),
        "learning": float(sum(learning)),
    }
    if learning and "alone" not in name:
        found |= checkpoint_of(lit) | merge_errors(lit, batch["input_ids"])
    return found


def weights_of(lit: LitVLM) -> float:
    """Return the bytes of weights, scales of four-bit ones included."""
    return total(lit.model.state_dict().values())


def state_of(optimizer: torch.optim.Optimizer) -> float:
    """Return the bytes of an optimizer's state, GaLore's directions included."""
    found: list[Tensor] = []
    for own in optimizer.state.values():
        found += [value for value in own.values() if isinstance(value, Tensor)]
        if "projector" in own:
            found.append(own["projector"].ortho_matrix)
    return total(found)


def total(values: Iterable[Tensor]) -> float:
    """Return the bytes of tensors."""
    return float(sum(value.numel() * value.element_size() for value in values))


def checkpoint_of(lit: LitVLM) -> dict[str, float]:
    """Return the bytes of the kit's checkpoint and of Lightning's, weights alone."""
    ours: dict[str, Any] = {"state_dict": lit.state_dict()}
    lit.on_save_checkpoint(ours)
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"ours": ours, "lightning": {"state_dict": lit.state_dict()}}.items():
            path = Path(folder) / name
            torch.save(content, path)
            sizes[f"checkpoint, {name}"] = float(path.stat().st_size)
    return sizes


def merge_errors(lit: LitVLM, ids: Tensor) -> dict[str, float]:
    """Return the differences that merging makes, where adapters have weights."""
    with torch.no_grad():
        for name, value in lit.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    outputs = partial(logits, ids=ids[:1])
    before: Any = copy.deepcopy(lit.model).eval()
    if "quant_bits" in (lit.hparams["lora"] or {}):
        before = dequantised(before)
    single = outputs(before)
    double = outputs(before.double())
    plain, error = merged(lit.model, outputs)
    return {
        "merge": apart(outputs(plain.double()), double),
        "merge in float32": error,
        "float32": apart(single, double),
    }


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Return a model's logits."""
    found: Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def alone(name: str, size: tuple[int, int], steps: int) -> dict[str, float]:
    """Measure in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(partial(measured, name, size, steps)).result()


def tell(report: Report, found: Mapping[str, Mapping[str, float]]) -> None:
    """Print the bars."""

    def moved(name: str) -> float:
        return found[name]["gradients"] + found[name]["state"]

    for name in ("LoRA", "DoRA", "QLoRA"):
        report.figure(
            f"{name}/gradients and state, times smaller",
            moved("full, AdamW") / moved(name),
            at_least=50 if name == "LoRA" else None,
        )
    ratio = found["full, AdamW"]["state"] / found["full, GaLore"]["state"]
    report.figure("GaLore/state, times smaller", ratio, at_least=10)
    ratio = found["full, AdamW"]["state"] / found["full, AdamW8bit"]["state"]
    report.figure("AdamW8bit/state, times smaller", ratio)
    ratio = found["full, AdamW"]["weights"] / found["QLoRA"]["weights"]
    report.figure("QLoRA/weights, times smaller", ratio)
    for name in ("LoRA", "DoRA", "QLoRA"):
        one = found[name]
        text = f"in float32 {one['merge in float32']:.1e}, forward pass alone {one['float32']:.1e}"
        report.figure(f"{name}/merge error", one["merge"], at_most=1e-6, peers=text)
        ours, theirs = (found[name][f"checkpoint, {who}"] for who in ("ours", "lightning"))
        text = f"{ours / MIB:.1f} MiB; Lightning's {theirs / MIB:.1f}"
        report.figure(f"{name}/checkpoint, times smaller", theirs / ours, peers=text)
    counts = [
        (int(found[name]["learning"]), int(found[name]["adapters"]))
        for name in ("QLoRA", "QLoRA by bitsandbytes alone")
    ]
    report.share(
        "QLoRA/adapters that learn after a validation", *counts[0], at_least=1.0,
        peers=f"bitsandbytes alone {counts[1][0]}/{counts[1][1]}",
    )  # fmt: skip
    if not bitsandbytes.functional.has_avx512bf16():
        report.note("this processor has no AVX512-BF16, without which bitsandbytes learns as well")


def main() -> int:
    report = Report(__doc__)
    size, steps = ((1, 32), 1) if report.quick else ((4, 256), 3)
    report.note(f"{size[0]} x {size[1]} tokens a step; sizes in MiB")
    found = {}
    for name in ARMS:
        one = found[name] = alone(name, size, steps)
        report.note(
            f"{name}: weights {one['weights'] / MIB:.1f}, gradients {one['gradients'] / MIB:.1f}, "
            f"state {one['state'] / MIB:.1f}, largest of the process {one['peak'] / MIB:.0f}, "
            f"{one['seconds']:.2f} CPU s a step"
        )
    tell(report, found)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
