"""Every field of a checkpoint's description of its layers is checked, and compared with the model it is for."""

import json
import re

import pytest

from trisparse import PruningError, compress, from_pretrained, save_pretrained
from trisparse.prune.deploy.inspection import packed_rows
from trisparse.prune.deploy.spec_check import check_entry

VECTORS = {
    "format": "vectors", "shape": [8, 16], "full_shape": [12, 16], "bias": True, "conv1d": False, "block": [4, 1],
    "run": 2, "slots": 32,
}  # fmt: skip
BLOCKS = VECTORS | {"format": "blocks", "block": [16, 32], "run": 16}
DENSE = {key: VECTORS[key] for key in ("shape", "full_shape", "bias", "conv1d")} | {"format": "dense"}


def entry(spec, **more):
    return {"quant_method": "trisparse", "format_version": 1, "layers": {"a.b": spec}} | more


def test_what_is_written_is_accepted():
    for spec in (
        VECTORS,
        BLOCKS,
        DENSE,
        DENSE | {"format": "2:4"},
        DENSE | {"parts": [2, 1]},
        VECTORS | {"parts": [4, 16]},
    ):
        assert check_entry(entry(spec), "x") == {"a.b": spec}
        assert check_entry(entry(spec, files={"f": "0" * 64}), "x") == {"a.b": spec}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (5, "format: want dense, 2:4, vectors, blocks, channels, got None"),
        (VECTORS | {"format": ["dense"]}, "format: want dense, 2:4, vectors, blocks, channels, got ['dense']"),
        (VECTORS | {"more": 1}, "want the fields format, shape, full_shape, bias, conv1d, block, run, slots, got"),
        ({key: VECTORS[key] for key in VECTORS if key != "bias"}, "want the fields format, shape"),
        (DENSE | {"block": [4, 1]}, "want the fields format, shape, full_shape, bias, conv1d, got"),
        (VECTORS | {"shape": 5}, "shape: got 5"),
        (VECTORS | {"shape": [8, 16, 1], "full_shape": [12]}, "shape: got [8, 16, 1]"),
        (VECTORS | {"shape": [8.0, 16]}, "shape: got [8.0, 16]"),
        (VECTORS | {"shape": [True, 16]}, "shape: got [True, 16]"),
        (VECTORS | {"shape": [-8, 16]}, "shape: got [-8, 16]"),
        (VECTORS | {"full_shape": [0, 0]}, "full_shape: want at least the shape [8, 16], got [0, 0]"),
        (VECTORS | {"full_shape": [12, 15]}, "full_shape: want at least the shape [8, 16], got [12, 15]"),
        (VECTORS | {"full_shape": [10**12, 16]}, "full_shape: got [1000000000000, 16]"),
        (VECTORS | {"full_shape": [2**70, 16]}, "full_shape: got ["),
        (VECTORS | {"bias": 1}, "bias: got 1"),
        (VECTORS | {"conv1d": None}, "conv1d: got None"),
        (VECTORS | {"block": [4.0, 1]}, "block: got [4.0, 1]"),
        (VECTORS | {"block": [5, 1]}, "block: got [5, 1]"),
        (VECTORS | {"block": [16, 16]}, "block: got [16, 16]"),
        (VECTORS | {"block": "41"}, "block: got '41'"),
        (BLOCKS | {"block": [16, 1]}, "block: got [16, 1]"),
        (VECTORS | {"run": 3}, "run: want a divisor of 4, for blocks 4 itself, got 3"),
        (VECTORS | {"run": 0}, "run: got 0"),
        (BLOCKS | {"run": 4}, "run: want a divisor of 16, for blocks 16 itself, got 4"),
        (VECTORS | {"slots": -1}, "slots: got -1"),
        (VECTORS | {"slots": 2**31}, "slots: got 2147483648"),
        (DENSE | {"parts": [3, 1]}, "parts: want divisors of [8, 16] and [12, 16], got [3, 1]"),
        (DENSE | {"parts": [8, 1]}, "parts: want divisors of [8, 16] and [12, 16], got [8, 1]"),
        (DENSE | {"parts": [0, 1]}, "parts: want divisors of [8, 16] and [12, 16], got [0, 1]"),
        (DENSE | {"parts": 2}, "parts: got 2"),
        (DENSE | {"format": "2:4", "shape": [8, 14]}, "shape: want columns in fours for 2:4, got [8, 14]"),
    ],
)
def test_a_wrong_field_is_named(spec, message):
    want = f"x: layers: a.b: is damaged or of another version: {message}"
    with pytest.raises(PruningError, match=f"^{re.escape(want)}[^\n]*$"):
        check_entry(entry(spec), "x")


@pytest.mark.parametrize("files", [None, [], {}, ["f"], {"f": None}, {"f": "short"}, 3])
def test_digests_are_there_or_not_at_all(files):
    with pytest.raises(PruningError, match="^x: files: want the SHA-256 of each file, got "):
        check_entry(entry(VECTORS, files=files), "x")


@pytest.mark.parametrize("version", [True, "1", 1.0, None, 2])
def test_versions(version):
    with pytest.raises(PruningError, match="^x: format_version: want 1, got "):
        check_entry(entry(VECTORS, format_version=version), "x")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    import torch

    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = transformers.BertForSequenceClassification(config).eval()
    dense = model.bert.encoder.layer[0].output.dense
    dense.weight.data *= (torch.rand(8, 64) < 0.2).repeat_interleave(4, 0)
    compress(model, prefer="memory", measure=False, remove_channels=False)
    folder = tmp_path_factory.mktemp("saved")
    save_pretrained(model, folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"full_shape": [36, 64]}, r"full_shape: want \[32, 64\], as the model has it, got \[36"),
        ({"full_shape": [10**9, 64]}, r"full_shape: want \[32, 64\], as the model has it, got"),
        ({"conv1d": True}, "conv1d: want False, as the model has it, got True"),
        ({"files": None}, "files: want the SHA-256 of each file, got None"),
        ({"files": []}, r"files: want the SHA-256 of each file, got \[\]"),
        ({"rename": "bert.embeddings.word_embeddings"}, "word_embeddings: is no linear layer of a BertFor"),
    ],
)
def test_the_config_has_to_fit_the_model(saved, tmp_path, change, message):
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((saved / "config.json").read_text())
    found = config["quantization_config"]
    ((name, spec),) = found["layers"].items()
    spec.update({key: value for key, value in change.items() if key in spec})
    found.update({key: value for key, value in change.items() if key == "files"})
    found["layers"] = {change.get("rename", name): spec}
    (tmp_path / "config.json").write_text(json.dumps(config))
    import transformers

    loads = [from_pretrained, transformers.AutoModelForSequenceClassification.from_pretrained]
    for load in [*loads, packed_rows]:
        with pytest.raises(PruningError, match=message) as caught:
            load(tmp_path)
        assert str(caught.value).startswith(str(tmp_path)) or "files" in change
