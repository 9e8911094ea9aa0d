"""What a run leaves on disk, and how it goes on from there."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trisparse.prune.deploy.hub import upload
from trisparse.prune.deploy.model_card import CARD, CardNotes, card_is_free, is_card, write_card
from trisparse.prune.errors import PruningError
from trisparse.prune.files import atomic_save, atomic_write
from trisparse.prune.glue.args import DEFAULTS, GlueArguments

CHECKPOINT = "checkpoint.pt"
RESULTS = "all_results.json"
HISTORY = "history.json"
COMPRESSED = "compressed"
SPARSITY = "sparsity.json"
PAGE = "report.html"
# what a run writes into its folder, and into best/ and compressed/ in it
_OURS = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "pruner.pt", CHECKPOINT, RESULTS, SPARSITY, "sparsity.png",
    "history.png", HISTORY, PAGE, "compression_report.json", ".trisparse.json",
)  # fmt: skip
# what may differ between a run and the one that goes on with it
_FREE = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "push_to_hub", "hub_model_id",
    "cache_teacher", "recipe", "per_device_eval_batch_size", "dataset_dir", "train_file", "validation_file", "fsdp",
    "compile", "compress",
    "per_device_train_batch_size", "gradient_accumulation_steps",  # of these the examples a step count
}  # fmt: skip


def check_output_dir(args: GlueArguments) -> Path:
    """The folder to write to.

    Raises:
        PruningError: it holds files, and neither --overwrite_output_dir nor a resume of that run was asked for; or a
            model that is of no run.
    """
    t = args.training
    assert t.output_dir is not None
    folder = Path(t.output_dir)
    if folder.exists() and not folder.is_dir():
        raise PruningError(f"--output_dir: {folder} is a file")
    resumes_here = False
    if t.resume_from_checkpoint:
        source = find_checkpoint(args).parent
        resumes_here = source.resolve() == folder.resolve()
        if not resumes_here:
            raise PruningError(f"--output_dir: {folder} is not the folder of the checkpoint; give {source}")
    else:
        for flag in ("model_name_or_path", "teacher_model_name_or_path"):
            path = getattr(args.model, flag)
            if path and Path(path).exists() and Path(path).resolve().is_relative_to(folder.resolve()):
                raise PruningError(f"--output_dir: {folder} holds the model of --{flag}; give another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (t.overwrite_output_dir or resumes_here):
        raise PruningError(
            f"--output_dir: {folder} holds another run; give --overwrite_output_dir to write over it, "
            "--resume_from_checkpoint to go on with it, or another folder"
        )
    if not resumes_here and not any((folder / name).exists() for name in (CHECKPOINT, RESULTS, HISTORY)):
        models = sorted(path.name for name in _OURS for path in folder.glob(name))
        if models:  # which clearing the folder of an old run would remove
            raise PruningError(
                f"--output_dir: {folder} holds {', '.join(models[:3])} of something that is no run; give another folder"
            )
    return folder


def create_output_dir(folder: Path) -> None:
    """Make sure that the folder is there.

    Raises:
        PruningError: it can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PruningError(f"--output_dir: {folder} can't be written to: {error.strerror}") from None


