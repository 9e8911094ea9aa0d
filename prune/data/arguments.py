"""The flags that say where examples come from, and how they are batched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trisparse.prune.data.tasks import TASKS
from trisparse.prune.parser import flag

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet")


@dataclass
class DataArguments:
    """Where the data comes from, and how it is batched."""

    _argument_group_name = "the data"

    task_name: str | None = flag(None, "a GLUE task; without one, files of your own", f"{{{','.join(TASKS)}}}")
    dataset_dir: str | None = flag(None, f"folder with train and validation, each as .{', .'.join(FORMATS)}", "DIR")
    train_file: str | None = flag(
        None, "training file; without --task_name: text in sentence1 and sentence2, or in the first one or two columns "
        "of text, and words or numbers in label; a label with a decimal point makes it a regression", "FILE",
    )  # fmt: skip
    validation_file: str | None = flag(None, "validation file, with the same columns", "FILE")
    holdout_fraction: float = flag(
        0.0, "share of the training examples to hold out and evaluate on, in place of the validation set: for tuning"
    )
    max_length: int = flag(128, "tokens after which a text is cut")
    pad_to_max_length: bool = flag(False, "pad to max_length, not to the longest text of the batch")
    group_by_length: bool = flag(False, "batch texts of similar length together")
    per_device_train_batch_size: int = flag(8, "texts in a training batch")
    per_device_eval_batch_size: int = flag(8, "texts in an evaluation batch")

    @property
    def own_name(self) -> str:
        """What data of one's own is called: its folder, or the training file, unless that has its usual name."""
        if self.train_file is None:
            return Path(self.dataset_dir or "").resolve().name
        path = Path(self.train_file).resolve()
        return path.parent.name if path.stem in ("train", "training") else path.stem
