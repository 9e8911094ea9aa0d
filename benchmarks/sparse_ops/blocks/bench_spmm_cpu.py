r"""Products with column vectors on a CPU against F.linear, and a model of BERT-base's shapes against itself compressed.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse_ops/blocks/bench_spmm_cpu.py \
        --out benchmarks/results/spmm_cpu.json

Random weights, pruned in the pattern itself. Dense and sparse are run in turns; a ratio is the median over the turns.
What is multiplied lies in the caches as far as it fits, as it does layer after layer in a small model.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from tqdm import tqdm

from trisparse import compress, prune_once
from trisparse.kernels.cache import instructions, processor
from trisparse.sparse_ops import pack_blocks, vector_spmm

SHAPES = [(768, 768), (3072, 768), (768, 3072)]
TOKENS = [1, 32, 128, 512, 1024]
ZEROS = [0.5, 0.8, 0.9, 0.95]
_SECONDS = 0.4  # of turns for one pair


def in_turns(dense: Callable[[], Any], sparse: Callable[[], Any], seconds: float = _SECONDS) -> dict[str, float]:
    """Medians in milliseconds, and the median of the ratios, which a busy machine disturbs least."""
    times: list[tuple[float, float]] = []
    for warm_up in (dense, sparse, dense, sparse):
        warm_up()
    until = time.perf_counter() + seconds
    while len(times) < 7 or time.perf_counter() < until:
        begin = time.perf_counter()
        dense()
        middle = time.perf_counter()
        sparse()
        times.append((middle - begin, time.perf_counter() - middle))
    first, second = zip(*times, strict=True)
    ratio = statistics.median(a / b for a, b in times)
    return {"dense_ms": statistics.median(first) * 1e3, "sparse_ms": statistics.median(second) * 1e3, "times": ratio}


@torch.no_grad()
def products(dtype: torch.dtype) -> list[dict[str, Any]]:
    rows = []
    for zeros in tqdm(ZEROS, desc="products", mininterval=1):
        for high, wide in SHAPES:
            kept = (torch.rand(high // 4, wide) >= zeros).repeat_interleave(4, 0)
            weight, bias = (torch.randn(high, wide) * kept).to(dtype), torch.randn(high).to(dtype)
            matrix = pack_blocks(weight, (4, 1))
            for tokens in TOKENS:
                x = torch.randn(tokens, wide).to(dtype)
                found, want = vector_spmm(x, matrix, bias), linear(x, weight, bias)
                torch.testing.assert_close(found.float(), want.float(), rtol=1e-2, atol=1e-2 * float(want.abs().max()))
                times = in_turns(
                    lambda x=x, w=weight, b=bias: linear(x, w, b), lambda x=x, m=matrix, b=bias: vector_spmm(x, m, b)
                )
                row = {"pattern": "4x1", "zeros": zeros, "shape": [high, wide], "tokens": tokens, "dtype": str(dtype)}
                rows.append(row | times)
    return rows


@torch.no_grad()
def model(texts: int) -> dict[str, Any]:
    """Four layers of BERT-base, 128 tokens a text, 4x1 at 0.9."""
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(num_hidden_layers=4), add_pooling_layer=False).eval()
    prune_once(bert, pattern="4x1", target_sparsity=0.9, pruning_scope="local", exclude_head=False)
    ids = torch.randint(1000, (texts, 128))
    sparse, report = compress(copy.deepcopy(bert), tokens=(texts * 128,), example={"input_ids": ids})
    assert report.verified
    times = in_turns(lambda: bert(ids), lambda: sparse(ids), 10)
    return {"model": "BERT-base, 4 layers", "texts": texts, "zeros": 0.9, "summary": report.summary()} | times


def summary(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for zeros in ZEROS:
        for tokens in ([1], TOKENS[1:]):
            gains = [row["times"] for row in rows if row["zeros"] == zeros and row["tokens"] in tokens]
            which = "1 token" if tokens == [1] else f"{tokens[0]} to {tokens[-1]} tokens"
            lines.append(f"4x1 at {zeros}, {which}: {statistics.geometric_mean(gains):.2f} times F.linear")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    torch.manual_seed(0)
    rows = products(getattr(torch, args.dtype))
    models = [model(texts) for texts in (1, 8)] if args.dtype == "float32" else []
    flags = [name for name in ("avx2", "avx512f", "avx512_bf16", "asimd") if name in instructions().split()]
    machine = {"cpu": processor(), "instructions": flags, "threads": torch.get_num_threads()}
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    result = {"machine": machine | versions, "geometric_means": summary(rows), "models": models, "rows": rows}
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    for line in [*summary(rows), *(f"{m['model']}, {m['texts']} texts: {m['times']:.2f} times dense" for m in models)]:
        print(line)


if __name__ == "__main__":
    main()
