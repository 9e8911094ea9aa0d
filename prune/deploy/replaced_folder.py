"""A checkpoint's folder written whole, or not at all, and never over what something else has written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from trisparse.prune.deploy.checkpoint_files import digest, read_config
from trisparse.prune.deploy.layer_spec import is_ours
from trisparse.prune.deploy.model_card import CARD, card_is_free, is_card
from trisparse.prune.errors import PruningError

SAVED, EXPORTED = "save_pretrained", "export"  # what a folder was written by
RECORD, REPORT = ".trisparse.json", "compression_report.json"
_WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")  # transformers' own names


@contextlib.contextmanager
def replaced_folder(folder: Path, by: str, overwrite: bool = False) -> Iterator[Path]:
    """A new folder, inside `folder`, to write to; if all goes well its files replace those of `folder`.

    What was written by the same means before goes, and weights of any checkpoint; any other file stays. The config
    leaves first and comes last: what is interrupted between has none, and can't be read as a mixture of two. A card is
    never written over a README.md of somebody else's.

    Raises:
        PruningError: a file would be lost that something else wrote, or changed since, and `overwrite` is not set.
    """
    own = check_folder_is_free(folder, by, overwrite)
    was_there = folder.exists()
    half = folder / f".{uuid.uuid4().hex}"  # inside, since beside it may be another disk, or nobody's to write to
    half.mkdir(parents=True)
    try:
        yield half
        if is_card(half / CARD) and not card_is_free(folder):
            (half / CARD).unlink()
        names = sorted(path.name for path in half.iterdir())
        if not overwrite:
            _check_names({name for name in names if (folder / name).exists()} - own, folder, by)
        digests = {name: digest(half / name) for name in names if (half / name).is_file()}
        (half / RECORD).write_text(json.dumps({"by": by, "files": digests}) + "\n", encoding="utf-8")
        stale = own | {path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
        for name in ("config.json", *sorted(stale)):
            (folder / name).unlink(missing_ok=True)
        for name in sorted((RECORD, *names), key=lambda name: (name == "config.json", name != RECORD)):
            os.replace(half / name, folder / name)
    finally:
        shutil.rmtree(half, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()


def check_folder_is_free(folder: Path, by: str, overwrite: bool, names: Iterable[str] = ()) -> set[str]:
    """The files of a folder that the same means wrote, to be replaced.

    Raises:
        PruningError: it is a file, or, unless `overwrite` is set, it holds a checkpoint or files of these names that
            something else wrote or changed.
    """
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"{folder}: want a folder, found a file")
    held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    own = _written_by(folder, by) if held else set()
    if not overwrite:
        _check_names({name for name in held if name in names or _is_of_a_checkpoint(name)} - own, folder, by)
    return own


def _check_names(foreign: set[str], folder: Path, by: str) -> None:
    if foreign:
        raise PruningError(
            f"{folder}: holds {', '.join(sorted(foreign)[:4])}, which {by} did not write or which changed since; give "
            "another folder, or overwrite=True (--overwrite) to replace it"
        )


def _is_of_a_checkpoint(name: str) -> bool:
    return name == "config.json" or _WEIGHTS.fullmatch(name) is not None


def _written_by(folder: Path, by: str) -> set[str]:
    """Files that are as the record says; of a compressed model, whoever saved it, also those that belong to it."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        digests = dict(record["files"]) if record["by"] == by else {}
    except (OSError, ValueError, TypeError, KeyError):
        digests = {}
    own = {name for name, found in digests.items() if (folder / name).is_file() and digest(folder / name) == found}
    own |= {CARD} if is_card(folder / CARD) else set()
    with contextlib.suppress(PruningError):  # no config, or none that can be read
        if by == SAVED and is_ours(read_config(folder).get("quantization_config")):
            belongs = {"generation_config.json", REPORT}
            own |= {path.name for path in folder.iterdir() if path.name in belongs or _is_of_a_checkpoint(path.name)}
    return own
