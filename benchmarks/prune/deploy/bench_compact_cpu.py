r"""How much faster a BERT without its pruned channels is on a CPU.

    .venv/bin/python benchmarks/prune/deploy/bench_compact_cpu.py --out benchmarks/results/compact_cpu.json

Random weights, since the time does not depend on them. A share of the feed-forward channels of every layer is zero,
as 1xchannel leaves them; `times_faster` is the median over rounds in which the masked and the compacted model run in
turns. `dense_again` runs a copy of the masked model against it, which shows how far such a ratio can be trusted.
Logits of both are compared first. 128 tokens a text.

    … --model runs/mrpc-1xchannel --task_name mrpc --dataset_dir MRPC --out benchmarks/results/compact_mrpc_cpu.json

takes a pruned model of `trisparse train` instead, and the texts of its validation set: how many predictions change, and
how much faster the first texts go, one by one and 32 at once.
"""

import argparse
import copy
import json
import os
import platform
from pathlib import Path

import torch
import transformers

from trisparse import compact
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.batches import tokenize
from trisparse.prune.data.splits import load_splits
from trisparse.prune.data.tasks import find_task
from trisparse.prune.speed import times_faster

ENCODERS = {"bert-mini": (4, 256, 4), "minilm-l6": (6, 384, 12)}
SHARES, BATCHES, TOKENS = (0.5, 0.75, 0.9), (1, 32), 128
ROUNDS = {1: 40, 32: 9}  # of each batch


def build(name: str) -> torch.nn.Module:
    layers, hidden, heads = ENCODERS[name]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    return transformers.BertForSequenceClassification(config).eval()


def random_rows():
    """Rows of models with random weights."""
    for name in ENCODERS:
        for share in SHARES:
            masked = build(name)
            for layer in masked.bert.encoder.layer:
                weight = layer.intermediate.dense.weight.data
                weight[torch.randperm(len(weight))[: int(share * len(weight))]] = 0
            small, twin = copy.deepcopy(masked), copy.deepcopy(masked)
            before, after = compact(small).parameters
            for batch in BATCHES:
                example = {"input_ids": torch.randint(30_000, (batch, TOKENS))}
                with torch.inference_mode():
                    torch.testing.assert_close(small(**example).logits, masked(**example).logits, atol=1e-4, rtol=1e-4)
                row = {"model": name, "channels_pruned": share, "batch": batch, "parameters_left": after / before}
                row["times_faster"] = times_faster(masked, small, example, ROUNDS[batch])
                row["dense_again"] = times_faster(masked, twin, example, ROUNDS[batch])
                yield row
                print(
                    f"{name:10} {share:4.0%} of channels gone, batch {batch:2}: {row['times_faster']:.2f}x "
                    f"(dense again {row['dense_again']:.2f}x), {row['parameters_left']:.0%} of parameters",
                    flush=True,
                )


def real_row(folder: str, task_name: str, dataset_dir: str):
    """A pruned model on its validation set."""
    task, data = find_task(task_name), DataArguments(task_name=task_name, dataset_dir=dataset_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = tokenize(load_splits(data, task)["validation"], task, tokenizer, data.max_length)
    masked, small, twin = (
        transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval() for _ in range(3)
    )
    report = compact(small)
    print(report)

    def batches(size):
        for start in range(0, len(texts), size):
            some = texts[start : start + size]
            part = [{k: v for k, v in row.items() if k not in ("labels", "index")} for row in some]
            yield dict(tokenizer.pad(part, return_tensors="pt"))

    changed, worst = 0, 0.0
    with torch.inference_mode():
        for batch in batches(32):
            a, b = masked(**batch).logits, small(**batch).logits
            changed += int((a.argmax(-1) != b.argmax(-1)).sum())
            worst = max(worst, float((a - b).abs().max()))
    row = {"model": Path(folder).name, "task": task_name, "texts": len(texts), "predictions_changed": changed}
    row |= {"largest_logit_difference": worst, "parameters_left": report.parameters[1] / report.parameters[0]}
    row["channels_left"] = sum(c.kept for c in report.chains) / sum(c.units for c in report.chains)
    for size in BATCHES:
        example = next(batches(size))
        row[f"times_faster_{size}"] = times_faster(masked, small, example, ROUNDS[size])
        row[f"dense_again_{size}"] = times_faster(masked, twin, example, ROUNDS[size])
    print(json.dumps(row))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("model", "task_name", "dataset_dir"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    out = args.out
    rows = [real_row(args.model, args.task_name, args.dataset_dir)] if args.model else list(random_rows())
    machine = {
        "processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    half = out.with_suffix(".part")
    half.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    half.replace(out)


if __name__ == "__main__":
    main()
