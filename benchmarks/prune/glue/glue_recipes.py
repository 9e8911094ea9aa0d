r"""The rows of the published tables: run them, or go on with them, and set what came out beside what was published.

    .venv/bin/python benchmarks/prune/glue/glue_recipes.py --data DIR --out benchmarks/results/glue_recipes.json \
        [--rows bert-mini-mrpc-2-4 …] [--seeds 42 43 44] [--budget_seconds 3000]

DIR holds a folder for each task, as `trisparse train --dataset_dir` takes it; without --data the hub's are used. A row
is a recipe of `trisparse train`; the dense model that it starts from is trained first, with the same seed: a row of
MRPC starts from its last epoch, one of SST-2 from its best. Runs lie in --runs, and one that has ended is not made
again. Past the budget the run at work is interrupted; the same command goes on with it from the end of its last epoch.

    … --minilm all-MiniLM-L6-v2

makes the rows of BERT-mini that have a recipe for all-MiniLM-L6-v2 with that encoder, from the hub or a folder, where
BERT-mini is out of reach. Learning rates and schedules of these recipes were chosen with `trisparse train
--holdout_fraction 0.1`, never on the validation set that is reported.

As published, the best sparse run of a row is set beside the best dense one, whatever their seeds, of all that were
trained alike for any row, on the same kind of processor, on which the same seed gives the same model: a row of one seed
does not choose its own rival. Hyper-parameters are the recipe's; texts of similar length are batched together, teachers
run once on every text, and --mixed_precision is as given. Writes the JSON, a table, and a picture beside it.
"""

import argparse
import datetime
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sysconfig
import time
from pathlib import Path

from trisparse.kernels.cache import extensions, processor
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.args import DEFAULTS
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.glue.recipe import RECIPES
from trisparse.prune.plot_style import COLOR, WIDTH, pattern_look, save, styled

ENCODERS = {"bert-mini": "BERT-mini", "minilm": "all-MiniLM-L6-v2", "distilbert": "DistilBERT"}
METRIC = {"mrpc": "f1", "sst2": "accuracy"}
# of the dense run, what a row starts and learns from: MRPC's the last epoch, SST-2's the best, whose number is compared
START = {"mrpc": ".", "sst2": "best"}
# best dense and best sparse as published; MRPC's metric is not named there, and is F1 by its size
PUBLISHED = {
    "bert-mini-mrpc-4x1": (0.8752, 0.8722),
    "bert-mini-mrpc-2-4": (0.8752, 0.8689),
    "bert-mini-mrpc-1xchannel": (0.8752, 0.8680),
    "bert-mini-mrpc-1xchannel-0.9": None,
    "bert-mini-mrpc-mixed": None,
    "distilbert-mrpc-4x1": (0.9026, 0.8985),
    "distilbert-mrpc-2-4": (0.9026, 0.9088),
    "bert-mini-sst2-4x1": (0.8761, 0.8692),
    "bert-mini-sst2-2-4": (0.8761, 0.8773),
    "bert-mini-sst2-1xchannel": (0.8761, 0.8692),
    "bert-mini-sst2-1xchannel-0.9": None,
}
# flags that change no result, or name places of this machine
_FREE = {
    "model_name_or_path", "output_dir", "dataset_dir", "resume_from_checkpoint", "recipe", "overwrite_output_dir",
}  # fmt: skip
WORST = -0.01  # relative drop that is allowed where a gain was published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--budget_seconds", type=float, default=float("inf"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--minilm", metavar="MODEL")
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", action="store_true", help="the picture alone, from the JSON that is there")
    args = parser.parse_args()
    if args.draw:
        draw(read(args.out), args.out.with_suffix(".png"))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    until = time.monotonic() + args.budget_seconds
    for seed in args.seeds:
        for row in args.rows:
            run = make_run(row, seed, args, until)
            if run is not None:  # the file is read anew, as another command may have added to it
                others = [r for r in read(args.out) if which(r) != which(run)]
                atomic_write(args.out, json.dumps({"runs": [*others, run]}, indent=1) + "\n")
    runs = read(args.out)
    print(table(runs))
    draw(runs, args.out.with_suffix(".png"))


def read(path: Path) -> list[dict]:
    """The runs in a file of results, if it is there."""
    return json.loads(path.read_text())["runs"] if path.exists() else []


