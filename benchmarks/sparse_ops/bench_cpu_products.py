r"""Products with sparse weights on a CPU against F.linear, torch's own sparse layouts, and the core's peak.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse_ops/bench_cpu_products.py \
        --out benchmarks/results/cpu_products.json [--dtype bfloat16]

Random weights of BERT-base's shapes, pruned in the pattern itself; layers as `compress` makes them. In turns each
product runs twice: its first run finds the caches as the others left them, as in a model of many layers (`cold`), its
second as its first did, as where one layer runs alone (`times`, which goals are for). Ratios are medians over the
turns. In float32 torch's CSR and BSR, blocks 4x4 or for 16x16 those, take turns of their own with the dense product.
`share_of_peak` counts stored weights alone, against multiplications that never leave the registers. Every product is
compared with the dense one first.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from tqdm import tqdm

from trisparse.kernels.cache import extensions, processor
from trisparse.kernels.cpu.build import SOURCES
from trisparse.prune.files import atomic_write
from trisparse.sparse_ops import Linear24, LinearBlocks, nm_mask

SHAPES = [(768, 768), (3072, 768), (768, 3072)]
TOKENS = [1, 32, 128, 512, 1024]
CASES = [  # pattern, zeros, least gain wanted with 1 token and with 32 to 1024, where there is a goal
    ("4x1", 0.5, None, 1.7), ("4x1", 0.8, None, None), ("4x1", 0.9, 4.0, 7.0), ("4x1", 0.95, None, None),
    ("2x1", 0.9, None, None), ("1x1", 0.7, None, 2.2), ("1x1", 0.9, None, 5.0), ("2:4", 0.5, 1.6, 1.6),
    ("16x16", 0.9, None, None),
]  # fmt: skip
_SECONDS = 0.25  # of turns for one row


def in_turns(calls: list[Callable[[], Any]]) -> list[list[tuple[float, float]]]:
    """Of each call, turn by turn, seconds of its first run and of its second."""
    for call in calls * 2:
        call()
    turns: list[list[tuple[float, float]]] = [[] for _ in calls]
    until = time.perf_counter() + _SECONDS
    while len(turns[0]) < 7 or time.perf_counter() < until:
        for call, found in zip(calls, turns, strict=True):
            begin = time.perf_counter()
            call()
            middle = time.perf_counter()
            call()
            found.append((middle - begin, time.perf_counter() - middle))
    return turns


def peak() -> float:
    """Operations a second of one core, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(__file__).with_name("peak.cpp"), str(Path(folder) / "peak")
        flags = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-I", str(SOURCES)]
        subprocess.run(["c++", *flags, str(source), "-o", program], check=True)
        return float(subprocess.run([program], check=True, capture_output=True, text=True).stdout)


