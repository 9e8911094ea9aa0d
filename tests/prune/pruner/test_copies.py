"""Optimizers, wrappers and averages that keep another copy of the weights: zeros survive, or one line says why not."""

import re

import pytest
import torch

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
