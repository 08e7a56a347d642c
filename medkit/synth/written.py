"""Made-up tables as files, with their SHA-256 sums beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medkit.record.files import sha256_file, write_text


def write_with_sums(folder: Path | str, texts: Mapping[str, str]) -> dict[str, str]:
    """Write name -> text and SHA256SUMS into a folder; return name -> SHA-256."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_text(folder / name, text)
    sums = {name: sha256_file(folder / name) for name in texts}
    write_text(folder / "SHA256SUMS", "".join(f"{sums[n]}  {n}\n" for n in sums))
    return sums
