"""A checkpoint's folder compressed into another, with all that is not weights beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from trisparse.prune.deploy.checkpoint import write_pretrained
from trisparse.prune.deploy.compress import compress
from trisparse.prune.deploy.compression_report import CompressionReport
from trisparse.prune.deploy.model_card import CARD, CardNotes, base_model_in, is_card
from trisparse.prune.deploy.replaced_folder import RECORD, REPORT, SAVED, replaced_folder

_LARGE_FILES = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".h5", ".msgpack")


def compress_checkpoint(
    model: nn.Module, source: Path, target: Path, prefer: str = "speed", tokens: Sequence[int] = (1, 4096), *,
    measure: bool = True, remove_channels: bool = True, max_shard_size: int | str = "5GB", overwrite: bool = False,
    notes: CardNotes | None = None,
) -> CompressionReport:  # fmt: skip
    """Compress a model where it is, and save it with its report.

    Args:
        model: what was loaded from `source`.
        source: whose tokenizer, generation config and the like are copied.
        target: where to; see `replaced_folder`.
        prefer: as in `compress`, like what follows.
        tokens: numbers of tokens that matter.
        measure: time dense and packed.
        remove_channels: zero channels and heads.
        max_shard_size: of a file.
        overwrite: replace what something else wrote there.
        notes: what its card says besides; by default the base model that a card in `source` names.

    Raises:
        PruningError: as `compress`, `replaced_folder` and `save_pretrained` do.
    """
    compressed: Any
    compressed, report = compress(model.eval(), prefer, tokens, measure=measure, remove_channels=remove_channels)
    with replaced_folder(target, SAVED, overwrite) as half:
        write_pretrained(compressed.cpu(), half, max_shard_size, notes or CardNotes(base_model=base_model_in(source)))
        copy_small_files(source, half)
        (half / REPORT).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return report


def small_files(folder: Path) -> list[Path]:
    """Tokenizer, generation config and the like, which are the same for every format; no card of ours, which is not."""
    others = ["config.json", REPORT, RECORD, *([CARD] if is_card(folder / CARD) else [])]
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in others]
    return [path for path in files if not path.name.endswith(_LARGE_FILES)]


def copy_small_files(source: Path, target: Path) -> None:
    """Those that `target` does not have, and a README.md that somebody wrote in the place of a card."""
    for path in small_files(source):
        if path.name == CARD or not (target / path.name).exists():
            shutil.copy2(path, target / path.name)
