"""What is saved can be read: models whose tensors transformers renames, merges or splits in files, and parts of models."""

import json

import pytest
import torch

from trisparse import PruningError, compress, decompress, from_pretrained, prune_once, save_pretrained
from trisparse.cli import main
from trisparse.sparse_ops import Linear24

T = pytest.importorskip("transformers")
BLOCK = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
IMAGES = {**BLOCK, "image_size": 8, "patch_size": 4}
TEXTS = {**BLOCK, "vocab_size": 32, "max_position_embeddings": 32}
SEQ2SEQ = {
    "vocab_size": 32, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 32,
}  # fmt: skip
IDS = {"input_ids": torch.arange(3, 12)[None]}
PAIR = {**IDS, "decoder_input_ids": torch.arange(4, 9)[None]}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 192).view(1, 3, 8, 8)}


def llava_config():
    parts = {"vision_config": T.CLIPVisionConfig(**IMAGES), "text_config": T.LlamaConfig(**TEXTS)}
    return T.LlavaConfig(**parts, image_token_index=31, vision_feature_layer=-1)


def encoder_decoder():
    decoder = T.BertConfig(**TEXTS, is_decoder=True, add_cross_attention=True)
    return T.EncoderDecoderModel(T.EncoderDecoderConfig.from_encoder_decoder_configs(T.BertConfig(**TEXTS), decoder))


MODELS = {  # how it is made, its inputs, its Auto class
    "vit": (lambda: T.ViTForImageClassification(T.ViTConfig(**IMAGES)), PICTURE, "ImageClassification"),
    "vit alone": (lambda: T.ViTModel(T.ViTConfig(**IMAGES)), PICTURE, ""),
    "deit": (lambda: T.DeiTForImageClassification(T.DeiTConfig(**IMAGES)), PICTURE, "ImageClassification"),
    "beit": (lambda: T.BeitForImageClassification(T.BeitConfig(**IMAGES)), PICTURE, "ImageClassification"),
    "dinov2": (lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**IMAGES)), PICTURE, "ImageClassification"),
    "dinov2 merged": (
        lambda: T.Dinov2ForImageClassification(T.Dinov2Config(**IMAGES, use_swiglu_ffn=True)),
        PICTURE, "ImageClassification",
    ),
    "nomic merged": (lambda: T.NomicBertModel(T.NomicBertConfig(**TEXTS)), IDS, ""),
    "swin": (
        lambda: T.SwinForImageClassification(
            T.SwinConfig(image_size=8, patch_size=2, embed_dim=64, depths=[1], num_heads=[2], window_size=2)
        ),
        PICTURE, "ImageClassification",
    ),
    "ast": (
        lambda: T.ASTForAudioClassification(T.ASTConfig(**BLOCK, max_length=32, num_mel_bins=16, patch_size=8)),
        {"input_values": torch.linspace(-1, 1, 512).view(1, 32, 16)}, "AudioClassification",
    ),
    "llava": (
        lambda: T.LlavaForConditionalGeneration(llava_config()),
        {"input_ids": torch.tensor([[5, 31, 31, 31, 31, 6]]), **PICTURE}, "ImageTextToText",
    ),
    "bert": (lambda: T.BertForSequenceClassification(T.BertConfig(**TEXTS)), IDS, "SequenceClassification"),
    "bert alone": (lambda: T.BertModel(T.BertConfig(**TEXTS)), IDS, ""),
    "t5": (
        lambda: T.T5ForConditionalGeneration(
            T.T5Config(vocab_size=32, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)
        ),
        PAIR, "Seq2SeqLM",
    ),
    "bart": (
        lambda: T.BartForConditionalGeneration(
            T.BartConfig(**SEQ2SEQ, pad_token_id=1, bos_token_id=0, eos_token_id=2, forced_eos_token_id=2)
        ),
        PAIR, "Seq2SeqLM",
    ),
    "encoder-decoder": (encoder_decoder, PAIR, "Seq2SeqLM"),
    "mixtral": (
        lambda: T.MixtralForCausalLM(T.MixtralConfig(**TEXTS, num_local_experts=2, num_key_value_heads=2)),
        IDS, "CausalLM",
    ),
    "mamba": (
        lambda: T.MambaForCausalLM(
            T.MambaConfig(vocab_size=32, hidden_size=64, num_hidden_layers=1, state_size=8, time_step_rank=16)
        ),
        IDS, "CausalLM",
    ),
}  # fmt: skip


def run(model, inputs):
    with torch.no_grad():
        return next(iter(model.eval()(**inputs).values()))


def packed(model):
    return sum(isinstance(m, Linear24) for m in model.modules())


