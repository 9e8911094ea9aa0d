"""`trisparse demo`: train, prune and distil a tiny BERT on two made-up tasks, without a network.

It fails when the dense model does not learn, when a bag of words does, or when pruning costs too much.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trisparse.prune.files import atomic_write
from trisparse.prune.glue.demo_data import vocabulary, write_task

_TRAIN, _VALIDATION = 20_000, 1_000
_DENSE_LEAST = 0.9
_BAG_OF_WORDS_MOST = 0.6
# pattern, target sparsity, most accuracy that may be lost
_PATTERNS = (("2:4", 0.5, 0.05), ("4x1", 0.9, 0.05), ("1xchannel", 0.6, 0.1))
_COMMON = ["--per_device_train_batch_size", "64", "--per_device_eval_batch_size", "250", "--overwrite_output_dir"]
# epochs of the dense run, of a pruned run, and of its cool-down
_EPOCHS = {"sst2": ("1", "2", "0.5"), "mrpc": ("4", "3", "1")}
_PRUNE = ["--learning_rate", "1e-3", "--do_prune", "--distill_loss_weight", "2", "--distill_mode", "both"]


def run(out: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows of the table, and the promises that were missed."""
    rows: list[dict[str, Any]] = []
    missed: list[str] = []
    for task, (dense_epochs, epochs, cooldown) in _EPOCHS.items():
        data = out / "data" / task
        write_task(data, task, _TRAIN, _VALIDATION)
        bag = bag_of_words(data)
        _say(f"{task}: {_TRAIN} training examples; a bag of words gets {bag:.3f}")
        if task == "mrpc" and bag > _BAG_OF_WORDS_MOST:
            missed.append(f"{task}: a bag of words gets {bag:.3f}, more than {_BAG_OF_WORDS_MOST}")
        make_model(out / "init")
        flags = ["--learning_rate", "1e-3", "--num_warmup_steps", "100", "--num_train_epochs", dense_epochs]
        dense = _glue(task, data, out / "init", out / f"{task}-dense", flags)
        accuracy = dense["eval"]["accuracy"]
        rows.append(dense | {"bag_of_words": bag})
        if accuracy < _DENSE_LEAST:
            missed.append(f"{task}: the dense model gets {accuracy:.3f}, less than {_DENSE_LEAST}")
        for pattern, target, most in _PATTERNS:
            flags = [*_PRUNE, "--pruning_pattern", pattern, "--target_sparsity", str(target)]
            flags += ["--num_train_epochs", epochs, "--cooldown_epochs", cooldown]
            row = _glue(task, data, out / f"{task}-dense", out / f"{task}-{pattern.replace(':', '-')}", flags)
            rows.append(row)
            lost = accuracy - row["eval"]["accuracy"]
            if lost > most:
                missed.append(f"{task} {pattern}: loses {lost:.3f}, more than {most}")
            row["compressed"] = compressed(out / f"{task}-{pattern.replace(':', '-')}")
            if not row["pattern_verified"]:
                missed.append(f"{task} {pattern}: the weights do not have the pattern")
    rows.append(large_encoder())
    atomic_write(out / "demo_results.json", json.dumps(rows, indent=2) + "\n")
    return rows, missed


def compressed(folder: Path) -> dict[str, Any]:
    """Formats, share of bytes left, and how much faster 32 texts of 32 tokens are here than dense."""
    from transformers import AutoModelForSequenceClassification

    dense: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return _compress_and_time(dense, texts=32, length=32)


def large_encoder() -> dict[str, Any]:
    """A row for two layers of BERT-base's shapes, pruned 4x1 as they are made: what the tiny models can't show."""
    import torch
    from transformers import BertConfig, BertModel

    from trisparse.prune.one_shot.once import prune_once

    began = time.perf_counter()
    _say("two layers of BERT-base's shapes, random weights:")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=1000, num_hidden_layers=2, max_position_embeddings=128)
    dense = BertModel(config, add_pooling_layer=False).eval()
    prune_once(dense, pattern="4x1", target_sparsity=0.9, pruning_scope="local", exclude_head=False)
    result = {"task": "random", "pattern": "4x1", "target_sparsity": 0.9}
    result["compressed"] = _compress_and_time(dense, texts=1, length=128)
    return result | {"seconds": time.perf_counter() - began}


