"""`PruningCallback.log_to`: the Trainer logs each event, and nothing else changes."""

import pytest
import torch

from trisparse import PruningConfig

transformers = pytest.importorskip("transformers")
pytest.importorskip("tensorboard")
from trisparse import PruningCallback  # noqa: E402 (needs transformers)

# linear, t = 0.75, P = 4: events at steps 0, 2, 4, 6, 8 ask for 0, 0.1875, 0.375, 0.5625, 0.75 of 64 of 256 units
CONFIG = {
    "pattern": "4x1", "target_sparsity": 0.75, "start_step": 0, "end_step": 8, "pruning_frequency": 2,
    "sparsity_decay_type": "linear", "op_names": ["attention.self"],
}  # fmt: skip
EVENTS = [(2, 0.1875), (4, 0.375), (6, 0.5625), (8, 0.75)]


@pytest.fixture
def trainer(tmp_path):
    """A Trainer over a tiny BERT, ten steps long, reporting to TensorBoard in a folder of the name."""

    def make(name, watched=True, **arguments):
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=64))
        data = [{"input_ids": torch.arange(i, i + 8), "labels": i % 2} for i in range(32)]
        settings = {"max_steps": 10, "logging_steps": 4, "save_steps": 4, "report_to": "tensorboard", "seed": 3}
        settings |= {"eval_strategy": "steps", "eval_steps": 4, "disable_tqdm": True, "use_cpu": True} | arguments
        args = transformers.TrainingArguments(str(tmp_path / name), per_device_train_batch_size=4, **settings)
        callback = PruningCallback(PruningConfig(**CONFIG))
        running = transformers.Trainer(model, args, None, data, data[:8], callbacks=[callback])
        if watched:
            callback.log_to(running)
        return running

    return make


@pytest.fixture
def scalars(tmp_path):
    """Tag -> [(step, value), ...] that TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(name):
        (folder,) = {path.parent for path in (tmp_path / name).glob("runs/**/events.*")}
        events = EventAccumulator(str(folder)).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


def timeless(log):
    return [{key: value for key, value in row.items() if not key.endswith(("runtime", "per_second"))} for row in log]


def test_each_event_is_logged_and_nothing_else_changes(trainer, scalars):
    watched = trainer("watched")
    watched.train()
    plain = trainer("plain", watched=False)
    plain.train()
    rows = [row for row in watched.state.log_history if "sparsity" in row]
    assert [(row["step"], row["sparsity"]) for row in rows] == EVENTS
    others = [row for row in watched.state.log_history if "sparsity" not in row]
    assert timeless(others) == timeless(plain.state.log_history)
    shown, unwatched = scalars("watched"), scalars("plain")
    assert shown.pop("train/sparsity") == EVENTS
    assert shown["train/loss"] == unwatched["train/loss"], "an event at a step of the log does not take its place"
    assert shown.keys() == unwatched.keys()


def test_a_resumed_training_logs_no_event_twice(trainer, tmp_path):
    trainer("out").train()
    resumed = trainer("out")
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    rows = [row for row in resumed.state.log_history if "sparsity" in row]
    assert [(row["step"], row["sparsity"]) for row in rows] == EVENTS


def test_steps_that_a_loss_scaler_skips_log_nothing(trainer):
    class Skip(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            if state.global_step == 2:
                optimizer.step = lambda: None

        def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
            vars(optimizer).pop("step", None)

    running = trainer("out")
    running.add_callback(Skip())
    running.train()
    rows = [row for row in running.state.log_history if "sparsity" in row]
    assert [(row["step"], row["sparsity"]) for row in rows] == [(2, 0.1875), (5, 0.375), (7, 0.5625), (9, 0.75)]