def which(run: dict) -> tuple[str, str, int]:
    return run["encoder"], run["row"], run["seed"]


def make_run(row: str, seed: int, args: argparse.Namespace, until: float) -> dict | None:
    """The dense and the sparse result of one row and seed; None if the budget did not suffice, or no epoch counts."""
    family, task, pattern = re.fullmatch("(.+)-(mrpc|sst2)-(.+)", row).groups()
    start = []
    if args.minilm is not None and family == "bert-mini" and (RECIPES / f"minilm-{task}-{pattern}.yaml").exists():
        family, start = "minilm", ["--model_name_or_path", args.minilm]
    common = ["--seed", str(seed), "--group_by_length", "--per_device_eval_batch_size", "32"]
    common += ["--mixed_precision", args.mixed_precision]
    if args.data is not None:
        common += ["--dataset_dir", str(args.data / task)]
    recipes = f"{family}-{task}-dense", f"{family}-{task}-{pattern}"
    folders = [args.runs / recipe / f"seed-{seed}" for recipe in recipes]
    dense = run_glue(recipes[0], folders[0], [*common, *start], until)
    if dense is None:
        return None
    more = ["--model_name_or_path", str(folders[0] / START[task]), "--cache_teacher"]
    sparse = run_glue(recipes[1], folders[1], [*common, *more], until)
    if sparse is None:
        return None
    if sparse["best_eval"] is None:
        print(f"{row}: left out, for it was never evaluated after the last pruning event", flush=True)
        return None
    keys = ("eval", "best_eval", "epochs", "train_seconds", "steps_per_second", "device", "versions")
    return {
        "row": row,
        "seed": seed,
        "encoder": ENCODERS[family],
        "machine": machine(folders[1] / "all_results.json"),
        "dense": {key: dense[key] for key in keys},
        "sparse": {key: sparse[key] for key in (*keys, "sparsity", "pattern_verified", "complete", "notes")},
        "arguments": {"dense": felt_flags(dense), "sparse": felt_flags(sparse)},
    }


def run_glue(recipe: str, folder: Path, flags: list[str], until: float) -> dict | None:
    """Results of a run: those that are there, or of one that is made or gone on with."""
    results = folder / "all_results.json"
    words = ["--recipe", recipe, *flags, "--output_dir", str(folder)]
    if not results.exists():
        command = [f"{sysconfig.get_path('scripts')}/trisparse", "train", *words]
        if (folder / "checkpoint.pt").exists():
            command += ["--resume_from_checkpoint", str(folder)]
        elif folder.exists():
            command += ["--overwrite_output_dir"]  # it was interrupted before its first checkpoint
        print(" ".join(command), flush=True)
        left = until - time.monotonic()
        if left <= 0:
            print("the budget is spent", flush=True)
            return None
        process = subprocess.Popen(command)
        try:
            code = process.wait(None if left == float("inf") else left)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            print("the budget is spent; the same command goes on from the last epoch", flush=True)
            return None
        if code:
            raise SystemExit(code)
    found = json.loads(results.read_text())
    for key, value in parse_arguments(words).to_dict().items():
        saved = found["arguments"].get(key, DEFAULTS[key])
        if key not in _FREE and saved != value:
            raise SystemExit(f"--runs: {results} is of a run with --{key} {saved}, not {value}; give another folder")
    return found


def felt_flags(results: dict) -> dict:
    """The arguments of a run that differ from what flags mean when they are not given, without this machine's paths."""
    plain = parse_arguments(
        ["--model_name_or_path", "m", "--task_name", results["task"], "--output_dir", "o"]
    ).to_dict()
    arguments = results["arguments"]
    return {k: v for k, v in arguments.items() if k in plain and v != plain[k] and k not in _FREE}


def summary(row: str, some: list[dict], runs: list[dict]) -> dict:
    """Over the seeds of a row: values, dense and sparse, the drop of the best, and whether the goal is met.

    Args:
        row: its name.
        some: its runs.
        runs: those of all rows, whose dense models count where they were trained alike.
    """
    metric = metric_of(row)
    alike = {dense_kind(run) for run in some}
    models = {(dense_kind(run), run["seed"]): run["dense"] for run in runs if dense_kind(run) in alike}
    dense = [model["best_eval"][metric] for model in models.values()]
    sparse = [run["sparse"]["best_eval"][metric] for run in some]
    drop = max(sparse) / max(dense) - 1
    published = PUBLISHED[row]
    goal = None if published is None else published[1] / published[0] - 1
    allowed = None if goal is None else (WORST if goal > 0 else goal)
    is_whole = all(run["sparse"]["complete"] and run["sparse"]["pattern_verified"] for run in some)
    verdict = "no goal" if allowed is None else "met" if drop >= allowed else "missed"
    return {
        "dense": dense,
        "sparse": sparse,
        "ratio": min(run["sparse"]["sparsity"]["matmul_gemm_conv"] for run in some),
        "drop": drop,
        "verdict": verdict if is_whole else "not complete",
    }


