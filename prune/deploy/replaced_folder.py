"""A checkpoint's folder written whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from trisparse.prune.errors import PruningError

_WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")  # transformers' own names


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder, inside `folder`, to write to; if all goes well its files replace those of `folder`.

    Weights of an earlier checkpoint go, any other file stays. The config leaves first and comes last: what is
    interrupted between has none, and can't be read as a mixture of two checkpoints.
    """
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"{folder}: want a folder, found a file")
    was_there = folder.exists()
    half = folder / f".{uuid.uuid4().hex}"  # inside, since beside it may be another disk, or nobody's to write to
    half.mkdir(parents=True)
    try:
        yield half
        written = sorted(half.iterdir(), key=lambda path: path.name == "config.json")
        stale = {path for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)} - {
            folder / p.name for p in written
        }
        for path in (folder / "config.json", *stale):
            path.unlink(missing_ok=True)
        for path in written:
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(half, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
