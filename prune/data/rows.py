"""Rows of the files that hold examples: JSON lines, a JSON array, CSV, TSV, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.data.arguments import FORMATS
from trisparse.prune.errors import PruningError, one_line

Example = dict[str, Any]


def rows_of(path: Path) -> Iterator[tuple[str, Example]]:
    """Place and content of each row, a file's columns as they are.

    Raises:
        PruningError: names the file and the line that is wrong.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            yield from _table(path)
        elif path.suffix == ".json" and _is_array(path):
            yield from _array(path)
        else:
            yield from _lines(path)
    except UnicodeDecodeError as error:
        raise PruningError(f"{path}: is not UTF-8 text: {error}") from None


def find_file(folder: Path, splits: Sequence[str]) -> Path:
    """The file of one of these splits, the first that is there.

    Raises:
        PruningError: there is none.
    """
    for split in splits:
        found = [path for ending in FORMATS if (path := folder / f"{split}.{ending}").is_file()]
        if len(found) > 1:
            names = " and ".join(path.name for path in found)
            raise PruningError(f"--dataset_dir: {folder} holds {names}; leave one of them")
        if found:
            return found[0]
    raise PruningError(
        f"--dataset_dir: {folder} holds no {' or '.join(dict.fromkeys(splits))} as .{', .'.join(FORMATS)}; "
        f"it holds {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}"
    )


def _parquet(path: Path) -> Iterator[tuple[str, Example]]:
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise PruningError(f"{path}: is no parquet file: {str(error).splitlines()[0]}") from None
    yield from ((f"{path}: row {i}", row) for i, row in enumerate(rows, 1))


def _table(path: Path) -> Iterator[tuple[str, Example]]:
    tab = path.suffix == ".tsv"
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(
            file, delimiter="\t" if tab else ",", quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL, strict=True
        )  # strict: a quotation mark that nothing closes would take all rows that follow for one text
        try:
            names = reader.fieldnames or []
            if len(set(names)) < len(names):
                raise PruningError(f"{path}: line 1: a column is named twice: {', '.join(names)}")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                if None in row or None in row.values():
                    raise PruningError(f"{where}: want {len(names)} columns as in the header")
                yield where, row
        except csv.Error as error:
            is_quote = '"' in str(error) or "end of data" in str(error)
            mend = "; texts with quotation marks stand in such, each doubled" if is_quote else ""
            raise PruningError(f"{path}: line {reader.line_num}: {error}{mend}") from None


def _is_array(path: Path) -> bool:
    """Whether a file of JSON is one array, not an object a line."""
    with path.open(encoding="utf-8-sig") as file:
        return next((line for line in file if line.strip()), "").lstrip().startswith("[")


def _array(path: Path) -> Iterator[tuple[str, Example]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise PruningError(f"{path}: line {error.lineno}: is no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise PruningError(f"{path}: is nested too deep") from None
    except ValueError as error:  # a number of thousands of digits
        raise PruningError(f"{path}: can't be read: {one_line(error)}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise PruningError(f"{path}: row {number}: want a JSON object, got {type(row).__name__}")
        yield f"{path}: row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, Example]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}: line {number}", _json_row(line, f"{path}: line {number}")


def _json_row(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise PruningError(f"{where}: is no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise PruningError(f"{where}: is nested too deep") from None
    except ValueError as error:
        raise PruningError(f"{where}: can't be read: {one_line(error)}") from None
    if not isinstance(row, dict):
        raise PruningError(f"{where}: want one JSON object a line, got {type(row).__name__}")
    return row
