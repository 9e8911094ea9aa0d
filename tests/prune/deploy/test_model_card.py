"""The card beside a checkpoint: numbers counted by hand, and nobody's README.md lost."""

import json
import re
from collections import Counter

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from trisparse import PruningError, compress, from_pretrained, prune_once, save_pretrained
from trisparse.cli import main
from trisparse.prune.deploy.formats import Format, pack_layer
from trisparse.prune.deploy.model_card import CARD, CardNotes, is_card, write_card
from trisparse.prune.layers.modules import replace_module

transformers = pytest.importorskip("transformers")


@pytest.fixture
def bert(make_bert):
    """One of four blocks of 4x1 is kept in each layer of the encoder, in diagonals."""

    def make():
        model = make_bert()
        for layer in model.bert.encoder.modules():
            if isinstance(layer, nn.Linear):
                rows, cols = layer.weight.shape
                kept = (torch.arange(rows // 4)[:, None] + torch.arange(cols)) % 4 == 0
                layer.weight.data.normal_().mul_(kept.repeat_interleave(4, 0))
        return model

    return make


def rows(folder):
    """Left cell -> right cell of the card's tables."""
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", (folder / CARD).read_text(), re.MULTILINE))


def head(folder):
    return yaml.safe_load((folder / CARD).read_text().split("---\n")[1])


def test_numbers_by_hand(bert, tmp_path):
    # queries, keys, values, output 32x32; up 64x32, down 32x64: a quarter of 8192 is kept; pooler and head are dense
    kept, weights = 8192 // 4 + 1024 + 64, 8192 + 1024 + 64
    model = bert()
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    save_pretrained(model, tmp_path / "dense")
    card = rows(tmp_path / "dense")
    assert card["zeros of what multiplies"] == f"{1 - kept / weights:.4f} of 9,280 weights, removed channels included"
    assert card["pattern of the zeros"] == "6 4x1"
    assert card["bytes, dense"] == f"{dense:,}"
    assert card["bytes of these files"] == f"{dense:,} (1.00 of dense)"
    assert card["layers as they are stored"] == "8 dense"
    _, report = compress(model, prefer="memory", measure=False)
    save_pretrained(model, tmp_path / "small")
    held = sum(tensor.nbytes for tensor in load_file(tmp_path / "small" / "model.safetensors").values())
    small = rows(tmp_path / "small")
    same = ("zeros of what multiplies", "pattern of the zeros", "bytes, dense")
    assert [small[name] for name in same] == [card[name] for name in same]
    assert small["bytes of these files"] == f"{held:,} ({held / dense:.2f} of dense)"
    formats = Counter(layer.format for layer in report.layers)
    assert small["layers as they are stored"] == ", ".join(f"{n} {name}" for name, n in formats.most_common())
    assert head(tmp_path / "small") == {"library_name": "transformers", "tags": ["trisparse", "pruned", "4x1"]}


def test_removed_channels_count(make_bert, tmp_path):
    model = make_bert()
    for layer in model.bert.encoder.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_()
    model.bert.encoder.layer[0].intermediate.dense.weight.data[::2] = 0  # 32 of 64 channels, each of 32 weights
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    compress(model, prefer="memory", measure=False)
    save_pretrained(model, tmp_path)
    card = rows(tmp_path)
    assert card["zeros of what multiplies"].startswith(f"{2 * 32 * 32 / 9280:.4f} of 9,280 weights")
    assert card["pattern of the zeros"] == "2 channels"
    assert card["bytes, dense"] == f"{dense:,}"
    assert card["bytes of these files"].startswith(f"{dense - 4 * (2 * 32 * 32 + 32):,} ")


@pytest.mark.parametrize(
    ("pattern", "target"),
    [("2:4", 0.5), ("4x1", 0.75), ("8x1", 0.5), ("1x1", 0.75), ("16x16", 0.5), ("1xchannel", 0.5), ("channelx1", 0.5)],
)
def test_the_pattern_is_what_the_zeros_look_like(make_bert, tmp_path, pattern, target):
    model = make_bert()
    for layer in model.bert.encoder.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data.normal_()
    prune_once(model, pattern=pattern, target_sparsity=target, op_names=["intermediate"])
    save_pretrained(model, tmp_path)
    assert rows(tmp_path)["pattern of the zeros"] == f"1 {pattern}"


def test_two_of_four_kept_as_single_weights_are_two_of_four(make_bert, tmp_path):
    model = make_bert()
    prune_once(model, pattern="2:4", op_names=["pooler"])
    replace_module(model, "bert.pooler.dense", pack_layer(model.bert.pooler.dense, Format("vectors", (1, 1))))
    save_pretrained(model, tmp_path)
    assert rows(tmp_path)["layers as they are stored"] == "7 dense, 1 1x1"
    assert rows(tmp_path)["pattern of the zeros"] == "6 4x1, 1 2:4"


def test_what_no_file_shows_is_told(make_bert, tmp_path, monkeypatch):
    model = make_bert()
    model.config._name_or_path = "google/bert_uncased_L-2_H-128_A-2"
    save_pretrained(model, tmp_path, metrics={"f1 | macro": 0.87314, "texts": 1408})
    assert rows(tmp_path)["f1 \\| macro"] == "0.8731"
    assert rows(tmp_path)["texts"] == "1,408"
    assert head(tmp_path)["base_model"] == "google/bert_uncased_L-2_H-128_A-2"
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/mine", str(tmp_path / "runs" / "mine")):
        model.config._name_or_path = folder
        save_pretrained(model, tmp_path)
        assert "base_model" not in head(tmp_path), "a folder is nobody's model"
        assert str(tmp_path) not in (tmp_path / CARD).read_text()
    for metrics in ([0.5], {"f1": "high"}, {1: 0.5}):
        with pytest.raises(PruningError, match=r"^metrics: want names and numbers, as \{'f1': 0.87\}, got "):
            save_pretrained(model, tmp_path / "none", metrics=metrics)
    assert not (tmp_path / "none").exists()


def test_the_way_to_load_it_loads_it(bert, tmp_path):
    model = bert()
    compress(model, prefer="memory", measure=False)
    save_pretrained(model, tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (tmp_path / CARD).read_text(), re.DOTALL)
    page: dict = {}
    exec(block.replace("...", str(tmp_path)), page)
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(page["model"](ids).logits, model(ids).logits)
    assert "Without trisparse" in (tmp_path / CARD).read_text()
    save_pretrained(bert(), tmp_path)
    assert "import trisparse" not in (tmp_path / CARD).read_text(), "a dense model needs none"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_readme_of_somebody_else_stays(bert, tmp_path, overwrite):
    (tmp_path / CARD).write_text("mine")
    save_pretrained(bert(), tmp_path, overwrite=overwrite)
    save_pretrained(bert(), tmp_path, overwrite=overwrite)
    assert (tmp_path / CARD).read_text() == "mine"
    (tmp_path / CARD).unlink()
    save_pretrained(bert(), tmp_path, overwrite=overwrite)
    changed = (tmp_path / CARD).read_text().replace("# Bert", "# My own Bert")
    (tmp_path / CARD).write_text(changed)
    assert not is_card(tmp_path / CARD)
    save_pretrained(bert(), tmp_path, overwrite=overwrite)
    assert (tmp_path / CARD).read_text() == changed


def test_a_card_goes_with_what_it_speaks_of(bert, tmp_path):
    save_pretrained(bert(), tmp_path / "dense", metrics={"f1": 0.8})
    small, plain = tmp_path / "small", tmp_path / "plain"
    flags = ["--prefer", "memory", "--no_measure"]
    assert main(["compress", str(tmp_path / "dense"), str(small), *flags]) == 0
    assert "f1" not in rows(small), "of the model as it was"
    assert rows(small)["layers as they are stored"] != "8 dense"
    assert main(["export", str(small), str(plain), "--format", "dense"]) == 0
    assert not (plain / CARD).exists(), "it would speak of packed layers"
    (tmp_path / "dense" / CARD).write_text("mine")
    assert main(["compress", str(tmp_path / "dense"), str(small), *flags]) == 0
    assert (small / CARD).read_text() == "mine", "what somebody wrote of the model comes along, as it did"


def test_the_base_model_is_handed_on(bert, tmp_path):
    model = bert()
    model.config._name_or_path = "google/bert-tiny"
    save_pretrained(model, tmp_path / "dense")
    flags = ["--prefer", "memory", "--no_measure"]
    assert main(["compress", str(tmp_path / "dense"), str(tmp_path / "small"), *flags]) == 0
    assert head(tmp_path / "small")["base_model"] == "google/bert-tiny"


def test_weights_that_the_model_holds_parts_of_are_counted_whole(bert, tmp_path):
    model = bert()
    model.save_pretrained(tmp_path)
    state = model.state_dict()
    for layer in model.bert.encoder.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(layer.weight[:4])  # as a process of several has them
    write_card(model, tmp_path, CardNotes(pattern="4x1 + 1x1"), state)
    assert rows(tmp_path)["zeros of what multiplies"].startswith("0.6621 of 9,280 weights")
    assert rows(tmp_path)["pattern"] == "4x1 + 1x1"
    assert head(tmp_path)["tags"] == ["trisparse", "pruned", "4x1 + 1x1"]


def test_what_comes_back_from_the_hub_can_be_saved_over(bert, tmp_path):
    model = bert()
    compress(model, prefer="memory", measure=False)
    save_pretrained(model, tmp_path)
    (tmp_path / ".trisparse.json").unlink()  # which is hidden, and so not uploaded
    save_pretrained(from_pretrained(tmp_path), tmp_path, metrics={"f1": 0.5})
    assert rows(tmp_path)["f1"] == "0.5000"


def test_what_was_saved_before_there_were_cards_gets_one(bert, tmp_path):
    save_pretrained(bert(), tmp_path)
    (tmp_path / CARD).unlink()
    record = json.loads((tmp_path / ".trisparse.json").read_text())
    del record["files"][CARD]
    (tmp_path / ".trisparse.json").write_text(json.dumps(record))
    loaded = from_pretrained(tmp_path)
    save_pretrained(loaded, tmp_path)
    assert is_card(tmp_path / CARD)
