"""Odd but honest uses: resuming on a device, notebooks that run a cell twice, tied and wrapped layers."""

import io

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig, PruningError, prune_once
from trisparse.prune.layers.modules import find_head

KEYS = {"pattern": "4x1", "target_sparsity": 0.5, "start_step": 1, "end_step": 4}


def test_a_lock_survives_the_round_trip_and_exclusions():
    lock = PruningConfig(pruning_type="pattern_lock", pattern="2:4")
    assert PruningConfig(pruning_configs=lock.to_dict()) == lock
    assert lock.excluding("x").groups[0].excluded_op_names == ("x",)
    mixed = PruningConfig(
        start_step=1,
        end_step=2,
        pruning_configs=[{"op_names": ["a"], "pruning_type": "pattern_lock"}, {"op_names": ["b"]}],
    )
    assert PruningConfig(pruning_configs=mixed.to_dict()) == mixed
    with pytest.raises(PruningError, match="start_step: pattern_lock holds from the first step"):
        PruningConfig(pruning_type="pattern_lock", start_step=-3)


def test_lasso_follows_the_groups_of_a_loaded_optimizer():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Identity())
    nn.init.ones_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = PruningConfig(
        **{**KEYS, "reg_type": "group_lasso", "reg_coeff": 1.0, "start_step": 1, "end_step": 9, "pruning_frequency": 8}
    )
    Pruner(model, config).attach(optimizer)
    optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.01).state_dict())
    model[0].weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert torch.allclose(model[0].weight, torch.full((4, 4), 0.995))


def test_a_state_loads_from_any_device(make_mlp, sgd, train):
    model = make_mlp()
    config = PruningConfig(
        **{**KEYS, "pruning_type": "snip_momentum_progressive", "end_step": 9, "pruning_frequency": 4}
    )
    pruner, optimizer = Pruner(model, config), sgd(model)
    pruner.attach(optimizer)
    train(model, optimizer, 6)

    class Elsewhere(torch.Tensor):
        """Refuses to work with ordinary tensors, as one on another device does."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.cpu, torch.Tensor.detach):
                return args[0].as_subclass(torch.Tensor).clone()
            if function is torch.Tensor.copy_:
                return super().__torch_function__(function, types, args, kwargs)
            raise RuntimeError(f"{function} on another device")

    def move(value):
        if isinstance(value, torch.Tensor):
            return value.as_subclass(Elsewhere)
        if isinstance(value, dict):
            return {k: move(v) for k, v in value.items()}
        return [move(v) for v in value] if isinstance(value, list) else value

    state = pruner.state_dict()
    again = Pruner(make_mlp(), config)
    for group in state["groups"]:
        group["units"], group["parts"] = move(group["units"]), move(group["parts"])
    again.load_state_dict(state)
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, again.masks()[name])


def test_a_replaced_weight_is_an_error_everywhere(make_mlp):
    dense = make_mlp().state_dict()
    model = make_mlp()
    pruner = Pruner(model, PruningConfig(target_sparsity=0.5, pruning_type="magnitude", start_step=0, end_step=0))
    pruner.start()
    model.load_state_dict(dense, assign=True)
    for call in (pruner.report, pruner.masks, pruner.observe):
        with pytest.raises(PruningError, match="0.weight: was replaced or moved after the Pruner was built"):
            call()
    model = make_mlp()
    pruner = Pruner(model, PruningConfig(target_sparsity=0.5, pruning_type="magnitude", start_step=0, end_step=0))
    model[0].weight = nn.Parameter(torch.ones(32, 16))
    with pytest.raises(PruningError, match="was replaced"):
        pruner.start()


@pytest.mark.parametrize("group", [{"start_step": 5}, {"pruning_type": "pattern_lock"}, {"end_step": 9}])
def test_prune_once_takes_no_schedule_from_a_group(make_mlp, group):
    with pytest.raises(PruningError, match="prune_once prunes at once"):
        prune_once(make_mlp(), pruning_configs=[group])


def test_locked_zeros_of_half_pruned_groups_stay_zero():
    """Only groups with at most N nonzero weights count as pruned; single zeros are held and go first."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    prune_once(model, pattern="3:4", exclude_head=False)
    zero = model[0].weight == 0
    config = PruningConfig(
        pattern="2:4", lock_init_sparsity=True, pruning_type="magnitude", start_step=0, end_step=0, exclude_head=False
    )
    pruner = Pruner(model, config)
    assert all(units.all() for units in pruner.groups[0].units)
    with torch.no_grad():
        model[0].weight[zero] = 5.0
    pruner.start()
    assert not model[0].weight[zero].any()
    assert pruner.report().pruned_layers == 0.5


