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
import sys
import time
from pathlib import Path

import torch
from torch import nn

from trisparse.prune.deploy.formats import Format, pack_layer
from trisparse.prune.files import atomic_write
from trisparse.prune.timing import machine, time_pair
from trisparse.sparse_ops import nm_mask
from trisparse.suite_rows import read

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


def measure(shape, form, sparsity, device, is_small):
    """Rows of one case, a token count each."""
    layer = pruned(shape, form, sparsity, device)
    packed = pack_layer(layer, form).eval()
    for tokens in TOKENS[:1] if is_small else TOKENS:
        x = torch.randn(tokens, shape[1], device=device, dtype=layer.weight.dtype)
        times = time_pair(layer, packed, x)
        row = {"shape": "x".join(map(str, shape)), "format": str(form), "sparsity": sparsity, "tokens": tokens}
        yield row | times | {"gain": times["dense_ms"] / times["packed_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="goes on with what it lacks, if it says that it does")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--budget_seconds", type=float, default=500, help="what is not reached by then is left")
    parser.add_argument("--dry_run", action="store_true", help="one small shape, one sparsity, one token count")
    args = parser.parse_args()
    device, begin = torch.device(args.device), time.monotonic()
    torch.manual_seed(0)
    todo = cases(device.type)
    if args.dry_run:
        todo = [
            ((256, 128), form, sparsity) for shape, form, sparsity in todo if shape == todo[0][0] and sparsity == 0.5
        ]
    before = read(args.out)
    rows, done = (before["rows"], before["done"]) if before.get("left") else ([], [])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for shape, form, sparsity in todo:
        name = f"{shape[0]}x{shape[1]} {form} {sparsity}"
        if name in done:
            continue
        if time.monotonic() - begin > args.budget_seconds:
            break
        try:
            found = list(measure(shape, form, sparsity, device, args.dry_run))
            said = "  ".join(f"T={row['tokens']} {row['gain']:.2f}x{'' if row['equal'] else ' WRONG'}" for row in found)
        except RuntimeError as error:
            found = [{"test": name, "error": str(error).splitlines()[0]}]
            said = found[0]["error"]
        rows, done = rows + found, [*done, name]
        result = {"machine": machine(device), "left": len(todo) - len(done), "done": done, "rows": rows}
        atomic_write(args.out, json.dumps(result, indent=1) + "\n")
        print(f"{name}: {said}", flush=True)
    plot([row for row in rows if "gain" in row], args.out.with_suffix(".png"))
    print(f"wrote {args.out}; {len(todo) - len(done)} cases left")
    sys.exit(any("error" in row or not row["equal"] for row in rows))


if __name__ == "__main__":
    main()