def pruned(pattern: str, zeros: float, rows: int, cols: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """A weight, and its block; (0, 0) for 2:4."""
    weight = torch.randn(rows, cols)
    if pattern == "2:4":
        return weight * nm_mask(weight, 2, 4, magnitude=True), (0, 0)
    n, m = (int(side) for side in pattern.split("x"))
    kept = torch.rand(rows // n, cols // m) >= zeros
    return weight * kept.repeat_interleave(n, 0).repeat_interleave(m, 1), (n, m)


def rivals_of(weight: torch.Tensor, block: tuple[int, int]) -> dict[str, torch.Tensor]:
    """The weight in torch's own layouts; none in 16 bits, which they do not multiply."""
    if weight.dtype != torch.float32:
        return {}
    side = 16 if block == (16, 16) else 4  # MKL takes squares alone
    return {"csr": weight.to_sparse_csr(), "bsr": weight.to_sparse_bsr((side, side))}


def rows_of(pattern: str, zeros: float, dtype: torch.dtype, most: float) -> list[dict[str, Any]]:
    found = []
    for high, wide in SHAPES:
        weight, block = pruned(pattern, zeros, high, wide)
        dense = nn.Linear(wide, high, dtype=dtype)
        dense.weight.data = weight.to(dtype)
        packed = Linear24.from_linear(dense) if pattern == "2:4" else LinearBlocks.from_linear(dense, block)
        packed.eval()
        bias, rivals = dense.bias, rivals_of(dense.weight.data, block)
        for tokens in TOKENS:
            x = torch.randn(tokens, wide).to(dtype)
            got, want = packed(x), linear(x, dense.weight, bias)
            torch.testing.assert_close(got.float(), want.float(), rtol=1e-2, atol=1e-2 * float(want.abs().max()))
            first: Callable[[], Any] = lambda x=x, w=dense.weight, b=bias: linear(x, w, b)  # noqa: E731
            turns = in_turns([first, lambda x=x, p=packed: p(x)])
            warm = [statistics.median(second for _, second in found) for found in turns]
            row = {"pattern": pattern, "zeros": zeros, "shape": [high, wide], "tokens": tokens, "dtype": str(dtype)[6:]}
            row |= {"dense_ms": warm[0] * 1e3, "packed_ms": warm[1] * 1e3}
            for which, name in ((1, "times"), (0, "cold")):
                row[name] = statistics.median(a[which] / b[which] for a, b in zip(turns[0], turns[1], strict=True))
            work = 2 * float((weight != 0).sum()) * tokens
            row["share_of_peak"] = work / warm[1] / most / torch.get_num_threads()
            for name, w in rivals.items():  # in turns of their own, which leave the caches to the two above
                turns = in_turns([first, lambda x=x, w=w, b=bias: (w @ x.t()).t() + b])
                row[name] = statistics.median(a[1] / b[1] for a, b in zip(*turns, strict=True))
            found.append(row)
    return found


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each case geometric means over the shapes, for one token and for many, with the goal in float32."""
    found = []
    for pattern, zeros, *goals in CASES:
        goals = goals if rows[0]["dtype"] == "float32" else [None, None]
        for which, tokens, goal in (("1", [1], goals[0]), (f"{TOKENS[1]} to {TOKENS[-1]}", TOKENS[1:], goals[1])):
            same = [r for r in rows if (r["pattern"], r["zeros"]) == (pattern, zeros) and r["tokens"] in tokens]
            keys = [key for key in ("times", "cold", "csr", "bsr", "share_of_peak") if key in same[0]]
            mean = {key: statistics.geometric_mean(r[key] for r in same) for key in keys}
            found.append({"pattern": pattern, "zeros": zeros, "tokens": which} | mean | {"goal": goal})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["pattern  zeros        tokens   times    cold     csr     bsr  of peak  goal"]
    for row in rows:
        goal = f"{row['goal']:.1f} {'met' if row['times'] >= row['goal'] else 'missed'}" if row["goal"] else "-"
        start = f"{row['pattern']:>7}  {row['zeros']:5}  {row['tokens']:>12}"
        rivals = "  ".join(f"{row[name]:5.2f}x" if name in row else "     -" for name in ("csr", "bsr"))
        start += f"  {row['times']:5.2f}x  {row['cold']:5.2f}x  {rivals}"
        lines.append(f"{start}  {row['share_of_peak']:7.0%}  {goal}")
    return "\n".join(lines)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    torch.manual_seed(0)
    most, rows = peak(), []
    for pattern, zeros, *_ in tqdm(CASES, desc="patterns", mininterval=1):
        rows += rows_of(pattern, zeros, getattr(torch, args.dtype), most)
    machine: dict[str, Any] = {"cpu": processor(), "instructions": extensions(), "peak_of_a_core": most}
    machine |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    result = {"machine": machine, "means": means(rows), "rows": rows}
    atomic_write(args.out, json.dumps(result, indent=1) + "\n")
    print(table(result["means"]))


if __name__ == "__main__":
    main()
