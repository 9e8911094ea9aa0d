r"""What the published rows cost: bytes and speed of their models once compressed, and how long they trained.

    .venv/bin/python benchmarks/prune/glue/row_costs.py \
        --runs benchmarks/results/glue_recipes.json --compressed benchmarks/results/compress_mrpc_cpu.json

Reads what glue_recipes.py and bench_compress_cpu.py have written; a row's models are called there by their task and
pattern, such as mrpc-4x1. Prints a table in Markdown. Of a row's runs the fastest says how long it trains, and on what:
others had less of their machine to themselves.
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--compressed", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    models = [row for path in args.compressed for row in json.loads(path.read_text())["rows"]]
    print(table(json.loads(args.runs.read_text())["runs"], models))


def table(runs: list[dict], models: list[dict]) -> str:
    """Markdown, a line for each row whose model was compressed for speed; minutes are the fastest run's."""
    head = ["row", "linear layers, MiB", "1 text", "32 texts", "training, minutes", "on"]
    lines = [head, ["---"] * len(head)]
    for model in models:
        mine = [run for run in runs if run["row"].endswith(f"-{model['model']}")]
        if model["prefer"] != "speed" or not mine:
            continue
        before, after = (model[f"linear_bytes_{when}"] / 2**20 for when in ("before", "after"))
        fastest = min(mine, key=lambda run: run["sparse"]["train_seconds"])
        speeds = [f"{model[f'times_faster_{texts}']:.2f}x" for texts in (1, 32)]
        minutes, where = fastest["sparse"]["train_seconds"] / 60, fastest["machine"]["processor"]
        lines.append([mine[0]["row"], f"{before:.1f} → {after:.1f}", *speeds, f"{minutes:.0f}", where])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
