"""Prune inside `transformers.Trainer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trisparse.prune.config.config import PruningConfig
from trisparse.prune.errors import PruningError, one_line
from trisparse.prune.files import atomic_save
from trisparse.prune.layers.shards import is_sharded
from trisparse.prune.pruner.attach import Attachment
from trisparse.prune.pruner.pruner import Pruner
from trisparse.prune.pruner.report import SparsityReport

if TYPE_CHECKING:
    from transformers import Trainer

_STATE = "pruner.pt"
_OF_CALLBACKS: WeakSet[Attachment] = WeakSet()
_TRAINER_STEP = "trainer_step"


class PruningCallback(TrainerCallback):
    """Prunes while a Trainer trains: `Trainer(..., callbacks=[PruningCallback(config)])`.

    Steps are optimizer steps, whatever the gradient accumulation; those that a loss scaler skips do not count. Mixed
    precision, checkpoints and resuming work as without it. Each checkpoint gets the Pruner's state in `pruner.pt`. The
    Trainer does not say which checkpoint it resumes from: it is looked for in `output_dir`, unless
    `TrainingArguments(resume_from_checkpoint=...)` names another folder, too. Logs and metrics are left alone, unless
    `log_to` is called.

    With `load_best_model_at_end`, and for early stopping, only evaluations after the last pruning event count.

    Args:
        config: what to prune, how far and when, as `Pruner` takes it, where fractions are those of the Trainer's steps;
            or a function that makes it of the parameters of a trial of
            `hyperparameter_search`, a dict that is empty in any other training.
        sparse_training: as `Pruner` takes it, and
        example: keywords of a forward, under `target_speedup`.

    Attributes:
        pruner: made when training begins.
        report: zeros per layer, counted when training has ended; it says whether the schedule was complete.
        history: optimizer step and sparsity of the masks, a pair for each entry of the log while it trains.

    Example:
        >>> def config(params):
        ...     target = params.get("target_sparsity", 0.9)
        ...     return PruningConfig(target_sparsity=target, start_step=1, end_step=100, pruning_frequency=10)
        >>> callback = PruningCallback(config)  # and trial.suggest_float("target_sparsity", 0.5, 0.9) in hp_space
    """

    def __init__(
        self, config: PruningConfig | Mapping[str, Any] | str | Path | Callable[[dict[str, Any]], Any],
        sparse_training: str = "auto", example: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config = config if callable(config) else PruningConfig.of(config)
        self.sparse_training, self.example = sparse_training, example
        self.pruner: Pruner | None = None
        self.report: SparsityReport | None = None
        self.history: list[tuple[int, float]] = []
        self._attachment: Attachment | None = None
        self._trainer: Trainer | None = None
        self._logged_step = -1

    def log_to(self, trainer: Trainer) -> None:
        """Have a Trainer log `sparsity`, of the masks, after each pruning event, for all that its `report_to` names.

        It is an entry of its own in the log, since the Trainer shows a log to those it reports to before it shows it to
        callbacks like this one. So the losses stay averages over `logging_steps`, and metrics what they were.

        Args:
            trainer: the one whose callback this is.
        """
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Build the Pruner over the prepared model, restore it if the Trainer resumes, and attach it.

        Raises:
            PruningError: settings that go against each other, or a checkpoint without a Pruner's state or with that of
                another run.
        """
        if self._attachment is not None:  # of a training that broke off
            self._attachment.detach()
            self._attachment = None
        config = self._config(state).in_steps(state.max_steps)
        last = max((group.window[1] for group in config.groups if not group.is_lock), default=0)
        if state.max_steps is not None and last > state.max_steps:
            raise PruningError(
                f"end_step: want at most {state.max_steps}, the steps that the Trainer makes, got {last}"
            )
        if state.is_hyper_param_search and args.save_strategy != "no":
            raise PruningError(
                "save_strategy: want 'no' in hyperparameter_search, whose checkpoints the Trainer does not name"
            )
        model = kwargs["model"]
        # it comes without the wrapper that would tell the Pruner of the other processes
        has_copies = args.world_size > 1 and not any(map(is_sharded, model.parameters()))
        replicas = torch.distributed.group.WORLD if has_copies else None
        pruner = Pruner(model, config, replicas, self.sparse_training, self.example)
        if state.global_step:
            _restore(pruner, _resumed_folder(args, state) / _STATE, state.global_step)
        self._attachment = attachment = pruner.attach(kwargs["optimizer"])
        _OF_CALLBACKS.add(attachment)
        if any(other in _OF_CALLBACKS for other in attachment.beside()):
            attachment.detach()
            self._attachment = None
            raise PruningError(
                f"callbacks: two PruningCallbacks would write to one {_STATE}; give one of them both configs, as a list"
            )
        self.pruner, self.report, self.history = pruner, None, []
        self._logged_step = pruner.step_count if state.global_step else -1
        self._log_event(control)

    def _config(self, state: TrainerState) -> PruningConfig:
        if isinstance(self.config, PruningConfig):
            return self.config
        return PruningConfig.of(self.config(dict(getattr(state, "trial_params", None) or {})))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget which evaluation was the best as long as masks may change: its weights are not pruned to the end."""
        if self.pruner is not None and not self.pruner.masks_are_final:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log an event, and look at all zeros before the Trainer evaluates or saves.

        Raises:
            PruningError: weights that the masks prune came back.
        """
        self._log_event(control)
        if self.pruner is not None and (control.should_evaluate or control.should_save):
            self.pruner.check_zeros()

    def _log_event(self, control: TrainerControl) -> None:
        if self.pruner is None or self._trainer is None or self.pruner.step_count == self._logged_step:
            return
        self._logged_step = step = self.pruner.step_count  # which stays where a loss scaler skips a step
        if any(group.sparsity(step) is not None for group in self.pruner.groups):
            is_due = control.should_log  # of the loss; the Trainer takes any log for it
            self._trainer.log({"sparsity": self.pruner.sparsity()})
            control.should_log = is_due

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As `on_step_end`, for what comes once an epoch."""
        self.on_step_end(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the Pruner's state into the Trainer's checkpoint.

        Raises:
            PruningError: weights that the masks prune came back.
        """
        if self.pruner is None:
            return
        whole = self.pruner.state_dict()  # to which all processes add their part
        whole[_TRAINER_STEP] = state.global_step  # which counts skipped steps, too
        if state.is_world_process_zero:
            atomic_save(_folder(args, state) / _STATE, lambda path: torch.save(whole, path))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the sparsity that the masks have; what is logged may be metrics, whose sum a search goes by."""
        if self.pruner is not None and self._attachment is not None:
            self.history.append((self.pruner.step_count, self.pruner.sparsity()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach, count zeros, and warn if the last event did not come."""
        if self._attachment is not None and self.pruner is not None:
            self._attachment.detach()
            self._attachment = None
            self.report = self.pruner.report()
            if not self.pruner.masks_are_final and not state.is_hyper_param_search:  # which ends trials early
                warnings.warn(_unfinished(self.pruner, state), stacklevel=2)


