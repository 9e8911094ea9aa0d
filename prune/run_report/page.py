"""`trisparse report`: one HTML page of runs that needs no other file, no script and no network."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trisparse.prune.errors import PruningError
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.args import DEFAULTS
from trisparse.prune.glue.output import PAGE
from trisparse.prune.plot_style import css, pattern_look, variable
from trisparse.prune.pruner.plots import common_prefix
from trisparse.prune.run_report.folder import Run, read_run

_MARK = b"Written by <code>trisparse report</code>"  # as the template has it
_TEMPLATES = Path(__file__).parent / "templates"
_RATIOS = (
    ("pruned_layers", "of the pruned layers"),
    ("matmul_gemm_conv", "of all Linear and Conv layers"),
    ("all_parameters", "of all parameters"),
)


def report(args: argparse.Namespace) -> None:
    """Write the page, whole or not at all.

    Raises:
        PruningError: folders without a run that has ended, nowhere to write, a file there that is no such page, or
            packages that are not installed.
    """
    folders, output = args.folders, args.output
    if output is None:
        if len(folders) > 1:
            raise PruningError("--output: missing; with several folders, name the file to write")
        output = folders[0] / PAGE
    if not output.name or output.is_dir():
        raise PruningError(f"--output: want a file to write, got {str(output)!r}")
    for package in ("matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise PruningError(f"{package} is not installed, and the page needs it; pip install 'trisparse[plot]'")
    runs = [read_run(folder) for folder in folders]
    if output.exists() and not args.overwrite and _MARK not in output.read_bytes():
        raise PruningError(f"--output: {output} is no page of this command; give another file, or --overwrite")
    text = make_page(runs)
    try:
        atomic_write(output, text)
    except OSError as error:
        raise PruningError(f"--output: {output} can't be written to: {error.strerror}") from None
    print(f"wrote {output}, {output.stat().st_size / 1024:.0f} KiB")  # noqa: T201


def make_page(runs: Sequence[Run]) -> str:
    """The page as text. Every string of a run is escaped; of a path that is no Unicode, `?` stands for what is not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    title = f"{runs[0].name}: {_headline(runs[0])}" if len(runs) == 1 else f"{len(runs)} runs"
    sections = [_section(run) for run in runs]
    colors = {"light": css(is_dark=False), "dark": css(is_dark=True)}
    text = environment.get_template("run.html").render(title=title, runs=sections, curves=_curves(runs), **colors)
    return text.encode("utf-8", "replace").decode("utf-8")


def _section(run: Run) -> dict[str, Any]:
    """What the template says of a run alone, as text."""
    results, badges = run.results, _badges(run)
    return {
        "name": run.name,
        "headline": _headline(run),
        "badges": badges,
        "state": ", ".join(text for text, kind in badges if kind == "bad") or ("complete" if badges else "-"),
        "notes": results["notes"],
        "facts": _facts(run),
        "changed": _changed(results["arguments"]),
        "metrics": [_metric(run, metric) for metric in results["eval"]],
        "has_teacher": bool(results["teacher_eval"]),
        "ratios": [(label, f"{results['sparsity'][key]:.4f}") for key, label in _RATIOS],
        "layers": [_layer(row) for row in run.layers or ()],
        "is_pruned": run.layers is not None,
        "has_masks": run.masks is not None,
        "pictures": _layer_pictures(run) if run.layers else None,
        "pruned": f"{results['sparsity']['pruned_layers']:.4f}",
        "all": f"{results['sparsity']['all_parameters']:.4f}",
        "seconds": _duration(results["train_seconds"]),
    }


def _curves(runs: Sequence[Run]) -> dict[str, Any]:
    """What runs logged, in pictures that they share, and a key that tells them apart."""
    from markupsafe import Markup

    from trisparse.prune.run_report.plots import curves, looks

    key = []
    for run, look in zip(runs, looks(runs), strict=True):
        dashes = "none" if look["linestyle"] == "-" else " ".join(f"{3 * length:g}" for length in look["linestyle"][1])
        key.append((run.name, variable(look["color"]), dashes))
    has_window = runs[0].window is not None and len({run.window for run in runs}) == 1
    return {
        "heading": "Loss, sparsity and evaluation" if any(run.layers for run in runs) else "Loss and evaluation",
        "key": key if len(runs) > 1 else [],
        "figures": [("", Markup(picture)) for picture in curves(runs)],
        "note": "Dotted: where pruning starts and ends." if has_window else "",
    }


