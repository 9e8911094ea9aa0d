"""`trisparse train` on two processes: its results, and what is left of it when one of them dies in an event."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")
SCRIPT = Path(__file__).with_name("train_on_ranks.py")
FLAGS = (
    "--do_prune", "--pruning_pattern", "4x1", "--pruning_frequency", "1", "--num_train_epochs", "3", "--cooldown_epochs", "1",
    "--distill_loss_weight", "2", "--cache_teacher", "--lr_scheduler_type", "linear",
)  # fmt: skip


@pytest.fixture(scope="module")
def launch(world, on_ranks, argv):
    """Run on so many processes, 16 texts a step in all; what they said."""

    def run(mode, processes, out, *more, **kwargs):
        flags = argv(world, "dense", out, *FLAGS, "--per_device_train_batch_size", str(16 // processes), *more)
        return on_ranks(SCRIPT, mode, processes, *flags, **kwargs)[1]

    return run


@pytest.fixture(scope="module")
def whole(world, launch):
    launch("whole", 2, "two")
    return json.loads((world / "two" / "all_results.json").read_text())


def test_two_processes_prune_as_asked(whole, world):
    assert whole["processes"] == 2
    assert whole["steps"]["steps_per_epoch"] == 6
    assert whole["pattern_verified"]
    assert whole["complete"]
    assert whole["sparsity"]["pruned_layers"] == pytest.approx(0.9, abs=1e-3)
    assert len(whole["teacher_eval"]) == 2


def test_sharded_weights_give_the_same_masks(whole, world, launch, weights):
    first, second = launch("whole", 2, "sharded", "--fsdp")
    assert "epoch 1: accuracy" in first
    assert "epoch 1: accuracy" not in second
    ours, theirs = weights(world / "sharded"), weights(world / "two")
    for name in (name for name in ours if "encoder" in name and name.endswith("weight")):
        assert torch.equal(ours[name] == 0, theirs[name] == 0), name
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("processes", "is_equal"), [(2, True), (1, False)])
def test_a_run_whose_process_died_in_an_event_goes_on(whole, world, launch, weights, processes, is_equal):
    folder = world / f"died{processes}"
    if processes == 2:
        (said, _) = launch("dies", 2, folder.name, fails=True)
        assert (
            "trisparse train: error: another process ended, and with it the run; if an epoch had ended, --resume"
            in said
        )
        assert "Traceback" not in said
        shutil.copytree(folder, world / "died1")
    assert not (folder / "all_results.json").exists()
    launch("whole", processes, folder.name, "--resume_from_checkpoint", str(folder))
    results = json.loads((folder / "all_results.json").read_text())
    assert results["complete"]
    assert results["pattern_verified"]
    assert results["epochs"] == 3
    if is_equal:
        assert results["eval"] == whole["eval"]
        one, two = weights(folder), weights(world / "two")
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_number_of_examples_a_step_is_refused(whole, world, launch):
    (said,) = launch(
        "whole",
        1,
        "two",
        "--per_device_train_batch_size",
        "8",
        "--resume_from_checkpoint",
        str(world / "two"),
        fails=True,
    )
    assert "took 16 examples a step, this run takes 8; processes * per_device_train_batch_size" in said
    assert "Traceback" not in said


def test_an_optimizer_goes_on_that_has_no_state_for_a_parameter():
    from trisparse.prune.glue.ranks import load_optimizer_state, optimizer_state

    def make():
        model = nn.ModuleDict({"used": nn.Linear(4, 4), "unused": nn.Linear(4, 4)})
        return model, torch.optim.AdamW(model.parameters())

    (first, before), (second, after) = make(), make()
    first["used"](torch.ones(2, 4)).sum().backward()
    before.step()
    state = optimizer_state(first, SimpleNamespace(optimizer=before))
    load_optimizer_state(second, SimpleNamespace(optimizer=after), state)
    ours, theirs = after.state_dict()["state"], before.state_dict()["state"]
    assert set(theirs) == {0, 1}
    for index, values in theirs.items():
        assert all(torch.equal(ours[index][name], value) for name, value in values.items())