def _unfinished(pruner: Pruner, state: TrainerState) -> str:
    """Why the last event did not come."""
    skipped = state.global_step - pruner.step_count
    if skipped and state.global_step >= state.max_steps:
        return (
            f"end_step: the loss scaler skipped {skipped} of {state.global_step} steps, so the last event did not "
            f"come; want at most {pruner.step_count}"
        )
    return (
        f"end_step: training stopped at step {state.global_step}, before the last event; the sparsity is "
        f"{pruner.sparsity():.4f}"
    )


def _restore(pruner: Pruner, path: Path, step: int) -> None:
    elsewhere = "if the Trainer resumes from another folder, set resume_from_checkpoint of TrainingArguments to it, too"
    if not path.is_file():
        raise PruningError(f"{path}: is missing, so pruning cannot go on from step {step}; {elsewhere}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved_step = saved.pop(_TRAINER_STEP)
    except Exception as error:
        raise PruningError(f"{path}: is damaged: {one_line(error)}") from error
    if saved_step != step:
        raise PruningError(f"{path}: is of step {saved_step}, the Trainer goes on from {step}; {elsewhere}")
    pruner.load_state_dict(saved)
    try:
        pruner.report()
    except PruningError as error:
        raise PruningError(f"{path}: is not of the weights that the Trainer loaded ({error}); {elsewhere}") from None


def _resumed_folder(args: TrainingArguments, state: TrainerState) -> Path:
    given = args.resume_from_checkpoint
    return Path(given) if given and Path(given).is_dir() else _folder(args, state)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Of the Trainer's checkpoint at this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
