"""Prune in PyTorch Lightning: a callback of your own, right under accumulation, clipping, 16 bits and resuming.

$ python examples/lightning_callback.py --out out
$ python examples/lightning_callback.py --out out --resume out/last.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from trisparse import Pruner, PruningConfig, PruningError, SparsityReport


class LightningPruning(pl.Callback):
    """Prunes while a Lightning Trainer trains with automatic optimization; steps are its optimizer's.

    Attributes:
        pruner: made when training begins; its state is in Lightning's checkpoints.
        report: zeros per layer, counted when training has ended.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.config = config
        self.pruner: Pruner | None = None
        self.report: SparsityReport | None = None
        self._saved: dict[str, Any] = {}
        self._detach: list[Callable[[], None]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        saved, self._saved = self._saved or self.state_dict(), {}
        self.pruner, self.report = Pruner(pl_module, self.config), None
        if trainer.global_step:  # weights are restored by now, and lie on their device
            if not saved:
                raise PruningError(f"checkpoint: has no Pruner's state, to go on from step {trainer.global_step}")
            self.pruner.load_state_dict(saved)
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            self._detach = [self.pruner.attach(optimizer).detach]  # fp16: step() comes after backward, or is skipped
        else:
            self.pruner.start()
            before = optimizer.register_step_pre_hook(self._before_step)
            self._detach = [before.remove, optimizer.register_step_post_hook(self._after_step).remove]

    def _before_step(self, optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        def closure() -> Any:  # Lightning's runs forward, backward and clipping inside step(); score what comes out
            result = kwargs["closure"]()
            self.pruner.observe()
            return result

        return args, {**kwargs, "closure": closure}

    def _after_step(self, optimizer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        rates = {id(p): group.get("lr") for group in optimizer.param_groups for p in group["params"]}
        self.pruner.step(lr=lambda layer: rates[id(layer.weight)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for detach in self._detach:
            detach()
        self.report = self.pruner.report()

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict() if self.pruner else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict


class Net(pl.LightningModule):
    """The last layer is the head, which stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, y = batch
        return functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def make_loader() -> DataLoader:
    """Points and the nearest of four made-up centres, always in one order, so that a resumed run sees the same."""
    generator = torch.Generator().manual_seed(0)
    x, centres = torch.randn(512, 32, generator=generator), torch.randn(4, 32, generator=generator)
    return DataLoader(TensorDataset(x, torch.cdist(x, centres).argmin(1)), batch_size=16)


def train(out: str, resume: str | None = None, callbacks: Sequence[pl.Callback] = (), **settings: Any) -> tuple:
    """Train and prune over four epochs of 32 batches; `settings` are the Trainer's. Returns model and callback."""
    pl.seed_everything(0, verbose=False)
    config = PruningConfig(pattern="4x1", target_sparsity=0.75, start_step=4, end_step=48, pruning_frequency=4)
    model, pruning = Net(), LightningPruning(config)
    last = pl.callbacks.ModelCheckpoint(out, save_last=True, enable_version_counter=False)
    trainer = pl.Trainer(
        max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[pruning, last, *callbacks], **settings,
    )  # fmt: skip
    trainer.fit(model, make_loader(), ckpt_path=resume, weights_only=True if resume else None)
    return model, pruning


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and print what became zero."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="lightning", help="folder of the checkpoints")
    parser.add_argument("--resume", help="checkpoint to go on from")
    parser.add_argument("--precision", default="32-true", help="such as bf16-mixed; 16-mixed needs a GPU")
    parser.add_argument("--accumulate", type=int, default=1, help="batches an optimizer step")
    args = parser.parse_args(argv)
    if args.resume and not Path(args.resume).is_file():
        parser.error(f"--resume: {args.resume} is no checkpoint")
    settings = {"precision": args.precision, "accumulate_grad_batches": args.accumulate}
    _, pruning = train(args.out, args.resume, accelerator="auto", devices=1, **settings)
    print(pruning.report or f"{args.resume} is of a training that has ended")


if __name__ == "__main__":
    main()
