"""Optimizers, wrappers and averages that keep another copy of the weights: zeros survive, or one line says why not."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError, prune_once

KEYS = {"pattern": "4x1", "target_sparsity": 0.75, "start_step": 1, "end_step": 16, "pruning_frequency": 5}


class Lookahead:
    """Slow weights in a state of its own, or in a list beside the parameters; every third step they are put in."""

    def __init__(self, optimizer, in_state=True):
        self.optimizer, self.in_state, self.steps = optimizer, in_state, 0
        self.state, self.param_groups = {}, optimizer.param_groups
        for group in self.param_groups:
            if not in_state:
                group["slow"] = [p.detach().clone() for p in group["params"]]
            for p in group["params"] if in_state else ():
                self.state[p] = {"slow": p.detach().clone()}

    def zero_grad(self):
        self.optimizer.zero_grad()

    @torch.no_grad()
    def step(self):
        self.optimizer.step()
        self.steps += 1
        for group in self.param_groups if self.steps % 3 == 0 else ():
            for i, p in enumerate(group["params"]):
                slow = self.state[p]["slow"] if self.in_state else group["slow"][i]
                p.copy_(slow.lerp_(p, 0.5))


class Masters(torch.optim.Optimizer):
    """SGD on double copies, as optimizers for 16 bits keep them in 32."""

    def __init__(self, params, **options):
        super().__init__(params, options)

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["master"] = p.detach().double()
            p.copy_(state["master"].sub_(p.grad.double(), alpha=0.05))


class Averaged(torch.optim.Optimizer):
    """Keeps an average that began as zero, and puts it in place in `eval()`."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.05)
            self.state[p].setdefault("average", torch.zeros_like(p)).lerp_(p, 0.1)

    @torch.no_grad()
    def eval(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["average"])


class Sharp(torch.optim.Optimizer):
    """SAM: a step against the gradient and back, between which a second gradient is taken."""

    def __init__(self, params, **options):
        super().__init__(params, {})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["before"] = p.detach().clone()
            p.add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["before"]
        self.base_optimizer.step()


@pytest.fixture
def pruned():
    """How many weights that the masks prune are not zero."""
    return lambda pruner, model: sum(
        int((model.get_submodule(name).weight[~mask] != 0).sum()) for name, mask in pruner.masks().items()
    )


WRAPPED = {
    "slow weights": lambda params: Lookahead(torch.optim.SGD(params, lr=0.05)),
    "slow weights in a list": lambda params: Lookahead(torch.optim.SGD(params, lr=0.05), in_state=False),
    "masters": Masters,
    "average": Averaged,
    "MaskedAdamW": lambda params: Lookahead(MaskedAdamW(params, lr=0.05)),
}


@pytest.mark.parametrize(
    "keys", [{}, {"pattern": "2:4", "target_sparsity": 0.5}, {"pruning_type": "magnitude_progressive"}]
)
@pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)
def test_copies_in_the_state_are_masked(make_mlp, train, pruned, make, keys):
    model = make_mlp()
    optimizer = make(model.parameters())
    pruner = Pruner(model, PruningConfig(**KEYS | keys))

    with pruner.attach(optimizer):
        train(model, optimizer, 24, after=lambda step: pruned(pruner, model) == 0 or pytest.fail(f"at step {step}"))
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        assert pruned(pruner, model) == 0
        assert pruner.report().pruned_layers == pytest.approx(KEYS["target_sparsity"] if not keys else 0.5, abs=0.3)
        assert pruner.state_dict()["step_count"] == 24
    assert all(group.copies == [] for group in pruner.groups)


def test_sharpness_aware_steps(make_mlp, train, pruned):
    model = make_mlp()
    optimizer = Sharp(list(model.parameters()), lr=0.05)
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        for step in range(20):
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
            for move in (optimizer.first_step, optimizer.step):
                optimizer.zero_grad()
                (model(x) - 1).square().mean().backward()
                move()
            assert pruned(pruner, model) == 0
    assert pruner.step_count == 20
    assert pruner.report().pruned_layers == 0.75


