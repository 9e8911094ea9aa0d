"""A step of AdamW over weights of which nine in ten are pruned and get no gradient: early, and with faded moments.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/prune/pruner/bench_faded_moments_cpu.py --out …

The weights are those of MiniLM-L6's encoder, pruned to 4x1. Moments of the pruned ones are what 0.9 to the power of the
steps leaves of them: normal numbers at first, after some 700 steps below the smallest normal one, where rounding keeps
them. Torch's AdamW, as it is and where the CPU flushes such numbers, and ours, which scores and masks too, take turns.
Writes medians as JSON, and a table.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from trisparse.kernels.cache import extensions, processor
from trisparse.prune.files import atomic_write
from trisparse.prune.text_table import aligned
from trisparse.sparse_ops import Plan, adamw_rates, masked_adamw

SHAPES = [(384, 384)] * 24 + [(1536, 384)] * 6 + [(384, 1536)] * 6
BLOCK, DENSITY, BETAS, ROUNDS = (4, 1), 0.1, (0.9, 0.9), 15
FADED = 2.0**-148  # 0.9 times this is this


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    found = {
        "machine": {"processor": processor(), "instructions": extensions(), "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "rows": rows(SHAPES, ROUNDS),
    }
    atomic_write(args.out, json.dumps(found, indent=1) + "\n")
    print(table(found["rows"]))


def rows(shapes: list[tuple[int, int]], rounds: int) -> list[dict]:
    """Milliseconds of a step of each optimizer, by what the moments of pruned weights are."""
    torch.manual_seed(0)
    times: dict[tuple[str, str], list[float]] = {}
    masks = [torch.rand(n // BLOCK[0], m) < DENSITY for n, m in shapes]
    for _ in range(rounds):
        for moments, value in (("early", 1e-10), ("faded", FADED)):
            for name, step in steps(shapes, masks, value).items():
                step()  # makes what it needs once
                begin = time.perf_counter()
                step()
                times.setdefault((name, moments), []).append((time.perf_counter() - begin) * 1e3)
    return [
        {"optimizer": name, "moments": moments, "ms": statistics.median(ms)} for (name, moments), ms in times.items()
    ]


def steps(shapes: list[tuple[int, int]], masks: list[torch.Tensor], value: float) -> dict:
    """A step of each optimizer, over weights and moments of its own."""
    kept = [mask.repeat_interleave(BLOCK[0], 0) for mask in masks]
    weights = [torch.nn.Parameter(torch.randn(shape) * keep) for shape, keep in zip(shapes, kept, strict=True)]
    for weight, keep in zip(weights, kept, strict=True):
        weight.grad = 1e-3 * torch.randn_like(weight) * keep
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=BETAS, fused=True)
    for weight, keep in zip(weights, kept, strict=True):
        moment = torch.where(keep, 1e-4, value)
        optimizer.state[weight] = {"step": torch.tensor(999.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    ours = [[t.clone() for t in group] for group in (
        [w.detach() for w in weights], [w.grad for w in weights],
        *([optimizer.state[w][moment] for w in weights] for moment in ("exp_avg", "exp_avg_sq")),
    )]  # fmt: skip
    scores = [torch.where(mask, 1e-4, value) for mask in masks]
    rates = torch.tensor([adamw_rates(1e-4, BETAS, 1e-8, 1e-2, 1000)] * len(shapes), dtype=torch.float64)
    seen, plan = torch.zeros(len(shapes), dtype=torch.bool), Plan()

    def flushed() -> None:
        torch.set_flush_denormal(True)
        optimizer.step()
        torch.set_flush_denormal(False)

    def masked() -> None:
        masked_adamw(*ours, rates, scores, masks, [BLOCK] * len(shapes), seen, plan=plan)

    return {"AdamW": optimizer.step, "AdamW, flushed": flushed, "MaskedAdamW": masked}


def table(found: list[dict]) -> str:
    """A line for each optimizer."""
    by_name: dict[str, dict[str, float]] = {}
    for row in found:
        by_name.setdefault(row["optimizer"], {})[row["moments"]] = row["ms"]
    lines = [[name, f"{ms['early']:.1f} ms", f"{ms['faded']:.1f} ms"] for name, ms in by_name.items()]
    return "\n".join(aligned([["a step of", "early", "moments faded"], *lines]))


if __name__ == "__main__":
    main()