def _layer_pictures(run: Run) -> dict[str, Any]:
    from markupsafe import Markup

    from trisparse.prune.run_report import plots as run_plots

    prefix = common_prefix([row["name"] for row in run.layers or ()])
    within = f"; names are those within {prefix.rstrip('.')}" if prefix else ""
    figures = [(f"At the end{within}.", run_plots.bars(run))]
    if run.masks:
        caption = f"Mask flips between two logs; {sum(run.masks['pruned'][-1]):,} are pruned at the end."
        figures.append((caption, run_plots.flips(run)))
        figures.append(("Over the steps, as the masks were at the last log.", run_plots.heat_map(run)))
    pictures = [(caption, Markup(picture)) for caption, picture in figures]
    return {"heading": "Sparsity by layer", "key": [], "figures": pictures, "note": ""}


def _headline(run: Run) -> str:
    target = "" if run.target is None else f" at {_value(run.target)}"
    return f"{run.results['task']}, {run.results['pattern']}{target}"


def _badges(run: Run) -> list[tuple[str, str]]:
    """Words on the state of a run, each with `good` or `bad`."""
    results, badges = run.results, []
    if results["complete"] is not None:
        badges.append(("schedule complete", "good") if results["complete"] else ("incomplete", "bad"))
    if results["pattern_verified"] is not None:
        badges.append(("pattern verified", "good") if results["pattern_verified"] else ("pattern not verified", "bad"))
    if any(note.startswith("collapsed") for note in results["notes"]):
        badges.append(("collapsed", "bad"))
    return badges


def _facts(run: Run) -> list[tuple[str, str]]:
    results, arguments = run.results, run.results["arguments"]
    facts = [("task", results["task"]), ("model", arguments["model_name_or_path"])]
    if results["teacher_eval"]:
        facts.append(("teacher", arguments.get("teacher_model_name_or_path") or "the model as it was loaded"))
    facts.append(("pattern", results["pattern"]))
    if run.target is not None:
        facts.append(("target sparsity", _value(run.target)))
    plural = "" if results["epochs"] == 1 else "s"
    facts.append(("length", f"{run.steps[-1]['step']:,} steps, {results['epochs']:.4g} epoch{plural}"))
    if run.window is not None:
        start, end, frequency = run.window
        facts.append(("pruning", f"step {start:,} to {end:,}, every {frequency:,}"))
    elif run.target is not None:
        facts.append(("pruning", f"as {arguments.get('pruning_config')} says"))
    elif run.layers is not None:
        facts.append(("pruning", "none anew; the zeros of the model are held"))
    speed = f"{results['steps_per_second']:.3g} steps a second"
    facts.append(("training time", f"{_duration(results['train_seconds'])}, {speed}"))
    facts.append(("device", results["device"]))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in results["versions"].items())))
    return facts


def _changed(arguments: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Arguments that differ from their defaults: name, value, default."""
    return [
        (name, _value(value), _value(DEFAULTS[name]) if name in DEFAULTS else "unknown")
        for name, value in arguments.items()
        if name not in DEFAULTS or value != DEFAULTS[name]
    ]


def _metric(run: Run, metric: str) -> dict[str, str]:
    results = run.results
    best, teacher = results["best_eval"], results["teacher_eval"].get(metric)
    return {
        "name": metric,
        "last": f"{results['eval'][metric]:.4f}",
        "best": f"{best[metric]:.4f}" if best else "-",
        "teacher": "-" if teacher is None else f"{teacher:.4f}",
        "last_drop": _drop(results["eval"][metric], teacher),
        "best_drop": _drop(best[metric], teacher) if best else "-",
    }


def _drop(value: float, teacher: float | None) -> str:
    """How far below the teacher, as a share of the teacher's value."""
    if not teacher or not math.isfinite(value) or not math.isfinite(teacher):
        return "-"
    change = (value - teacher) / abs(teacher)
    return "the same" if change == 0 else f"{abs(change):.2%} {'lower' if change < 0 else 'higher'}"


def _layer(row: dict[str, Any]) -> dict[str, str]:
    return {
        "name": row["name"],
        "pattern": row["pattern"],
        "shape": "x".join(map(str, row["shape"])),
        "weights": f"{row['weights']:,}",
        "zeros": f"{row['zeros']:,}",
        "extra": f"{row['extra_zeros']:,}",
        "sparsity": f"{row['sparsity']:.4f}",
        "percent": f"{100 * row['sparsity']:.2f}",
        "color": variable(pattern_look(row["pattern"])["color"]),
        "verified": "yes" if row["verified"] else "no",
    }


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if value is None or isinstance(value, bool):
        return {None: "not given", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"
