"""Prune in `transformers.Trainer`: 4x1 blocks of a small BERT, in 16 bits if you like, and resumed.

$ python examples/trainer.py --output_dir out --bf16 --gradient_accumulation_steps 2
$ python examples/trainer.py --output_dir out --bf16 --gradient_accumulation_steps 2 --resume
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from trisparse import PruningCallback, PruningConfig

STEPS = 48


def make_model() -> BertForSequenceClassification:
    """Untrained, of one layer."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=16, **sizes))


def make_data(count: int = 512) -> list[dict[str, object]]:
    """Sequences of made-up words, labelled by the half of the vocabulary that their first word is from."""
    ids = torch.randint(64, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": int(row[0] >= 32)} for row in ids]


def train(arguments: argparse.Namespace) -> tuple[Trainer, PruningCallback]:
    """Train and prune; `arguments` are those of the command line."""
    set_seed(0)
    # steps are optimizer steps, whatever the accumulation; the head and the pooler stay dense
    callback = PruningCallback(
        PruningConfig(
            pattern="4x1", target_sparsity=0.75, op_names=["encoder"], start_step=4, end_step=32, pruning_frequency=4
        )
    )
    trainer = Trainer(
        make_model(),
        TrainingArguments(
            arguments.output_dir, max_steps=STEPS, save_steps=16, logging_steps=8, learning_rate=1e-3, report_to=[],
            per_device_train_batch_size=16, gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            bf16=arguments.bf16, fp16=arguments.fp16, use_cpu=not torch.cuda.is_available(), disable_tqdm=True,
        ),
        train_dataset=make_data(),
        callbacks=[callback],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=arguments.resume)  # True: the last checkpoint in output_dir
    return trainer, callback


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and print what became zero."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--fp16", action="store_true", help="needs a GPU")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    arguments = parser.parse_args(argv)
    if arguments.resume and get_last_checkpoint(arguments.output_dir) is None:
        parser.error(f"--resume: {arguments.output_dir} holds no checkpoint")
    _, callback = train(arguments)
    print(callback.report)


if __name__ == "__main__":
    main()