def test_copies_that_were_not_masked_before_are_found_at_the_start(make_mlp, train, pruned):
    """Locked zeros come from elsewhere, so the masters in a state that was loaded are dense."""
    model = make_mlp()
    optimizer = Masters(model.parameters())
    for p in model.parameters():
        optimizer.state[p]["master"] = p.detach().double()
    prune_once(model, pattern="4x1", target_sparsity=0.9)
    pruner = Pruner(model, PruningConfig(pattern="4x1", pruning_type="pattern_lock"))
    with pruner.attach(optimizer):
        assert (optimizer.state[model[0].weight]["master"][~pruner.masks()["0"]] == 0).all()
        train(model, optimizer, 3)
    assert pruned(pruner, model) == 0


def test_an_old_z_is_far_from_its_weight_and_masked_still(make_mlp, train):
    schedulefree = pytest.importorskip("schedulefree")
    model = make_mlp()
    optimizer = schedulefree.SGDScheduleFree(model.parameters(), lr=0.05)
    optimizer.train()
    train(model, optimizer, 1)
    for state in optimizer.state.values():
        state["z"].normal_()
    pruner = Pruner(model, PruningConfig(**KEYS))
    pruner.attach(optimizer)
    assert len(pruner.groups[0].copies) == 2


FREE = ["AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree"]


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("foreach", [True, False])
def test_schedule_free_optimizers(make_mlp, train, pruned, name, foreach):
    """Their `eval()` puts the average in place, and `train()` takes it out; a new run may begin with their state."""
    schedulefree = pytest.importorskip("schedulefree")
    config = PruningConfig(**KEYS)

    def begin():
        model = make_mlp()
        optimizer = getattr(schedulefree, name)(model.parameters(), lr=0.05, foreach=foreach)
        optimizer.train()
        return model, optimizer, Pruner(model, config)

    def evaluate(model, optimizer, pruner):
        optimizer.eval()
        assert pruned(pruner, model) == 0
        state = model.state_dict(), optimizer.state_dict(), pruner.state_dict()
        state = copy.deepcopy(state)
        optimizer.train()
        return state

    model, optimizer, pruner = begin()
    with pruner.attach(optimizer):
        train(model, optimizer, 9)
        state = evaluate(model, optimizer, pruner)
        train(model, optimizer, 15, first=9)
        evaluate(model, optimizer, pruner)
    assert pruner.report().pruned_layers == 0.75
    fresh, other, again = begin()
    other.eval()
    for part, saved in zip((fresh, other, again), state, strict=True):
        part.load_state_dict(saved)
    other.train()
    with again.attach(other):
        train(fresh, other, 15, first=9)
        evaluate(fresh, other, again)
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, again.masks()[name])
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_schedule_free_around_another_optimizer(make_mlp, train, pruned):
    """Its base steps z, which lies in the place of the weight while it does."""
    schedulefree = pytest.importorskip("schedulefree")
    model = make_mlp()
    optimizer = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=0.05))
    optimizer.train()
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
        optimizer.eval()
        assert pruned(pruner, model) == 0
        assert pruner.report().pruned_layers == 0.75


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("Adagrad", {}),
        ("Adam", {"amsgrad": True}),
        ("AdamW", {"fused": True}),
        ("RMSprop", {"momentum": 0.9, "centered": True}),
        ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        ("NAdam", {}),
        ("Adadelta", {}),
    ],
)
def test_momenta_are_no_copies(make_mlp, train, kind, options):
    """They stay what they are without a Pruner that knows of copies."""
    model = make_mlp()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
        assert pruner.groups[0].copies == []
    gone = ~pruner.masks()["0"]
    kept = [t[gone] for t in optimizer.state[model[0].weight].values() if torch.is_tensor(t) and t.dim() == 2]
    assert kept
    assert all(t.any() for t in kept)


