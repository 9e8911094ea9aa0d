"""Configs from JSON and YAML: the same list, no YAML traps, and who wins over whom."""

import json

import pytest

from trisparse import PruningConfig, PruningError
from trisparse.prune.config.file import RECIPES, find_config

OK = {"start_step": 1, "end_step": 10}


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "16:32", "4x1", "1x1"])
def test_unquoted_patterns_stay_patterns(tmp_path, pattern):
    path = tmp_path / "c.yaml"
    path.write_text(f"pattern: {pattern}\nstart_step: 1\nend_step: 10\n")
    assert str(PruningConfig.load(path).groups[0].pattern) == pattern


def test_yaml_numbers_and_words(tmp_path):
    path = tmp_path / "c.yml"
    path.write_text(
        "reg_type: group_lasso\nreg_coeff: 1e-3\nstart_step: 1\nend_step: 10\nlock_init_sparsity: true\n"
        "op_names: [on, off, yes, 1_0]\nmin_sparsity_ratio_per_op: .5\n"
    )
    (group,) = PruningConfig.load(path).groups
    assert group.reg_coeff == 0.001
    assert group.lock_init_sparsity is True
    assert group.op_names == ("on", "off", "yes", "1_0")
    assert group.min_sparsity_ratio_per_op == 0.5


def test_list_and_mapping_in_json_and_yaml_are_one_config(tmp_path):
    groups = [{"op_names": ["a"], "pattern": "2:4"}, {"op_names": ["b"], "pruning_scope": "local"}]
    contents = {
        "list.json": json.dumps(groups),
        "map.json": json.dumps({"pruning_configs": groups}),
        "list.yaml": "- op_names: [a]\n  pattern: 2:4\n- op_names: [b]\n  pruning_scope: local\n",
        "map.yaml": "pruning_configs:\n- {op_names: [a], pattern: 2:4}\n- {op_names: [b], pruning_scope: local}\n",
    }
    want = PruningConfig(pruning_configs=groups, **OK)
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        assert PruningConfig.load(tmp_path / name, **OK) == want


def test_precedence_group_flag_file_default(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "pattern: 8x1\npruning_scope: local\npruning_configs:\n- {op_names: [a], pattern: 1x1}\n- {op_names: [b]}\n"
    )
    defaults = {"sparsity_decay_type": "cos", "pruning_scope": "global", **OK}
    first, second = PruningConfig.load(path, defaults=defaults, pattern="2x1").groups
    assert (str(first.pattern), str(second.pattern)) == ("1x1", "2x1")
    assert (first.pruning_scope, first.sparsity_decay_type, first.start_step) == ("local", "cos", 1)
    assert str(PruningConfig.load(path, **OK).groups[1].pattern) == "8x1"


