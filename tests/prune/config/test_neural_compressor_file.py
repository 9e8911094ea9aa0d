"""Config files of neural-compressor, as its examples have them: tags, nesting, older keys, and what is refused."""

import pytest

from trisparse import PruningConfig, PruningError

WINDOW = {"start_step": 2, "end_step": 20}
MIXED = """
version: 1.0

model:
  name: "bert-mini"
  framework: "pytorch"

pruning:
  approach:
    weight_compression_pytorch:
      start_step: 0
      end_step: 0
      excluded_names: ["classifier", "pooler"]
      prune_layer_type: ["Linear"]
      target_sparsity: 0.8
      max_sparsity_ratio_per_layer: 0.97

      pruners:
        - !Pruner
            extra_excluded_names: [".*query"]
            pattern: "tile_pattern_1x1"
            update_frequency_on_step: 100
            prune_domain: "local"
            prune_type: "snip_momentum"
            sparsity_decay_type: "cos"
        - !Pruner
            names: [".*query"]
            pattern: 1:4
            target_sparsity: 0.25
            prune_type: "snip"
"""


@pytest.fixture
def load(tmp_path):
    def make(text, **more):
        (tmp_path / "c.yaml").write_text(text)
        return PruningConfig.load(tmp_path / "c.yaml", **more).groups

    return make


def test_a_file_of_its_examples(load, capsys):
    first, second = load(MIXED, defaults=WINDOW)
    assert first.excluded_op_names == (".*query", "classifier", "pooler")
    assert second.excluded_op_names == ("classifier", "pooler")
    assert (first.op_names, second.op_names) == ((".*",), (".*query",))
    assert (str(first.pattern), first.pruning_scope, first.sparsity_decay_type) == ("1x1", "local", "cos")
    assert (str(second.pattern), second.pruning_scope, second.sparsity_decay_type) == ("3:4", "global", "exp")
    assert (first.pruning_type, second.pruning_type) == ("snip_momentum", "snip")
    assert (first.target_sparsity, second.target_sparsity) == (0.8, 0.25)
    assert (first.window, second.window) == ((2, 20, 100), (2, 20, 1))
    assert {group.max_sparsity_ratio_per_op for group in (first, second)} == {0.97}
    assert first.pruning_op_types == ("Linear",)
    path = capsys.readouterr().out.split(": ")[0]
    load(MIXED, defaults=WINDOW)
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: version, model: not read; pruning.approach.weight_compression_pytorch is",
        f"{path}: start_step, end_step: 0 and 0 were for a script to fill in; dropped",
        f"{path}: pruning_configs[1].pattern: 1:4 prunes 1 of 4; here N counts the kept, so 3:4",
    ]


def test_tags_alone_mean_its_keys(load):
    for text in (
        "- !Pruner {names: [a], pattern: 1:4, prune_type: magnitude}",
        "pruners:\n- !PrunerV2 {op_names: [a], pattern: 1:4, pruning_type: magnitude}",
    ):
        (group,) = load(text, **WINDOW)
        assert (group.op_names, str(group.pattern), group.pruning_type) == (("a",), "3:4", "magnitude")
    (plain,) = load("- {op_names: [a], pattern: 1:4}", **WINDOW)  # without a tag N is kept, as ever
    assert str(plain.pattern) == "1:4"


def test_what_a_group_does_not_say(load, capsys):
    head = "pruning:\n  approach:\n    weight_compression_pytorch:\n"
    (group,) = load(head + "      pattern: 4x1\n      pruners:\n      - !Pruner {names: [a]}\n", **WINDOW)
    assert (str(group.pattern), group.pruning_type) == ("1x1", "magnitude")
    assert "pruners[0].pattern: not given, which is 1x1 there\n" in capsys.readouterr().out
    (group,) = load(
        head + "      start_step: 5\n      end_step: 5\n      pruners:\n      - !Pruner {prune_type: pattern_lock}\n"
    )
    assert group.is_lock
    (group,) = load(head.replace("_pytorch", "_v2") + "      pattern: 8x1\n      pruning_type: snip\n", **WINDOW)
    assert (str(group.pattern), group.pruning_type) == ("8x1", "snip")


def test_epochs_of_a_lock_have_no_meaning(load, capsys):
    (group,) = load(
        "pruning:\n  approach:\n    weight_compression:\n      start_epoch: 0\n      pruners:\n      - !Pruner {prune_type: pattern_lock}\n"
    )
    assert group.is_lock
    assert "start_epoch: dropped, steps say when\n" in capsys.readouterr().out


OLD = "pruning:\n  approach:\n    weight_compression:\n      pruners:\n      - !Pruner "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- !Prunner {names: [a]}", r"c.yaml: line 1: the tag !Prunner is not known; want no tag, or !Pruner or !PrunerV2"),
        ("a: !!python/object/apply:os.system [ls]", r"c.yaml: line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not known"),
        ("- !Pruner [a]", r"c.yaml: line 1: the tag !Pruner wants a mapping of keys"),
        (OLD + "{start_epoch: 0, names: [a]}", r"c.yaml: pruners\[0\].start_epoch: counts epochs; want start_step, end_step and pruning_frequency, in steps"),
        (OLD + "{prune_type: gradient_sensitivity}", r"c.yaml: pruners\[0\].prune_type: gradient_sensitivity is not here; want a criterion"),
        ("pruning:\n  train: {epoch: 1}", r"c.yaml: pruning: want approach, and in it one section such as weight_compression_pytorch"),
        ("pruning:\n  approach: {weight_compression: {pruners: [1]}}", r"c.yaml: pruners: want a list of !Pruner mappings, got \[1\]"),
        (MIXED.replace("prune_domain", "prune_domin"), r"c.yaml: pruning_configs\[0\].prune_domin: unknown key"),
        (MIXED.replace('"Linear"', '"Embedding"'), r"c.yaml: .*pruning_op_types: 'Embedding' is not one of Conv, Linear"),
    ],
)  # fmt: skip
def test_mistakes(load, text, message):
    with pytest.raises(PruningError, match=message) as caught:
        load(text, defaults=WINDOW)
    assert "\n" not in str(caught.value)
