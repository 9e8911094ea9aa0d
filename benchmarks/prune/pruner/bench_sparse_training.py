r"""How much faster training gets as the model gets sparser, on a CPU: one layer, and whole steps.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/prune/pruner/bench_sparse_training.py \
        --out benchmarks/results/sparse_training_cpu.json

Layers: forward and backward of one linear layer with 768 tokens, all of it and what a random mask keeps of it, in
turns; `times` is of both together, `parts` of the forward, the gradient of the input and of the weight by themselves.
Steps: an encoder pruned to its target by a Pruner, with and without `sparse_training`, 16 texts of 48 tokens, forward,
backward and optimizer in turns, with the dropout that BERT trains with. Optimizers: a step of AdamW with a Pruner, in
cool-down, and of MaskedAdamW, which masks on its way. Medians; a picture beside the JSON.

SparseProp (https://github.com/IST-DASLab/sparseprop, arXiv 2302.04852), which multiplies single weights, is timed in
the same turns where it can be imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertModel

from trisparse import MaskedAdamW, Pruner, PruningConfig
from trisparse.kernels.cache import extensions, processor
from trisparse.prune.files import atomic_write
from trisparse.prune.plot_style import WIDTH, dense_line, pattern_look, save, styled
from trisparse.sparse_ops import mask_linear, masked_blocks, masked_channels

TOKENS, TEXTS = 768, 16
SHAPES = [(384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (768, 3072)]
LAYER_GOALS = {("4x1", 0.9): 4.5, ("4x1", 0.8): 2.5, ("1x1", 0.9): 3.0}
LAYERS = [("4x1", z) for z in (0.5, 0.7, 0.8, 0.9, 0.95)] + [("1x1", z) for z in (0.7, 0.8, 0.9, 0.95)]
LAYERS += [("1xchannel", z) for z in (0.5, 0.7, 0.9)]
MODELS = {"MiniLM-L6": (384, 1536, 6, 12), "BERT-base, 4 layers": (768, 3072, 4, 12)}
STEP_GOALS = {("MiniLM-L6", "4x1", 0.9): 2.5, ("MiniLM-L6", "4x1", 0.7): 1.8}
STEPS = [("4x1", 0.5), ("4x1", 0.7), ("4x1", 0.9), ("4x1", 0.95), ("1x1", 0.9), ("1xchannel", 0.7), ("1xchannel", 0.9)]
OPTIMIZERS = [("4x1", 0.9), ("2:4", 0.5), ("1xchannel", 0.6)]
_SECONDS = 0.6  # of turns for a row


def in_turns(calls: list[Callable[[], Any]], seconds: float = _SECONDS, least: int = 5) -> list[list[float]]:
    """Of each call the milliseconds of its second run in every turn."""
    for call in calls * 2:
        call()
    turns: list[list[float]] = [[] for _ in calls]
    until = time.perf_counter() + seconds
    while len(turns[0]) < least or time.perf_counter() < until:
        for call, found in zip(calls, turns, strict=True):
            call()
            begin = time.perf_counter()
            call()
            found.append((time.perf_counter() - begin) * 1e3)
    return turns


def ratio(dense: list[float], sparse: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(dense, sparse, strict=True))


def sparseprop(dense: nn.Linear, x: torch.Tensor, grad: torch.Tensor) -> list[Callable[[], Any]]:
    """Forward and backward of the layer by SparseProp; none where it is not installed."""
    if importlib.util.find_spec("sparseprop") is None:
        return []
    from sparseprop.modules.linear import SparseLinear  # type: ignore[import-not-found]

    layer = SparseLinear.from_dense(dense)
    return [lambda: torch.autograd.grad(layer(x), (x, layer.W_val, layer.bias), grad)]


def layer_row(pattern: str, zeros: float, rows: int, cols: int) -> dict[str, Any]:
    n, m = int(pattern.split("x")[0]), cols if pattern.endswith("channel") else 1
    mask = torch.rand(rows // n, cols // m) >= zeros
    dense = nn.Linear(cols, rows)
    dense.weight.data *= mask.repeat_interleave(n, 0).repeat_interleave(m, 1)
    sparse = nn.Linear(cols, rows)
    sparse.load_state_dict(dense.state_dict())
    masked = mask_linear(sparse)
    masked.kept = masked_channels(mask, (n, m)) if m == cols else masked_blocks(mask, (n, m), torch.float32)
    x, grad = torch.randn(TOKENS, cols, requires_grad=True), torch.randn(TOKENS, rows)

    def gradient(layer: nn.Linear, of_input: bool) -> Callable[[], Any]:
        """Of its input or of its weight alone."""
        own = x.detach().requires_grad_(of_input)
        layer.requires_grad_(not of_input)
        y = layer(own)
        layer.requires_grad_(True)
        return lambda: torch.autograd.grad(y, own if of_input else layer.weight, grad, retain_graph=True)

    def whole(layer: nn.Linear) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(layer(x), (x, layer.weight, layer.bias), grad)

    parts: dict[str, list[Callable[[], Any]]] = {
        "forward": [lambda layer=layer: layer(x) for layer in (dense, masked)],
        "input": [gradient(layer, True) for layer in (dense, masked)],
        "weight": [gradient(layer, False) for layer in (dense, masked)],
    }
    times = in_turns([whole(dense), whole(masked), *sparseprop(dense, x, grad)])
    rivals = {"sparseprop": ratio(times[0], times[2])} if times[2:] else {}
    return {
        "pattern": pattern, "zeros": zeros, "shape": [rows, cols], "dense_ms": statistics.median(times[0]),
        "sparse_ms": statistics.median(times[1]), "times": ratio(times[0], times[1]), **rivals,
        "parts": {name: ratio(*in_turns(calls, _SECONDS / 3)) for name, calls in parts.items()},
    }  # fmt: skip


def step_row(name: str, pattern: str, zeros: float) -> dict[str, Any]:
    width, inner, layers, heads = MODELS[name]
    ids, target = torch.randint(30000, (TEXTS, TOKENS // TEXTS)), torch.randn(TEXTS, TOKENS // TEXTS, width)

    def make(mode: str) -> tuple[Callable[[], list[float]], Pruner]:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads
        )
        model = BertModel(config, add_pooling_layer=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        pruning = PruningConfig(
            pattern=pattern, target_sparsity=zeros, start_step=1, end_step=2, pruning_frequency=1,
            pruning_scope="local", exclude_head=False,
        )  # fmt: skip
        pruner = Pruner(model, pruning, sparse_training=mode)
        pruner.attach(optimizer)

        def step() -> list[float]:
            times = [time.perf_counter()]
            loss = (model(input_ids=ids).last_hidden_state - target).square().mean()
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter())
            return [(b - a) * 1e3 for a, b in itertools.pairwise(times)]

        for _ in range(3):  # both events, and a step after them
            step()
        return step, pruner

    (dense, _), (sparse, pruner) = make("off"), make("auto")
    turns: tuple[list[list[float]], list[list[float]]] = ([], [])
    for _ in range(9):
        for step, found in zip((dense, sparse), turns, strict=True):
            step()
            found.append(step())
    medians = [[statistics.median(part) for part in zip(*found, strict=True)] for found in turns]
    names = ("forward_ms", "backward_ms", "optimizer_ms")
    return {
        "model": name, "pattern": pattern, "zeros": zeros, "sparse_layers": len(pruner.sparse_layers),
        "layers": len(pruner.layers), "times": ratio(*([sum(step) for step in found] for found in turns)),
        "dense": dict(zip(names, medians[0], strict=True)), "sparse": dict(zip(names, medians[1], strict=True)),
    }  # fmt: skip


def optimizer_row(pattern: str, zeros: float) -> dict[str, Any]:
    """Of MiniLM's encoder: torch's fused AdamW and the masked write after it, and both in one pass."""

    def make(optimizer_of: Callable[[Any], torch.optim.Optimizer]) -> Callable[[], Any]:
        torch.manual_seed(0)
        width, inner, layers, heads = MODELS["MiniLM-L6"]
        config = BertConfig(
            vocab_size=1, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
            num_attention_heads=heads,
        )  # fmt: skip
        model = BertModel(config, add_pooling_layer=False)
        optimizer = optimizer_of(model.parameters())
        pruning = PruningConfig(
            pattern=pattern, target_sparsity=zeros, start_step=1, end_step=2, pruning_scope="local", exclude_head=False
        )
        Pruner(model, pruning, sparse_training="off").attach(optimizer)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for _ in range(3):
            optimizer.step()
        return optimizer.step

    times = in_turns([make(lambda params: torch.optim.AdamW(params, fused=True)), make(MaskedAdamW)])
    found = zip(("fused_ms", "masked_ms"), map(statistics.median, times), strict=True)
    return {"pattern": pattern, "zeros": zeros, **dict(found), "times": ratio(*times)}


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over the shapes."""
    found = []
    for pattern, zeros in LAYERS:
        same = [row for row in rows if (row["pattern"], row["zeros"]) == (pattern, zeros)]
        mean: dict[str, Any] = {"pattern": pattern, "zeros": zeros}
        for name in ("times", "sparseprop"):
            if name in same[0]:
                mean[name] = statistics.geometric_mean(r[name] for r in same)
        parts = {name: statistics.geometric_mean(r["parts"][name] for r in same) for name in same[0]["parts"]}
        found.append(mean | {"parts": parts, "goal": LAYER_GOALS.get((pattern, zeros))})
    return found


