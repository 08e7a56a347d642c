"""Row and patient ids leave the kit only as keyed pseudonyms."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from functools import lru_cache
from pathlib import Path

KEY_VARIABLE = "MEDKIT_KEY_FILE"


def key_path() -> Path:
    """Where the key lies: never in a run folder, so that sharing the folder does not share it."""
    given = os.environ.get(KEY_VARIABLE)
    return Path(given) if given else Path.home() / ".config" / "medkit" / "pseudonym.key"


@lru_cache(maxsize=8)
def _key(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:  # another process was first: its key counts, once it is written
            for _ in range(200):
                if path.stat().st_size:
                    break
                time.sleep(0.01)
            return _key(path)
        with os.fdopen(fd, "w") as handle:
            handle.write(secrets.token_hex(32))
    key = path.read_text().strip()
    if len(key) < 32:
        raise ValueError(
            f"{path} must hold a secret of at least 32 characters, found {len(key)}. "
            f"Remove it to have a new one made, or point {KEY_VARIABLE} at the right file."
        )
    return key.encode()


def pseudonym_key(path: Path | None = None) -> bytes:
    """Return the key in a file, or the one in use; made at first use, for its owner alone."""
    return _key(key_path() if path is None else path)


def pseudonym(value: object, *, key: bytes | None = None) -> str:
    """Return 16 hex digits that stand for ``value``; the same for the same key (HMAC-SHA-256)."""
    secret = pseudonym_key() if key is None else key
    return hmac.new(secret, str(value).encode(), hashlib.sha256).hexdigest()[:16]
