"""Compressed checkpoints: the same outputs after loading, in this process and another, and damage refused by name."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from trisparse import PruningError, compress, decompress, from_pretrained, save_pretrained
from trisparse.sparse_ops import Linear24, LinearBlocks, nm_mask

transformers = pytest.importorskip("transformers")
SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=50, n_embd=64, n_layer=2, n_head=4, n_inner=128, bos_token_id=1, eos_token_id=2
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2)),
}
AUTO = {"bert": "AutoModelForSequenceClassification", "gpt2": "AutoModelForCausalLM", "llama": "AutoModelForCausalLM"}
IDS = {"input_ids": torch.arange(18).view(2, 9)}


def pruned(name):
    """Every format at once: 2:4, vectors, blocks, and channels that go."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for index, (path, layer) in enumerate(model.named_modules()):
            if not (type(layer) is nn.Linear or type(layer).__name__ == "Conv1D") or "head" in path:
                continue
            weight = layer.weight.t() if type(layer).__name__ == "Conv1D" else layer.weight
            if any(key in path for key in ("intermediate", "c_fc", "gate_proj")):
                weight[:64] = 0
            elif index % 3 == 0 and len(weight) >= 64:
                weight.copy_(weight * nm_mask(weight.contiguous(), 2, 4))
            elif index % 3 == 1 and len(weight) % 4 == 0:
                weight *= (torch.rand(len(weight) // 4, weight.shape[1]) < 0.2).repeat_interleave(4, 0)
            elif len(weight) >= 64:
                weight *= (
                    (torch.rand(len(weight) // 16, weight.shape[1] // 16) < 0.3)
                    .repeat_interleave(16, 0)
                    .repeat_interleave(16, 1)
                )
            if layer.bias is not None:
                layer.bias.normal_(std=0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model(**IDS).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name -> compressed model, what it gives, and its folder."""
    found = {}

    def get(name):
        if name not in found:
            model = pruned(name)
            folder = tmp_path_factory.mktemp(name) / "model"
            want = logits(model)
            compress(model, prefer="memory", measure=False)
            torch.testing.assert_close(logits(model), want)
            save_pretrained(model, folder)
            found[name] = model, logits(model), folder
        return found[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_loads_as_it_was(saved, name):
    model, want, folder = saved(name)
    loaded = from_pretrained(folder)
    assert type(loaded) is type(model)
    assert torch.equal(logits(loaded), want)
    kinds = {type(m) for m in loaded.modules()}
    assert {Linear24, LinearBlocks} <= kinds
    assert {m.block[1] for m in loaded.modules() if isinstance(m, LinearBlocks)} == {1, 16}
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "trisparse"
    assert config["quantization_config"]["format_version"] == 1
    assert "sparsity_config" not in json.dumps(config)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".safetensors"}


@pytest.mark.parametrize("name", MODELS)
def test_the_auto_classes_load_it_too(saved, name):
    _, want, folder = saved(name)
    assert torch.equal(logits(getattr(transformers, AUTO[name]).from_pretrained(folder)), want)
    base = transformers.AutoModel.from_pretrained(folder)
    assert any(isinstance(m, LinearBlocks) for m in base.modules())


@pytest.mark.parametrize("first", ["trisparse", "transformers"])
def test_in_a_new_process_whichever_is_imported_first(saved, first):
    _, want, folder = saved("bert")
    second = {"trisparse": "transformers", "transformers": "trisparse"}[first]
    script = (
        f"import {first}, {second}, torch; from transformers import AutoModelForSequenceClassification as A\n"
        f"model = A.from_pretrained({str(folder)!r})\n"
        "print(model(input_ids=torch.arange(18).view(2, 9)).logits.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == want.tolist()


def test_saved_again_by_transformers_itself_and_in_shards(saved, tmp_path):
    _, want, folder = saved("bert")
    loaded = from_pretrained(folder)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(from_pretrained(tmp_path / "again")), want)
    save_pretrained(loaded, tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(logits(from_pretrained(tmp_path / "shards")), want)
    save_pretrained(loaded, tmp_path / "shards")
    assert [path.name for path in (tmp_path / "shards").glob("*.safetensors*")] == ["model.safetensors"]
    assert torch.equal(logits(from_pretrained(tmp_path / "shards")), want)


def test_a_model_that_transformers_saves_before_it_was_loaded(saved, tmp_path):
    model, want, _ = saved("llama")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path)), want)


def test_in_half_precision(saved, tmp_path):
    model = pruned("bert").half()
    compress(model, prefer="memory", measure=False)
    want = logits(model)
    save_pretrained(model, tmp_path)
    assert torch.equal(logits(from_pretrained(tmp_path)), want)
    assert from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    torch.testing.assert_close(
        logits(from_pretrained(tmp_path, dtype=torch.float32)), want.float(), atol=5e-3, rtol=5e-3
    )


@pytest.mark.parametrize("name", MODELS)
def test_decompressed_it_is_a_plain_checkpoint(saved, name, tmp_path):
    _, want, folder = saved(name)
    dense = decompress(from_pretrained(folder))
    torch.testing.assert_close(logits(dense), want)
    assert not hasattr(dense.config, "quantization_config")
    assert getattr(dense, "hf_quantizer", None) is None
    save_pretrained(dense, tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    plain = getattr(transformers, AUTO[name]).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), want)
    assert {type(m) for m in plain.modules()} == {type(m) for m in MODELS[name]().modules()}


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))


def first_layer(entry):
    return next(spec for spec in entry["layers"].values() if spec["format"] == "vectors")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors: is truncated or damaged"),
        (flip, "model.safetensors: is not the file that was saved with this config"),
        (lambda f: (f / "model.safetensors").write_text(""), "model.safetensors: is truncated or damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: is missing"),
        (lambda f: (f / "config.json").unlink(), "want a folder with config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: want an object"),
        (
            lambda f: edit_config(f, lambda e: e.update(format_version=2)),
            "format_version: want 1, got 2; update trisparse",
        ),
        (lambda f: edit_config(f, lambda e: first_layer(e).update(slots=16)), r"values: want \[16, 4, 1\] .*, got"),
        (lambda f: edit_config(f, lambda e: first_layer(e).update(block=[5, 1])), "is damaged or of another version"),
        (lambda f: edit_config(f, lambda e: first_layer(e).pop("shape")), "is damaged or of another version"),
        (lambda f: edit_config(f, lambda e: e.update(layers=[])), "layers: want a mapping"),
        (
            lambda f: edit_config(f, lambda e: e["layers"].update(nowhere=first_layer(e))),
            "nowhere: a BertForSequenceClassification has no such layer",
        ),
    ],
)
def test_damage_is_refused_by_name(saved, tmp_path, damage, message):
    _, _, folder = saved("bert")
    copied = tmp_path / "model"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    damage(copied)
    with pytest.raises(PruningError, match=message):
        from_pretrained(copied)
    if "config" not in message and "missing" not in message and "truncated" not in message:
        with pytest.raises(PruningError, match=message):
            transformers.AutoModelForSequenceClassification.from_pretrained(copied)


def test_tensors_that_no_kernel_may_read_are_refused(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, folder = saved("bert")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("columns"))
    tensors[name] = tensors[name] + 1000
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    edit_config(tmp_path, lambda entry: entry.pop("files"))
    with pytest.raises(
        PruningError, match=f"{name.removesuffix('.columns')}: its tensors are damaged: .*columns: does not fit"
    ):
        from_pretrained(tmp_path)
