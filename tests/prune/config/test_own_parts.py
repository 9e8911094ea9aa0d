"""Functions in the place of names: found by name again, and each mistake one line."""

import functools
import pickle
import sys

import pytest

from trisparse import PruningConfig, PruningError
from trisparse.prune.config.group import PRUNING_TYPES
from trisparse.prune.config.own_parts import is_function_name
from trisparse.prune.config.schedules import SCHEDULES, sparsity_at

OK = {"start_step": 1, "end_step": 10}


@pytest.fixture
def methods(monkeypatch):
    """A module that is imported, with one function of each kind."""
    import types

    module = types.ModuleType("methods")
    exec(
        "def score(weight, grad): return (weight * grad).abs()\n"
        "def decay(target, progress): return target * progress\n"
        "def blocks(name, shape): return 4, 1\n"
        "def sweep(): return lambda weight: weight.abs()\n",
        module.__dict__,
    )
    monkeypatch.setitem(sys.modules, "methods", module)
    return module


def test_functions_stand_where_names_do(methods):
    config = PruningConfig(
        **OK, pruning_type=methods.score, sparsity_decay_type=methods.decay,
        pruning_configs=[{"op_names": ["a"], "pattern": methods.blocks}, {"op_names": ["b"], "pruning_type": "snip"}],
    )  # fmt: skip
    first, second = config.groups
    assert first.own_parts == {
        "pruning_type": "methods.score", "sparsity_decay_type": "methods.decay", "pattern": "methods.blocks",
    }  # fmt: skip
    assert second.own_parts == {"sparsity_decay_type": "methods.decay"}
    assert "'pattern': 'methods.blocks'" in repr(config)
    again = PruningConfig(pruning_configs=config.to_dict())
    assert again == config
    assert again.groups[0].criterion is methods.score
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_file_may_name_a_function(methods, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("pruning_type: methods.score\npattern: methods.blocks\nstart_step: 1\nend_step: 10\n")
    assert PruningConfig.load(path) == PruningConfig(pruning_type=methods.score, pattern=methods.blocks, **OK)


def test_how_many_parameters_say_when_a_criterion_is_read():
    made = {
        "weights alone": lambda weight: weight.abs(),
        "gradients": lambda weight, grad, power=2: weight,
        "every step": lambda weight, grad, score, *, decay=0.9: weight,
    }
    found = {}
    for name, function in made.items():
        (group,) = PruningConfig(pruning_type=function, **OK).groups
        found[name] = group.needs_gradient, group.keeps_scores
    assert found == {"weights alone": (False, False), "gradients": (True, False), "every step": (True, True)}


def falls(target, progress):
    return target if progress == 1 else 0.5 - progress / 10


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pruning_type": lambda: 1}, r"pruning_type: \S+<lambda>\(\) does not take \(weight\), \(weight, grad\) or"),
        ({"pruning_type": lambda *all: 1}, r"<lambda>\(\*all\) does not take \(weight\)"),
        ({"pruning_type": lambda weight, *, power: 1}, r"does not take \(weight\), .*; give what comes besides a def"),
        ({"pruning_type": abs}, "pruning_type: want a name or a function made by def or lambda, got <built-in"),
        ({"pruning_type": functools.partial(falls, 1)}, "made by def or lambda, got functools.partial"),
        ({"sparsity_decay_type": lambda t: t}, r"sparsity_decay_type: .* does not take \(target, progress\)"),
        ({"pattern": lambda shape: shape}, r"pattern: .* does not take \(name, shape\)"),
        ({"sparsity_decay_type": falls}, r"falls falls from 0.5 to 0.488\d* at progress 0.11\d*; want it to rise"),
        ({"sparsity_decay_type": lambda t, x: x - t}, r"falls from 0.0 to -0.9 at progress 0; want it to rise"),
        ({"sparsity_decay_type": lambda t, x: x / 2}, "ends at 0.5; want the target, 0.9, at progress 1"),
        ({"sparsity_decay_type": lambda t, x: x}, "gives 1.0 at progress 1; want at most the target, 0.9"),
        ({"sparsity_decay_type": lambda t, x: None}, "gives None at progress 0; want a number"),
        ({"sparsity_decay_type": lambda t, x: float("nan")}, "gives nan at progress 0; want a number"),
        ({"sparsity_decay_type": lambda t, x: 1 / x}, "failed for target 0.9, progress 0: ZeroDivisionError"),
        ({"sparsity_decay_type": lambda t, x: t, "start_step": 0}, "start_step: snip_momentum has no gradient to score"),
        ({"pruning_type": "methods.scores"}, "pruning_type: 'methods.scores' is no function of a module that is imp"),
        ({"pruning_type": "absent.score"}, "'absent.score' is no function .*; import it first, or give the function"),
        ({"pruning_type": "math.cos"}, "'math.cos' is no function"),
        ({"pattern": "methods.sweep.<locals>.<lambda>"}, "pattern: 'methods.* is a lambda or a nested function, which"),
        ({"seed": 3}, "seed: 3 has no effect without pruning_type random; leave it out"),
        ({"pruning_type": "random", "seed": -1}, "seed: want a whole number of at least 0, got -1"),
        ({"pruning_type": "taylor", "criterion_reduce_type": "max"}, "criterion_reduce_type: max has no meaning for tay"),
    ],
)  # fmt: skip
def test_mistakes(methods, keys, message):
    with pytest.raises(PruningError, match=message) as raised:
        PruningConfig(**{**OK, **keys})
    assert "\n" not in str(raised.value)


def test_a_lambda_is_named_and_not_found_again():
    config = PruningConfig(pruning_type=lambda weight: weight.abs(), **OK)
    assert config.to_dict()[0]["pruning_type"].endswith(".<locals>.<lambda>")
    with pytest.raises(PruningError, match="is a lambda or a nested function"):
        PruningConfig(pruning_configs=config.to_dict())


def test_a_name_of_ours_is_no_name_of_a_function():
    assert not any(map(is_function_name, (*PRUNING_TYPES, *SCHEDULES, "4x1", "2:4", "0.5x1", ".*", "", None)))


def test_rounding_is_forgiven_and_the_last_event_is_the_target():
    (group,) = PruningConfig(sparsity_decay_type=lambda t, x: t - 1e-12 * x, **OK).groups
    assert sparsity_at(group.sparsity_decay_type, 0.9, group.last_event, group.last_event) == 0.9
