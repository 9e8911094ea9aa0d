"""What a student learns from: its teacher's hidden states and answers, cached or not, and labels beside them."""

import json

import pytest
import torch

from trisparse import PruningError
from trisparse.prune.data.tasks import find_task
from trisparse.prune.glue.models import _load

pytest.importorskip("transformers")


@pytest.mark.parametrize("mode", ["hidden", "both"])
def test_the_teacher_cache_changes_no_first_loss(world, mode, glue):
    losses = []
    for extra in ([], ["--cache_teacher"]):
        glue(
            world, "other", "cache", "--overwrite_output_dir", "--max_train_steps", "1", "--distill_loss_weight", "1",
            "--distill_mode", mode, "--teacher_model_name_or_path", str(world / "dense"), *extra,
        )  # fmt: skip
        (first,) = json.loads((world / "cache" / "history.json").read_text())["steps"]
        losses.append(first["loss"])
    assert losses[0] > 1e-3
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_without_dropout_a_student_begins_as_its_teacher(world, glue):
    losses = []
    for extra in ([], ["--dropout", "0"]):
        glue(
            world, "dense", "dropout", "--overwrite_output_dir", "--max_train_steps", "1", "--distill_loss_weight", "1",
            "--distill_mode", "both", *extra,
        )  # fmt: skip
        (first,) = json.loads((world / "dropout" / "history.json").read_text())["steps"]
        losses.append(first["loss"])
    assert losses[0] > 1e-3
    assert losses[1] < 1e-6
    config = json.loads((world / "dropout" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.1, "what is saved can be trained on as before"


def test_a_model_without_dropout_is_told_so(monkeypatch):
    import transformers

    config = type("Plain", (transformers.PretrainedConfig,), {"model_type": "plain"})()
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda path: config)
    with pytest.raises(PruningError, match="--dropout: a plain has none in its configuration; leave it out"):
        _load("model_name_or_path", "m", find_task("mrpc"), 0.0)


def test_labels_are_learned_beside_the_teacher_by_their_weight(world, glue, weights):
    losses, heads = [], []
    for weight in (0, 1, 3):
        glue(
            world, "other", "beside", "--overwrite_output_dir", "--max_train_steps", "1", "--distill_loss_weight", "2",
            "--teacher_model_name_or_path", str(world / "dense"), "--label_loss_weight", str(weight),
        )  # fmt: skip
        (first,) = json.loads((world / "beside" / "history.json").read_text())["steps"]
        losses.append(first["loss"])
        heads.append(weights(world / "beside")["classifier.weight"])
    assert losses[1] - losses[0] > 0.1
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    before = weights(world / "other")["classifier.weight"]
    assert torch.equal(heads[0], before), "matching hidden states leaves the head as it was"
    assert not torch.equal(heads[1], before)
