"""The end of a run: results, pictures, and what a reader of the numbers must know besides."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from typing import Any

import torch

from trisparse.prune.costs.model_time import text_examples
from trisparse.prune.data.metrics import majority_metrics
from trisparse.prune.deploy.checkpoint import from_pretrained
from trisparse.prune.deploy.compress_checkpoint import compress_checkpoint
from trisparse.prune.deploy.model_card import CardNotes
from trisparse.prune.glue.eval import answer
from trisparse.prune.glue.output import COMPRESSED, push_to_hub, save_model, save_results
from trisparse.prune.glue.ranks import model_state
from trisparse.prune.glue.setup import Setup
from trisparse.prune.layers.census import count_parameters
from trisparse.prune.pruner.plots import plot_history
from trisparse.prune.pruner.report import SparsityReport
from trisparse.prune.speed import times_faster

_NEAR = 0.02  # to what always giving the most frequent answer gets


def finish(s: Setup, progress: dict[str, Any], teacher_eval: dict[str, float]) -> dict[str, Any]:
    """Write the last model, the results and the pictures; upload them if asked to. Returns the results."""
    report = s.pruner.report() if s.pruner else None
    results = make_results(s, progress, teacher_eval, report)
    weights, pruner_state = model_state(s.model), s.pruner.state_dict() if s.pruner else None
    if s.accelerator.is_main_process:
        save_model(s.folder, s.bare, weights, s.tokenizer, pruner_state, card_notes(s, results["eval"]))
        if report:
            report.save(s.folder)
        _plot(s, progress, results)
        history = {key: value for key, value in progress.items() if key in ("steps", "evals", "masks")}
        save_results(s.folder, results, history)
        if report:
            s.accelerator.print(report)
        metrics = ", ".join(f"{key} {value:.4f}" for key, value in results["eval"].items())
        s.accelerator.print(f"eval: {metrics}; written to {s.folder}")
        for note in results["notes"]:
            if report is None or note not in report.notes:  # which were printed with it
                s.accelerator.print(note)
        if s.args.training.compress:
            said, results["speed"] = _compressed(s, s.args.training.compress, results)
            save_results(s.folder, results, history)
            s.accelerator.print(said)
        if s.args.training.push_to_hub:
            s.accelerator.print(f"uploaded to {push_to_hub(s.folder, s.args)}")
    s.accelerator.end_training()
    return results


def _plot(s: Setup, progress: dict[str, Any], results: dict[str, Any]) -> None:
    levels, target = dict(results["teacher_eval"]), results["target_sparsity"]
    if s.pruner and isinstance(target, float) and not any(group.is_lock for group in s.pruner.config.groups):
        levels["sparsity"] = target
    title = f"{results['task']}, {results['pattern']}" + (f" at {target:g}" if "sparsity" in levels else "")
    plot_history(progress["steps"], progress["evals"], levels, results["pattern"], title, s.folder / "history.png")


def card_notes(s: Setup, metrics: dict[str, float]) -> CardNotes:
    """What the card of a model of this run says besides what is counted in its files."""
    return CardNotes(metrics, pattern=_patterns(s), base_model=s.args.model.model_name_or_path or "")


def _patterns(s: Setup) -> str:
    groups = s.pruner.config.groups if s.pruner else ()
    return " + ".join(sorted({str(group.pattern) for group in groups}))


def _compressed(s: Setup, prefer: str, results: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Pack the best model, or the last where none is, for its budget's tokens, or for one text and a batch of them.

    Returns what came out, in words, and how many times as fast as dense it is, for `all_results.json`.
    """
    best, target, length = results["best_eval"], s.folder / COMPRESSED, s.args.data.max_length
    source = s.folder if best is None else s.folder / "best"
    model = from_pretrained(source).to(s.accelerator.device).eval()
    budgets = [budget for budget in (s.pruner.budgets if s.pruner else ()) if budget.budget.tokens]
    tokens = (
        budgets[0].budget.tokens
        if budgets
        else tuple(sorted({length, length * s.args.data.per_device_eval_batch_size}))
    )
    dense = copy.deepcopy(model)
    notes = replace(card_notes(s, best or results["eval"]), metrics_of="the model before it was compressed")
    report = compress_checkpoint(model, source, target, prefer, tokens, notes=notes)
    packed = from_pretrained(target).to(s.accelerator.device).eval()
    gains = {count: times_faster(dense, packed, example) for count, example in text_examples(dense, tokens).items()}
    speed: dict[str, Any] = {"times_faster": gains, "mean": statistics.harmonic_mean(gains.values())}
    said = ", ".join(f"{gain:.2f} with {count} tokens" for count, gain in gains.items())
    if budgets:
        speed["promised"] = 1 / budgets[0].cost()
        said += f"; promised {speed['promised']:.2f}, measured {speed['mean']:.2f} over these"
    return f"compressed for {prefer}: {report.summary()}; times as fast as dense: {said}; written to {target}", speed


