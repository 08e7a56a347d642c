"""Write the digest of the base image into the Dockerfile's ``ARG BASE``.

The tag says what the base is and may be moved or deleted by its owner; the digest says which bytes.
Needs a registry that can be reached and one of the tools that ask it without pulling the image.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parent.parent / "Dockerfile"
BASE = re.compile(
    r"^ARG BASE=(?P<image>[^\s:@]+:[^\s@]+)(?:@(?P<digest>sha256:[0-9a-f]{64}))?$", re.M
)
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
ASK: dict[str, tuple[str, ...]] = {
    "skopeo": ("inspect", "--no-tags", "--format", "{{.Digest}}", "docker://{image}"),
    "crane": ("digest", "{image}"),
    "regctl": ("image", "digest", "{image}"),
    "docker": ("buildx", "imagetools", "inspect", "--format", "{{.Manifest.Digest}}", "{image}"),
}


def base_of(dockerfile: str) -> tuple[str, str | None]:
    """Return the base image with its tag, and the digest it is pinned to or None."""
    found = BASE.findall(dockerfile)
    if len(found) != 1:
        raise ValueError(f"the Dockerfile must have one line 'ARG BASE=image:tag', found {found}")
    image, digest = found[0]
    return image, digest or None


def with_digest(dockerfile: str, digest: str) -> str:
    """Return the Dockerfile with its base pinned to ``digest``."""
    if not DIGEST.fullmatch(digest):
        raise ValueError(f"a digest is 'sha256:' and 64 hex digits, found {digest!r}")
    return BASE.sub(lambda found: f"ARG BASE={found['image']}@{digest}", dockerfile)


def ask_registry(image: str) -> tuple[str | None, list[str]]:
    """Return the digest of ``image``, or None with what each tool answered."""
    answers = []
    for tool, arguments in ASK.items():
        if shutil.which(tool) is None:
            answers.append(f"{tool}: not installed")
            continue
        command = [tool, *(part.format(image=image) for part in arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            answers.append(f"{tool}: no answer in 60 s")
            continue
        digest = done.stdout.strip()
        if done.returncode == 0 and DIGEST.fullmatch(digest):
            return digest, answers
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no answer"]
        answers.append(f"{tool}: {lines[-1]}")
    return None, answers


def main() -> int:
    """Pin the base; 1, with the reasons, where no registry could be asked."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    image, was = base_of(text)
    digest, answers = ask_registry(image)
    if digest is None:
        print(
            f"The digest of {image} could not be had, so the Dockerfile stays as it is "
            f"({was or 'pinned by tag only'}):",
            *(f"  {answer}" for answer in answers),
            "Run this where an image registry can be reached and skopeo, crane, regctl or docker "
            "with buildx is installed.",
            sep="\n",
            file=sys.stderr,
        )
        return 1
    DOCKERFILE.write_text(with_digest(text, digest), encoding="utf-8")
    print(f"{image}: {'still ' if digest == was else ''}{digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
