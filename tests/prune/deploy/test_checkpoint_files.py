"""Which files a checkpoint is: those that transformers reads, all of them, and none of another checkpoint."""

import json
import re

import pytest
import torch

from trisparse import PruningError, compress, from_pretrained, save_pretrained
from trisparse.prune.deploy import checkpoint_files
from trisparse.prune.deploy.checkpoint import check_folder
from trisparse.prune.deploy.checkpoint_files import INDEX, WEIGHTS, read_config, weight_files

transformers = pytest.importorskip("transformers")
LOADS = [from_pretrained, transformers.AutoModelForSequenceClassification.from_pretrained, check_folder]


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(12).view(2, 6)).logits


@pytest.fixture
def folders(make_bert, tmp_path):
    """Two models of one shape: `one` in a file, `other` in shards; and both."""
    models = [compress(make_bert(seed), prefer="memory", measure=False)[0] for seed in (0, 1)]
    save_pretrained(models[0], tmp_path / "one")
    save_pretrained(models[1], tmp_path / "other", max_shard_size="10KB")
    assert len(weight_files(tmp_path / "other")) > 1
    return tmp_path / "one", tmp_path / "other", models


def test_files_of_another_checkpoint_are_refused(folders):
    one, other, _ = folders
    (one / WEIGHTS).unlink()
    for path in other.glob("*safetensors*"):
        (one / path.name).write_bytes(path.read_bytes())
    for load in LOADS:
        with pytest.raises(PruningError, match="one: holds model-00001-of-.* saved with model.safetensors; copy the"):
            load(one)


def test_the_single_file_goes_before_the_index(folders):
    """An index that a crash left behind: transformers does not look at it either."""
    one, other, models = folders
    for path in other.glob("*safetensors*"):
        (one / path.name).write_bytes(path.read_bytes())
    assert weight_files(one) == [one / WEIGHTS]
    for load in LOADS[:2]:
        assert torch.equal(logits(load(one)), logits(models[0]))
    check_folder(one)


@pytest.mark.parametrize("load", LOADS)
def test_every_file_is_hashed_once(folders, monkeypatch, load):
    _, other, _ = folders
    hashed = []
    digest = checkpoint_files.digest
    monkeypatch.setattr(checkpoint_files, "digest", lambda path: hashed.append(path.name) or digest(path))
    load(other)
    assert sorted(hashed) == [path.name for path in weight_files(other)]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[" * 200_000, f"{INDEX}: cannot be read: RecursionError"),
        ('{"weight_map": [1]}', f"{INDEX}: cannot be read: AttributeError"),
        ('{"weight_map": {}}', f"{INDEX}: weight_map: want names of files, found none"),
        ('{"weight_map": {"a": 3, "b": "x"}}', f"{INDEX}: weight_map: want names of files, got 3"),
        ('{"weight_map": {"a": ["x"]}}', f"{INDEX}: weight_map: want names of files, got ['x']"),
        ('{"weight_map": {"a": "x\\u0000y"}}', f"{INDEX}: weight_map: want names of files, got 'x\\x00y'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd': points outside the folder"),
        ('{"weight_map": {"a": "../one/model.safetensors"}}', "'../one/model.safetensors': points outside the folder"),
        ('{"weight_map": {"a": ".."}}', "..: is missing; copy the whole folder again"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: is missing; copy the whole folder again"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, index, message):
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(PruningError, match=re.escape(message)):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "config.json: cannot be read: maximum recursion depth"),
        ('{"quantization_config": [1]}', r"config.json: quantization_config: want an object, got \[1\]"),
        ("[]", "config.json: want an object, got list"),
    ],
)
def test_configs_that_are_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PruningError, match=message):
        read_config(tmp_path)
    with pytest.raises(PruningError, match="want a folder with config.json, found none"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Nothing"]}, r"architectures: want a class of transformers, got \['Nothing'\]"),
        ({"architectures": 5}, "architectures: want a class of transformers, got 5"),
        ({"architectures": [5]}, r"architectures: want a class of transformers, got \[5\]"),
        ({"architectures": ["pipeline"]}, "architectures: want a class of transformers, got"),
        ({"architectures": ["AutoModel"]}, "architectures: want a class of transformers, got"),
        ({"architectures": ["GPT2LMHeadModel"]}, "model_type: want 'gpt2' for a GPT2LMHeadModel, got 'bert'"),
        ({"model_type": "bogus"}, "model_type: want 'bert' for a BertForSequenceClassification, got 'bogus'"),
        ({"hidden_size": "many"}, "can't be loaded as a BertForSequenceClassification: Strict"),
        ({"hidden_size": 16}, "can't be loaded as a BertForSequenceClassification: RuntimeError"),
        ({"hidden_act": "bogus"}, "can't be loaded as a BertForSequenceClassification: KeyError"),
        ({"quantization_config": {"quant_method": "bogus"}}, None),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "can't be loaded .*: ImportError"),
        ({"quantization_config": None}, None),
    ],
)
def test_what_transformers_refuses_gets_one_line(make_bert, tmp_path, change, message):
    make_bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    if message is None:
        assert from_pretrained(tmp_path).config.model_type == "bert"
        return
    with pytest.raises(PruningError, match=message) as caught:
        from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None or "can't be loaded" not in message


@pytest.mark.parametrize("size", ["abc", "-1GB", "", 0, -5, True, None, "5XB", "0GB", "200KiB"])
def test_a_size_of_files(make_bert, tmp_path, size):
    with pytest.raises(PruningError, match="^max_shard_size: want bytes or a text like '5GB', got "):
        save_pretrained(make_bert(), tmp_path / "model", max_shard_size=size)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("size", ["1GB", "1.5 gb", "0.5MB", 10**6])
def test_sizes_that_are_sizes(make_bert, tmp_path, size):
    save_pretrained(make_bert(), tmp_path / "model", max_shard_size=size)
    assert (tmp_path / "model" / WEIGHTS).exists()


def test_the_file_of_another_model_is_refused(folders):
    one, _, models = folders
    save_pretrained(models[1], one.parent / "two")
    (one / WEIGHTS).write_bytes((one.parent / "two" / WEIGHTS).read_bytes())
    for load in LOADS:
        with pytest.raises(PruningError, match="is not the file that was saved with this config"):
            load(one)


def test_a_failed_save_leaves_the_old_checkpoint(folders, monkeypatch):
    one, _, models = folders
    monkeypatch.setattr("trisparse.prune.deploy.checkpoint.digest", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(models[1], one)
    assert torch.equal(logits(from_pretrained(one)), logits(models[0]))
    assert sorted(path.name for path in one.iterdir()) == [".trisparse.json", "README.md", "config.json", WEIGHTS]


def test_what_can_be_saved_and_where(make_bert, tmp_path):
    with pytest.raises(PruningError, match="model: want a transformers model, got Linear; save others by"):
        save_pretrained(torch.nn.Linear(4, 4), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(PruningError, match="want a folder, found a file"):
        save_pretrained(make_bert(), tmp_path / "file")
