r"""What a Pruner costs the host that feeds a GPU: Python of ordinary steps and events, kernels left out.

    .venv/bin/python benchmarks/prune/pruner/bench_host_time.py --out benchmarks/results/host_time.json

72 layers, as BERT-base has. Operators take the path of a GPU on whatever device there is, up to the launch of a kernel,
which is counted and not made. What is timed is observe and step, with `MaskedAdamW` its step too, whose parameters are
the pruned weights alone. Gradients lie where they lay, or elsewhere in every step, as after `zero_grad()`. Means
without the slowest tenth, since not all steps do the same.
"""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

import torch
import triton
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig
from trisparse.prune.files import atomic_write
from trisparse.prune.pruner import zeros
from trisparse.sparse_ops import Plan
from trisparse.sparse_ops.library import DIRECT
from trisparse.suite_rows import machine

LAYERS, SIDE, STEPS, FREQUENCY = 72, 64, 60, 10
OPERATORS = ("score_units", "select_units", "apply_masks", "masked_adamw", "cost_groups", "thin_groups")
CASES = {
    "4x1, gradients where they were": ("4x1", False, False),
    "4x1, moved gradients": ("4x1", True, False),
    "4x1, MaskedAdamW": ("4x1", True, True),
    "2:4, moved gradients": ("2:4", True, False),
}


class Stub:
    """A kernel that is counted."""

    launched = 0

    def __getitem__(self, grid):
        return self

    def __call__(self, *args, **constants):
        Stub.launched += 1


def leave_kernels_out(device):
    """Let operators come as far as a launch."""
    for name in OPERATORS:
        module = importlib.import_module(f"trisparse.kernels.gpu.{name}")
        for own, kernel in list(vars(module).items()):
            if isinstance(kernel, triton.JITFunction):
                setattr(module, own, Stub())
    Plan._is_for_kernels = lambda self, device: True
    look = zeros.ZeroWatch.look  # at a few weights, on a GPU before every eighth step
    zeros.ZeroWatch.look = lambda self, step, name: None if step % zeros._EVERY else look(self, step, name)
    if device.type == "cpu":
        for name in OPERATORS:
            DIRECT[name]["cpu"] = importlib.import_module(f"trisparse.sparse_ops.choosing.{name}")._kernel


def measure(pattern, moves, is_masked, device):
    """Milliseconds of ordinary steps and of events, and what they launched."""
    model = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(LAYERS))).to(device)
    config = PruningConfig(
        pattern=pattern, target_sparsity=0.5, start_step=1, end_step=STEPS, pruning_frequency=FREQUENCY,
        exclude_head=False,
    )  # fmt: skip
    pruner = Pruner(model, config, sparse_training="off")
    pruner.groups[0].scoring.seen.fill_(True)  # as a kernel would have it
    optimizer = MaskedAdamW(model.parameters(), lr=1e-3) if is_masked else None
    attachment = pruner.attach(optimizer) if optimizer else None
    times, launches = {"ordinary": [], "event": []}, {"ordinary": [], "event": []}
    for step in range(1, STEPS + 1):
        for weight in model.parameters():
            if moves or weight.grad is None:
                weight.grad = torch.ones_like(weight)
        Stub.launched = 0
        begin = time.perf_counter()
        if optimizer:
            optimizer.step()
        else:
            pruner.observe()
            pruner.step()
        milliseconds = (time.perf_counter() - begin) * 1e3
        kind = "event" if (step - 1) % FREQUENCY == 0 else "ordinary"
        if optimizer and step == 1:
            for state in optimizer.state.values():
                state["exp_avg"].normal_()  # as a kernel would have it, so that nothing is left to find out
                state["exp_avg_sq"].normal_()
        if step > FREQUENCY + 1:
            times[kind].append(milliseconds)
            launches[kind].append(Stub.launched)
    if attachment:
        attachment.detach()
    return {
        f"{kind}_ms": statistics.mean(sorted(values)[: -(len(values) // 10) or None]) for kind, values in times.items()
    } | {f"{kind}_launches": statistics.median(counts) for kind, counts in launches.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    leave_kernels_out(device)
    rows = [{"what": what, **measure(*case, device)} for what, case in CASES.items()]
    for row in rows:
        print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if args.out:
        atomic_write(args.out, json.dumps({"machine": machine(), "layers": LAYERS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
