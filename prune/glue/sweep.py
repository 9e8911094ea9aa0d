"""`trisparse sweep`: one run of the GLUE loop for each budget, and accuracy against measured speed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trisparse.prune.data.own_task import task_of
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.args import GlueArguments
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.plot_style import COLOR, WIDTH, dense_line, has_matplotlib, pattern_look, save, styled
from trisparse.prune.text_table import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS, TABLE, PICTURE = "all_results.json", "sweep.json", "sweep.png"
_TRAIN = "import sys; from trisparse.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
_PLACES = {"output_dir", "resume_from_checkpoint", "overwrite_output_dir"}  # flags that change no result


def sweep(speedups: Sequence[float], output_dir: Path, flags: Sequence[str]) -> None:
    """Make the runs that are not there, go on with those that were interrupted, and write a table and a picture.

    Args:
        speedups: times as fast as dense that runs aim at.
        output_dir: gets a folder for each run.
        flags: of all runs.

    Raises:
        PruningError: flags that `trisparse train` does not take, a run there with others, or one that fails.
    """
    targets = sorted(set(speedups))
    runs = {target: output_dir / f"speedup-{target:g}" for target in targets}
    parsed = {target: _parsed(flags, target, folder) for target, folder in runs.items()}  # all, before the first run
    rows = []
    for target, folder in runs.items():
        results = _results(folder, parsed[target])
        if results is None:
            _run(folder, _words(flags, target, folder))
            results = _results(folder, parsed[target])
        if results is None:
            raise PruningError(f"{folder}: the run left no {RESULTS}")
        rows.append(_row(target, results))
        found = {"task": parsed[target].data.task_name, "dense": results["teacher_eval"], "runs": rows}
        atomic_write(output_dir / TABLE, json.dumps(found, indent=1) + "\n")
    name = task_of(parsed[targets[0]].data).best[0]
    print("\n".join(aligned(table(rows, name))))  # noqa: T201
    plot(rows, name, output_dir / PICTURE)


def _words(flags: Sequence[str], target: float, folder: Path) -> list[str]:
    return [*flags, "--do_prune", "--target_speedup", f"{target:g}", "--compress", "speed", "--output_dir", str(folder)]


def _parsed(flags: Sequence[str], target: float, folder: Path) -> GlueArguments:
    return parse_arguments(_words(flags, target, folder))


def _run(folder: Path, words: Sequence[str]) -> None:
    """In a process of its own, so that runs find the same state whatever ran before."""
    more = []
    if (folder / "checkpoint.pt").exists():
        more = ["--resume_from_checkpoint", str(folder)]
    elif folder.exists():
        more = ["--overwrite_output_dir"]  # it was interrupted before its first checkpoint
    print(f"trisparse train {' '.join([*words, *more])}", flush=True)  # noqa: T201
    done = subprocess.run([sys.executable, "-c", _TRAIN, *words, *more], check=False)
    if done.returncode:
        raise PruningError(f"{folder}: the run ended with {done.returncode}; the same command goes on from there")


def _results(folder: Path, arguments: GlueArguments) -> dict[str, Any] | None:
    """Of a run that has ended, with the same flags."""
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        had = dict(found["arguments"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PruningError(f"{path}: is damaged: {one_line(error)}; delete its folder to make the run anew") from None
    for key, value in arguments.to_dict().items():
        if key not in _PLACES and had.get(key, value) != value:
            raise PruningError(f"{path}: is of a run with --{key} {had[key]}, not {value}; give another --output_dir")
    return found if "speed" in found else None


def _row(target: float, results: dict[str, Any]) -> dict[str, Any]:
    best = results["best_eval"] or results["eval"]
    speed = results["speed"]
    return {
        "target_speedup": target, "promised": speed["promised"], "measured": speed["mean"],
        "times_faster": speed["times_faster"], "eval": best, "teacher_eval": results["teacher_eval"],
        "zeros": results["sparsity"]["pruned_layers"], "pattern": results["pattern"],
        "seconds": results["train_seconds"],
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]], name: str) -> list[list[str]]:
    """Of each budget what was promised and measured, and the metric that runs are chosen by."""
    lines = [["target", "promised", "measured", name, "zeros"]]
    if dense := rows[0]["teacher_eval"].get(name):
        lines.append(["dense", "", "1.00", f"{dense:.4f}", ""])
    for row in rows:
        start = [f"{row['target_speedup']:g}", f"{row['promised']:.2f}", f"{row['measured']:.2f}"]
        lines.append([*start, f"{row['eval'][name]:.4f}", f"{row['zeros']:.4f}"])
    return lines


def plot(rows: Sequence[dict[str, Any]], name: str, path: Path) -> None:
    """The metric against measured speed, dense at 1; nothing where matplotlib is missing."""
    if not has_matplotlib():
        return
    with styled(WIDTH, 3.8) as figure:
        axes = figure.subplots()
        look = pattern_look(rows[0]["pattern"])
        draw_speed(axes, {rows[0]["pattern"]: (rows, look)}, rows[0]["teacher_eval"].get(name), name)
        for row in rows:
            place, text = (row["measured"], row["eval"][name]), f"{row['zeros']:.0%} zeros"
            axes.annotate(text, place, textcoords="offset points", xytext=(6, 4), fontsize=8)
        figure.suptitle(f"{name} against measured speed")
        save(figure, path)


def draw_speed(
    axes: Axes, series: Mapping[str, tuple[Sequence[dict[str, Any]], dict[str, Any]]], dense: float | None, name: str
) -> None:
    """Rows of every series, with its label and look, as a metric against measured speed; the dense model is at 1."""
    if dense:
        dense_line(axes, dense)
        axes.plot([1], [dense], "o", color=COLOR["dense"])
    for label, (rows, look) in series.items():
        own = sorted((row["measured"], row["eval"][name]) for row in rows)
        axes.plot([x for x, _ in own], [y for _, y in own], label=label, **look)
    axes.margins(x=0.2, y=0.2)
    axes.set(xlabel="times as fast as dense, measured", ylabel=name)
    axes.figure.legend(loc="outside lower center", ncols=2)
