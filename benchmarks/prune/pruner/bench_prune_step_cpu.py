r"""What pruning adds to a training step on a CPU: an ordinary step (scores and masks) and a mask event.

    .venv/bin/python benchmarks/prune/pruner/bench_prune_step_cpu.py --out benchmarks/results/prune_step_cpu.json

The layers have the shapes of the named encoder's attention and feed-forward weights; values and
gradients are random, since the cost does not depend on them. Times are medians in milliseconds, taken in
turns, since a shared machine drifts. Beside ours stand the same arithmetic written plainly, one layer after
the other (score = 0.9 * score + mean |W * G|; weight = weight * mask), and neural-compressor 2.6, if it is
installed:

    pip install --no-deps neural-compressor==2.6 deprecated wrapt prettytable wcwidth py-cpuinfo schema \
        opencv-python-headless pycocotools
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
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


class Predecessor:
    """neural-compressor on a copy of the model, its hooks called as its own optimizer wrapper calls them."""

    def __init__(self, model: nn.Module, pattern: str, target: float, end_step: int) -> None:
        from neural_compressor import WeightPruningConfig
        from neural_compressor.compression.pruner import prepare_pruning

        self.model = copy.deepcopy(model)
        self.weights = list(self.model.parameters())
        settings = [{"pruning_type": "snip_momentum", "pattern": pattern, "target_sparsity": target}]
        config = WeightPruningConfig(
            settings, start_step=1, end_step=end_step, pruning_frequency=FREQUENCY, excluded_op_names=[],
            pruning_op_types=["Linear"],
        )  # fmt: skip
        prepare_pruning(self.model, config, torch.optim.SGD(self.model.parameters(), lr=0.0))
        prunings = self.model.prunings
        self.pruning = prunings[0] if isinstance(prunings, list) else prunings

    def step(self) -> None:
        self.pruning.on_before_optimizer_step()
        self.pruning.on_after_optimizer_step()


def measure(model: nn.Module, pattern: str, target: float, events: int, peer: bool) -> dict[str, float]:
    """Median milliseconds of an ordinary step and of an event, after pruning has begun."""
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, start_step=1, end_step=1 + (events + 2) * FREQUENCY,
        pruning_frequency=FREQUENCY, exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config)
    plain = Plain(model, PLAIN_BLOCKS[pattern])
    values = [torch.randn_like(w) for w in model.parameters()]
    old = Predecessor(model, pattern, target, config.groups[0].window[1]) if peer else None
    nets = [list(model.parameters()), plain.weights, *([old.weights] if old else [])]
    for same in zip(*nets, strict=True):
        grad = torch.randn_like(same[0])
        for weight in same:
            weight.grad = grad.clone()

    def seconds(*calls: Callable[[], None]) -> float:
        with torch.no_grad():
            for *same, value in zip(*nets, values, strict=True):
                for weight in same:
                    weight.copy_(value)  # as an optimizer would fill the zeros again
        begin = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - begin

    times: dict[str, list[float]] = {"plain_ms": [], "ordinary_ms": [], "event_ms": []}
    if old:
        times |= {"predecessor_ms": [], "predecessor_event_ms": []}
    for step in range(1, 1 + (events + 1) * FREQUENCY):
        ours = seconds(pruner.observe, pruner.step)
        if old:
            event = seconds(old.pruning.on_step_begin)
            ordinary = seconds(old.step)
            if step % FREQUENCY == 2:  # it counts steps from 0, and chooses masks before the forward
                times["predecessor_event_ms"].append(event)
            elif step > 1 + FREQUENCY:
                times["predecessor_ms"].append(ordinary)
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
    peer = find_spec("neural_compressor") is not None
    columns = ["plain_ms", "ordinary_ms", "event_ms", *(["predecessor_ms", "predecessor_event_ms"] if peer else [])]
    print(head, *(f"{column:>{len(column) + 1}}" for column in columns))
    for name in args.encoders:
        torch.manual_seed(0)
        model = encoder(*ENCODERS[name])
        weights = sum(p.numel() for p in model.parameters())
        for pattern, target in PATTERNS:
            row = {"encoder": name, "weights": weights, "pattern": pattern, "target_sparsity": target}
            row |= measure(model, pattern, target, args.events, peer)
            rows.append(row)
            numbers = (f"{row[column]:>{len(column) + 1}.1f}" for column in columns)
            print(f"{name:<10} {weights:>10} {pattern:>10} {target:>6}", *numbers, flush=True)
    if args.out:
        machine = {"processor": processor(), "cores": os.cpu_count(), "threads": args.threads}
        result = {"machine": machine, "python": platform.python_version(), "torch": torch.__version__, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
