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

    def make(name="out", config=CONFIG, callback=None, eval_dataset=False, **arguments):
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=64))
        ids = torch.randint(40, (96, 8), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": int(row[0] > 20)} for row in ids]
        settings = {"max_steps": 12, "per_device_train_batch_size": 8, "save_steps": 5, "report_to": [], "seed": 3}
        settings |= {"disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-3, "logging_steps": 4} | arguments
        args = transformers.TrainingArguments(str(tmp_path / name), **settings)
        callback = callback or PruningCallback(PruningConfig(**config))
        evaluated = data[:16] if eval_dataset else None
        return transformers.Trainer(model, args, None, data, evaluated, callbacks=[callback]), callback

    return make


def test_prunes_and_reports(trainer):
    running, callback = trainer()
    running.train()
    assert callback.pruner.step_count == 12
    assert callback.report.complete
    assert callback.report.pruned_layers == pytest.approx(0.75, abs=1e-3)
    assert [step for step, _ in callback.history] == [4, 8, 12, 12]
    assert callback.history[0][1] < 0.75 == pytest.approx(callback.history[-1][1], abs=1e-3)
    assert not running.optimizer.optimizer._optimizer_step_pre_hooks


def test_fractions_are_those_of_the_trainers_steps(trainer):
    running, callback = trainer(callback=PruningCallback({"pattern": "2:4", "start_step": 0.25, "end_step": 0.75}))
    running.train()
    assert callback.pruner.config.groups[0].window == (3, 9, 1)
    assert callback.report.complete


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


def metrics_of(running):
    """All that a training and an evaluation give out, but for times."""
    trained = running.train().metrics
    evaluated = running.evaluate(running.train_dataset)
    return [sorted(m) for m in (trained, evaluated, *running.state.log_history)], evaluated


def test_metrics_and_logs_are_left_alone(trainer):
    running, callback = trainer(eval_strategy="steps", eval_steps=4, eval_dataset=True)
    plain, _ = trainer("plain", eval_strategy="steps", eval_steps=4, eval_dataset=True)
    plain.remove_callback(PruningCallback)
    (pruned, metrics), (unpruned, _) = metrics_of(running), metrics_of(plain)
    assert pruned == unpruned
    assert transformers.trainer_utils.default_compute_objective(metrics) == metrics["eval_loss"]
    assert callback.report.complete


def test_search_goes_by_the_loss_and_finds_a_target(trainer, monkeypatch):
    pytest.importorskip("optuna")
    targets = []

    def config(params):
        targets.append(params["target_sparsity"])
        return PruningConfig(**CONFIG | params)

    running, callback = trainer(
        callback=PruningCallback(config), eval_strategy="steps", eval_dataset=True, save_strategy="no"
    )
    model = running.model
    running.model_init, running.model = lambda trial: type(model)(model.config), None
    losses, evaluate = [], running.evaluate
    monkeypatch.setattr(running, "evaluate", lambda *args, **kw: [losses.append(m := evaluate(*args, **kw)), m][1])
    space = lambda trial: {"target_sparsity": trial.suggest_float("target_sparsity", 0.3, 0.6)}  # noqa: E731
    best = running.hyperparameter_search(space, n_trials=2, backend="optuna", direction="minimize")
    assert best.objective in [metrics["eval_loss"] for metrics in losses]
    assert best.hyperparameters["target_sparsity"] in targets
    assert len(set(targets)) == 2
    assert callback.report.pruned_layers == pytest.approx(targets[-1], abs=1e-2)
    with pytest.raises(
        PruningError, match="config: want a PruningConfig, its keys in a dict, or a file of them, got NoneType"
    ):
        trainer(callback=PruningCallback(lambda params: None))[0].train()


@pytest.fixture
def losses(monkeypatch):
    """Makes a Trainer's evaluations give these losses, one after the other."""

    def make(running, given):
        values = iter(given)
        loop = running.evaluation_loop

        def evaluation_loop(*args, **kw):
            output = loop(*args, **kw)
            output.metrics["eval_loss"] = next(values)
            return output

        monkeypatch.setattr(running, "evaluation_loop", evaluation_loop)
        return running

    return make


BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_dataset": True, "save_strategy": "steps"}
BEST |= {"eval_steps": 2, "save_steps": 2, "metric_for_best_model": "loss", "greater_is_better": False}


@pytest.mark.parametrize("stop", [None, 4, 10])
def test_the_best_model_is_one_of_those_after_the_last_event(trainer, losses, tmp_path, stop):
    """The least losses are those at steps 2 and 6, the least after the last event at 8 that at 10."""
    given = [0.1, 0.9, 0.2, 0.8, 0.5, 0.7]
    running, callback = trainer(**BEST)
    if stop:
        running.add_callback(StopAt(stop))
    losses(running, given).train()
    if stop:
        running, callback = trainer(**BEST)
        checkpoint = tmp_path / "out" / f"checkpoint-{stop}"
        losses(running, given[stop // 2 :]).train(resume_from_checkpoint=str(checkpoint))
    assert (running.state.best_metric, running.state.best_global_step) == (0.5, 10)
    saved = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out" / "checkpoint-10").state_dict()
    for name, weight in running.model.state_dict().items():
        assert torch.equal(weight, saved[name]), name
    assert callback.report.complete
    assert callback.report.pruned_layers == pytest.approx(0.75, abs=1e-3)


def test_a_training_that_ends_early_says_so(trainer, losses):
    running, callback = trainer(**BEST)
    running.add_callback(StopAt(6))
    with pytest.warns(
        UserWarning, match=r"end_step: training stopped at step 6, before the last event; the sparsity is 0\."
    ):
        losses(running, [0.1, 0.9, 0.2]).train()
    assert running.state.best_global_step == 6, "what is left of the last masks"
    assert not callback.report.complete


def test_weights_that_came_back_are_not_saved(trainer, tmp_path):
    class Average(transformers.TrainerCallback):
        """Puts an average of the weights in place before a checkpoint, as callbacks for EMA do."""

        def on_step_end(self, args, state, control, model, **kwargs):
            if control.should_save:
                with torch.no_grad():
                    model.bert.encoder.layer[0].output.dense.weight.add_(0.1)

    running, callback = trainer()
    running.callback_handler.callbacks.insert(1, Average())
    with pytest.raises(PruningError, match=r"output.dense.weight: \d+ weights are not zero where the mask prunes"):
        running.train()
    assert callback.pruner.step_count == 5
    assert not (tmp_path / "out" / "checkpoint-5").exists()


def test_misuse(trainer):
    with pytest.raises(
        PruningError, match="config: want a PruningConfig, its keys in a dict, or a file of them, got int"
    ):
        PruningCallback(3)
    running, _ = trainer()
    running.model.bert.encoder.requires_grad_(False)
    with pytest.raises(
        PruningError, match="attach: AdamW does not hold .* all are frozen, as beside adapters: prune them at once"
    ):
        running.train()
    running, callback = trainer()
    with pytest.raises(PruningError, match="save_strategy: want 'no' in hyperparameter_search"):
        callback.on_train_begin(running.args, SimpleNamespace(max_steps=12, is_hyper_param_search=True), None)
    with pytest.raises(PruningError, match="end_step: want at most 6, the steps that the Trainer makes, got 8"):
        trainer(max_steps=6)[0].train()


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


def test_two_callbacks_of_one_trainer_are_refused(trainer):
    parts = [{**CONFIG, "op_names": [name]} for name in ("attention", "intermediate")]
    both, _ = trainer(callback=PruningCallback(parts[0]), save_strategy="no")
    both.add_callback(PruningCallback(parts[1]))
    with pytest.raises(PruningError, match="callbacks: two PruningCallbacks would write to one pruner.pt; give one of"):
        both.train()
    one, callback = trainer(callback=PruningCallback(parts), save_strategy="no")
    one.train()
    assert len(callback.pruner.groups) == 2