def test_a_flag_that_no_group_feels_is_an_error(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('[{"op_names": ["a"], "pattern": "1x1"}, {"op_names": ["b"], "pattern": "4x1"}]')
    with pytest.raises(PruningError, match="pattern: '2:4' has no effect: every group of .*c.json sets its own"):
        PruningConfig.load(path, pattern="2:4", **OK)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.yaml", "a: [1", "c.yaml: .*line 1"),
        ("c.json", "{", "c.json: Expecting property name .*line 1"),
        ("c.json", '{"pattern": "1x1", "pattern": "2:4"}', "c.json: key 'pattern' is given twice"),
        ("c.yaml", "pattern: 1x1\npattern: 2:4\n", "c.yaml: key 'pattern' is given twice"),
        ("c.toml", "", "want a file that ends in .json, .yaml or .yml"),
        ("c.yaml", "3", "want a list of groups or a mapping of keys, got int"),
        ("c.yaml", "", "want a list of groups or a mapping of keys, got NoneType"),
        ("c.yaml", "- 4x1\n", r"pruning_configs\[0\]: want a mapping of keys, got '4x1'"),
        ("c.yaml", "1: foo\n", "c.yaml: 1: unknown key"),
        ("c.yaml", "start_step: 010\nend_step: 20\n", "start_step: want a whole number of at least 0, got '010'"),
        ("c.yaml", "patern: 4x1\n", "c.yaml: patern: unknown key; did you mean 'pattern'"),
    ],
)
def test_mistakes(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PruningError, match=message) as caught:
        PruningConfig.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_yaml_merge_keys(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- &a {op_names: [a], pattern: 2:4}\n- {<<: *a, op_names: [b]}\n")
    assert [str(g.pattern) for g in PruningConfig.load(path, **OK).groups] == ["2:4", "2:4"]


def test_a_lock_feels_no_schedule(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {op_names: [a], pruning_type: pattern_lock}\n")
    assert PruningConfig.load(path, defaults=OK).groups[0].is_lock
    with pytest.raises(PruningError, match="target_sparsity: 0.5 has no effect"):
        PruningConfig.load(path, defaults=OK, target_sparsity=0.5)


def test_from_neural_compressor_takes_its_own_defaults():
    block = {"reg_type": None, "parameters": {"reg_coeff": 0.0}, "target_sparsity": None}
    config = PruningConfig.from_neural_compressor(
        {"target_sparsity": 0.5, "start_step": 1, "end_step": 2, "pruning_configs": [block]}
    )
    assert config.groups[0].target_sparsity == 0.5
    assert config.groups[0].reg_coeff is None
    for bad, message in (
        ([], "config: want a mapping"),
        ({"pruning_configs": [1]}, "pruning_configs: want a list"),
        ({"parameters": {"x": 1}}, "parameters.x: unknown key"),
    ):
        with pytest.raises(PruningError, match=message):
            PruningConfig.from_neural_compressor(bad)


def test_recipes_are_found_by_name_and_agree():
    path = find_config("mixed")
    assert path == RECIPES / "mixed.yaml"
    assert PruningConfig.load(path, **OK) == PruningConfig.load(RECIPES / "mixed.json", **OK)
    with pytest.raises(PruningError, match="mixd: no such file, and no recipe of that name .*did you mean 'mixed'"):
        find_config("mixd")


def test_from_neural_compressor(capsys):
    config = PruningConfig.from_neural_compressor(
        {
            "target_sparsity": 0.25,
            "start_step": 1,
            "end_step": 9,
            "op_names": [],
            "low_memory_usage": False,
            "pruning_configs": [
                {"op_names": ["a"], "pattern": "1:4"},
                {"op_names": ["b"], "pattern": "tile_pattern_4x1", "pruning_op_types": "Linear"},
                {
                    "op_names": ["c"],
                    "pattern": "1xchannel",
                    "reg_type": "group_lasso",
                    "parameters": {"reg_coeff": 0.1},
                },
            ],
        }
    )
    assert [str(g.pattern) for g in config.groups] == ["3:4", "4x1", "1xchannel"]
    assert config.groups[1].pruning_op_types == ("Linear",)
    assert config.groups[2].reg_coeff == 0.1
    printed = capsys.readouterr().out
    assert "pattern: 1:4 prunes 1 of 4; here N counts the kept, so 3:4" in printed
    assert "low_memory_usage: dropped" in printed
    assert "pruning_configs[2].target_sparsity: counted 1xchannel units" in printed


def test_heads_of_a_config_of_neural_compressor(capsys):
    keys = {"start_step": 1, "end_step": 9, "target_sparsity": 0.5}
    config = PruningConfig.from_neural_compressor(
        {
            **keys,
            "pruning_configs": [{"pattern": "mha", "criterion_type": "snip"}, {"op_names": ["ffn"], "pattern": "4x1"}],
        }
    )
    assert [group.pruning_type for group in config.groups] == ["snip", "snip_momentum"]
    assert "pruning_configs[0].pruning_type: snip, which mha takes from criterion_type there" in capsys.readouterr().out
    config = PruningConfig.from_neural_compressor(
        {**keys, "pattern": "mha", "pruning_type": "snip_momentum_progressive"}
    )
    assert config.groups[0].pruning_type == "snip_momentum"
    config = PruningConfig.from_neural_compressor({**keys, "pattern": "channelx2", "pruning_type": "block_mask"})
    assert (str(config.groups[0].pattern), config.groups[0].pruning_type) == ("channelx2", "block_mask")
