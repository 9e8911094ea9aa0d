"""Calibration batches from texts: of a list, a file, a folder or a data set of the hub."""

from __future__ import annotations

import csv
import inspect
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trisparse.prune.errors import PruningError, nearest, one_line
from trisparse.prune.layers.modules import unwrap

SAMPLES = 128
_LONGEST = 2048  # tokens, where the model takes more and nobody says
_TOGETHER = 4096  # tokens of a batch, so that the logits of a large vocabulary stay small
_FILES = (".txt", ".jsonl", ".json", ".csv", ".tsv")


class TextBatches(NamedTuple):
    """Batches for a model's forward, and a line on what they hold."""

    batches: list[dict[str, Any]]
    note: str


def text_batches(
    model: nn.Module, calibration: Any, tokenizer: Any, samples: int = SAMPLES, max_length: int | None = None,
    column: str | None = None,
) -> TextBatches:  # fmt: skip
    """The first texts that are not empty, each cut to `max_length` tokens; texts of one length share a batch.

    Args:
        model: for what its forward takes, and how many tokens at most.
        calibration: texts, or rows that have a column of them; or the name of a file (.txt, a text a line, .json,
            .jsonl, .csv, .tsv), of a folder that the `datasets` library reads, or of one of the hub's data sets, as
            `name` or `name:config`, of which the split `train` is read.
        tokenizer: the model's own.
        samples: how many texts at most.
        max_length: tokens of a text at most; default 2048, or fewer if the model takes no more.
        column: of the texts in rows; default `text`, or the only one that holds texts.

    Raises:
        PruningError: what can't be read, is empty or of another kind, no tokenizer, or an encoder-decoder, which
            needs more than texts.
    """
    bare: Any = unwrap(model)
    config = getattr(bare, "config", None)
    if tokenizer is None:
        raise PruningError("tokenizer: missing; calibration by texts needs the model's own, of AutoTokenizer say")
    if not callable(tokenizer):
        raise PruningError(f"tokenizer: want one of transformers, got {tokenizer!r:.80}")
    for name, value in (("samples", samples), ("max_length", max_length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise PruningError(f"{name}: want a whole number of at least 1, got {value!r}")
    if getattr(config, "is_encoder_decoder", False):
        raise PruningError(f"calibration: {type(bare).__name__} decodes, too, which texts don't tell of; give batches")
    room = getattr(config, "max_position_embeddings", None) or _LONGEST
    if max_length is None:
        max_length = min(_LONGEST, room, getattr(tokenizer, "model_max_length", _LONGEST))
    elif max_length > room and getattr(config, "max_position_embeddings", None):
        raise PruningError(f"max_length: {max_length} is more than the {room} tokens that the model takes")
    takes = {"input_ids", "attention_mask", *inspect.signature(bare.forward).parameters}
    by_length: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
    count = 0
    for text in texts_of(calibration, column):
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        if length := encoded["input_ids"].shape[1]:
            by_length[length].append({name: value for name, value in encoded.items() if name in takes})
            count += 1
        if count == samples:
            break
    if not count:
        raise PruningError(f"calibration: want texts, but {_called(calibration)} holds none that is not empty")
    more = {"use_cache": False} if "use_cache" in takes else {}
    batches = []
    for length, rows in by_length.items():
        size = max(_TOGETHER // length, 1)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batches.append({name: torch.cat([row[name] for row in part]) for name in part[0]} | more)
    tokens = sum(length * len(rows) for length, rows in by_length.items())
    wanted = "" if count == samples else f", of {samples} that were asked for"
    return TextBatches(batches, f"calibrated on {count} texts{wanted}, {tokens} tokens in all")


def texts_of(calibration: Any, column: str | None = None) -> Iterator[str]:
    """Texts that are more than white space; see `text_batches`."""
    rows = calibration
    if isinstance(calibration, (str, Path)):
        rows = _rows(str(calibration))
    elif isinstance(calibration, (Mapping, Tensor, bytes)) or not isinstance(calibration, Iterable):
        raise PruningError(f"calibration: want texts or the name of a data set, got a {type(calibration).__name__}")
    for number, row in enumerate(rows):
        text = row
        if isinstance(row, Mapping):
            column = column or _column(row)
            if column not in row:
                raise PruningError(
                    f"column: {column!r} is none of {', '.join(map(str, row))}{nearest(column, map(str, row))}"
                )
            text = row[column]
        if text is not None and not isinstance(text, str):
            raise PruningError(f"calibration: want texts, but entry {number} is {text!r:.60}")
        if text and not text.isspace():
            yield text


def _column(row: Mapping[str, Any]) -> str:
    found = [name for name, value in row.items() if isinstance(value, str)]
    if "text" in row or len(found) == 1:
        return "text" if "text" in row else found[0]
    raise PruningError(f"column: missing; the rows have {', '.join(map(str, row))}; say which holds the texts")


def _rows(name: str) -> Iterable[Any]:
    path = Path(name)
    try:
        if path.is_file():
            return _file_rows(path)
        if path.is_dir():
            return _dataset_rows(name)
    except OSError as error:  # a name that is none of a file
        raise PruningError(f"calibration: {name!r:.80} can't be read: {one_line(error)}") from None
    if path.suffix in _FILES or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise PruningError(f"calibration: {name}: no such file or folder")
    return _dataset_rows(name)


def _file_rows(path: Path) -> Iterator[Any]:
    if path.suffix not in _FILES:
        raise PruningError(f"calibration: {path}: want a file that ends with {', '.join(_FILES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="" if path.suffix in (".csv", ".tsv") else None) as file:
            if path.suffix == ".txt":
                yield from file
            elif path.suffix in (".csv", ".tsv"):
                tab = path.suffix == ".tsv"
                quoting: Any = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
                yield from csv.DictReader(file, delimiter="\t" if tab else ",", quoting=quoting, strict=True)
            else:
                text = file.read()
                is_list = text.lstrip().startswith("[")
                yield from json.loads(text) if is_list else map(json.loads, filter(str.strip, text.split("\n")))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise PruningError(f"calibration: {path} can't be read: {one_line(error)}") from None


def _dataset_rows(name: str) -> Iterator[Any]:
    try:
        import datasets
    except ImportError:
        raise PruningError(
            f"calibration: {name!r} needs the datasets library, which is not installed; pip install datasets, or give "
            f"texts or a file that ends with {', '.join(_FILES)}"
        ) from None
    folder = Path(name)
    try:
        if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
            data = datasets.load_from_disk(name)
            if isinstance(data, Mapping):
                data = data["train"] if "train" in data else next(iter(data.values()))
        elif folder.is_dir():
            data = datasets.load_dataset(name, split="train", streaming=True)
        else:
            repository, _, config = name.partition(":")
            data = datasets.load_dataset(repository, config or None, split="train", streaming=True)
        yield from data
    except Exception as error:
        raise PruningError(f"calibration: {name!r} can't be loaded by datasets: {one_line(error)}") from None


def _called(calibration: Any) -> str:
    return repr(str(calibration)) if isinstance(calibration, (str, Path)) else f"a {type(calibration).__name__}"
