r"""How much faster a BERT without its pruned channels is on a CPU.

    .venv/bin/python benchmarks/bench_compact_cpu.py --out benchmarks/results/compact_cpu.json

Random weights, since the time does not depend on them. A share of the feed-forward channels of every layer is zero,
as 1xchannel leaves them; `times_faster` is the median over rounds in which the masked and the compacted model run in
turns. `dense_again` runs a copy of the masked model against it, which shows how far such a ratio can be trusted.
Logits of both are compared first. 128 tokens a text.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    rows = []
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
                rows.append(row)
                print(
                    f"{name:10} {share:4.0%} of channels gone, batch {batch:2}: {row['times_faster']:.2f}x "
                    f"(dense again {row['dense_again']:.2f}x), {row['parameters_left']:.0%} of parameters",
                    flush=True,
                )
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