def _compress_and_time(dense: Any, texts: int, length: int) -> dict[str, Any]:
    import torch

    from trisparse.prune.deploy.compress import compress
    from trisparse.prune.speed import times_faster

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(dense.config.vocab_size, (texts, length), generator=generator, device="cpu")
    example = {"input_ids": ids}
    packed, report = compress(copy.deepcopy(dense), "speed", (texts * length,), example=example)
    formats = sorted({row.format for row in report.layers} - {"dense"})
    share = report.bytes_after / report.bytes_before
    return {"formats": formats, "bytes": share, "times_faster": times_faster(dense, packed, example)}


def make_model(folder: Path) -> None:
    """Save an untrained tiny BERT and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocab = vocabulary()
    atomic_write(folder / "vocab.txt", "\n".join(vocab) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, initializer_range=0.15, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)


def bag_of_words(data: Path) -> float:
    """Validation accuracy of a logistic regression on word counts."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    def read(split: str) -> tuple[list[str], list[int]]:
        rows = [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]
        texts = [" ".join(v for k, v in row.items() if k.startswith("sentence")) for row in rows]
        return texts, [row["label"] for row in rows]

    counts = CountVectorizer()
    texts, labels = read("train")
    model = LogisticRegression(max_iter=500).fit(counts.fit_transform(texts), labels)
    texts, labels = read("validation")
    return float(model.score(counts.transform(texts), labels))


def _glue(task: str, data: Path, model: Path, out: Path, flags: list[str]) -> dict[str, Any]:
    from trisparse.prune.glue.parse import parse_arguments
    from trisparse.prune.glue.train import run as run_glue

    _say(f"{out.name}:")
    began = time.perf_counter()
    paths = ["--model_name_or_path", str(model), "--dataset_dir", str(data), "--output_dir", str(out)]
    result = run_glue(parse_arguments([*paths, "--task_name", task, *_COMMON, *flags]))
    return result | {"seconds": time.perf_counter() - began}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text: metric dense and sparse, relative drop, ratios, pattern verified, speed compressed, seconds."""
    head = (
        "task",
        "pattern",
        "target",
        "dense",
        "sparse",
        "drop",
        "pruned",
        "matmul",
        "all",
        "verified",
        "speed",
        "seconds",
    )
    cells = [head]
    dense = 0.0
    for row in rows:
        seconds = f"{row['seconds']:.1f}"
        speed = f"{row['compressed']['times_faster']:.2f}x" if "compressed" in row else "-"
        if "eval" not in row:
            cells.append((row["task"], row["pattern"], str(row["target_sparsity"]), *["-"] * 7, speed, seconds))
            continue
        accuracy, ratio = row["eval"]["accuracy"], row["sparsity"]
        if row["pattern"] == "dense":
            dense = accuracy
            cells.append((row["task"], "dense", "-", f"{dense:.4f}", *["-"] * 7, seconds))
            continue
        ratios = [f"{ratio[key]:.4f}" for key in ("pruned_layers", "matmul_gemm_conv", "all_parameters")]
        drop = f"{(accuracy - dense) / dense:+.2%}"
        verified = "yes" if row["pattern_verified"] else "no"
        start = (row["task"], row["pattern"], str(row["target_sparsity"]), f"{dense:.4f}", f"{accuracy:.4f}", drop)
        cells.append((*start, *ratios, verified, speed, seconds))
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in cells)


def gains(rows: Sequence[dict[str, Any]]) -> str:
    """What each pruned model is like beside the dense one: accuracy, bytes, speed."""
    lines = ["What was gained, beside the dense model, compressed for speed on this machine:"]
    dense = 0.0
    for row in rows:
        if "compressed" not in row:
            dense = row["eval"]["accuracy"]
            continue
        what = f"{row['task']}, {row['pattern']} at {row['target_sparsity']}"
        accuracy = f"accuracy {dense:.3f} -> {row['eval']['accuracy']:.3f}, " if "eval" in row else ""
        found = row["compressed"]
        lines.append(
            f"  {what}: {accuracy}{found['bytes']:.0%} of the bytes, {found['times_faster']:.2f} times as fast"
        )
    lines.append("  (random: two layers of BERT-base's shapes; the trained models are too small to gain much)")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
