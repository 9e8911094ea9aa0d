"""Pruning inside transformers' Trainer: its steps, its checkpoints, and resuming as if it had never stopped."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trisparse import PruningConfig, PruningError

transformers = pytest.importorskip("transformers")
from trisparse import PruningCallback  # noqa: E402 (needs transformers)

CONFIG = {
    "pattern": "4x1",
    "target_sparsity": 0.75,
    "start_step": 2,
    "end_step": 8,
    "pruning_frequency": 2,
    "op_names": ["encoder"],
}


class StopAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


class Later(transformers.TrainerCallback):
    """Looks at what the log tells callbacks."""

    def __init__(self):
        self.sparsity = []

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.sparsity.append(logs["sparsity"])


class Skip(transformers.TrainerCallback):
    """Skips the third step, as a loss scaler does after an overflow."""

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        if state.global_step == 2:
            optimizer.step = lambda: None

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        vars(optimizer).pop("step", None)


@pytest.fixture
def trainer(tmp_path):
    """A Trainer over a tiny BERT on made-up sentences, twelve steps long."""

    def make(name="out", config=CONFIG, callback=None, **arguments):
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=64))
        ids = torch.randint(40, (96, 8), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": int(row[0] > 20)} for row in ids]
        settings = {"max_steps": 12, "per_device_train_batch_size": 8, "save_steps": 5, "report_to": [], "seed": 3}
        settings |= {"disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3, "logging_steps": 4} | arguments
        args = transformers.TrainingArguments(str(tmp_path / name), **settings)
        callback = callback or PruningCallback(PruningConfig(**config))
        return transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]), callback

    return make


def test_prunes_and_reports(trainer):
    running, callback = trainer()
    later = Later()
    running.add_callback(later)
    running.train()
    assert callback.pruner.step_count == 12
    assert callback.report.complete
    assert callback.report.pruned_layers == pytest.approx(0.75, abs=1e-3)
    history = [row["sparsity"] for row in running.state.log_history if "loss" in row]
    assert history == later.sparsity
    assert history[0] < 0.75 == pytest.approx(history[-1], abs=1e-3)
    assert not running.optimizer.optimizer._optimizer_step_pre_hooks


def test_steps_are_optimizer_steps(trainer):
    running, callback = trainer(gradient_accumulation_steps=3)
    running.train()
    assert callback.pruner.step_count == 12


def test_bf16(trainer):
    running, callback = trainer(bf16=True)
    running.train()
    assert callback.report.complete


@pytest.mark.parametrize("out", ["parts", "new"])
def test_resumed_equals_uninterrupted(trainer, tmp_path, out):
    whole, callback = trainer("whole")
    whole.train()
    first, _ = trainer("parts")
    first.add_callback(StopAt(7))
    first.train()
    assert (tmp_path / "parts" / "checkpoint-5" / "pruner.pt").is_file()
    checkpoint = str(tmp_path / "parts" / "checkpoint-5")
    second, resumed = trainer(out, resume_from_checkpoint=checkpoint if out == "new" else None)
    second.train(resume_from_checkpoint=checkpoint)
    assert resumed.pruner.step_count == callback.pruner.step_count == 12
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(callback.pruner.masks().values(), resumed.pruner.masks().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_without_its_pruner_is_refused(trainer, tmp_path):
    for name, seed in (("out", 3), ("other", 4)):
        trainer(name, seed=seed)[0].train()
    checkpoint = tmp_path / "out" / "checkpoint-10"

    def refusal(name, said=None):
        with pytest.raises(PruningError) as error:
            trainer(name, resume_from_checkpoint=said and str(said))[0].train(resume_from_checkpoint=str(checkpoint))
        assert str(error.value).endswith("another folder, set resume_from_checkpoint of TrainingArguments to it, too")
        return str(error.value)

    other = tmp_path / "other"
    assert f"{other}/checkpoint-10/pruner.pt: is not of the weights that the Trainer loaded (" in refusal("other")
    said = other / "checkpoint-5"
    assert f"{said}/pruner.pt: is of step 5, the Trainer goes on from 10" in refusal("out", said)
    (checkpoint / "pruner.pt").unlink()
    assert "checkpoint-10/pruner.pt: is missing, so pruning cannot go on from step 10" in refusal("out")


def test_a_damaged_state_is_one_line(trainer, tmp_path):
    trainer()[0].train()
    checkpoint = tmp_path / "out" / "checkpoint-10"
    for write in (lambda path: path.write_bytes(b"xx"), lambda path: torch.save([1], path)):
        write(checkpoint / "pruner.pt")
        running, callback = trainer()
        with pytest.raises(PruningError, match=r"checkpoint-10/pruner.pt: is damaged: \w+"):
            running.train(resume_from_checkpoint=str(checkpoint))
        assert callback.pruner is None


def test_steps_that_were_skipped_do_not_count(trainer, tmp_path):
    first, callback = trainer()
    first.add_callback(Skip())
    first.train()
    assert (first.state.global_step, callback.pruner.step_count) == (12, 11)
    second, resumed = trainer()
    second.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert resumed.pruner.step_count == 11
    for a, b in zip(callback.pruner.masks().values(), resumed.pruner.masks().values(), strict=True):
        assert torch.equal(a, b)
    late, callback = trainer(config=CONFIG | {"end_step": 12})
    late.add_callback(Skip())
    with pytest.warns(UserWarning, match="end_step: the loss scaler skipped 1 of 12 steps.*want at most 11"):
        late.train()
    assert not callback.report.complete


def test_a_training_that_broke_off_can_begin_anew(trainer):
    class Interrupt(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    running, callback = trainer()
    interrupt = Interrupt()
    running.add_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        running.train()
    running.remove_callback(interrupt)
    running.train(resume_from_checkpoint=True)
    assert callback.report.complete
    assert callback.pruner.step_count == 12


def test_another_models_log_has_no_sparsity(trainer):
    running, callback = trainer()
    running.train()
    other, _ = trainer("other", callback=callback, eval_strategy="no")
    other.evaluate(other.train_dataset)
    assert "sparsity" not in other.state.log_history[-1]


def test_misuse(trainer):
    with pytest.raises(PruningError, match="config: want a PruningConfig, got dict"):
        PruningCallback(CONFIG)
    running, _ = trainer()
    running.model.bert.encoder.requires_grad_(False)
    with pytest.raises(
        PruningError, match=r"attach: AdamW does not hold .*excluded_op_names those that are frozen: \["
    ):
        running.train()
    running, callback = trainer()
    with pytest.raises(PruningError, match="save_strategy: want 'no' in hyperparameter_search"):
        callback.on_train_begin(running.args, SimpleNamespace(max_steps=12, is_hyper_param_search=True), None)
    with pytest.raises(PruningError, match="end_step: want at most 6, the steps that the Trainer makes, got 8"):
        trainer(max_steps=6)[0].train()
    with pytest.raises(PruningError, match="load_best_model_at_end: want False"):
        trainer(load_best_model_at_end=True, save_strategy="no", eval_strategy="no", metric_for_best_model="loss")[
            0
        ].train()


@pytest.mark.parametrize("mode", ["trainer", "fsdp"])
def test_two_processes_choose_what_one_does(on_ranks, mode):
    script = Path(__file__).with_name("trainer_on_ranks.py")
    (one, _), (two, _) = on_ranks(script, "trainer", 1), on_ranks(script, mode, 2)
    alone, first, second = (torch.load(path, weights_only=True) for path in (one / "0.pt", two / "0.pt", two / "1.pt"))
    assert alone["pruned"] == first["pruned"] == 0.75
    assert first["compared"]
    assert not alone["compared"]
    assert all(torch.equal(first["masks"][name], second["masks"][name]) for name in first["masks"])
    same = [(first["masks"][name] == mask).float().mean() for name, mask in alone["masks"].items()]
    assert torch.stack(same).mean() > 0.99, "gradients that are summed in another order differ in their last bits"
    assert (two / "out" / "checkpoint-5" / "pruner.pt").is_file()
