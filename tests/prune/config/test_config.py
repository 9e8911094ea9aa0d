"""Every mistake in a config gets one line that names the field, the value and the fix."""

import pytest

from trisparse import PruningConfig, PruningError

OK = {"start_step": 1, "end_step": 10}


def test_defaults():
    (group,) = PruningConfig(**OK).groups
    assert (group.target_sparsity, group.pruning_type, str(group.pattern)) == (0.9, "snip_momentum", "4x1")
    assert (group.pruning_scope, group.sparsity_decay_type, group.criterion_reduce_type) == (
        "global",
        "exp",
        "mean",
    )
    assert (group.min_sparsity_ratio_per_op, group.max_sparsity_ratio_per_op) == (0, 0.98)
    assert group.op_names == (".*",)
    assert group.pruning_op_types == ("Conv", "Linear")


def test_a_group_wins_over_the_global_section():
    config = PruningConfig(
        **OK,
        pattern="4x1",
        pruning_frequency=5,
        pruning_configs=[
            {"op_names": ["a"], "pattern": "1x1", "pruning_scope": "local"},
            {"op_names": ["b"], "start_step": 3},
        ],
    )
    first, second = config.groups
    assert (str(first.pattern), first.pruning_scope, first.start_step, first.pruning_frequency) == (
        "1x1",
        "local",
        1,
        5,
    )
    assert (str(second.pattern), second.pruning_scope, second.start_step) == ("4x1", "global", 3)


@pytest.mark.parametrize(("pattern", "target"), [("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5), ("1:3", 1 - 1 / 3)])
def test_the_target_of_nm_is_its_own(pattern, target):
    assert PruningConfig(pattern=pattern, **OK).groups[0].target_sparsity == target


def test_round_trip_and_equality():
    config = PruningConfig(pattern="2:4", target_sparsity=0.25, excluded_op_names=["x"], **OK)
    again = PruningConfig(pruning_configs=config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
    assert config.excluding("y").groups[0].excluded_op_names == ("x", "y")
    assert config.groups[0].excluded_op_names == ("x",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_sparsty": 0.3}, r"target_sparsty: unknown key; did you mean 'target_sparsity'\?"),
        ({"pattern": "4by1"}, r"pattern: '4by1' is not known; want NxM, Nxchannel, channelxM, mha or N:M; did you mean '4x1'"),
        ({"pattern": 124}, "pattern: 124 is not known"),
        ({"pattern": "0x1"}, "pattern: '0x1' is not known"),
        ({"pattern": "channelxchannel"}, "pattern: 'channelxchannel' is not known"),
        ({"pattern": "4:2"}, "pattern: '4:2' keeps 4 of every 2; want N < M <= 32"),
        ({"pattern": "2:64"}, "want N < M <= 32"),
        ({"pattern": "2:4", "target_sparsity": 0.9}, "target_sparsity: 0.9 is out of reach for 2:4.* want at most 0.5"),
        ({"pattern": "1:4", "target_sparsity": 0.8}, "want at most 0.75"),
        ({"target_sparsity": 1.0}, "target_sparsity: want a number from 0 up to but not 1, got 1.0"),
        ({"target_sparsity": 0}, "target_sparsity: 0 prunes nothing"),
        ({"target_sparsity": "0.9"}, "target_sparsity: want a number"),
        ({"target_sparsity": float("nan")}, "target_sparsity: want a number"),
        ({"target_sparsity": 0.99}, "target_sparsity: 0.99 is out of reach with max_sparsity_ratio_per_op 0.98"),
        ({"min_sparsity_ratio_per_op": 0.95}, "min_sparsity_ratio_per_op: 0.95 is above target_sparsity 0.9"),
        ({"pruning_type": "snip_momentun"}, "pruning_type: 'snip_momentun' .*did you mean 'snip_momentum'"),
        ({"pruning_type": "snip_progressive", "pattern": "2:4"}, "pruning_type: 'snip_progressive' can't cut an N:M group"),
        ({"pruning_scope": "globl"}, "pruning_scope: 'globl' is not one of global, local; did you mean 'global'"),
        ({"sparsity_decay_type": "cosine"}, "sparsity_decay_type: 'cosine' is not one of"),
        ({"criterion_reduce_type": "median"}, "criterion_reduce_type: 'median' is not one of mean, sum, max"),
        ({"pruning_op_types": "Linear"}, r"pruning_op_types: want a list of Conv and Linear, got 'Linear'; classes go into op_names"),
        ({"pruning_op_types": ["Lin"]}, "pruning_op_types: 'Lin' is not one of Conv, Linear"),
        ({"pruning_op_types": []}, "pruning_op_types: got an empty list"),
        ({"op_names": ["("]}, r"op_names: '\(' is no regular expression"),
        ({"end_step": 0}, "end_step: 0 is before start_step 1"),
        ({"start_step": None}, "start_step: missing"),
        ({"start_step": -1}, "start_step: want a whole number of at least 0, got -1"),
        ({"start_step": True}, "start_step: want a whole number"),
        ({"pruning_frequency": 0}, "pruning_frequency: want a whole number of at least 1, got 0"),
        ({"start_step": 0, "end_step": 0}, "start_step: snip_momentum has no gradient to score before the first step"),
        ({"start_step": 0, "end_step": 5, "pruning_frequency": 9}, "start_step: snip_momentum has no gradient"),
        ({"reg_coeff": 0.1}, "reg_coeff: 0.1 has no effect without reg_type"),
        ({"reg_type": "group_lasso"}, "reg_coeff: missing"),
        ({"reg_type": "group_lasso", "reg_coeff": -1}, "reg_coeff: want a number"),
        ({"reg_type": "group_lasso", "reg_coeff": 0.1, "pattern": "2:4"}, "reg_type: group_lasso .* pattern 2:4"),
        ({"exclude_head": 1}, "exclude_head: want true or false, got 1"),
        ({"pruning_configs": []}, "pruning_configs: got an empty list"),
        ({"pruning_configs": {"pattern": "2:4"}}, "pruning_configs: want a list of groups"),
        ({"pruning_configs": [{"op_names": ["a"]}, {"patern": "1x1"}]}, r"pruning_configs\[1\].patern: unknown key; did you mean 'pattern'"),
        ({"pruning_configs": [{"pruning_type": "pattern_lock", "start_step": 3}]}, "start_step: pattern_lock holds from the first step"),
    ],
)  # fmt: skip
def test_mistakes(keys, message):
    with pytest.raises(PruningError, match=message) as caught:
        PruningConfig(**{**OK, **keys})
    assert "\n" not in str(caught.value)


def test_a_lock_needs_no_schedule():
    PruningConfig(pruning_type="pattern_lock")
    with pytest.raises(PruningError, match="end_step: missing"):
        PruningConfig(start_step=1)


def test_one_config_does_not_change_the_next():
    groups = [{"op_names": ["a"]}]
    PruningConfig(pattern="2:4", excluded_op_names=["h"], pruning_configs=groups, **OK)
    assert groups == [{"op_names": ["a"]}]
    assert str(PruningConfig(**OK).groups[0].pattern) == "4x1"
    assert PruningConfig(**OK).groups[0].excluded_op_names == ()