def make_results(
    s: Setup, progress: dict[str, Any], teacher_eval: dict[str, float], report: SparsityReport | None
) -> dict[str, Any]:
    """What all_results.json holds."""
    zeros, weights, all_zeros, everything = count_parameters(s.bare)
    groups = s.pruner.config.groups if s.pruner else ()
    targets: list[float | str] = sorted({group.goal for group in groups}, key=str) or [0.0]
    last = progress["evals"][-1]
    metrics = {key: value for key, value in last.items() if key not in ("step", "epoch")}
    return {
        "task": s.task.name,
        "pattern": _patterns(s) or "dense",
        "target_sparsity": targets[0] if len(targets) == 1 else targets,
        "eval": metrics,
        "best_eval": progress["best"] and progress["best"]["metrics"],
        "teacher_eval": teacher_eval,
        "sparsity": {
            "pruned_layers": report.pruned_layers if report else 0.0,
            "matmul_gemm_conv": zeros / weights,
            "all_parameters": all_zeros / everything,
        },
        "pattern_verified": report.pattern_verified if report else None,
        "complete": report.complete if report else None,
        "epochs": progress["step"] / s.plan.steps_per_epoch,
        "train_seconds": progress["seconds"],
        "steps_per_second": progress["step"] / progress["seconds"],
        "device": _device(s.accelerator.device),
        "processes": s.accelerator.num_processes,
        "versions": s.versions,
        "steps": s.plan.to_dict(),
        "notes": _notes(s, progress, metrics, report),
        "arguments": s.args.to_dict(),
    }


def _notes(s: Setup, progress: dict[str, Any], metrics: dict[str, float], report: SparsityReport | None) -> list[str]:
    notes = [*s.notes, *(report.notes if report else ())]
    if s.cooldown is not None:
        notes.append(s.cooldown.note())
    if progress["best"] is None:
        notes.append("no evaluation came after the last pruning event, so there is no best model")
    references = [row["labels"] for row in next(iter(s.validation.values())).dataset]  # type: ignore[attr-defined]
    majority, metric = majority_metrics(s.task, references), s.task.best[0]
    if metrics[metric] <= majority.get(metric, 0.0) + _NEAR:
        notes.append(_near_majority(s, metric, metrics[metric], majority.get(metric, 0.0)))
    return notes


def _near_majority(s: Setup, metric: str, value: float, majority: float) -> str:
    """Whether a model that is no better than one fixed answer gives one: it is asked once more."""
    answers, _ = answer(s.accelerator, s.model, s.task, next(iter(s.validation.values())))
    if len(set(answers)) == 1:
        return f"collapsed: all {len(answers)} answers are the same; {metric} {value:.4f}"
    return f"{metric} {value:.4f} is within {_NEAR} of always giving the most frequent answer, {majority:.4f}"


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