def test_a_copy_out_of_reach_is_noticed_at_the_next_step(make_mlp, train, pruned):
    """The slow weights of a wrapper whose inner optimizer was attached come at its third step."""
    model = make_mlp()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.05))
    pruner = Pruner(model, PruningConfig(**KEYS | {"pruning_type": "magnitude", "pruning_frequency": 1}))
    said = (
        r"^[02]\.weight: at least \d+ weights are not zero where the mask prunes; something wrote to it after "
        r"pruner.step\(\): where SGD keeps a copy of the weights, attach its outermost wrapper, or call "
        r"pruner.observe\(\) and pruner.step\(\) around its step; after an average or saved weights are put in, call "
        r"pruner.apply_masks\(\)$"
    )
    with pruner.attach(optimizer.optimizer), pytest.raises(PruningError, match=said):
        train(model, optimizer, 9)
    assert optimizer.steps == 3
    model = make_mlp()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.05))
    pruner = Pruner(model, PruningConfig(**KEYS))
    pruner.start()
    for step in range(20):  # by hand around the wrapper's step, as the line says
        (model(torch.randn(8, 16)) - 1).square().mean().backward()
        pruner.observe()
        optimizer.step()
        pruner.step()
        assert pruned(pruner, model) == 0, step
    assert pruner.report().pruned_layers == 0.75


def test_every_layer_gets_its_turn(make_mlp, train, sgd):
    model = make_mlp(dims=(16, 32, 32, 32, 32, 2))
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS, pruning_scope="local")), sgd(model)

    def bring_back(name):
        with torch.no_grad():
            model.get_submodule(name).weight.masked_fill_(~pruner.masks()[name], 0.5)

    handle = pruner.attach(optimizer)
    train(model, optimizer, 20)
    for name in pruner.masks():
        bring_back(name)
        with pytest.raises(PruningError, match=rf"^{name}\.weight: \d+ weights are not zero.*where SGD keeps"):
            pruner.state_dict()
        with pytest.raises(PruningError, match=rf"^{name}\.weight: \d+ weights are not zero"):
            pruner.report()
        looks = (pruner._watch.look(pruner.step_count, None) for _ in pruner.layers)
        with pytest.raises(PruningError, match=rf"^{name}\.weight: at least \d+ weights.*where the optimizer keeps"):
            list(looks)
        pruner.apply_masks()
        assert pruner.report().pruned_layers == pytest.approx(0.75)
    handle.detach()
    train(model, optimizer, 3)  # without masks: what is pruned grows, and that is no mistake
    with pruner.attach(optimizer):
        train(model, optimizer, 3)
    assert pruner.report().complete


def test_on_a_gpu_nothing_waits_for_the_look(make_mlp, train, sgd, monkeypatch):
    """There it is read where the host waits anyway, so here the reading is put off in the same way."""
    model = make_mlp()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    check, reads = pruner._watch.check, []
    monkeypatch.setattr(pruner._watch, "check", lambda optimizer: reads.append(optimizer))
    pruner.attach(optimizer)
    train(model, optimizer, 18)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(1.0)
    train(model, optimizer, 3, first=18)  # which zeroes them again
    monkeypatch.setattr(pruner._watch, "check", check)
    with pytest.raises(PruningError, match=r"[02].weight: at least \d+ weights are not zero"):
        pruner.sparsity()
    assert pruner.sparsity() == 0.75, "said once"


AVERAGES = {
    "mean": lambda model: AveragedModel(model),
    "EMA": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "half": lambda model: AveragedModel(model).to(torch.bfloat16),
}


@pytest.mark.parametrize("make", AVERAGES.values(), ids=AVERAGES)
def test_averaged_models(make_mlp, train, sgd, pruned, make):
    model = make_mlp()
    averaged = make(model)
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 20, after=lambda step: averaged.update_parameters(model))
    assert pruned(pruner, averaged.module) > 0
    kept = averaged.module[0].weight[pruner.masks()["0"]].clone()
    pruner.apply_masks(averaged)
    assert pruned(pruner, averaged.module) == 0
    assert torch.equal(averaged.module[0].weight[pruner.masks()["0"]], kept)
    assert averaged.module[0].weight.requires_grad == model[0].weight.requires_grad


