"""Prune a small model as one of several processes: `prune_on_ranks.py MODE RANK WORLD FOLDER [CHECKPOINT …]`.

MODE is plain (one process), ddp or fsdp. All arithmetic is exact, on multiples of 1/8, so that gradients are the same
numbers however the batch is shared out. Written to FOLDER: for each case the hash of the masks after every step, and
what is needed to go on from the middle, which is done for each CHECKPOINT.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from trisparse import Pruner, PruningConfig, PruningError
from trisparse.prune.pruner import budget

STEPS, MIDDLE, SHARE = 7, 4, 6  # SHARE: every batch is cut for 6 at most, whoever gets the parts


def sizes(name, shape):
    return (4, 1) if name == "0" else (2, 3)


def beside_the_greatest(weight, grad, score):
    """Has to see the whole layer."""
    return score + (weight * grad).abs() / weight.abs().max()


CASES = {
    "4x1": {"pattern": "4x1", "target_sparsity": 0.7},
    "2:4": {"pattern": "2:4", "exclude_head": False},
    "rows": {"pattern": "1xchannel", "target_sparsity": 0.5, "exclude_head": False},
    "local": {"pattern": "1x1", "target_sparsity": 0.6, "pruning_scope": "local", "exclude_head": False},
    "bounds": {"pattern": "1x1", "min_sparsity_ratio_per_op": 0.4, "max_sparsity_ratio_per_op": 0.9},
    "parts": {"pattern": "4x1", "target_sparsity": 0.5, "pruning_type": "snip_momentum_progressive"},
    "magnitude": {"pattern": "1x1", "target_sparsity": 0.5, "pruning_type": "magnitude"},
    "unused": {"pattern": "4x1", "target_sparsity": 0.7, "excluded_op_names": ["^4$"], "exclude_head": False},
    "lamp": {"pattern": "1x1", "target_sparsity": 0.5, "pruning_type": "lamp"},
    "random": {"pattern": "4x1", "target_sparsity": 0.5, "pruning_type": "random", "seed": 1},
    "budget": {"pattern": "1x1", "target_flops": 0.4, "exclude_head": False},
    "own": {"pattern": sizes, "target_sparsity": 0.5, "pruning_type": beside_the_greatest},
}
WINDOW = {"start_step": 1, "end_step": 6, "pruning_frequency": 2}


class Pooled(nn.Sequential):
    """Has a last layer that it never uses."""

    def forward(self, x):
        for layer in list(self)[:-1]:
            x = layer(x)
        return x


def make_model(unused=False):
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4)]
    model = Pooled(*layers, nn.Linear(4, 24)) if unused else nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-8, 9, p.shape, generator=generator) / 8)
    return model


def spread(model, mode):
    if mode == "ddp":
        return nn.parallel.DistributedDataParallel(model, find_unused_parameters=isinstance(model, Pooled))
    if mode == "flat":
        model[0] = FullyShardedDataParallel(model[0], device_id=torch.device("cpu"), use_orig_params=True)
    if mode == "fsdp":
        fully_shard(model[0])  # the rest in the root, which stays whole after an evaluation
        return fully_shard(model)
    return model


def step(model, optimizer, number, rank, world):
    generator = torch.Generator().manual_seed(number)
    x = torch.randint(-2, 3, (SHARE, 2, 16), generator=generator).float()
    sign = torch.randint(0, 2, (SHARE, 2, 4), generator=generator) * 2.0 - 1
    mine = slice(rank * SHARE // world, (rank + 1) * SHARE // world)
    (world * (model(x[mine]) * sign[mine]).sum()).backward()  # data parallelism divides by world
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        model(x[mine])  # an evaluation, which must not disturb


def run(case, mode, rank, world, folder, resume_from=None):
    torch.manual_seed(rank)
    bare = make_model(case == "unused")
    model = spread(bare, mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-9)
    with torch.no_grad():
        model(torch.zeros(1, 16))  # as one evaluates before pruning; FSDP2 leaves the root's weights whole
    pruner = Pruner(model, PruningConfig(**{**WINDOW, **CASES[case]}))
    first, hashes = 0, []
    options = StateDictOptions(full_state_dict=True)
    if resume_from:
        saved = torch.load(resume_from, weights_only=True)
        set_model_state_dict(model, saved["model"], options=options)
        pruner.load_state_dict(saved["pruner"])
        first = MIDDLE
    with pruner.attach(optimizer):
        for number in range(first, STEPS):
            step(model, optimizer, number, rank, world)
            hashes.append(pruner.mask_hash())
            if number + 1 == MIDDLE and not resume_from:
                state = {"model": get_model_state_dict(model, options=options), "pruner": pruner.state_dict()}
                if rank == 0:
                    torch.save(state, folder / f"{case}.pt")
    report = pruner.report()
    masks = pruner.masks()
    whole = {k: m.full_tensor() if hasattr(m, "full_tensor") else m for k, m in masks.items()}
    return {
        "hashes": hashes,
        "pruned": [int((~mask).sum()) for mask in whole.values()],
        "sparsity": pruner.sparsity(),
        "report": report.to_dict(),
    }


def refusals():
    """What sharding makes impossible, each with its message."""
    found = {}
    half = {"target_sparsity": 0.5}
    for name, mode, keys in (
        ("cut", "fsdp", {"pattern": "8x1", **half}), ("columns", "fsdp", {"pattern": "channelx1", **half}),
        ("flat", "flat", {"pattern": "4x1", **half}), ("budget", "fsdp", {"target_flops": 0.5}),
    ):  # fmt: skip
        try:
            Pruner(spread(make_model(), mode), PruningConfig(**WINDOW, **keys))
        except PruningError as error:
            found[name] = str(error)
    return found


def disagree(rank):
    """The masks of replicas that were trained apart."""
    model = make_model()
    pruner = Pruner(model, PruningConfig(**{**WINDOW, **CASES["4x1"]}), replicas=dist.group.WORLD)
    try:
        with pruner.attach(torch.optim.SGD(model.parameters(), lr=2.0**-9)) as attached:
            for number in range(3):
                step(model, attached._optimizer, number, rank, dist.get_world_size())
    except PruningError as error:
        return str(error)
    return None


def main():
    mode, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    results = {}
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    if rank:  # it looks at no costs, but takes the first process's
        budget.make_table = None
    for case in CASES:
        if case == "budget" and mode == "fsdp":
            continue
        results[case] = run(case, mode, rank, world, folder)
    for path in sys.argv[5:]:
        results[f"resumed {Path(path).stem}"] = run(Path(path).stem, mode, rank, world, folder, path)
    if mode == "fsdp":
        results["refusals"] = refusals()
    if mode == "ddp":
        results["apart"] = disagree(rank)
    (folder / f"{rank}.json").write_text(json.dumps(results))
    if world > 1:
        dist.destroy_process_group()


main()
