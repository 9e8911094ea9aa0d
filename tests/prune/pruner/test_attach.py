"""Optimizer hooks: wrappers, gradient scalers, and everything that must be refused."""

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig, PruningError


def config(**keys):
    return PruningConfig(**{"pattern": "4x1", "target_sparsity": 0.5, "start_step": 1, "end_step": 4, **keys})


def reference_scores(make_mlp, inputs, clip):
    """Scores and weights of an unscaled fp32 run over the finite steps."""
    model = make_mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pruner = Pruner(model, config(end_step=100))
    for x in inputs:
        (model(x) - 1).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        pruner.observe()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    return pruner


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("accelerated", [True, False])
def test_scaled_gradients_and_a_skipped_step(make_mlp, fused, clip, accelerated):
    """Power-of-two loss scales are exact, so the scores must be equal to the bit."""
    inputs = [torch.randn(8, 16) for _ in range(6)]
    want = reference_scores(make_mlp, inputs, clip)

    model = make_mlp()
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100)
    optimizer = inner
    if accelerated:
        accelerate = pytest.importorskip("accelerate")
        accelerate.Accelerator(cpu=True)  # AcceleratedOptimizer reads the shared state
        optimizer = accelerate.optimizer.AcceleratedOptimizer(inner, device_placement=False, scaler=scaler)
    pruner = Pruner(model, config(end_step=100))
    with pruner.attach(optimizer):
        for step, x in enumerate([*inputs[:3], inputs[3] * float("inf"), *inputs[3:]]):
            scaler.scale((model(x) - 1).square().mean()).backward()
            if clip:
                scaler.unscale_(inner)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            if accelerated:
                optimizer.step()
            else:
                scaler.step(inner)
                scaler.update()
            optimizer.zero_grad()
            assert pruner.step_count == (step + 1 if step < 3 else step), "a skipped step must not count"
    for got, expected in zip(pruner.groups[0].scoring.scores, want.groups[0].scoring.scores, strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=0)
        assert got.isfinite().all()


def test_what_cannot_be_attached_is_refused(make_mlp, sgd, train):
    model = make_mlp()
    pruner = Pruner(model, config())

    class Engine:
        """Like DeepSpeed's: no torch optimizer inside."""

    with pytest.raises(
        PruningError,
        match=r"Engine is no torch.optim.Optimizer .* call pruner.observe\(\) and pruner.step\(\)",
    ):
        pruner.attach(Engine())
    with pytest.raises(PruningError, match="SGD does not hold 2;"):
        pruner.attach(torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.1))
    optimizer = sgd(model)
    pruner.attach(optimizer)
    with pytest.raises(PruningError, match=r"this Pruner is attached already; call detach\(\) on what"):
        pruner.attach(optimizer)
    with pytest.raises(PruningError, match=r"step\(closure\)"):
        optimizer.step(lambda: 0.0)


def test_leaving_without_a_step_is_an_error(make_mlp, sgd):
    model = make_mlp()
    pruner = Pruner(model, config())
    with (
        pytest.raises(PruningError, match="SGD made no step inside the with block"),
        pruner.attach(sgd(model)),
    ):
        pass
    with pytest.raises(KeyError), pruner.attach(sgd(model)):
        raise KeyError("the user's own error comes through")


def write(optimizer, *_):
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.add_(1e-3)


@pytest.mark.parametrize("base", [torch.optim.AdamW, MaskedAdamW])
def test_a_step_that_calls_its_base_classs_is_one_step(make_mlp, train, base):
    class Moved(base):
        def step(self):
            super().step()
            write(self)

    base(make_mlp().parameters())  # from now on the hooks fire in both steps
    model = make_mlp()
    optimizer, pruner = Moved(model.parameters(), lr=1e-2), Pruner(model, config())
    with pruner.attach(optimizer):
        train(model, optimizer, 5)
        assert pruner.step_count == 5
        assert pruner.report().pruned_layers == 0.5


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, MaskedAdamW])
def test_what_an_earlier_hook_writes_is_masked(make_mlp, train, optimizer_class):
    model = make_mlp()
    optimizer, pruner = optimizer_class(model.parameters(), lr=1e-2), Pruner(model, config())
    optimizer.register_step_post_hook(write)
    with pruner.attach(optimizer):
        train(model, optimizer, 5)
        assert pruner.report().pruned_layers == 0.5


@pytest.mark.parametrize("is_attached_anew", [False, True])
def test_training_goes_on_after_a_step_that_broke_off(make_mlp, train, is_attached_anew):
    class Interrupted(torch.optim.SGD):
        breaks = False

        def step(self):
            super().step()
            if self.breaks:
                raise KeyboardInterrupt

    torch.optim.SGD(make_mlp().parameters())
    model = make_mlp()
    optimizer, pruner = Interrupted(model.parameters(), lr=1e-2, momentum=0.9), Pruner(model, config())
    handle = pruner.attach(optimizer)
    train(model, optimizer, 5)
    optimizer.breaks = True
    with pytest.raises(KeyboardInterrupt):
        train(model, optimizer, 1)
    optimizer.breaks = False
    if is_attached_anew:
        handle.detach()
        pruner.attach(optimizer)
    train(model, optimizer, 2)
    assert pruner.step_count == 7
    assert pruner.report().pruned_layers == 0.5


def test_detach_leaves_no_hook(make_mlp, sgd, train):
    model = make_mlp()
    optimizer, pruner = sgd(model), Pruner(model, config())
    handle = pruner.attach(optimizer)
    train(model, optimizer, 2)
    handle.detach()
    train(model, optimizer, 3)
    assert pruner.step_count == 2
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    pruner.attach(optimizer)
    train(model, optimizer, 1)
    assert pruner.step_count == 3


def test_accelerate_with_accumulation_counts_optimizer_steps(make_mlp):
    accelerate = pytest.importorskip("accelerate")
    model = make_mlp()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=3)
    loader = torch.utils.data.DataLoader(torch.randn(28, 16), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader)
    pruner = Pruner(model, config(end_step=3))
    with pruner.attach(optimizer):
        for x in loader:
            with accelerator.accumulate(model):
                accelerator.backward(model(x).square().mean())
                optimizer.step()
                optimizer.zero_grad()
    assert pruner.step_count == 3  # seven batches: 3 + 3 + 1
    assert pruner.report().pruned_layers == 0.5
