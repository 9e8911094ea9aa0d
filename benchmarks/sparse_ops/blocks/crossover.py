r"""From which sparsity on a packed layer is faster than a dense one: pattern by pattern, over tokens.

    .venv/bin/python benchmarks/sparse_ops/blocks/crossover.py --budget_seconds 500 \
        --out benchmarks/results/crossover_H200.json

    OMP_NUM_THREADS=1 … --device cpu --out benchmarks/results/crossover_cpu.json

Weights are random, pruned in the pattern itself; each layer is timed dense and packed in turns, on a GPU replayed from
CUDA graphs with a cold L2 cache, and its output compared. On a CPU shapes are fewer, and single weights and pairs stand
beside the other patterns.
Beside the JSON goes a picture: for each shape and pattern the gain over tokens (across) and sparsity (down).
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn

from trisparse.prune.deploy.formats import Format, pack_layer
from trisparse.prune.timing import machine, time_pair
from trisparse.sparse_ops import nm_mask

SHAPES = {"cuda": [(4096, 4096), (3072, 768), (11008, 4096)], "cpu": [(768, 768), (3072, 768)]}
PATTERNS = {
    "cuda": [(n, 1) for n in (4, 8, 16, 32)] + [(n, n) for n in (16, 32, 64, 128)],
    "cpu": [(n, 1) for n in (1, 2, 4, 16)] + [(n, n) for n in (16, 64)],
}
SPARSITIES = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98]
TOKENS = [1, 8, 64, 512, 4096]


def cases(kind):
    """Shape, format and sparsity, shape by shape."""
    found = []
    for shape in SHAPES[kind]:
        for block, sparsity in itertools.product(PATTERNS[kind], SPARSITIES):
            found.append((shape, Format("vectors" if block[1] == 1 else "blocks", block, block[0]), sparsity))
        found.append((shape, Format("2:4"), 0.5))
    return found


def pruned(shape, form, sparsity, device):
    """A layer whose weight is pruned in the pattern of a format."""
    (rows, cols), (n, m) = shape, form.block
    layer = nn.Linear(cols, rows, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    with torch.no_grad():
        if form.kind == "2:4":
            kept = nm_mask(layer.weight, 2, 4, magnitude=True)
        else:
            kept = torch.rand(rows // n, cols // m, device=device) >= sparsity
            kept = kept.repeat_interleave(n, 0).repeat_interleave(m, 1)
        layer.weight.mul_(kept)
    return layer


def plot(rows, path):
    """One square for each shape and pattern, blue where packed is faster."""
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    shapes, forms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "format"))
    figure = Figure(figsize=(2.2 * len(forms), 2.4 * len(shapes)), layout="constrained")
    grid = figure.subplots(len(shapes), len(forms), squeeze=False)
    for (i, shape), (j, form) in itertools.product(enumerate(shapes), enumerate(forms)):
        axes = grid[i][j]
        found = {(r["sparsity"], r["tokens"]): r["gain"] for r in rows if (r["shape"], r["format"]) == (shape, form)}
        down, across = (sorted({key[k] for key in found}) for k in (0, 1))
        values = [[found.get((s, t), float("nan")) for t in across] for s in down]
        axes.imshow(values, cmap="RdBu", norm=TwoSlopeNorm(1, 0, 3), aspect="auto")
        for (y, line), x in itertools.product(enumerate(values), range(len(across))):
            color = "white" if line[x] > 2.4 or line[x] < 0.4 else "black"
            axes.text(x, y, f"{line[x]:.1f}", ha="center", va="center", fontsize=6, color=color)
        axes.set_xticks(range(len(across)), across, fontsize=6)
        axes.set_yticks(range(len(down)), down, fontsize=6)
        axes.set_title(f"{form}, {shape}", fontsize=7)
    figure.supxlabel("tokens")
    figure.supylabel("share of weights that are zero")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget_seconds", type=float, default=500, help="what is not reached by then is left out")
    args = parser.parse_args()
    device, begin, rows = torch.device(args.device), time.monotonic(), []
    torch.manual_seed(0)
    left_out = 0
    for shape, form, sparsity in cases(device.type):
        if time.monotonic() - begin > args.budget_seconds:
            left_out += 1
            continue
        layer = pruned(shape, form, sparsity, device)
        packed = pack_layer(layer, form).eval()
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1], device=device, dtype=layer.weight.dtype)
            times = time_pair(layer, packed, x)
            assert times["equal"], (shape, form, sparsity, tokens)
            row = {"shape": "x".join(map(str, shape)), "format": str(form), "sparsity": sparsity, "tokens": tokens}
            rows.append(row | times | {"gain": times["dense_ms"] / times["packed_ms"]})
        gains = "  ".join(f"T={row['tokens']} {row['gain']:.2f}x" for row in rows[-len(TOKENS) :])
        print(f"{shape[0]}x{shape[1]} {form} {sparsity}: {gains}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    half = args.out.with_suffix(".part")
    result = {"machine": machine(device), "left_out": left_out, "rows": rows}
    half.write_text(json.dumps(result, indent=1) + "\n")
    half.replace(args.out)
    plot(rows, args.out.with_suffix(".png"))
    print(f"wrote {args.out}; {left_out} cases left out for time")


if __name__ == "__main__":
    main()