def clear_old_run(folder: Path, logs: Sequence[Path] = ()) -> None:
    """Remove the files and logs that an earlier run wrote, and no others, so that none is taken for the new run's."""
    parts = folder / "best", folder / COMPRESSED
    for directory in (*parts, folder):
        for pattern in _OURS:
            for path in directory.glob(pattern):
                path.unlink()
        if is_card(directory / CARD):
            (directory / CARD).unlink()
    for path in logs:
        path.unlink(missing_ok=True)
    for directory in parts:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def find_checkpoint(args: GlueArguments) -> Path:
    """The checkpoint that --resume_from_checkpoint names.

    Raises:
        PruningError: there is none.
    """
    given = Path(args.training.resume_from_checkpoint or "")
    path = given / CHECKPOINT if given.is_dir() else given
    if not path.is_file():
        raise PruningError(f"--resume_from_checkpoint: {given} is no checkpoint and holds no {CHECKPOINT}")
    return path


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write checkpoint.pt, complete or not at all."""
    atomic_save(folder / CHECKPOINT, lambda path: torch.save(state, path))


def read_checkpoint(args: GlueArguments, fixed: dict[str, Any], parts: set[str], total_steps: int) -> dict[str, Any]:
    """The checkpoint to go on from.

    Args:
        fixed: what must be as it was: `data`, a digest of the examples, and `examples_per_step`.
        parts: what must have a state in it.
        total_steps: of the whole run.

    Raises:
        PruningError: the file is damaged, of a run with other arguments or data, or of one that has ended.
    """
    path = find_checkpoint(args)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, step = state["args"], state["progress"]["step"]
        if lacking := {*fixed, "parts", "random"} - set(state):
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except Exception as error:
        why = (str(error).splitlines() or ["it is empty"])[0]
        raise PruningError(f"--resume_from_checkpoint: {path} is damaged: {why}") from None
    for key, value in args.to_dict().items():
        had = saved.get(key, DEFAULTS[key])  # a flag that came after the checkpoint was not given
        if key not in _FREE and had != value:
            raise PruningError(
                f"--resume_from_checkpoint: {path} is of another run: it had --{key} {had}, this one has {value}; "
                "resume with the same arguments"
            )
    if state["examples_per_step"] != fixed["examples_per_step"]:
        raise PruningError(
            f"--resume_from_checkpoint: {path} took {state['examples_per_step']} examples a step, this run takes "
            f"{fixed['examples_per_step']}; processes * per_device_train_batch_size * gradient_accumulation_steps must "
            "stay the same"
        )
    if state["data"] != fixed["data"]:
        raise PruningError(f"--resume_from_checkpoint: {path} is of a run on other data; give the same examples")
    if set(state["parts"]) != parts:
        raise PruningError(f"--resume_from_checkpoint: {path} is of another kind of run")
    if step >= total_steps and _has_all_results(path.parent / RESULTS, args):  # else they are to be written still
        raise PruningError(f"--resume_from_checkpoint: that run ended at step {step} of {total_steps}; nothing is left")
    return state


def _has_all_results(path: Path, args: GlueArguments) -> bool:
    """Whether a run wrote its results, and those of the compressed model, which come last."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return args.training.compress is None or "speed" in results


def save_model(
    folder: Path, model: Any, weights: dict[str, Any], tokenizer: Any, pruner: dict[str, Any] | None, notes: CardNotes
) -> None:
    """Save dense weights with zeros, tokenizer, the Pruner's state and a card; complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".saving", dir=folder))  # in the folder: a rename can't leave its disk
    try:
        model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        if card_is_free(folder):
            write_card(model, temporary, notes, weights)
        if pruner is not None:
            torch.save(pruner, temporary / "pruner.pt")
        for path in temporary.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(temporary)


def save_results(folder: Path, results: dict[str, Any], history: dict[str, Any]) -> None:
    """Write all_results.json and history.json."""
    atomic_write(folder / HISTORY, json.dumps(history) + "\n")
    atomic_write(folder / RESULTS, json.dumps(results, indent=2) + "\n")


def push_to_hub(folder: Path, args: GlueArguments) -> str:
    """Upload model, tokenizer and results; returns the repository's address.

    Raises:
        PruningError: the hub refuses or can't be reached.
    """
    t = args.training
    assert t.hub_model_id is not None
    allow = [*_OURS, CARD] if is_card(folder / CARD) else _OURS
    try:
        return upload(
            folder, t.hub_model_id, t.hub_token, None, "Upload of trisparse train", allow, [CHECKPOINT, "*/*"]
        )
    except PruningError as error:
        raise PruningError(f"--push_to_hub: {error}") from None
