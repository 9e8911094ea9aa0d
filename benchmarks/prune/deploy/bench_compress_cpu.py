r"""Pruned GLUE models, compressed: are predictions the same, how large are the files, how fast are they on a CPU.

    .venv/bin/python benchmarks/prune/deploy/bench_compress_cpu.py --models runs/mrpc-4x1 runs/mrpc-2-4 \
        --task_name mrpc --dataset_dir MRPC --out benchmarks/results/compress_mrpc_cpu.json

Each model is compressed once for memory and once for speed, saved, loaded in a new process, and asked for the whole
validation set there. `changed` counts predictions that differ from the uncompressed model's in this process.
`times_faster_B` is the median over rounds in which both run in turns, with B texts at once; `dense_again_B` the same
for the model against itself, which shows how far such a ratio can be trusted.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from trisparse import compress, from_pretrained, save_pretrained
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.batches import tokenize
from trisparse.prune.data.splits import load_splits
from trisparse.prune.data.tasks import find_task
from trisparse.prune.files import atomic_write
from trisparse.prune.speed import times_faster

ROUNDS = {1: 40, 32: 9}  # of each batch
TOKENS = (64, 2048)  # about as many as these batches have


def batches_of(folder: Path, args, size: int):
    """The validation set, `size` texts at a time."""
    task, data = find_task(args.task_name), DataArguments(task_name=args.task_name, dataset_dir=args.dataset_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = tokenize(load_splits(data, task)["validation"], task, tokenizer, data.max_length)
    for start in range(0, len(texts), size):
        part = [{k: v for k, v in row.items() if k not in ("labels", "index")} for row in texts[start : start + size]]
        yield dict(tokenizer.pad(part, return_tensors="pt"))


@torch.inference_mode()
def logits_of(model, folder: Path, args) -> torch.Tensor:
    return torch.cat([model(**batch).logits for batch in batches_of(folder, args, 32)])


def loaded_elsewhere(folder: Path, tokenizer: Path, args) -> torch.Tensor:
    """Logits by a new process."""
    command = [sys.executable, __file__, "--predict", str(folder), "--models", str(tokenizer)]
    command += ["--task_name", args.task_name, "--dataset_dir", args.dataset_dir, "--out", str(folder / "logits.json")]
    subprocess.run(command, check=True, capture_output=True)
    return torch.tensor(json.loads((folder / "logits.json").read_text()))


def rows_of(folder: Path, args):
    before = from_pretrained(folder).eval()
    want = logits_of(before, folder, args)
    size = (folder / "model.safetensors").stat().st_size
    for prefer in ("memory", "speed"):
        after, report = compress(copy.deepcopy(before), prefer, TOKENS, measure=prefer == "speed")
        with tempfile.TemporaryDirectory() as name:
            save_pretrained(after, name)
            got = loaded_elsewhere(Path(name), folder, args)
            row = {"model": folder.name, "prefer": prefer, "texts": len(want)}
            row |= {"changed": int((got.argmax(-1) != want.argmax(-1)).sum())}
            row |= {"largest_logit_difference": float((got - want).abs().max())}
            row |= {"file_bytes_before": size, "file_bytes_after": (Path(name) / "model.safetensors").stat().st_size}
        formats = [layer.format for layer in report.layers]
        row["formats"] = {form: formats.count(form) for form in sorted(set(formats))}
        layers = [(layer.bytes_before, layer.bytes_after) for layer in report.layers]
        row["linear_bytes_before"], row["linear_bytes_after"] = (sum(side) for side in zip(*layers, strict=True))
        for count, rounds in ROUNDS.items():
            example = next(batches_of(folder, args, count))
            row[f"times_faster_{count}"] = times_faster(before, after, example, rounds)
            row[f"dense_again_{count}"] = times_faster(before, copy.deepcopy(before), example, rounds)
        print(json.dumps(row), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--predict", type=Path, help=argparse.SUPPRESS)
    for name in ("task_name", "dataset_dir"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    if args.predict:
        model = from_pretrained(args.predict).eval()
        args.out.write_text(json.dumps(logits_of(model, args.models[0], args).tolist()))
        return
    rows = [row for folder in args.models for row in rows_of(folder, args)]
    machine = {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    atomic_write(args.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