def make(name):
    """A compressed model, its inputs, what it gives, and its report."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    inputs = MODELS[name][1]
    prune_once(model, pattern="2:4", pruning_op_types=["Linear"])
    want = run(model, inputs)
    _, report = compress(model, prefer="memory", measure=False, example=inputs)
    assert report.verified
    torch.testing.assert_close(run(model, inputs), want)
    assert packed(model) == sum(row.format == "2:4" for row in report.layers) > 1
    return model, inputs, want, report


SAVES = {
    "ours": save_pretrained,
    "theirs": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: save_pretrained(model, folder, max_shard_size="40KB"),
}


@pytest.mark.parametrize("name", MODELS)
def test_both_ways_to_save_and_both_to_load(name, tmp_path):
    model, inputs, want, _ = make(name)
    auto = getattr(T, f"AutoModel{'For' if MODELS[name][2] else ''}{MODELS[name][2]}")
    for way, save in SAVES.items():
        save(model, tmp_path / way)
        for load in (from_pretrained, auto.from_pretrained):
            loaded = load(tmp_path / way)
            assert packed(loaded) == packed(model)
            torch.testing.assert_close(run(loaded, inputs), want)
    loaded.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(run(from_pretrained(tmp_path / "again"), inputs), want)


@pytest.mark.parametrize("name", ["dinov2 merged", "nomic merged"])
def test_what_transformers_merges_stays_dense(name):
    *_, report = make(name)
    merged = [row for row in report.layers if row.reason == "transformers merges or splits its weight in files"]
    assert {row.name.rpartition(".")[2] for row in merged} in ({"gate_proj", "up_proj"}, {"q_proj", "k_proj", "v_proj"})


def test_channels_of_what_is_merged_cannot_be_saved(tmp_path):
    """Names of merged tensors tell nothing of layers, so that a smaller one would not be found again."""
    model = T.Dinov2ForImageClassification(T.Dinov2Config(**IMAGES, use_swiglu_ffn=True))
    for name, layer in model.named_modules():
        if name.endswith(("gate_proj", "up_proj")):
            layer.full_shape = tuple(layer.weight.shape)  # as if channels had been removed
    with pytest.raises(
        PruningError, match=r"^model: transformers saves it so that it can't be loaded again \(.*gate_proj"
    ):
        save_pretrained(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_inspect_finds_renamed_layers(tmp_path, capsys):
    model, *_ = make("vit")
    save_pretrained(model, tmp_path / "packed")
    decompress(model).save_pretrained(tmp_path / "dense")
    for folder, shown in (("packed", " 2:4 "), ("dense", "could be 2:4")):
        assert main(["inspect", str(tmp_path / folder)]) == 0
        assert capsys.readouterr().out.count(shown) == 6


def lose(folder, start):
    """Write the file anew, without some tensors; the config knows no digests, as where transformers saved it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("lost", "missed"), [("bitmask", "bitmask"), ("", "values")])
def test_a_missing_tensor_is_no_random_weight(tmp_path, lost, missed):
    model, *_ = make("vit")
    model.save_pretrained(tmp_path)
    lose(tmp_path, f"vit.encoder.layer.0.attention.attention.key.{lost}")
    for load in (from_pretrained, T.AutoModelForImageClassification.from_pretrained, T.ViTModel.from_pretrained):
        with pytest.raises(PruningError, match=rf"layers.0.attention.k_proj.{missed}: no file holds it"):
            load(tmp_path)


def test_nor_where_a_state_dict_is_given():
    model, *_ = make("vit")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("k_proj.values")}
    with pytest.raises(
        PruningError, match=r"layers.0.attention.k_proj.values: was not loaded; want the weights that were"
    ):
        T.ViTForImageClassification.from_pretrained(None, config=model.config, state_dict=state)


@pytest.mark.parametrize(
    ("name", "part"), [("encoder-decoder", "encoder"), ("encoder-decoder", "decoder"), ("llava", "model.language_model")]
)  # fmt: skip
def test_a_part_with_a_config_of_its_own_is_saved_alone(name, part, tmp_path):
    model, *_ = make(name)
    inner = model.get_submodule(part)
    for way, save in SAVES.items():
        save(inner, tmp_path / way)
        alone = type(inner).from_pretrained(tmp_path / way)
        assert packed(alone) == packed(inner) > 0
        torch.testing.assert_close(run(alone, IDS), run(inner, IDS))
    decompress(model).save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in (tmp_path / "dense" / "config.json").read_text()


def test_parts_are_noted_where_the_whole_was_loaded(tmp_path):
    """Files of earlier versions say of the whole only."""
    model, *_ = make("encoder-decoder")
    model.save_pretrained(tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    del config["encoder"]["quantization_config"], config["decoder"]["quantization_config"]
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    encoder = from_pretrained(tmp_path / "whole").encoder
    encoder.save_pretrained(tmp_path / "part")
    alone = T.AutoModel.from_pretrained(tmp_path / "part")
    assert packed(alone) == packed(encoder) > 0
    assert torch.equal(run(alone, IDS), run(encoder, IDS))


def test_a_part_that_was_compressed_is_saved_with_the_whole(tmp_path):
    model, inputs = encoder_decoder().eval(), PAIR
    prune_once(model.encoder, pattern="2:4", pruning_op_types=["Linear"])
    want = run(model, inputs)
    compress(model.encoder, prefer="memory", measure=False)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert packed(loaded) == packed(model) == 7
    torch.testing.assert_close(run(loaded, inputs), want)


def test_inside_a_module_that_saves_it_itself(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    T.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    T.BertModel(T.BertConfig(**TEXTS)).save_pretrained(tmp_path / "bert")
    model = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(tmp_path / "bert")), Pooling(64)], device="cpu"
    )
    prune_once(model, pattern="2:4", pruning_op_types=["Linear"])
    texts = ["a b c", "d e"]
    want = model.encode(texts)
    compress(model, prefer="memory", measure=False)
    model.save(str(tmp_path / "packed"))
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "packed"), device="cpu")
    assert packed(loaded) == packed(model) > 5
    torch.testing.assert_close(torch.tensor(loaded.encode(texts)), torch.tensor(want))
    decompress(loaded).save(str(tmp_path / "dense"))
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    with pytest.raises(
        PruningError, match="want a transformers model, got SentenceTransformer; save others by their own"
    ):
        save_pretrained(model, tmp_path / "no")
