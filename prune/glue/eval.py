"""Evaluate a model on a task's validation sets."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from trisparse.prune.data.metrics import compute_metrics
from trisparse.prune.data.tasks import Task
from trisparse.prune.evaluating import evaluating


def evaluate(
    accelerator: Accelerator, model: nn.Module, task: Task, loaders: dict[str, DataLoader]
) -> dict[str, float]:
    """Metrics on the first set; those of a second one have its name behind them."""
    results: dict[str, float] = {}
    for number, (name, loader) in enumerate(loaders.items()):
        suffix = f"_{name.removeprefix('validation_')}" if number else ""
        metrics = compute_metrics(task, *answer(accelerator, model, task, loader))
        results |= {k + suffix: v for k, v in metrics.items()}
    return results


@torch.no_grad()
def answer(
    accelerator: Accelerator, model: nn.Module, task: Task, loader: DataLoader
) -> tuple[list[float], list[float]]:
    """What the model answers to each example of a set, over all processes, and what is right."""
    predictions: list[torch.Tensor] = []  # on the device: a look at each batch would wait for it
    references: list[torch.Tensor] = []
    with evaluating(model):
        for batch in loader:
            inputs = {k: v for k, v in batch.items() if k not in ("index", "labels")}
            with accelerator.autocast():
                logits = model(**inputs).logits.float()
            # a copy: a compiled model writes its next outputs where these lie
            answers = logits.squeeze(1).clone() if task.is_regression else logits.argmax(1)
            answers, labels = accelerator.gather_for_metrics((answers, batch["labels"]))
            predictions.append(answers)
            references.append(labels)
    return torch.cat(predictions).tolist(), torch.cat(references).tolist()