def dense_kind(run: dict) -> tuple[str, ...]:
    """What dense models have in common that differ by their seeds alone."""
    flags = {key: value for key, value in run["arguments"]["dense"].items() if key != "seed"}
    return run["encoder"], metric_of(run["row"]), run["machine"]["processor"], json.dumps(flags, sort_keys=True)


def metric_of(row: str) -> str:
    return METRIC["mrpc" if "-mrpc-" in row else "sst2"]


def spread(values: list[float]) -> str:
    best = f"{max(values):.4f}"
    return f"{best} ({statistics.mean(values):.4f} +- {statistics.stdev(values):.4f})" if len(values) > 1 else best


def table(runs: list[dict]) -> str:
    """Markdown; best (mean +- standard deviation) over seeds of each run's best evaluation."""
    head = ["row", "encoder", "ratio", "dense", "sparse", "drop", "published", "seeds, epochs", ""]
    lines = [head, ["---"] * len(head)]
    encoders = dict.fromkeys(run["encoder"] for run in runs)
    for row, published in PUBLISHED.items():
        said = "-" if published is None else f"{published[1] / published[0] - 1:+.2%}"
        made = [(e, [r for r in runs if (r["row"], r["encoder"]) == (row, e)]) for e in encoders]
        if not any(some for _, some in made):
            lines.append([row, "-", "-", "-", "-", "-", said, "-", "not run"])
        for encoder, some in made:
            if some:
                s = summary(row, some, runs)
                how_much = f"{len(some)}, {some[0]['sparse']['epochs']:g}"
                values = [f"{s['ratio']:.4f}", spread(s["dense"]), spread(s["sparse"]), f"{s['drop']:+.2%}"]
                lines.append([row, encoder, *values, said, how_much, s["verdict"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(runs: list[dict], path: Path) -> None:
    """Relative change of every run that was made, over rows, beside what was published for them."""
    rows = [row for row in PUBLISHED if any(run["row"] == row for run in runs)]
    known = [(place, PUBLISHED[row]) for place, row in enumerate(rows) if PUBLISHED[row] is not None]
    with styled(WIDTH, 1.6 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0, color=COLOR["dense"], linewidth=1.3, linestyle="--", zorder=1, label="dense")
        x, y = [change(*pair) for _, pair in known], [place for place, _ in known]
        label = "published for the row, best of each"
        axes.plot(x, y, "|", color=COLOR["soft"], markersize=11, markeredgewidth=2, label=label)
        for encoder, marker in zip(dict.fromkeys(run["encoder"] for run in runs), "osD", strict=False):
            for run in [run for run in runs if run["encoder"] == encoder]:
                values = (run[kind]["best_eval"][metric_of(run["row"])] for kind in ("dense", "sparse"))
                axes.plot(change(*values), rows.index(run["row"]), marker, color=row_color(run["row"]))
            axes.plot([], [], marker, color=COLOR["ink"], label=f"{encoder}, each seed")
        axes.set(xlabel="change of the metric against the dense model, %", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), rows)
        figure.suptitle("GLUE recipes: pruned against dense")
        figure.legend(loc="outside lower center", ncols=2)
        save(figure, path)


def change(dense: float, sparse: float) -> float:
    """In percent."""
    return 100 * (sparse / dense - 1)


def row_color(row: str) -> str:
    """That of the pattern in a row's name."""
    _, pattern = re.split("-mrpc-|-sst2-", row)
    return pattern_look(re.sub("^2-4$", "2:4", pattern))["color"]


def machine(results: Path) -> dict:
    """This one, and the day on which a file of results was written."""
    return {
        "processor": processor(),
        "instructions": extensions(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "date": datetime.date.fromtimestamp(results.stat().st_mtime).isoformat(),
    }


if __name__ == "__main__":
    main()
