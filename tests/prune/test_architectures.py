"""What becomes of models of transformers, tiny and with random weights: pruned, compressed, saved and loaded, compacted.

A row is an architecture: its class, what its config differs in from the usual sizes, how many layers are pruned by 2:4, how
many of these are packed, and whether compact finds hidden channels to remove.
"""

import contextlib
import copy

import pytest
import torch

from trisparse import PruningError, compact, compress, from_pretrained, prune_once, save_pretrained

T = pytest.importorskip("transformers")
TEXT = {
    "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PAIR = {
    "vocab_size": 32, "d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 32, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0,
    "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
IMAGE = {
    "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
AUDIO = {
    "vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
    "conv_dim": (32,), "conv_kernel": (4,), "conv_stride": (2,), "num_feat_extract_layers": 1,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
EXPERTS = {**TEXT, "num_key_value_heads": 2, "head_dim": 32, "num_experts_per_tok": 1}
SOME = {"num_key_value_heads": 2, "head_dim": 32}
SWIN = {"image_size": 8, "patch_size": 2, "embed_dim": 64, "depths": [1], "num_heads": [2], "window_size": 2}
IDS = {"input_ids": torch.arange(3, 12)[None]}
BOTH = {**IDS, "decoder_input_ids": torch.arange(4, 9)[None]}
PICTURE = {"pixel_values": torch.linspace(-1, 1, 192).view(1, 3, 8, 8)}
SOUND = {"input_values": torch.linspace(-1, 1, 64).sin()[None]}
SPEECH = {
    "input_features": torch.linspace(-1, 1, 16 * 32).view(1, 16, 32),
    "decoder_input_ids": torch.arange(4, 9)[None],
}
COMPUTED = {"excluded_op_names": ["pos_conv_embed"]}  # a weight that weight norm computes, which is an error
ROWS = [
    ("BertForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("RobertaForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("XLMRobertaForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("CamembertForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 64}, IDS, 7, 7, True),
    ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 64}, IDS, 8, 8, True),
    ("DistilBertForSequenceClassification", {**TEXT, "hidden_dim": 128, "dim": 64, "n_layers": 1, "n_heads": 2}, IDS, 7, 7, True),
    ("MPNetForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("DebertaV2ForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("ModernBertForSequenceClassification", {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "reference_compile": False}, IDS, 5, 5, True),
    ("ErnieForSequenceClassification", TEXT, IDS, 7, 7, True),
    ("GPT2LMHeadModel", {**TEXT, "n_inner": 128}, IDS, 4, 4, True),
    ("GPTNeoXForCausalLM", TEXT, IDS, 4, 4, True),
    ("GPTJForCausalLM", {**TEXT, "n_inner": 128, "rotary_dim": 16}, IDS, 6, 6, True),
    ("GPTNeoForCausalLM", {**TEXT, "attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 2}, IDS, 6, 6, True),
    ("OPTForCausalLM", {**TEXT, "ffn_dim": 128, "word_embed_proj_dim": 64}, IDS, 6, 6, True),
    ("BloomForCausalLM", {**TEXT, "n_layer": 1, "n_head": 2}, IDS, 4, 4, True),
    ("FalconForCausalLM", TEXT, IDS, 4, 0, False),
    ("LlamaForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("MistralForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("Qwen2ForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("Qwen3ForCausalLM", {**TEXT, **SOME}, IDS, 7, 7, True),
    ("GemmaForCausalLM", {**TEXT, **SOME}, IDS, 7, 7, True),
    ("Gemma2ForCausalLM", {**TEXT, **SOME}, IDS, 7, 7, True),
    ("PhiForCausalLM", TEXT, IDS, 6, 6, True),
    ("Phi3ForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 4, 4, True),
    ("StableLmForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("Olmo2ForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("CohereForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("GraniteForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 7, 7, True),
    ("Starcoder2ForCausalLM", {**TEXT, "num_key_value_heads": 2}, IDS, 6, 6, True),
    ("MixtralForCausalLM", {**EXPERTS, "num_local_experts": 2}, IDS, 8, 4, False),
    ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 2, "moe_intermediate_size": 64}, IDS, 8, 4, False),
    ("OlmoeForCausalLM", {**EXPERTS, "num_experts": 2}, IDS, 8, 4, False),
    ("GptOssForCausalLM", {**EXPERTS, "num_local_experts": 2}, IDS, 8, 4, False),
    ("MambaForCausalLM", {"vocab_size": 32, "hidden_size": 64, "num_hidden_layers": 1, "state_size": 4, "time_step_rank": 16}, IDS, 4, 2, False),
    ("T5ForConditionalGeneration", T5, BOTH, 16, 16, True),
    ("MT5ForConditionalGeneration", T5, BOTH, 18, 18, True),
    ("BartForConditionalGeneration", PAIR, BOTH, 16, 16, True),
    ("MBartForConditionalGeneration", PAIR, BOTH, 16, 16, True),
    ("MarianMTModel", PAIR, BOTH, 16, 16, True),
    ("PegasusForConditionalGeneration", PAIR, BOTH, 16, 16, True),
    ("BlenderbotForConditionalGeneration", PAIR, BOTH, 16, 16, True),
    ("WhisperForConditionalGeneration", {**PAIR, "num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 32}, SPEECH, 18, 18, True),
    ("ViTForImageClassification", IMAGE, PICTURE, 6, 6, True),
    ("DeiTForImageClassification", IMAGE, PICTURE, 6, 6, True),
    ("BeitForImageClassification", IMAGE, PICTURE, 6, 6, True),
    ("Dinov2ForImageClassification", IMAGE, PICTURE, 6, 6, True),
    ("SwinForImageClassification", SWIN, PICTURE, 6, 6, True),
    ("CLIPVisionModel", IMAGE, PICTURE, 6, 6, True),
    ("SiglipVisionModel", IMAGE, PICTURE, 9, 7, True),
    ("ConvNextForImageClassification", {"hidden_sizes": [64], "depths": [1], "num_stages": 1, "patch_size": 2}, PICTURE, 2, 2, True),
    ("ResNetForImageClassification", {"embedding_size": 64, "hidden_sizes": [64], "depths": [2], "layer_type": "basic"}, PICTURE, 4, 4, True),
    ("Wav2Vec2ForCTC", AUDIO, SOUND, 7, 6, True),
    ("HubertForCTC", AUDIO, SOUND, 7, 6, True),
    ("WavLMForCTC", AUDIO, SOUND, 8, 6, True),
]  # fmt: skip


@pytest.fixture(params=ROWS, ids=lambda row: row[0])
def row(request):
    kind, sizes, inputs, *want = request.param
    torch.manual_seed(0)
    kind = getattr(T, kind)
    model = kind(kind.config_class(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.requires_grad:  # positions that are computed are not saved
                parameter.normal_(std=0.1)  # random weights of a real size: outputs that differ are seen to
    return model, inputs, want


def output(model, inputs):
    with torch.no_grad():
        torch.manual_seed(0)
        found = model(**inputs)
    return found.logits if "logits" in found else found.last_hidden_state


def close(found, want):
    return torch.allclose(found, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_an_architecture(row, tmp_path):
    model, inputs, (layers, packed, _) = row
    model.config.use_cache = False
    report = prune_once(copy.deepcopy(model), pattern="4x1", target_sparsity=0.5, **COMPUTED)
    assert report.pattern_verified
    report = prune_once(model, pattern="2:4", **COMPUTED)
    assert report.pattern_verified
    assert len(report.layers) == layers
    want = output(model, inputs)
    _, compressed = compress(model, prefer="memory", measure=False, example=inputs)
    assert compressed.verified == (packed > 0)
    assert sum(layer.format == "2:4" for layer in compressed.layers) == packed
    assert close(output(model, inputs), want)
    save_pretrained(model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        for load in (from_pretrained, type(model).from_pretrained):
            assert close(output(load(folder).eval(), inputs), want), (folder.name, load)


def test_channels_of_an_architecture(row):
    model, inputs, (*_, shrinks) = row
    model.config.use_cache = False
    prune_once(model, pattern="1xchannel", target_sparsity=0.5, max_sparsity_ratio_per_op=0.6, **COMPUTED)
    want, before = output(model, inputs), sum(p.numel() for p in model.parameters())
    with contextlib.nullcontext() if shrinks else contextlib.suppress(PruningError):  # that nothing was found
        compact(model, inputs, multiple=1)
    assert close(output(model, inputs), want)
    assert (sum(p.numel() for p in model.parameters()) < before) == shrinks