def table(layers: list[dict[str, Any]], steps: list[dict[str, Any]], optimizers: list[dict[str, Any]]) -> str:
    def goal(row: dict[str, Any]) -> str:
        return f"{row['goal']} {'met' if row['times'] >= row['goal'] else 'missed'}" if row["goal"] else "-"

    lines = ["one layer: pattern  zeros  forward   input  weight    all  SparseProp  goal"]
    for row in layers:
        parts = "  ".join(f"{row['parts'][name]:6.2f}" for name in ("forward", "input", "weight"))
        rival = f"{row['sparseprop']:10.2f}" if "sparseprop" in row else f"{'-':>10}"
        lines.append(f"{row['pattern']:>18}  {row['zeros']:5}   {parts}  {row['times']:5.2f}  {rival}  {goal(row)}")
    lines.append("one step:                   model  pattern  zeros  sparse layers  times  goal")
    for row in steps:
        count = f"{row['sparse_layers']} of {row['layers']}"
        start = f"{row['model']:>33}  {row['pattern']:>7}  {row['zeros']:5}"
        lines.append(f"{start}  {count:>13}  {row['times']:5.2f}  {goal(row)}")
    lines.append("optimizer of MiniLM-L6: pattern  zeros  AdamW, fused, ms  MaskedAdamW, ms  times")
    for row in optimizers:
        start = f"{row['pattern']:>31}  {row['zeros']:5}  {row['fused_ms']:16.1f}  {row['masked_ms']:15.1f}"
        lines.append(f"{start}  {row['times']:5.2f}")
    return "\n".join(lines)


