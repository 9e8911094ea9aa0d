r"""Steps a second of `trisparse train` beside a plain loop, pruning and distilling on the same model, data and batch.

    .venv/bin/python benchmarks/prune/glue/bench_glue_loop.py --model runs/mrpc-dense --task_name mrpc --data MRPC \
        --out benchmarks/results/glue_loop_cpu.json [--mixed_precision bf16] [--compile]

The plain loop is written as scripts for GLUE are: batches at random, padded to their longest text, the teacher run on
every batch, AdamW, single precision, no compilation. It prunes with the same Pruner, so the difference is the loop's
alone, and that ours may multiply what is kept alone. Ours batches texts of similar length, runs the teacher once (which
is not counted, and takes a forward of every text), steps a fused AdamW, and computes in --mixed_precision. Both run
--steps steps in turns, --rounds times; the ratio is the median of the rounds'. With --epochs both also train to their
end, the last third with fixed masks, and are evaluated.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from trisparse import Pruner, PruningConfig
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.batches import tokenize
from trisparse.prune.data.metrics import compute_metrics
from trisparse.prune.data.splits import load_splits
from trisparse.prune.data.tasks import find_task
from trisparse.prune.files import atomic_write
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.glue.train import run

WEIGHT = 5.0  # of the distillation loss


def plain(args: argparse.Namespace, steps: int, cooldown: int) -> dict:
    """The loop as scripts have it; evaluated if its last steps prune nothing."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = find_task(args.task_name)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    splits = load_splits(DataArguments(task_name=task.name, dataset_dir=str(args.data)), task)
    student, teacher = (AutoModelForSequenceClassification.from_pretrained(args.model).to(device) for _ in range(2))
    teacher.eval()
    collate = DataCollatorWithPadding(tokenizer)

    def loader(split: str, shuffle: bool) -> DataLoader:
        rows = tokenize(splits[split], task, tokenizer, 128)
        return DataLoader(
            [{k: v for k, v in row.items() if k != "index"} for row in rows], args.batch, shuffle, collate_fn=collate
        )

    train = loader("train", True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate, betas=(0.9, 0.9), weight_decay=1e-3)
    config = PruningConfig(
        pattern=args.pattern, pruning_op_types=["Linear"], op_names=["encoder"], start_step=1,
        end_step=steps - cooldown, pruning_frequency=max(steps // 40, 1),
    )  # fmt: skip
    pruner = Pruner(student, config, sparse_training="off")
    student.train()
    done, seconds = 0, 0.0
    with pruner.attach(optimizer), tqdm(total=steps, desc="plain", unit="step") as bar:
        while done < steps:
            for batch in train:
                began = time.perf_counter()
                batch = batch.to(device)
                outputs = student(**batch, output_hidden_states=True)
                with torch.no_grad():
                    target = teacher(**batch, output_hidden_states=True).hidden_states[-1]
                loss = WEIGHT * torch.nn.functional.mse_loss(outputs.hidden_states[-1], target)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                _synchronize()
                seconds += time.perf_counter() - began
                done += 1
                bar.update()
                if done == steps:
                    break
    result: dict = {"steps_per_second": steps / seconds}
    if cooldown:
        student.eval()
        said, true = [], []
        with torch.no_grad():
            for batch in loader("validation", False):
                said += student(**batch.to(device)).logits.argmax(1).tolist()
                true += batch["labels"].tolist()
        result["eval"] = compute_metrics(task, said, true)
    return result


def ours(args: argparse.Namespace, steps: int, cooldown_epochs: float) -> dict:
    """`trisparse train` itself, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "model_name_or_path": args.model, "task_name": args.task_name, "dataset_dir": args.data,
            "output_dir": folder,
            "per_device_train_batch_size": args.batch, "per_device_eval_batch_size": 32, "max_train_steps": steps,
            "learning_rate": args.learning_rate, "lr_scheduler_type": "constant", "weight_decay": 1e-3,
            "do_prune": True,
            "pruning_pattern": args.pattern, "pruning_frequency": max(steps // 40, 1), "distill_loss_weight": WEIGHT,
            "cache_teacher": True, "group_by_length": True, "mixed_precision": args.mixed_precision, "seed": args.seed,
            "compile": args.compile, "cooldown_epochs": cooldown_epochs,
        }  # fmt: skip
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        results = run(parse_arguments(words))
    return {key: results[key] for key in ("steps_per_second", "eval")}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task_name", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pattern", default="4x1")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--mixed_precision", default="no")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=50)  # a whole group of batches that are sorted by length
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    rounds = [{"plain": plain(args, args.steps, 0), "ours": ours(args, args.steps, 0)} for _ in range(args.rounds)]
    ratios = [r["ours"]["steps_per_second"] / r["plain"]["steps_per_second"] for r in rounds]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    content = {
        "machine": {
            "device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "transformers": transformers.__version__,
        },
        "what": {k: v for k, v in vars(args).items() if k not in ("out", "model", "data")},
        "model": "/".join(Path(args.model).parts[-2:]),
        "steps_per_second": {
            kind: statistics.median(r[kind]["steps_per_second"] for r in rounds) for kind in ("plain", "ours")
        },
        "times_faster": statistics.median(ratios),
        "ratios": ratios,
    }  # fmt: skip
    if args.epochs:
        data = DataArguments(task_name=args.task_name, dataset_dir=str(args.data))
        texts = len(load_splits(data, find_task(args.task_name))["train"])
        total = args.epochs * -(-texts // args.batch)
        ends = {"plain": plain(args, total, total // 3), "ours": ours(args, total, args.epochs / 3)}
        content["trained"] = {kind: end["eval"] for kind, end in ends.items()}
    atomic_write(args.out, json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
