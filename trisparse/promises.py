"""What the kernels are to reach on a GPU, and whether a suite's results say so."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from trisparse.suite_rows import read

Row = dict[str, Any]
_LARGE = ("bert-base", "bert-large", "llama")  # what is smaller is over before a launch is
_ONE = "llama-7b"  # a single weight that is large enough for the same


class Promise(NamedTuple):
    """Text, the steps whose rows tell, from rows to named values, the bound, and whether it is a least or a most."""

    text: str
    step: str
    values: Callable[[list[Row]], Iterable[tuple[str, float]]]
    bound: float
    is_least: bool = True


def _share(op: str, *words: str) -> Callable[[list[Row]], Iterable[tuple[str, float]]]:
    def values(rows: list[Row]) -> Iterable[tuple[str, float]]:
        for row in rows:
            model = row.get("model", "")
            is_meant = row.get("op") == op and model.startswith(_LARGE) and all(word in model for word in words)
            if is_meant and "share_of_copy" in row:
                yield model, row["share_of_copy"]

    return values


def _times_faster(op: str, rival: str) -> Callable[[list[Row]], Iterable[tuple[str, float]]]:
    def values(rows: list[Row]) -> Iterable[tuple[str, float]]:
        times = {(row["model"], row["what"]): row["median_ms"] for row in rows if row.get("op") == op and "what" in row}
        for (model, what), ms in times.items():
            if what == "trisparse" and (model, rival) in times and model.startswith(_LARGE):
                yield model, times[model, rival] / ms

    return values


def _never_slower(rows: list[Row]) -> Iterable[tuple[str, float]]:
    for row in rows:
        yield from ((row["model"], value) for key, value in row.items() if key.startswith("times_faster_"))


def _overhead(rows: list[Row]) -> Iterable[tuple[str, float]]:
    for row in rows:
        if row.get("op") == "prune_step" and row["model"].startswith("bert-base"):
            yield f"{row['model']}, {row['what']}", row["overhead"]


def _known_layout(rows: list[Row]) -> Iterable[tuple[str, float]]:
    for row in rows:
        if row.get("op") == "layout_24" and row["what"] == "library":
            yield row["layout"], float(row["layout"] != "library")


PROMISES = [
    Promise("score_units, share of a copy's bandwidth", "score_units", _share("score_units"), 0.8),
    Promise("apply_masks, share of a copy's bandwidth", "apply_masks", _share("apply_masks"), 0.8),
    Promise("cost_groups, share of a copy's bandwidth", "cost_groups", _share("cost_groups"), 0.8),
    Promise("nm_mask 2:4, share of a copy's bandwidth", "nm_mask", _share("nm_mask", _ONE, "2:4"), 0.8),
    Promise("select_units, times cat + kthvalue", "select_units", _times_faster("select_units", "cat + kthvalue"), 100),
    Promise("2:4 metadata is written as the library reads it", "pack_24", _known_layout, 1),
    Promise("pack_24 both ways, share of a copy's bandwidth", "pack_24", _share("pack_24", _ONE, "both ways"), 0.6),
    Promise("an ordinary step's overhead on BERT-base", "prune_step", _overhead, 0.03, False),
    Promise("a compressed layer, times dense", "compress", _never_slower, 0.97),
]


def table(folder: Path) -> list[list[str]]:
    """Rows of promise, bound, what was measured at its worst and where, and the verdict."""
    found = [["promise", "want", "measured, the worst", "where", ""]]
    for promise in PROMISES:
        values = list(promise.values(read(folder / f"{promise.step}.json").get("rows", [])))
        sign, holds = ("≥", operator.ge) if promise.is_least else ("≤", operator.le)
        want = f"{sign} {promise.bound:g}"
        if not values:
            found.append([promise.text, want, "-", "", "not measured"])
            continue
        where, worst = (min if promise.is_least else max)(values, key=lambda pair: pair[1])
        count = sum(holds(value, promise.bound) for _, value in values)
        verdict = "met" if count == len(values) else f"missed: {count} of {len(values)} met"
        found.append([promise.text, want, f"{worst:.3g}", where, verdict])
    return found
