"""What the documentation says, run."""

import dataclasses
import doctest
import importlib
import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("name", ["pruner.pruner", "config.config", "pruner.bits", "pruner.masked_adamw"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"trisparse.prune.{name}")
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_the_readme_names_flags_and_keys_that_exist():
    pytest.importorskip("transformers")
    from trisparse.prune.config.group import KEYS
    from trisparse.prune.glue import args as glue_args

    flags = {f.name for group in glue_args._GROUPS for f in dataclasses.fields(group)} | {"help", "out", "suite"}
    flags |= {"model", "models", "prefer", "format", "logdir", "output", "nproc_per_node"}
    flags |= {"data", "minilm", "rows", "seeds", "epochs"}
    assert set(re.findall(r"--([a-z_]+)", README)) <= flags
    table = README.split("## Configuration")[1].split("## Coming")[0]
    keys = {key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert keys == set(KEYS)


def test_the_readme_numbers_are_those_of_its_files():
    import json

    results = Path(__file__).parent.parent / "benchmarks" / "results"
    for row in json.loads((results / "prune_step_cpu.json").read_text())["rows"]:
        for key in ("plain_ms", "ordinary_ms", "event_ms", "predecessor_ms", "predecessor_event_ms"):
            assert f"{row[key]:.1f}" in README, (row, key)
    recorded = json.loads((Path(__file__).parent / "kernels" / "gpu" / "instructions.json").read_text())[
        "instructions"
    ]["sm_90"]
    guard = recorded["score_tiles bf16 4x1 guard"]
    for names, ahead in [
        ("score_tiles bf16 4x1", f"{guard} + "), ("step_tiles bf16 4x1", f"{guard} + "), ("mask_tiles bf16 4x1", ""),
        ("mask_groups bf16 2:4", ""), ("mask_tiles_24 bf16", ""),
        ("pack_tiles bf16 magnitude cslt_sm90", ""), ("pack_tiles bf16 magnitude both ways cslt_sm90", ""),
        ("pack_tiles bf16 patterns both ways values cslt_sm90", ""), ("unpack_rows cslt_sm90", ""),
        ("write_mask", ""), ("multiply_few 16 cslt_sm90", ""),
    ]:  # fmt: skip
        assert f"| {ahead}{recorded[names]} " in README
    compacted = json.loads((results / "compact_cpu.json").read_text())["rows"]
    assert all(f"{row['times_faster']:.2f}x" in README for row in compacted)
    again = [row["dense_again"] for row in compacted]
    assert f"{min(again):.2f} to {max(again):.2f}" in README
    (real,) = json.loads((results / "compact_mrpc_cpu.json").read_text())["rows"]
    assert real["predictions_changed"] == 0
    assert f"All {real['texts']} validation predictions stay" in README
    ones, many = real["times_faster_1"], real["times_faster_32"]
    assert f"{ones:.2f}x as fast with 1 text and {many:.2f}x with 32, with {real['parameters_left']:.0%}" in README
    compressed = json.loads((results / "compress_mrpc_cpu.json").read_text())["rows"]
    again = [value for row in compressed for key, value in row.items() if key.startswith("dense_again")]
    assert f"A model against itself gives {min(again):.2f} to {max(again):.2f}." in README
    for row in compressed:
        assert row["changed"] == 0
        assert f"| {row['times_faster_1']:.2f}x | {row['times_faster_32']:.2f}x |" in README
        assert f"| {row['file_bytes_before'] / 2**20:.1f} → {row['file_bytes_after'] / 2**20:.1f} |" in README
    loop = json.loads((results / "glue_loop_cpu.json").read_text())
    plain, ours = (loop["steps_per_second"][kind] for kind in ("plain", "ours"))
    text = " ".join(README.split())
    assert f"{loop['times_faster']:.2f} times as many: {ours:.2f} steps a second against {plain:.2f}" in text
    assert f"rounds gave {', '.join(f'{ratio:.2f}' for ratio in loop['ratios'])}" in text
    plain, ours = (loop["trained"][kind] for kind in ("plain", "ours"))
    said = f"the plain loop ends at an accuracy of {plain['accuracy']:.4f} and an F1 of {plain['f1']:.4f}"
    assert f"{said}, ours at {ours['accuracy']:.4f} and {ours['f1']:.4f}" in text
