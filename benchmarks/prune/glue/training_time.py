r"""How long the published rows train, when layers multiply only what is kept and when they multiply everything.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/prune/glue/training_time.py --runs runs/recipes --data DIR \
        --recipes minilm-mrpc-4x1 minilm-mrpc-2-4 --out benchmarks/results/glue_training_time.json

--runs and --data are those of glue_recipes.py, whose dense models are pruned here once more. A recipe is run over
--share of its epochs, with its warm-up, cool-down and distance of events scaled alike, with `--sparse_training off` and
as the recipe says, in turns, on an otherwise idle machine. `whole_hours` are the median's, by that share. Writes the
JSON, to which other recipes can be added later, and a table.
"""

import argparse
import json
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

from trisparse.kernels.cache import extensions, processor
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.text_table import aligned

ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", required=True, metavar="RECIPE")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1 / 15)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    for recipe in args.recipes:
        row = timed(recipe, args)
        others = [r for r in read(args.out) if r["recipe"] != recipe]
        atomic_write(args.out, json.dumps({"rows": [*others, row]}, indent=1) + "\n")
    print(table(read(args.out)))


def read(path: Path) -> list[dict]:
    """The rows in a file of results, if it is there."""
    return json.loads(path.read_text())["rows"] if path.exists() else []


def timed(recipe: str, args: argparse.Namespace) -> dict:
    """Seconds of both ways of training, each round; what the runs themselves say of steps and machine."""
    family, task, _ = recipe.split("-", 2)
    flags = ["--model_name_or_path", str(args.runs / f"{family}-{task}-dense" / f"seed-{args.seed}")]
    flags += ["--dataset_dir", str(args.data / task), "--seed", str(args.seed), "--group_by_length", "--cache_teacher"]
    flags += scaled(recipe, args.share)
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(ROUNDS):
        for kind, more in (("dense", ["--sparse_training", "off"]), ("sparse", [])):
            results = trained(recipe, [*flags, *more])
            seconds[kind].append(results["train_seconds"])
    medians = {kind: statistics.median(times) for kind, times in seconds.items()}
    return {
        "recipe": recipe,
        "share": args.share,
        "steps": results["steps"]["total_steps"],
        "seconds": seconds,
        "times_faster": medians["dense"] / medians["sparse"],
        "whole_hours": {kind: median / args.share / 3600 for kind, median in medians.items()},
        "machine": {"processor": processor(), "instructions": extensions(), "threads": torch.get_num_threads()},
        "versions": results["versions"],
    }


def scaled(recipe: str, share: float) -> list[str]:
    """Flags that make a recipe this much shorter."""
    args = parse_arguments(["--recipe", recipe, "--model_name_or_path", "m", "--output_dir", "o"])
    p, frequency = args.pruning, args.pruning.pruning_frequency
    lengths = {
        "num_train_epochs": args.training.num_train_epochs,
        "sparsity_warm_epochs": p.sparsity_warm_epochs,
        "cooldown_epochs": p.cooldown_epochs,
    }
    flags = [word for name, length in lengths.items() for word in (f"--{name}", f"{(length or 0) * share:g}")]
    return flags if frequency is None else [*flags, "--pruning_frequency", str(max(1, round(frequency * share)))]


def trained(recipe: str, flags: list[str]) -> dict:
    """Results of a run whose folder is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = [f"{sysconfig.get_path('scripts')}/trisparse", "train", "--recipe", recipe, *flags]
        print(" ".join(command), flush=True)
        subprocess.run([*command, "--output_dir", f"{folder}/run"], check=True)
        return json.loads(Path(folder, "run", "all_results.json").read_text())


def table(rows: list[dict]) -> str:
    """One line a recipe."""
    head = ["recipe", "everything", "what is kept", "times as fast"]
    cells = [
        [r["recipe"], *(f"{hours:.2f} h" for hours in r["whole_hours"].values()), f"{r['times_faster']:.2f}"]
        for r in rows
    ]
    return "\n".join(aligned([head, *cells]))


if __name__ == "__main__":
    main()
