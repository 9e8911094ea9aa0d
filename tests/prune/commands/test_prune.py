"""`trisparse prune`: a folder of a language model in, one out that everything else reads."""

import re

import pytest
import torch

from trisparse import from_pretrained, prune_once
from trisparse.cli import main

transformers = pytest.importorskip("transformers")
WORDS = ["the", "a", "cat", "dog", "sees", "likes", "big", "small", "house", "tree"]
TEXTS = ["the cat sees a dog", "a dog likes the big tree", "", "the small house", "a cat sees the big house"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tiny Llama with a tokenizer of ten words, beside a file of texts; the working directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "dsnot", "magnitude"])
def test_prune_then_inspect_and_compress(folder, capsys, method):
    data = [] if method == "magnitude" else ["--data", "texts.txt", "--samples", "3", "--max_length", "5"]
    assert main(["prune", "model", "out", "--method", method, "--pattern", "2:4", *data]) == 0
    said = capsys.readouterr()
    assert re.search(r"zeros of the pruned layers +0.5000\n", said.out)
    assert "wrote out" in said.out
    if data:
        assert "calibrated on 3 texts, 13 tokens in all" in said.out
        assert "block 2 of 2" in said.err
    model = from_pretrained("model")
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert tokenizer("the cat")["input_ids"] == [1, 3]
    more = {"calibration": TEXTS, "tokenizer": tokenizer, "samples": 3, "max_length": 5} if data else {}
    prune_once(model, method, pattern="2:4", **more)
    want = model.state_dict()
    for found in (from_pretrained("out"), transformers.AutoModelForCausalLM.from_pretrained("out")):
        assert all(tensor.equal(want[name]) for name, tensor in found.state_dict().items())
    assert main(["inspect", "out"]) == 0
    assert "readable; 15 layers" in capsys.readouterr().out
    assert main(["compress", "out", "small", "--prefer", "memory", "--no_measure"]) == 0
    assert main(["prune", "model", "out", "--method", "magnitude", "--pattern", "2:4"]) == 0  # over what it wrote


def test_flags_reach_the_method(folder, capsys):
    flags = [
        "--pattern",
        "1x1",
        "--target_sparsity",
        "0.5",
        "--layer_sparsity",
        "owl",
        "--owl_m",
        "2",
        "--owl_lambda",
        "0.1",
    ]
    more = ["--device", "cpu", "--dtype", "bfloat16", "--excluded_op_names", "q_proj", "k_proj"]
    assert main(["prune", "model", "out", "--data", "texts.txt", *flags, *more]) == 0
    assert "q_proj" not in capsys.readouterr().out
    model = from_pretrained("out")
    assert model.dtype == torch.bfloat16
    share = [float((layer.mlp.up_proj.weight == 0).float().mean()) for layer in model.model.layers]
    assert sorted(share) == [0.375, 0.625]  # 0.4 and 0.6 of 16 columns
    sparsegpt = ["--method", "sparsegpt", "--dampening", "-1", "--data", "texts.txt", "--pattern", "2:4"]
    assert main(["prune", "model", "out", *sparsegpt]) == 2
    assert "dampening: want a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["model", "out", "--pattern", "2:4", "--method", "wanda"],
            "--data: missing; wanda prunes by what it sees of texts",
        ),
        (["model", "out", "--pattern", "4x1"], "target_sparsity: missing; want which fraction"),
        (["model", "model", "--pattern", "2:4", "--data", "texts.txt"], "OUT: want another folder than MODEL"),
        (["../none", "out", "--pattern", "2:4", "--data", "texts.txt"], "none: want a folder with config.json"),
        (
            ["model", "out", "--pattern", "4x1", "--target_sparsity", "0.5", "--data", "texts.txt"],
            "pattern: want N:M or 1x1 for wanda, got '4x1'",
        ),
        (["model", "out", "--pattern", "2:4", "--data", "none.txt"], "calibration: none.txt: no such file or folder"),
        (["model", "out", "--pattern", "2:4", "--data", "blank.txt"], "but 'blank.txt' holds none that is not empty"),
        (["model", "out", "--pattern", "2:4", "--data", "t.txt", "--device", "x"], "--device: 'x' can't be used"),
        (["bare", "out", "--pattern", "2:4", "--data", "texts.txt"], "bare: its tokenizer can't be loaded: "),
        (
            ["model", "out", "--pattern", "2:4", "--data", "texts.txt", "--max_length", "64"],
            "max_length: 64 is more than the 32 tokens that the model takes",
        ),
        (
            ["model", "out", "--pattern", "2:4", "--method", "magnitude", "--samples", "3"],
            "samples: has no effect without calibration",
        ),
    ],
)
def test_mistakes_get_one_line(folder, capsys, flags, message):
    (folder / "blank.txt").write_text("\n")
    (folder / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "bare" / name).write_bytes((folder / "model" / name).read_bytes())
    assert main(["prune", *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trisparse ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (folder / "out").exists()


def test_a_name_is_looked_for_on_the_hub(folder, capsys, monkeypatch):
    import huggingface_hub

    flags = ["owner/name", "out", "--pattern", "2:4", "--data", "texts.txt"]
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
        assert main(["prune", *flags]) == 2
    assert "owner/name: is no folder, and can't be had from the hub: ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: folder / "model")
    assert main(["prune", *flags]) == 0
    assert {"tokenizer.json", "model.safetensors"} <= {path.name for path in (folder / "out").iterdir()}