def plot(layers: list[dict[str, Any]], steps: list[dict[str, Any]], path: Path) -> None:
    with styled(1.2 * WIDTH, 3.6) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for pattern in dict.fromkeys(row["pattern"] for row in layers):
            rows = [row for row in layers if row["pattern"] == pattern]
            draw(panels[0], rows, pattern_look(pattern) | {"label": pattern})
        for name, dashes, marker in zip(MODELS, ("-", "--"), ("o", "s"), strict=True):
            for pattern in ("4x1", "1xchannel"):
                rows = [row for row in steps if (row["model"], row["pattern"]) == (name, pattern)]
                look = pattern_look(pattern) | {"linestyle": dashes, "marker": marker}
                draw(panels[1], rows, look | {"label": f"{name}, {pattern}"})
        for panel, title in zip(panels, ("one layer, forward and backward", "a whole step"), strict=True):
            dense_line(panel, 1)
            panel.set(title=title, xlabel="share of the weights that is zero", ylim=(0, None))
            panel.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9])
            panel.legend(loc="upper left")
        panels[0].set(ylabel="times as fast as dense")
        figure.suptitle("Training with the kept weights alone, on a CPU")
        save(figure, path)


def draw(panel: Any, rows: list[dict[str, Any]], look: dict[str, Any]) -> None:
    panel.plot([row["zeros"] for row in rows], [row["times"] for row in rows], **look)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draw", action="store_true", help="the picture alone, from the JSON that is there")
    args = parser.parse_args()
    if args.draw:
        found = json.loads(args.out.read_text())
        plot(found["layers"], found["steps"], args.out.with_suffix(".png"))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    torch.manual_seed(0)
    rows = [
        layer_row(pattern, zeros, *shape)
        for pattern, zeros in tqdm(LAYERS, desc="layers", mininterval=1)
        for shape in SHAPES
    ]
    cases = [(name, *case) for name in MODELS for case in STEPS]
    steps = [step_row(*case) | {"goal": STEP_GOALS.get(case)} for case in tqdm(cases, desc="steps", mininterval=1)]
    optimizers = [optimizer_row(*case) for case in tqdm(OPTIMIZERS, desc="optimizers", mininterval=1)]
    machine = {"cpu": processor(), "instructions": extensions(), "threads": torch.get_num_threads()}
    machine |= {"torch": torch.__version__, "python": platform.python_version()}
    result = {"machine": machine, "layers": means(rows), "shapes": rows, "steps": steps, "optimizers": optimizers}
    atomic_write(args.out, json.dumps(result, indent=1) + "\n")
    plot(result["layers"], steps, args.out.with_suffix(".png"))
    print(table(result["layers"], steps, optimizers))


if __name__ == "__main__":
    main()
