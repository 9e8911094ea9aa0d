"""Prune a model in a loop of your own: 2:4 in three of four layers, with a checkpoint to go on from.

$ python examples/plain_loop.py --checkpoint plain.pt     # again, to go on after an interruption
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from trisparse import Pruner, PruningConfig, SparsityReport

EPOCHS, BATCHES = 6, 32


def make_model() -> nn.Module:
    """The last layer is the head, which stays dense."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4)
    )


def make_batches(seed: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Points and the nearest of four made-up centres."""
    centres = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(32, 32, generator=generator) for _ in range(count)]
    return [(x, torch.cdist(x, centres).argmin(1)) for x in points]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On points that were not trained on. Evaluation needs no care: forwards change no mask."""
    batches = make_batches(1, 16)
    return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in batches) / len(batches)


def train(checkpoint: Path | None = None, epochs: int = EPOCHS) -> tuple[nn.Module, SparsityReport]:
    """Train and prune, going on from the checkpoint if there is one; stop after this many epochs."""
    if checkpoint:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    # pruned from step 16 on; masks stay for the last two epochs
    config = PruningConfig(pattern="2:4", start_step=16, end_step=(EPOCHS - 2) * BATCHES, pruning_frequency=8)
    pruner = Pruner(model, config)
    parts = {"model": model, "optimizer": optimizer, "pruner": pruner}
    first = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        first = state["epoch"]
    if first >= epochs:
        return model, pruner.report()
    with pruner.attach(optimizer):
        for epoch in range(first, epochs):
            for x, y in make_batches(100 + epoch, BATCHES):
                functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
            print(f"epoch {epoch + 1}: accuracy {accuracy(model):.3f}, sparsity {pruner.sparsity():.3f}")
            if checkpoint:
                state = {name: part.state_dict() for name, part in parts.items()}
                half = checkpoint.with_suffix(".half")  # an interruption leaves the checkpoint before
                torch.save(state | {"epoch": epoch + 1}, half)
                half.replace(checkpoint)
    return model, pruner.report()


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and print what became zero."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="file to write after each epoch, and to go on from")
    _, report = train(parser.parse_args(argv).checkpoint)
    print(report)


if __name__ == "__main__":
    main()
