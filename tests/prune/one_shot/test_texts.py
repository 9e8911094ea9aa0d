"""Calibration from texts: what is read, how it is cut, and what is said of what can't be."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trisparse import PruningError, prune_once
from trisparse.prune.one_shot.texts import text_batches, texts_of


class Model(nn.Module):
    """A model of words by their length, which takes no `token_type_ids`."""

    def __init__(self, **config):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(**config)
        self.words, self.inner, self.head = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask=None, use_cache=True):
        return self.head(self.inner(self.words(input_ids)))


class Tokenizer:
    model_max_length = 10**30

    def __call__(self, text, truncation, max_length, return_tensors):
        ids = torch.tensor([[len(word) for word in text.split()][:max_length]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def test_texts_of_one_length_share_a_batch_and_empty_ones_are_left_out():
    texts = ["a bb", "", "ccc", " \n", "dddd eeeee ffffff", "g hh"]
    batches, note = text_batches(Model(), texts, Tokenizer(), max_length=2)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[1, 2], [4, 5], [1, 2]], [[3]]]
    assert all(batch.keys() == {"input_ids", "attention_mask", "use_cache"} for batch in batches)
    assert note == "calibrated on 4 texts, of 128 that were asked for, 7 tokens in all"
    batches, note = text_batches(Model(), iter(texts), Tokenizer(), samples=2)
    assert [batch["input_ids"].tolist() for batch in batches] == [[[1, 2]], [[3]]]
    assert note == "calibrated on 2 texts, 3 tokens in all"


def test_how_long_a_text_may_be_and_how_much_a_batch_holds():
    text, tokenizer = "a " * 5000, Tokenizer()
    lengths = lambda model: [tuple(b["input_ids"].shape) for b in text_batches(model, [text] * 3, tokenizer)[0]]  # noqa: E731
    assert lengths(Model()) == [(2, 2048), (1, 2048)]
    assert lengths(Model(max_position_embeddings=512)) == [(3, 512)]
    tokenizer.model_max_length = 100
    assert lengths(Model(max_position_embeddings=512)) == [(3, 100)]


def test_texts_prune_as_their_batches_do():
    texts, models = ["a bb ccc", "dddd e", "ff g"], [Model(), Model()]
    report = prune_once(models[0], "wanda", calibration=texts, tokenizer=Tokenizer(), pattern="2:4")
    batches = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 1], [2, 1]])]
    prune_once(models[1], "wanda", batches, pattern="2:4")
    assert models[0].inner.weight.equal(models[1].inner.weight)
    assert report.notes[0].startswith("calibrated on 3 texts")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n\ntwo 2\n"),
        ("a.jsonl", '{"text": "one", "id": "x"}\n\n{"text": null}\n{"text": "two 2"}\n'),
        ("a.json", '{"text": "one"}\n{"text": "two 2"}\n'),
        ("b.json", '\n[{"text": "one"}, {"text": "two 2"}]'),
        ("c.json", '["one", "two 2"]'),
        ("a.csv", "id,text\n1,one\n2,two 2\n"),
        ("a.tsv", "text\tid\none\t1\ntwo 2\t2\n"),
    ],
)
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    for path in (tmp_path / name, str(tmp_path / name)):
        assert [text.strip() for text in texts_of(path)] == ["one", "two 2"]


def test_rows_with_other_columns():
    rows = [{"n": 1, "premise": "a", "label": 0}, {"n": 2, "premise": "b", "label": 1}]
    assert list(texts_of(rows)) == ["a", "b"]
    rows = [{"question": "a", "answer": "b"}]
    assert list(texts_of(rows, "answer")) == ["b"]
    with pytest.raises(PruningError, match="column: missing; the rows have question, answer; say which"):
        list(texts_of(rows))
    with pytest.raises(PruningError, match="column: 'anser' is none of question, answer; did you mean 'answer'"):
        list(texts_of(rows, "anser"))


def test_folders_and_names_go_to_datasets(tmp_path, monkeypatch):
    asked = []
    rows = [{"text": "one"}]
    fake = SimpleNamespace(
        load_dataset=lambda *names, **keys: asked.append((names, keys)) or rows,
        load_from_disk=lambda name: asked.append(name) or {"test": [], "train": rows},
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    how = {"split": "train", "streaming": True}
    for name, want in [
        ("owner/name", (("owner/name", None), how)),
        ("owner/name:config", (("owner/name", "config"), how)),
        (str(tmp_path), ((str(tmp_path),), how)),
    ]:
        assert list(texts_of(name)) == ["one"]
        assert asked.pop() == want
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert list(texts_of(tmp_path)) == ["one"]
    assert asked == [str(tmp_path)]


def test_a_data_set_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": ["one", "", "two"]}).save_to_disk(tmp_path / "saved")
    assert list(texts_of(tmp_path / "saved")) == ["one", "two"]


def fails(*_, **__):
    raise ConnectionError("no\nnetwork")


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (None, "calibration: 'owner/name' needs the datasets library, which is not installed; pip install datasets"),
        (SimpleNamespace(load_dataset=fails), "'owner/name' can't be loaded by datasets: ConnectionError: no network"),
    ],
)
def test_no_data_sets(monkeypatch, library, message):
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(PruningError, match=message):
        list(texts_of("owner/name"))


@pytest.mark.parametrize(
    ("calibration", "keys", "message"),
    [
        (["a"], {"tokenizer": None}, "tokenizer: missing; calibration by texts needs the model's own"),
        (["a"], {"tokenizer": "bert"}, "tokenizer: want one of transformers, got 'bert'"),
        ([], {}, "calibration: want texts, but a list holds none that is not empty"),
        (["", " "], {}, "calibration: want texts, but a list holds none that is not empty"),
        ([1], {}, "calibration: want texts, but entry 0 is 1"),
        ([["a"]], {}, r"calibration: want texts, but entry 0 is \['a'\]"),
        ([{"text": 3}], {}, "calibration: want texts, but entry 0 is 3"),
        ({"text": ["a"]}, {}, "calibration: want texts or the name of a data set, got a dict"),
        (3, {}, "calibration: want texts or the name of a data set, got a int"),
        ("nowhere.txt", {}, "calibration: nowhere.txt: no such file or folder"),
        ("./nowhere", {}, "calibration: ./nowhere: no such file or folder"),
        ("empty.txt", {}, "calibration: want texts, but 'empty.txt' holds none"),
        ("a.bin", {}, "calibration: a.bin: want a file that ends with .txt, .jsonl"),
        ("broken.jsonl", {}, "calibration: broken.jsonl can't be read: JSONDecodeError"),
        ("latin.txt", {}, "calibration: latin.txt can't be read: UnicodeDecodeError"),
        ("a" * 5000, {}, "can't be read: OSError"),
        (["a"], {"samples": 0}, "samples: want a whole number of at least 1, got 0"),
        (["a"], {"max_length": 2.5}, "max_length: want a whole number of at least 1, got 2.5"),
        (["a"], {"max_length": 9}, "max_length: 9 is more than the 8 tokens that the model takes"),
    ],
)
def test_misuse(tmp_path, monkeypatch, calibration, keys, message):
    monkeypatch.chdir(tmp_path)
    for name, content in [
        ("empty.txt", b"\n \n"),
        ("a.bin", b"a"),
        ("broken.jsonl", b"{"),
        ("latin.txt", b"\xe9t\xe9"),
    ]:
        (tmp_path / name).write_bytes(content)
    model = Model(max_position_embeddings=8)
    before = json.dumps([tensor.tolist() for tensor in model.state_dict().values()])
    with pytest.raises(PruningError, match=message):
        prune_once(model, "wanda", calibration=calibration, pattern="2:4", **{"tokenizer": Tokenizer()} | keys)
    assert json.dumps([tensor.tolist() for tensor in model.state_dict().values()]) == before


def test_an_encoder_decoder_needs_batches():
    with pytest.raises(PruningError, match="calibration: Model decodes, too, which texts don't tell of; give batches"):
        text_batches(Model(is_encoder_decoder=True), ["a"], Tokenizer())
