"""Write files so that a reader finds the old one or the new one, never half of it."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


def atomic_save(path: Path, save: Callable[[Path], object]) -> None:
    """Let `save` write to a temporary name beside `path`, then rename; nothing is left if it fails."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        save(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, text: str) -> None:
    """Write UTF-8 text as `atomic_save` does."""
    atomic_save(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
