"""`--report_to tensorboard`: what is logged, that it costs no wait, and that a resumed run goes on in the same log."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")
pytest.importorskip("tensorboard")

FLAGS = [
    "--do_prune", "--pruning_pattern", "4x1", "--pruning_frequency", "3", "--num_train_epochs", "3",
    "--cooldown_epochs", "1", "--overwrite_output_dir", "--report_to", "tensorboard",
]  # fmt: skip


@pytest.fixture(scope="module")
def scalars():
    """Scalars that TensorBoard shows of a run's folder: tag -> [(step, value), ...]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder / "trisparse")).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read


@pytest.fixture(scope="module")
def watched(world, glue):
    """Folder of a whole run that was logged."""
    glue(world, "dense", "watched", *FLAGS)
    return world / "watched"


@pytest.fixture
def waits(monkeypatch):
    """Count the looks at single numbers and lists of tensors while something runs."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen["item"] += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    seen = {}
    tolist = torch.Tensor.tolist

    def counted(tensor):
        seen["tolist"] += 1
        return tolist(tensor)

    def count(call):
        seen.update(item=0, tolist=0)
        with monkeypatch.context() as patch, Watch():
            patch.setattr(torch.Tensor, "tolist", counted)
            call()
        return dict(seen)

    return count


def test_the_log_is_the_history(watched, scalars):
    history = json.loads((watched / "history.json").read_text())
    logged = scalars(watched)
    layers = history["masks"]["layers"]
    assert len(layers) == 12
    assert set(logged) == {
        "train/loss", "train/steps_per_second", "eval/accuracy", "eval/f1", "sparsity/total", "flips/total",
        *(f"{kind}/{name}" for kind in ("sparsity", "flips") for name in layers),
    }  # fmt: skip

    def same(tag, rows, key):
        assert [step for step, _ in logged[tag]] == [row["step"] for row in rows]
        assert [value for _, value in logged[tag]] == pytest.approx([row[key] for row in rows])

    for tag, key in (
        ("train/loss", "loss"),
        ("train/steps_per_second", "steps_per_second"),
        ("sparsity/total", "sparsity"),
        ("flips/total", "flips"),
    ):
        same(tag, history["steps"], key)
    same("eval/accuracy", history["evals"], "accuracy")
    assert [row["step"] for row in history["steps"]] == [10, 12, 20, 24, 30, 36]
    report = json.loads((watched / "sparsity.json").read_text())
    for row, weights, pruned in zip(
        report["layers"], history["masks"]["weights"], history["masks"]["pruned"][-1], strict=True
    ):
        assert (weights, pruned) == (row["weights"], row["zeros"] - row["extra_zeros"])
        assert sum(value for _, value in logged[f"flips/{row['name']}"]) == pruned
        assert logged[f"sparsity/{row['name']}"][-1][1] == pytest.approx(pruned / weights)
    assert sum(row["flips"] for row in history["steps"]) == sum(history["masks"]["pruned"][-1])
    assert report["pruned_layers"] == pytest.approx(history["steps"][-1]["sparsity"], abs=1e-3)


def test_a_resumed_run_goes_on_in_the_same_log(world, watched, monkeypatch, glue, scalars):
    from trisparse.prune.glue import eval as glue_eval

    evaluate = glue_eval.evaluate
    calls = []

    def die_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:  # steps up to 36 are in the log, the checkpoint is of step 24
            raise KeyboardInterrupt
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(glue_eval, "evaluate", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            glue(world, "dense", "rewatched", *FLAGS)
    assert [step for step, _ in scalars(world / "rewatched")["train/loss"]][-1] == 36
    glue(world, "dense", "rewatched", *FLAGS, "--resume_from_checkpoint", str(world / "rewatched"))
    found, want = scalars(world / "rewatched"), scalars(watched)
    rates = [
        [step for step, _ in log.pop("train/steps_per_second")] for log in (found, want)
    ]  # values are the machine's
    assert rates[0] == rates[1]
    assert found == want
    assert len(list((world / "rewatched" / "trisparse").iterdir())) == 2


def test_a_run_that_is_written_over_leaves_no_log(world, glue, scalars):
    flags = ["--max_train_steps", "3", "--overwrite_output_dir", "--report_to", "tensorboard"]
    glue(world, "dense", "overwatched", *flags, "--do_prune", "--pruning_pattern", "2:4")
    assert "sparsity/total" in scalars(world / "overwatched")
    glue(world, "dense", "overwatched", *flags)
    logged = scalars(world / "overwatched")
    assert set(logged) == {"train/loss", "train/steps_per_second", "eval/accuracy", "eval/f1"}, (
        "a dense run has no masks"
    )
    assert [step for step, _ in logged["train/loss"]] == [3]


def test_watching_adds_no_wait_for_the_device(world, glue, waits, monkeypatch):
    from trisparse import Pruner

    counted = []
    count = Pruner.pruned_weights
    monkeypatch.setattr(Pruner, "pruned_weights", lambda pruner: counted.append(pruner.step_count) or count(pruner))
    flags = ["--max_train_steps", "11", "--overwrite_output_dir", "--do_prune", "--pruning_pattern", "4x1"]
    alone = waits(lambda: glue(world, "dense", "unwatched", *flags))
    assert counted == [0, 10, 11], "masks are counted when the loss is looked at, and not between"
    assert alone["tolist"]
    assert alone == waits(lambda: glue(world, "dense", "unwatched", *flags, "--report_to", "tensorboard"))


def test_a_tracker_that_is_not_installed(world, monkeypatch, capsys, argv):
    from trisparse.cli import main

    monkeypatch.setattr("trisparse.prune.glue.trackers.find_spec", lambda name: None)
    assert main(["train", *argv(world, "init", "untracked", "--report_to", "tensorboard")]) == 2
    message = "--report_to: tensorboard is not installed; pip install 'trisparse[tensorboard]'"
    assert capsys.readouterr().err == f"trisparse train: error: {message}\n"
    assert not (world / "untracked").exists()
