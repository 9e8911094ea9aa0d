r"""From which sparsity on a packed layer is faster than a dense one: pattern by pattern, over tokens.

    .venv/bin/python benchmarks/sparse_ops/blocks/crossover.py --budget_seconds 500 \
        --out benchmarks/results/crossover_H200.json

    OMP_NUM_THREADS=1 … --device cpu --out benchmarks/results/crossover_cpu.json

Weights are random, pruned in the pattern itself; each layer is timed dense and packed in turns, on a GPU replayed from
CUDA graphs with a cold L2 cache, and its output compared. On a CPU shapes are fewer, and single weights and pairs stand
beside the other patterns.
Beside the JSON goes a picture: for each shape and token count the gain of every pattern over sparsity.
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
from trisparse.prune.plot_style import dense_line, pattern_look, plain_log, save, styled
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
    """A panel for each shape (across) and token count (down): the gain of every pattern over sparsity, dense at 1."""
    shapes, tokens, forms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("shape", "tokens", "format"))
    with styled(2.4 * len(shapes) + 0.6, 1.75 * len(tokens) + 1.4) as figure:
        grid = figure.subplots(len(tokens), len(shapes), squeeze=False, sharex=True, sharey=True)
        for (i, count), (j, shape) in itertools.product(enumerate(tokens), enumerate(shapes)):
            axes = grid[i][j]
            dense_line(axes, 1)
            for form in forms:
                found = [r for r in rows if (r["shape"], r["tokens"], r["format"]) == (shape, count, form)]
                found.sort(key=lambda row: row["sparsity"])
                axes.plot(
                    [1 - r["sparsity"] for r in found], [r["gain"] for r in found], label=form, **pattern_look(form)
                )
            axes.set_title(f"{shape}, {count:,} token{'s' if count > 1 else ''}", fontsize=8.5)
        gains, zeros = [row["gain"] for row in rows], sorted({row["sparsity"] for row in rows})
        plain_log(axes.yaxis, low=min(1, *gains), high=max(1, *gains))
        plain_log(axes.xaxis, [1 - share for share in zeros])  # else 0.95 and 0.98 would stand too close to be read
        axes.xaxis.set_major_formatter(lambda kept, _: f"{1 - kept:g}"[:4])
        axes.invert_xaxis()
        for axes in grid[-1]:
            axes.set_xlabel("share that is zero")
        for axes in grid[:, 0]:
            axes.set_ylabel("times as fast")
        figure.suptitle("Times as fast as dense, over the share of weights that is zero")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)
        save(figure, path)


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
    parser.add_argument("--draw", action="store_true", help="the picture alone, from the JSON that is there")
    args = parser.parse_args()
    if args.draw:
        plot([row for row in read(args.out)["rows"] if "gain" in row], args.out.with_suffix(".png"))
        return
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