def test_a_second_pruner_on_the_same_weights_is_refused(make_mlp, sgd, train):
    model = make_mlp()
    optimizer = sgd(model)
    first = Pruner(model, PruningConfig(**KEYS))
    handle = first.attach(optimizer)
    with pytest.raises(PruningError, match="attach: another Pruner on this SGD prunes 0 already"):
        Pruner(model, PruningConfig(**KEYS)).attach(optimizer)
    handle.detach()
    second = first.attach(optimizer)
    handle.detach()  # a stale handle must not free the place
    with pytest.raises(PruningError, match="this Pruner is attached already"):
        first.attach(optimizer)
    train(model, optimizer, 2)
    assert first.step_count == 2
    second.detach()


def test_an_interrupted_optimizer_step_is_forgotten(make_mlp, train, sgd):
    model = make_mlp()
    optimizer, pruner = sgd(model), Pruner(model, PruningConfig(**KEYS))

    def interrupt(*args):
        raise KeyboardInterrupt

    def interrupted_run():
        with pruner.attach(optimizer):
            optimizer.register_step_pre_hook(interrupt)
            train(model, optimizer, 1)

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    optimizer._optimizer_step_pre_hooks.clear()
    with pruner.attach(optimizer):
        train(model, optimizer, 2)
    assert pruner.step_count == 2


def test_wrappers_anywhere_leave_no_trace_in_names(make_mlp):
    model = make_mlp()
    model[0] = torch.compile(model[0], backend="eager")
    model[4] = torch.compile(model[4], backend="eager")
    assert find_head(model)[0] == "4"
    assert list(Pruner(model, PruningConfig(**KEYS)).masks()) == ["0", "2"]
    assert list(Pruner(model, PruningConfig(**KEYS, excluded_op_names=["^0$"])).masks()) == ["2"]
    inner = nn.Sequential(nn.DataParallel(make_mlp()), nn.Linear(2, 2))
    assert list(Pruner(inner, PruningConfig(**{**KEYS, "pattern": "2x1"})).masks()) == ["0.0", "0.2", "0.4"]


def test_the_head_is_reported_dense_only_when_it_is(make_mlp):
    keys = {"pattern": "2x1", "target_sparsity": 0.5}
    report = prune_once(make_mlp(), pruning_configs=[{"op_names": ["^4$"], "exclude_head": False}, {}], **keys)
    assert report.head is None


def test_an_excluded_layer_is_not_pruned_through_a_shared_weight():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh())
    model[2].weight = model[0].weight
    with pytest.raises(
        PruningError, match=r"excluded_op_names: 2 is left out, but 0 has the same weight; add '\^0\$' too"
    ):
        prune_once(model, pattern="2:4", excluded_op_names=["^2$"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(8, 0),
        lambda: nn.Linear(0, 8),
        lambda: nn.LazyLinear(8),
        lambda: nn.Linear(8, 8, device="meta"),
    ],
)
@pytest.mark.parametrize("pattern", ["4x1", "1xchannel", "channelx1", "2:4"])
def test_a_weight_without_numbers_is_one_line(make, pattern):
    with pytest.raises(PruningError, match="0: its weight holds no numbers"):
        Pruner(nn.Sequential(make(), nn.Tanh()), PruningConfig(pattern=pattern, start_step=1, end_step=2))


def test_a_broken_state_is_one_line(make_mlp):
    with pytest.raises(PruningError, match="state: is no Pruner's state, it lacks config, layers"):
        Pruner(make_mlp(), PruningConfig(**KEYS)).load_state_dict({"version": 1})


def test_one_group_without_scores_keeps_the_others_whole(make_mlp, sgd, train):
    model = make_mlp()
    model[2].weight.requires_grad_(False)
    pruner = Pruner(model, PruningConfig(**KEYS, pruning_configs=[{"op_names": ["^0$"]}, {"op_names": ["^2$"]}]))
    optimizer = sgd(model)
    with pytest.raises(PruningError, match="has no score for 2"), pruner.attach(optimizer):
        train(model, optimizer, 4)
    assert (model[0].weight != 0).all()


def test_snip_says_that_it_looks_at_one_step(make_mlp, sgd, train):
    model = make_mlp()
    pruner = Pruner(model, PruningConfig(**{**KEYS, "pruning_type": "snip", "end_step": 3, "pruning_frequency": 2}))
    optimizer = sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 2)
        model[0].weight.grad = torch.full((32, 16), float("inf"))
        model[2].weight.grad = torch.ones(32, 32)
        with pytest.raises(PruningError, match="no finite gradient came in this step, the one that it scores"):
            optimizer.step()


def test_a_state_can_be_saved_with_weights_only(make_mlp):
    file = io.BytesIO()
    torch.save(Pruner(make_mlp(), PruningConfig(**KEYS)).state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["version"] == 1
