"""Models that the loop would train as something else than their folder says are refused."""

import json

import pytest
from safetensors.torch import load_file, save_file

from trisparse import PruningError, compress, from_pretrained, prune_once, save_pretrained
from trisparse.cli import main
from trisparse.prune.data.tasks import TASKS
from trisparse.prune.glue.models import _load

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(make_bert, tmp_path):
    make_bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def without(folder, part):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_lacking_tensors_are_not_made_up(folder, tmp_path, capsys):
    without(folder, "layer.0.attention")
    for load in (lambda: _load("model_name_or_path", str(folder), TASKS["sst2"]), lambda: from_pretrained(folder)):
        with pytest.raises(PruningError, match=r"lacks 10 tensors of a Bert\w+, which would be random: bert.enc.*, …"):
            load()
    assert main(["prune", str(folder), str(tmp_path / "out"), "--pattern", "2:4"]) == 2
    assert "which would be random" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_head_that_no_file_holds_was_not_trained(folder):
    assert _load("model_name_or_path", str(folder), TASKS["sst2"])[1]
    without(folder, "classifier")
    assert not _load("model_name_or_path", str(folder), TASKS["sst2"])[1]
    without(folder, "pooler")
    assert not _load("model_name_or_path", str(folder), TASKS["sst2"])[1]


@pytest.mark.parametrize(
    ("labels", "is_refused"),
    [({"POSITIVE": 0, "NEGATIVE": 1}, True), ({"NEGATIVE": 0, "POSITIVE": 1}, False), ({"cat": 0, "dog": 1}, False)],
)
def test_labels_in_another_order_are_refused(folder, labels, is_refused):
    config = json.loads((folder / "config.json").read_text())
    config |= {"label2id": labels, "id2label": {str(number): label for label, number in labels.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    if is_refused:
        with pytest.raises(PruningError, match="labels in another order, POSITIVE, NEGATIVE; sst2 has negative, posi"):
            _load("model_name_or_path", str(folder), TASKS["sst2"])
    else:
        _load("model_name_or_path", str(folder), TASKS["sst2"])


def test_a_compressed_model_is_not_trained(world, argv, tmp_path, capsys):
    model = from_pretrained(world / "dense")
    prune_once(model, pattern="4x1", target_sparsity=0.9)
    save_pretrained(compress(model, "memory", measure=False)[0], tmp_path / "small")
    transformers.AutoTokenizer.from_pretrained(world / "dense").save_pretrained(tmp_path / "small")
    assert main(["train", *argv(world, str(tmp_path / "small"), "refused")]) == 2
    assert "is compressed, and its packed layers do not train; give what came of `tris" in capsys.readouterr().err
