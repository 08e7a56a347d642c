"""Write locks/*.txt: every package with its version and hashes, but not torch.

torch is left out because its build depends on the machine (CPU, CUDA 12, CUDA 13); it is pinned
in pyproject.toml and installed first. The CUDA libraries that come with some of its builds are
left out for the same reason. Existing pins are kept unless ``--upgrade`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# name of the lock -> extras of pyproject.toml in it; the widest first, the others follow its pins
LOCKS: dict[str, tuple[str, ...]] = {
    "dev": ("dev",),
    "lab": ("galore", "lab", "qlora", "vlm"),
    "train": ("galore", "qlora", "vlm"),
}
# What a CUDA build of torch brings along: torch's own metadata asks for the right versions.
BROUGHT_BY_TORCH = re.compile(r"(nvidia-|cuda-|triton\b)")
DIGEST_LINE = "# pyproject: sha256:"


def dependency_digest(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """SHA-256 of everything in pyproject.toml that a lock depends on."""
    table = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    asked = {
        "build": table["build-system"]["requires"],
        "python": table["project"]["requires-python"],
        "core": table["project"]["dependencies"],
        "extras": table["project"]["optional-dependencies"],
        "constraints": table["tool"]["uv"]["constraint-dependencies"],
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def without_torch_builds(requirements: str) -> str:
    """Drop the packages that belong to one build of torch, with their hashes."""
    kept, keep = [], True
    for line in requirements.splitlines():
        if line and not line[0].isspace():
            keep = not BROUGHT_BY_TORCH.match(line)
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"


def compile_lock(uv: str, extras: tuple[str, ...], pins: str) -> str:
    """Resolve pyproject.toml with ``extras``, keeping the versions in ``pins`` where they fit."""
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    python = re.search(r">=\s*([\d.]+)", oldest["project"]["requires-python"])
    if python is None:
        raise ValueError("requires-python in pyproject.toml must have a lower bound '>='")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        out.write_text(pins, encoding="utf-8")
        subprocess.run(
            [
                *(uv, "pip", "compile", "pyproject.toml", "--output-file", str(out), "--quiet"),
                *("--universal", "--python-version", python[1], "--fork-strategy", "fewest"),
                *("--generate-hashes", "--no-emit-package", "torch"),
                *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
                *(part for extra in extras for part in ("--extra", extra)),
            ],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return without_torch_builds(out.read_text(encoding="utf-8"))


def main() -> int:
    """Write every lock; 0 when they are written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = parser.parse_args().upgrade
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        print("uv is needed to write the locks and was not found: pip install uv", file=sys.stderr)
        return 1
    folder = ROOT / "locks"
    folder.mkdir(exist_ok=True)
    widest = folder / "dev.txt"
    pins = widest.read_text(encoding="utf-8") if widest.exists() and not upgrade else ""
    for name, extras in LOCKS.items():
        print(f"locks/{name}.txt ...", flush=True)
        body = compile_lock(uv, extras, pins)
        pins = pins if name != "dev" else body
        head = [
            f"# medkit, extras: {', '.join(extras) or 'none'}; without torch (tools/lock.py)",
            "# Written by `make lock`; do not edit.",
            f"{DIGEST_LINE}{dependency_digest()}",
        ]
        (folder / f"{name}.txt").write_text("\n".join(head) + "\n" + body, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
