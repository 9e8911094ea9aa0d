r"""Budgets on MRPC: what was promised and measured, and accuracy beside even pruning of the same pattern.

    .venv/bin/python benchmarks/prune/glue/budgets.py --model DIR --data DIR \
        --out benchmarks/results/budgets_mrpc_cpu.json

DIR of --model is an all-MiniLM-L6-v2 fine-tuned on MRPC by the recipe minilm-mrpc-dense, the dense teacher of all runs;
that of --data as `trisparse train --dataset_dir` takes it. Runs of --epochs with one seed: 4x1 for each of --speedups,
through `trisparse sweep`; 4x1 with every layer at the same sparsity; the recipe's mix of 1x1 and 4x1 at fixed
sparsities, and under one budget that is the speed that this mix came to. Every run is compressed for speed and timed
against dense. Runs lie in --runs, and one that has ended is not made again. Writes the JSON, a table and a picture.
"""

import argparse
import json
import platform
import subprocess
import sysconfig
from pathlib import Path

import torch

from trisparse.kernels.cache import extensions, processor
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.sweep import draw_speed
from trisparse.prune.plot_style import WIDTH, pattern_look, save, styled
from trisparse.prune.text_table import aligned

BIN = Path(sysconfig.get_path("scripts"))
SPARSITIES = (0.8, 0.95)  # of even pruning, around the budgets
TOKENS = (128, 1024)
KINDS = {"budget": "4x1, a budget", "even": "4x1, all layers alike", "mixed": "1x1 and 4x1, as the recipe has them",
         "mixed budget": "1x1 and 4x1, one budget"}  # fmt: skip
LOOKS = {
    "budget": pattern_look("4x1"),
    "even": pattern_look("4x1") | {"linestyle": "--", "marker": "s"},
    "mixed": pattern_look("1x1 + 4x1"),
    "mixed budget": pattern_look("1x1 + 4x1") | {"marker": "^"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--speedups", nargs="+", default=["1.5", "2", "2.5"])
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seed", default="42")
    parser.add_argument("--runs", type=Path, default=Path("runs/budgets"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", action="store_true", help="the picture alone, from the JSON that is there")
    args = parser.parse_args()
    if args.draw:
        plot(json.loads(args.out.read_text())["runs"], args.out.with_suffix(".png"))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    args.runs.mkdir(parents=True, exist_ok=True)
    flags = common(args)
    plain = [*flags, "--pruning_pattern", "4x1"]
    sweep = ["--speedups", *args.speedups, "--output_dir", str(args.runs / "budget"), "--tokens", *map(str, TOKENS)]
    subprocess.run([BIN / "trisparse", "sweep", *sweep, *plain], check=True)
    rows = [row("budget", s, args.runs / "budget" / f"speedup-{float(s):g}", target=float(s)) for s in args.speedups]
    for sparsity in SPARSITIES:
        folder = args.runs / f"even-{sparsity}"
        config = {"pattern": "4x1", "pruning_scope": "local", "target_sparsity": sparsity}
        run(folder, flags, config_file(args.runs, folder.name, [config]))
        rows.append(row("even", str(sparsity), folder))
    mix = [{"op_names": [".*output", ".*intermediate"], "pattern": "1x1"},
           {"op_names": [".*query", ".*key", ".*value"], "pattern": "4x1"}]  # fmt: skip
    folder = args.runs / "mixed"
    run(folder, flags, ["--pruning_config", "mixed", "--target_sparsity", "0.9"])
    rows.append(row("mixed", "0.9", folder))
    folder, speed = args.runs / "mixed-budget", f"{rows[-1]['measured']:.2f}"
    tokens = ["--target_speedup", speed, "--tokens", *map(str, TOKENS)]
    run(folder, flags, [*config_file(args.runs, folder.name, mix), *tokens])
    rows.append(row("mixed budget", speed, folder, target=float(speed)))
    machine = {"cpu": processor(), "instructions": extensions(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    found = {"machine": machine, "epochs": args.epochs, "seed": args.seed, "tokens": TOKENS, "runs": rows}
    atomic_write(args.out, json.dumps(found, indent=1) + "\n")
    print(table(rows))
    plot(rows, args.out.with_suffix(".png"))


def common(args: argparse.Namespace) -> list[str]:
    """The recipe minilm-mrpc-4x1 without its pattern and sparsity, its epochs scaled to --epochs of 15."""
    scale = args.epochs / 15
    schedule = {"num_train_epochs": args.epochs, "sparsity_warm_epochs": scale, "cooldown_epochs": 5 * scale}
    schedule |= {"pruning_frequency": max(round(50 * scale), 1), "seed": args.seed}
    learning = {"max_length": 128, "per_device_train_batch_size": 16, "learning_rate": 3e-4, "weight_decay": 1e-3}
    learning |= {"lr_scheduler_type": "linear", "distill_loss_weight": 5}
    where = {"task_name": "mrpc", "model_name_or_path": args.model, "dataset_dir": args.data}
    words = [word for key, value in {**where, **schedule, **learning}.items() for word in (f"--{key}", str(value))]
    return [*words, "--cache_teacher", "--group_by_length"]


def config_file(folder: Path, name: str, groups: list[dict]) -> list[str]:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(groups))
    return ["--pruning_config", str(path)]


def run(folder: Path, flags: list[str], more: list[str]) -> None:
    if (folder / "compressed").exists():
        return
    words = [*flags, *more, "--do_prune", "--compress", "speed", "--output_dir", str(folder), "--overwrite_output_dir"]
    print(" ".join(words), flush=True)
    subprocess.run([BIN / "trisparse", "train", *words], check=True)


def row(kind: str, asked: str, folder: Path, target: float | None = None) -> dict:
    results = json.loads((folder / "all_results.json").read_text())
    speed = results["speed"]
    return {
        "kind": kind, "asked": asked, "target_speedup": target, "promised": speed.get("promised"),
        "measured": speed["mean"], "times_faster": speed["times_faster"], "zeros": results["sparsity"]["pruned_layers"],
        "eval": results["best_eval"] or results["eval"], "dense": results["teacher_eval"],
        "seconds": results["train_seconds"],
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    lines = [["", "asked for", "promised", "measured", "zeros", "F1", "accuracy"]]
    lines.append(["dense", "", "", "1.00", "", *(f"{rows[0]['dense'][name]:.4f}" for name in ("f1", "accuracy"))])
    for r in rows:
        promised = f"{r['promised']:.2f}" if r["promised"] else "-"
        metrics = (f"{r['eval'][name]:.4f}" for name in ("f1", "accuracy"))
        lines.append([KINDS[r["kind"]], r["asked"], promised, f"{r['measured']:.2f}", f"{r['zeros']:.3f}", *metrics])
    return "\n".join(aligned(lines))


def plot(rows: list[dict], path: Path) -> None:
    with styled(WIDTH, 4.2) as figure:
        series = {KINDS[kind]: ([row for row in rows if row["kind"] == kind], look) for kind, look in LOOKS.items()}
        draw_speed(figure.subplots(), series, rows[0]["dense"]["f1"], "f1")
        figure.suptitle("F1 on MRPC against measured speed")
        save(figure, path)


if __name__ == "__main__":
    main()
