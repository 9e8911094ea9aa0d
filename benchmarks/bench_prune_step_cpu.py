"""What pruning adds to a training step on a CPU: an ordinary step (scores and masks) and a mask event.

    .venv/bin/python benchmarks/bench_prune_step_cpu.py --out benchmarks/results/prune_step_cpu.json

The layers have the shapes of the named encoder's attention and feed-forward weights; values and
gradients are random, since the cost does not depend on them. Times are medians in milliseconds. Beside
the ordinary step stands the same arithmetic written plainly, one layer after the other (score = 0.9 *
score + mean |W * G|; weight = weight * mask), timed in turns with it, since a shared machine drifts.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from trisparse import Pruner, PruningConfig

ENCODERS = {"minilm-l6": (6, 384, 1536), "bert-base": (12, 768, 3072)}
PATTERNS = [("4x1", 0.9), ("2:4", 0.5), ("1xchannel", 0.9)]
PLAIN_BLOCKS = {"4x1": (4, 1), "2:4": (1, 1), "1xchannel": (1, 0)}  # 0: the whole row
FREQUENCY = 11  # one event, then ten ordinary steps


def encoder(layers: int, hidden: int, feed_forward: int) -> nn.Module:
    """The linear layers of a BERT encoder, in its order."""
    shapes = [(hidden, hidden)] * 4 + [(hidden, feed_forward), (feed_forward, hidden)]
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for _ in range(layers) for i, o in shapes))


class Plain:
    """Score and mask as one would write them down."""

    def __init__(self, model: nn.Module, block: tuple[int, int]) -> None:
        self.weights = [nn.Parameter(weight.detach().clone()) for weight in model.parameters()]
        self.shapes = []
        for weight in self.weights:
            rows, cols = weight.shape
            n, m = block[0], block[1] or cols
            self.shapes.append((rows // n, n, cols // m, m))
        self.scores = [torch.zeros(r, c) for r, _, c, _ in self.shapes]
        self.masks = [torch.rand_like(weight) > 0.5 for weight in self.weights]

    @torch.no_grad()
    def step(self) -> None:
        for i, (weight, shape) in enumerate(zip(self.weights, self.shapes, strict=True)):
            cost = (weight * weight.grad).abs().view(shape)
            cost = cost.mean(3).mean(1) if shape[1] * shape[3] > 1 else cost.view(weight.shape)
            self.scores[i] = 0.9 * self.scores[i] + cost
            weight.data = weight.data * self.masks[i]


def measure(model: nn.Module, pattern: str, target: float, events: int) -> dict[str, float]:
    """Median milliseconds of an ordinary step, plain and ours, and of an event, after pruning has begun."""
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, start_step=1, end_step=1 + (events + 2) * FREQUENCY,
        pruning_frequency=FREQUENCY, exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config)
    plain = Plain(model, PLAIN_BLOCKS[pattern])
    values = [torch.randn_like(w) for w in model.parameters()]
    for weight, other in zip(model.parameters(), plain.weights, strict=True):
        weight.grad = other.grad = torch.randn_like(weight)

    def seconds(*calls: Callable[[], None]) -> float:
        with torch.no_grad():
            for weight, other, value in zip(model.parameters(), plain.weights, values, strict=True):
                weight.copy_(value)  # as an optimizer would fill the zeros again
                other.copy_(value)
        begin = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - begin

    times: dict[str, list[float]] = {"plain_ms": [], "ordinary_ms": [], "event_ms": []}
    for step in range(1, 1 + (events + 1) * FREQUENCY):
        ours = seconds(pruner.observe, pruner.step)
        if step <= 1 + FREQUENCY:
            continue
        times["event_ms" if (step - 1) % FREQUENCY == 0 else "ordinary_ms"].append(ours)
        times["plain_ms"].append(seconds(plain.step))
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def processor() -> str:
    """Model name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--events", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    head = f"{'encoder':<10} {'weights':>10} {'pattern':>10} {'target':>6}"
    print(f"{head} {'plain ms':>9} {'ordinary ms':>12} {'event ms':>9}")
    for name in args.encoders:
        torch.manual_seed(0)
        model = encoder(*ENCODERS[name])
        weights = sum(p.numel() for p in model.parameters())
        for pattern, target in PATTERNS:
            row = {"encoder": name, "weights": weights, "pattern": pattern, "target_sparsity": target}
            row |= measure(model, pattern, target, args.events)
            rows.append(row)
            numbers = f"{row['plain_ms']:>9.1f} {row['ordinary_ms']:>12.1f} {row['event_ms']:>9.1f}"
            print(f"{name:<10} {weights:>10} {pattern:>10} {target:>6} {numbers}", flush=True)
    if args.out:
        machine = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads}
        result = {"machine": machine, "python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
