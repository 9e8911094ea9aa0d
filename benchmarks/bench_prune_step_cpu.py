"""What pruning adds to a training step on a CPU: an ordinary step (scores and masks) and a mask event.

    .venv/bin/python benchmarks/bench_prune_step_cpu.py --out benchmarks/results/prune_step_cpu.json

The layers have the shapes of the named encoder's attention and feed-forward weights; values and
gradients are random, since the cost does not depend on them. Times are medians in milliseconds.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from trisparse import Pruner, PruningConfig

ENCODERS = {"minilm-l6": (6, 384, 1536), "bert-base": (12, 768, 3072)}
PATTERNS = [("4x1", 0.9), ("2:4", 0.5), ("1xchannel", 0.9)]
FREQUENCY = 11  # one event, then ten ordinary steps


def encoder(layers: int, hidden: int, feed_forward: int) -> nn.Module:
    """The linear layers of a BERT encoder, in its order."""
    shapes = [(hidden, hidden)] * 4 + [(hidden, feed_forward), (feed_forward, hidden)]
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for _ in range(layers) for i, o in shapes))


def measure(model: nn.Module, pattern: str, target: float, events: int) -> dict[str, float]:
    """Median milliseconds of an ordinary step and of an event, after pruning has begun."""
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, start_step=1, end_step=1 + (events + 2) * FREQUENCY,
        pruning_frequency=FREQUENCY, exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config)
    values = [torch.randn_like(w) for w in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    ordinary, at_event = [], []
    for step in range(1, 1 + (events + 1) * FREQUENCY):
        with torch.no_grad():
            for weight, value in zip(model.parameters(), values, strict=True):
                weight.copy_(value)  # as an optimizer would fill the zeros again
        begin = time.perf_counter()
        pruner.observe()
        pruner.step()
        seconds = time.perf_counter() - begin
        if step > 1 + FREQUENCY:
            (at_event if (step - 1) % FREQUENCY == 0 else ordinary).append(seconds * 1e3)
    return {"ordinary_ms": statistics.median(ordinary), "event_ms": statistics.median(at_event)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--events", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    print(f"{'encoder':<10} {'weights':>10} {'pattern':>10} {'target':>6} {'ordinary ms':>12} {'event ms':>10}")
    for name in args.encoders:
        torch.manual_seed(0)
        model = encoder(*ENCODERS[name])
        weights = sum(p.numel() for p in model.parameters())
        for pattern, target in PATTERNS:
            row = {"encoder": name, "weights": weights, "pattern": pattern, "target_sparsity": target}
            row |= measure(model, pattern, target, args.events)
            rows.append(row)
            print(
                f"{name:<10} {weights:>10} {pattern:>10} {target:>6} {row['ordinary_ms']:>12.1f} "
                f"{row['event_ms']:>10.1f}",
                flush=True,
            )
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
        result = {"machine": machine, "python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
