"""Search for a pattern and a budget with optuna through `transformers.Trainer`, watched in TensorBoard or W&B.

$ python examples/search.py --output_dir out --trials 8 --report_to tensorboard    # then: tensorboard --logdir out
$ python examples/search.py --output_dir out --budget target_speedup               # in place of a sparsity
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import optuna
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from trisparse import PruningCallback, PruningConfig, PruningError

STEPS, BATCH = 24, 16
TOKENS = BATCH * 12  # for which a speed is wanted
BUDGETS = {"target_sparsity": (0.5, 0.95), "target_speedup": (1.1, 2.0)}


def make_model() -> BertForSequenceClassification:
    """Untrained, of one layer."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 1024}
    return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=16, **sizes))


def make_data(seed: int, count: int) -> list[dict[str, object]]:
    """Sequences of made-up words, labelled by the half of the vocabulary that their first word is from."""
    ids = torch.randint(64, (count, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": int(row[0] >= 32)} for row in ids]


def space(budget: str, trial: optuna.Trial) -> dict[str, Any]:
    """What a trial chooses; PruningCallback is told of it, and what is returned goes to the TrainingArguments."""
    trial.suggest_categorical("pattern", ["4x1", "1x1"])
    trial.suggest_float(budget, *BUDGETS[budget])
    return {"learning_rate": trial.suggest_float("learning_rate", 5e-4, 5e-3, log=True)}


def config_of(budget: str, params: dict[str, Any]) -> PruningConfig:
    """What a trial prunes; the head and the pooler stay dense."""
    more = {"tokens": [TOKENS]} if budget == "target_speedup" else {}
    return PruningConfig(
        pattern=params["pattern"], op_names=["encoder"], start_step=4, end_step=16, pruning_frequency=4,
        **{budget: params[budget]}, **more,
    )  # fmt: skip


def gain(callback: PruningCallback) -> float:
    """What a trial's model has for its loss: zeros, or how many times as fast as dense it is promised to be."""
    assert callback.pruner is not None
    budgets = callback.pruner.budgets
    return 1 / budgets[0].cost() if budgets else callback.pruner.sparsity()


def search(arguments: argparse.Namespace) -> list[Any]:
    """The trials that no other beats in both; `arguments` are those of the command line."""
    budget = arguments.budget
    callback = PruningCallback(lambda params: config_of(budget, params), sparse_training="off")  # too small to gain
    trainer = Trainer(
        None,
        TrainingArguments(
            arguments.output_dir, max_steps=STEPS, save_strategy="no", logging_steps=8, disable_tqdm=True,
            eval_strategy="steps", eval_steps=STEPS,  # after training it would go to the next trial's log
            per_device_train_batch_size=BATCH, report_to=arguments.report_to, use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=make_data(0, 512),
        eval_dataset=make_data(1, 128),
        model_init=lambda trial: make_model(),
        callbacks=[callback],
    )  # fmt: skip
    callback.log_to(trainer)  # the sparsity after each event, beside the losses
    return trainer.hyperparameter_search(
        lambda trial: space(budget, trial),
        compute_objective=lambda metrics: [metrics["eval_loss"], gain(callback)],
        direction=["minimize", "maximize"],
        n_trials=arguments.trials,
        backend="optuna",
        hp_name=lambda trial: f"trial-{trial.number}",  # each one's folder in TensorBoard
        sampler=optuna.samplers.TPESampler(seed=0),
        catch=(PruningError,),  # a speed that is out of reach is a trial that failed, not the end
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Search, and print what is worth a choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--budget", choices=list(BUDGETS), default="target_sparsity")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--report_to", default="none", help="tensorboard, wandb, …; none")
    arguments = parser.parse_args(argv)
    front = search(arguments)
    print("trial  pattern  asked for  loss    zeros, or times as fast")
    for best in sorted(front, key=lambda best: best.objective[1]):
        asked = best.hyperparameters
        loss, got = best.objective
        print(f"{best.run_id:>5}  {asked['pattern']:>7}  {asked[arguments.budget]:9.3f}  {loss:.4f}  {got:.3f}")


if __name__ == "__main__":
    main()