def test_averages_that_are_put_into_the_model(make_mlp, train, sgd, pruned):
    """Lists of shadow parameters, which are copied into the model for an evaluation."""
    model = make_mlp()
    shadow = [p.detach().clone() for p in model.parameters()]
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        for step in range(20):
            train(model, optimizer, 1, first=step)
            torch._foreach_lerp_(shadow, list(model.parameters()), 0.1)
        trained = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(list(model.parameters()), shadow)
        with pytest.raises(PruningError, match=r"call pruner.apply_masks\(\)$"):
            pruner.state_dict()
        pruner.apply_masks()
        assert pruner.report().pruned_layers == 0.75
        assert torch.equal(model[0].weight, shadow[0] * pruner.masks()["0"])
        model.load_state_dict(trained)
        train(model, optimizer, 1)


def test_a_copy_that_does_not_fit_is_one_line_and_stays_as_it_is(make_mlp, train, sgd):
    model = make_mlp()
    pruner, optimizer = Pruner(model, PruningConfig(**KEYS)), sgd(model)
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
    other = make_mlp(dims=(16, 32, 16, 2))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(PruningError, match=r"^model: 2 has shape \[16, 32\] there; want a copy of the model"):
        pruner.apply_masks(other)
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(PruningError, match="^model: 0 is missing there"):
        pruner.apply_masks(nn.Sequential())
    wrapped = nn.ModuleDict({"ema_model": copy.deepcopy(make_mlp())})
    pruner.apply_masks(wrapped)
    assert (wrapped["ema_model"][0].weight[~pruner.masks()["0"]] == 0).all()


@pytest.mark.parametrize("options", [{"lr": None}, {}], ids=["None", "no lr"])
def test_optimizers_without_a_learning_rate(make_mlp, train, options):
    """As Adafactor's that finds its own, or groups that have none."""
    model = make_mlp()
    optimizer = Masters(model.parameters(), **options)
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
    assert pruner.report().pruned_layers == 0.75
    lasso = Pruner(model, PruningConfig(**KEYS, reg_type="group_lasso", reg_coeff=0.1))
    said = "^lr: reg_type: group_lasso needs a learning rate, and the optimizer has None for 0; give it one"
    with pytest.raises(PruningError, match=said):
        lasso.attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    lasso.observe()
    with pytest.raises(PruningError, match=said):
        lasso.step(lr=lambda layer: None)


def test_adafactor(make_mlp, train):
    transformers = pytest.importorskip("transformers")
    model = make_mlp()
    optimizer = transformers.optimization.Adafactor(model.parameters())
    assert optimizer.param_groups[0]["lr"] is None
    pruner = Pruner(model, PruningConfig(**KEYS))
    with pruner.attach(optimizer):
        train(model, optimizer, 20)
    assert pruner.report().pruned_layers == 0.75


def test_two_optimizers(make_mlp, train, pruned):
    model = make_mlp()
    first = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.05)
    second = torch.optim.AdamW(model[2].parameters(), lr=0.01)
    pruner = Pruner(model, PruningConfig(**KEYS))
    said = (
        "attach: SGD does not hold 2; build it over the parameters of the model that the Pruner was given, or where "
        "another optimizer holds them attach none: call pruner.observe() before the first of them steps and "
        "pruner.step() after the last"
    )
    with pytest.raises(PruningError, match=f"^{re.escape(said)}$"):
        pruner.attach(first)
    pruner.start()
    for _ in range(20):
        (model(torch.randn(8, 16)) - 1).square().mean().backward()
        pruner.observe()
        first.step()
        second.step()
        pruner.step()
        assert pruned(pruner, model) == 0
    assert pruner.report().pruned_layers == 0.75
