"""Parts of compressed models saved by transformers itself: a base model alone, a model around one, shared configs."""

import json

import pytest
import torch

from trisparse import PruningError, compress, decompress, export, from_pretrained, save_pretrained
from trisparse.cli import main
from trisparse.sparse_ops import LinearBlocks

transformers = pytest.importorskip("transformers")
IDS = {"input_ids": torch.arange(12).view(2, 6)}


def run(model):
    with torch.no_grad():
        result = model(**IDS)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def small(model):
    return compress(model, prefer="memory", measure=False)[0]


def packed(model):
    return sum(isinstance(m, LinearBlocks) for m in model.modules())


def test_a_base_model_of_what_was_saved_whole_saves_itself(make_bert, tmp_path):
    save_pretrained(small(make_bert()), tmp_path / "whole")
    base = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base")
    entry = json.loads((tmp_path / "base" / "config.json").read_text())["quantization_config"]
    assert all(name.startswith("encoder.") for name in entry["layers"])
    for load in (from_pretrained, transformers.AutoModel.from_pretrained):
        again = load(tmp_path / "base")
        assert torch.equal(run(again), run(base))
        assert packed(again) == 6
    around = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(run(around.bert), run(base))


@pytest.mark.parametrize("save", [lambda m, f: m.save_pretrained(f), save_pretrained])
def test_a_base_model_is_saved_out_of_a_compressed_one(make_bert, tmp_path, save, capsys):
    model = small(make_bert())
    save(model.bert, tmp_path)
    for load in (from_pretrained, transformers.AutoModel.from_pretrained):
        base = load(tmp_path)
        assert torch.equal(run(base), run(model.bert))
        assert packed(base) == 6
    assert main(["inspect", str(tmp_path)]) == 0
    assert "6 layers" in capsys.readouterr().out


def test_a_packed_head_is_left_out_with_the_head(tmp_path):
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 32)
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.LlamaForCausalLM(config).eval()
    for layer in (model.lm_head, model.model.layers[0].mlp.up_proj):
        layer.weight.data[:, 4:] = 0
    _, report = compress(model, prefer="memory", measure=False)
    assert report.layers[-1].reason == "the smallest; decompress before resize_token_embeddings"
    model.model.save_pretrained(tmp_path)
    base = from_pretrained(tmp_path)
    assert torch.equal(run(base), run(model.model))
    assert packed(base) == 1


@pytest.mark.parametrize("save", [lambda m, f: m.save_pretrained(f), save_pretrained])
def test_a_model_is_saved_whose_base_was_compressed(make_bert, tmp_path, save):
    model = make_bert()
    small(model.bert)
    save(model, tmp_path)
    for load in (from_pretrained, transformers.AutoModelForSequenceClassification.from_pretrained):
        again = load(tmp_path)
        assert torch.equal(run(again), run(model))
        assert packed(again) == 6


def test_a_dense_model_that_shares_its_config_object(make_bert, tmp_path):
    model = make_bert()
    dense = make_bert(seed=1, config=model.config)
    model.bert.encoder.layer[0].intermediate.dense.weight.data[:32] = 0
    small(model)
    dense.save_pretrained(tmp_path / "theirs")
    save_pretrained(dense, tmp_path / "ours")
    save_pretrained(model, tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "ours" / "config.json").read_text())
    for folder in ("theirs", "ours"):
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        assert torch.equal(run(loaded), run(dense))
        assert packed(loaded) == 0
        assert getattr(loaded.config, "quantization_config", None) is None
        loaded.half()
    assert torch.equal(run(from_pretrained(tmp_path / "model")), run(model))


def test_a_layer_that_files_lack_is_missed_where_all_were_saved(make_bert, tmp_path):
    save_pretrained(small(make_bert()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layers = config["quantization_config"]["layers"]
    layers["bert.nowhere"] = next(iter(layers.values()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PruningError, match=r"layers: bert.nowhere: a BertFor.* has no such layer$"):
        from_pretrained(tmp_path)


def test_biases_of_the_values_stay_exact_where_their_reader_has_none(tmp_path):
    """Qwen2 adds biases to queries, keys and values, and none to the layer that reads them."""
    config = transformers.Qwen2Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).eval()
    attention = model.model.layers[0].self_attn
    for layer, rows in ((attention.q_proj, 16), (attention.k_proj, 8), (attention.v_proj, 8)):
        layer.bias.data.normal_()
        layer.weight.data[:rows] = 0
    want = run(model)
    _, report = compress(model, prefer="memory", measure=False)
    row = report.channels.chains[0]
    assert row.reason == "1 stay: model.layers.0.self_attn.o_proj has no bias to take what they always give"
    save_pretrained(model, tmp_path / "small")
    export(from_pretrained(tmp_path / "small"), tmp_path / "dense", "dense")
    decompress(from_pretrained(tmp_path / "small")).save_pretrained(tmp_path / "again")
    for name in ("small", "dense", "again"):
        torch.testing.assert_close(run(from_pretrained(tmp_path / name)), want)


def test_a_class_of_ones_own_says_how_it_loads(make_bert, tmp_path):
    class Mine(transformers.BertForSequenceClassification):
        pass

    model = make_bert()
    model.__class__ = Mine
    small(model)
    with pytest.warns(UserWarning, match="Mine is no class of transformers: .* load by Mine.from_pretrained"):
        save_pretrained(model, tmp_path)
    with pytest.raises(PruningError, match=r"got \['Mine'\]; a class of your own loads by .*Mine.from_pretrained"):
        from_pretrained(tmp_path)
    assert torch.equal(run(Mine.from_pretrained(tmp_path)), run(model))


class Twice(transformers.BertPreTrainedModel):
    """Has a layer under two names, as detectors with one box head for all their stages do."""

    _tied_weights_keys = {"second.weight": "first.weight", "second.bias": "first.bias"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.bert = transformers.BertModel(config)
        self.first = torch.nn.Linear(32, 32)
        self.second = self.first
        self.post_init()

    def forward(self, input_ids):
        hidden = self.bert(input_ids).last_hidden_state
        return transformers.modeling_outputs.BaseModelOutput(self.second(self.first(hidden)))


@pytest.mark.filterwarnings("ignore:Twice is no class of transformers")
def test_a_layer_under_two_names_stays_where_files_hold_it_under_one(make_bert, tmp_path):
    model = Twice(make_bert().config).eval()
    for layer in (model.first, model.bert.encoder.layer[0].output.dense):
        layer.weight.data.zero_()
    want = run(model)
    _, report = compress(model, prefer="memory", measure=False)
    assert {row.name: row.reason for row in report.layers}["first"] == "its weight is shared"
    assert packed(model) == 1
    save_pretrained(model, tmp_path)
    loaded = Twice.from_pretrained(tmp_path)
    assert torch.equal(run(loaded), want)
    assert packed(loaded) == 1


def test_another_methods_quantization_is_not_written_over(make_bert, tmp_path):
    model = make_bert()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    before = {name: type(m) for name, m in model.named_modules()}
    for refused in (small, lambda m: export(m, tmp_path, "dense")):
        with pytest.raises(PruningError, match="^model: its config has a quantization_config of 'gptq'"):
            refused(model)
    assert {name: type(m) for name, m in model.named_modules()} == before
    assert model.config.quantization_config == {"quant_method": "gptq", "bits": 4}


def test_a_compressed_model_is_loaded_into_memory_whole(make_bert, tmp_path):
    save_pretrained(small(make_bert()), tmp_path)
    with pytest.raises(PruningError, match=r"query.values: holds no numbers .*load the whole model into memory$"):
        from_pretrained(tmp_path, device_map={"": "meta"})
