"""`trisparse train`: fine-tune on a GLUE task, pruning and distilling on the way.

The loop is `train` and reads from top to bottom: batch, loss, backward, step, and once an epoch
evaluate, save, checkpoint. Pruning rides on the optimizer's hooks.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.args import GlueArguments

if TYPE_CHECKING:
    from trisparse.prune.glue.pace import Pace
    from trisparse.prune.glue.setup import Setup

_LOG_EVERY = 10  # optimizer steps between looks at the loss, each of which waits for the device


def run(args: GlueArguments) -> dict[str, Any]:
    """One run, from arguments to files; returns what all_results.json holds.

    Raises:
        PruningError: whatever the user can mend.
    """
    from trisparse.prune.glue.finish import finish
    from trisparse.prune.glue.setup import set_up
    from trisparse.prune.pruner.embedding_gradients import kept_embedding_gradients

    setup = set_up(args)
    # what averages the gradients of several processes takes no sparse ones, nor does a compiled graph
    is_plain = setup.accelerator.num_processes == 1 and not args.training.compile
    with kept_embedding_gradients(setup.bare) if is_plain else contextlib.nullcontext():
        progress, teacher_eval = train(setup)
    return finish(setup, progress, teacher_eval)


def train(s: Setup) -> tuple[dict[str, Any], dict[str, float]]:
    """Train, evaluating and saving after every epoch.

    Returns:
        The progress (step, epoch, seconds, losses, evaluations, the best of them), and the teacher's evaluation.
    """
    import torch
    from tqdm.auto import tqdm
    from transformers import get_scheduler

    from trisparse.prune.data.metrics import best_value
    from trisparse.prune.glue.distill import distillation_loss
    from trisparse.prune.glue.eval import evaluate
    from trisparse.prune.glue.finish import card_notes
    from trisparse.prune.glue.mask_history import begin_history
    from trisparse.prune.glue.output import clear_old_run, save_checkpoint, save_model
    from trisparse.prune.glue.pace import Pace
    from trisparse.prune.glue.ranks import is_finite
    from trisparse.prune.glue.state import resume, states, whole_state
    from trisparse.prune.glue.trackers import start_trackers

    accelerator, model, optimizer, teacher, pruner = s.accelerator, s.model, s.optimizer, s.teacher, s.pruner
    t, m, total = s.args.training, s.args.model, s.plan.total_steps
    scheduler = get_scheduler(t.lr_scheduler_type, optimizer, t.num_warmup_steps, total)
    progress: dict[str, Any] = {"step": 0, "epoch": 0, "seconds": 0.0, "best": None, "steps": [], "evals": []}
    if t.resume_from_checkpoint:
        progress = resume(s, scheduler)
    if pruner:
        progress.setdefault("masks", begin_history(pruner))
    earlier_logs = start_trackers(accelerator, s.folder, progress["step"])
    if s.cooldown:
        s.cooldown.names = progress.get("packed_layers")
    accelerator.print(f"output_dir {s.folder}; {s.task}")
    accelerator.print(s.plan)
    for note in s.notes:
        accelerator.print(f"warning: {note}")
    if unfelt := s.args.unfelt_flags():
        accelerator.print(f"without --do_prune nothing is pruned; no effect: {', '.join(unfelt)}")
    teacher_eval = evaluate(accelerator, teacher.model, s.task, s.validation) if teacher else {}
    handle = pruner.attach(optimizer) if pruner else None

    bar = tqdm(
        total=total, initial=progress["step"], unit="step", disable=not accelerator.is_main_process, mininterval=1
    )
    losses: list[torch.Tensor] = []
    pace = Pace(progress["step"])
    while progress["step"] < total:
        s.sampler.epoch = progress["epoch"]
        model.train()
        began = time.perf_counter()
        pace.go_on()
        with s.cooldown.epoch() if s.cooldown else contextlib.nullcontext():
            for batch in s.train_loader:
                index = batch.pop("index")
                if t.compile:
                    torch.compiler.cudagraph_mark_step_begin()  # outputs of the step before may be written over
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        outputs = model(**batch, output_hidden_states=teacher is not None)
                    loss = outputs.loss
                    if teacher is not None:
                        with accelerator.autocast():
                            target = teacher({k: v for k, v in batch.items() if k != "labels"}, index)
                        distance = distillation_loss(outputs, target, batch["attention_mask"], m.distill_mode)
                        loss = m.distill_loss_weight * distance
                        if m.label_loss_weight:
                            loss = loss + m.label_loss_weight * outputs.loss
                    accelerator.backward(loss)
                    optimizer.step()
                    if accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped:
                        scheduler.step()
                    optimizer.zero_grad()
                losses.append(loss.detach().clone())
                if not accelerator.sync_gradients or accelerator.optimizer_step_was_skipped:
                    continue
                progress["step"] += 1
                bar.update()
                if progress["step"] % _LOG_EVERY == 0:
                    _log(s, progress, losses, bar, pace)
                if progress["step"] == total:
                    break
        if losses:
            _log(s, progress, losses, bar, pace)
        pace.pause()
        progress["seconds"] += time.perf_counter() - began

        if not is_finite(accelerator, s.bare):
            raise _diverged("weights that are no numbers", progress, bar)
        progress["epoch"] += 1
        metrics = evaluate(accelerator, model, s.task, s.validation)
        progress["evals"].append({"step": progress["step"], "epoch": progress["epoch"], **metrics})
        accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=progress["step"])
        if accelerator.is_main_process:  # a bar writes even if it is disabled
            bar.write(f"epoch {progress['epoch']}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        best = progress["best"]
        is_better = best is None or best_value(s.task, metrics) > best_value(s.task, best["metrics"])
        is_best = is_better and (pruner is None or pruner.masks_are_final)
        if is_best:
            progress["best"] = {"metrics": metrics, "step": progress["step"]}
        if s.cooldown:
            progress["packed_layers"] = s.cooldown.names
        parts = states(s, scheduler)
        checkpoint = whole_state(s, parts, progress)
        if accelerator.is_main_process:
            if progress["epoch"] == 1:
                clear_old_run(s.folder, earlier_logs)  # not before there is something to put in its place
            if is_best:
                best_parts = parts["model"], s.tokenizer, parts.get("pruner")
                save_model(s.folder / "best", s.bare, *best_parts, card_notes(s, metrics))
            save_checkpoint(s.folder, checkpoint)
        accelerator.wait_for_everyone()
    bar.close()
    if handle is not None:
        handle.detach()
    return progress, teacher_eval


def _log(s: Setup, progress: dict[str, Any], losses: list[Any], bar: Any, pace: Pace) -> None:
    """Look at the losses since the last look, and stop the run when they are no numbers."""
    import torch

    from trisparse.prune.glue.mask_history import record_masks
    from trisparse.prune.glue.trackers import values_to_log

    loss = float(s.accelerator.reduce(torch.stack(losses).mean(), "mean"))
    losses.clear()
    if not math.isfinite(loss):
        raise _diverged(f"loss {loss}", progress, bar)
    rate = pace.look(progress["step"])
    row = {"step": progress["step"], "loss": loss, "sparsity": 0.0, "steps_per_second": rate}
    masks: Any = progress.get("masks")
    flips: list[int] = []
    if s.pruner:
        flips = record_masks(masks, s.pruner)
        row |= {"sparsity": sum(masks["pruned"][-1]) / sum(masks["weights"]), "flips": sum(flips)}
    progress["steps"].append(row)
    if s.accelerator.trackers:
        s.accelerator.log(values_to_log(row, masks, flips), step=progress["step"])
    sparsity = f"sparsity {row['sparsity']:.3f}, " if s.pruner else ""
    bar.set_postfix_str(f"loss {loss:.4f}, {sparsity}{rate:.2f} steps/s", refresh=False)


def _diverged(what: str, progress: dict[str, Any], bar: Any) -> PruningError:
    bar.close()
    kept = f"the checkpoint of epoch {progress['epoch']} is kept" if progress["epoch"] else "nothing was saved yet"
    return PruningError(f"{what} at step {progress['step']}; {kept}; lower --learning_rate or --distill_loss_weight")
