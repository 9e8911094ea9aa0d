"""Whatever torch's default dtype and device are, and under autocast, masks and weights come out the same."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from torch import nn

from trisparse import MaskedAdamW, Pruner, PruningConfig, compact, compress, decompress, prune_once

ROOT = Path(__file__).parent.parent
FACTORIES = {  # name -> whether numbers without a dtype take the default one
    "zeros": True, "ones": True, "empty": True, "rand": True, "randn": True, "linspace": True, "logspace": True,
    "eye": True, "full": False, "arange": False, "randint": False, "randperm": False, "tensor": False, "as_tensor": False,
    "empty_strided": True, "scalar_tensor": True, "normal": True,
}  # fmt: skip
CPU = {"dtype": torch.float32, "device": "cpu"}
X = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def default(name):
    if name == "meta":  # what is made on no device in particular has no numbers, as on another than the model's
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def network():
    layers = nn.Linear(64, 128, **CPU), nn.GELU(), nn.Linear(128, 64, **CPU)
    generator = torch.Generator().manual_seed(0)
    for layer in (layers[0], layers[2]):
        layer.weight.data.normal_(generator=generator)
        layer.bias.data.fill_(0.5)
    return nn.Sequential(*layers).eval()


def trained(pattern):
    model = network().train()
    optimizer = MaskedAdamW(model.parameters(), lr=1e-2)
    config = PruningConfig(pattern=pattern, target_sparsity=0.5, start_step=1, end_step=4, exclude_head=False)
    pruner = Pruner(model, config, sparse_training="on")
    with pruner.attach(optimizer):
        for _ in range(5):
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    again = Pruner(model, config)
    again.load_state_dict(pruner.state_dict())
    steps = [state["step"] for state in optimizer.state.values()]
    return [*again.masks().values(), *model.parameters(), *steps]


def deployed(pattern):
    model = network()
    prune_once(model, pattern=pattern, target_sparsity=0.5, exclude_head=False)
    before = model(X)
    if pattern == "1xchannel":
        compact(model, (X,))
    packed, report = compress(model, prefer="memory", measure=False, example=(X,))
    assert report.bytes_after < report.bytes_before
    return [before, packed(X), decompress(packed)(X)]


@pytest.mark.parametrize("name", ["float64", "bfloat16", "float16", "meta"])
@pytest.mark.parametrize("pattern", ["4x1", "2:4", "1xchannel"])
@pytest.mark.parametrize("work", [trained, deployed])
def test_defaults_of_torch_change_nothing(work, pattern, name):
    want = work(pattern)
    with default(name):
        found = work(pattern)
    torch.testing.assert_close(found, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("method", "options"),
    [("wanda", {}), ("sparsegpt", {"block_size": 32}), ("dsnot", {})],  # the next columns take what errors of 32 leave
)
def test_what_is_computed_of_inputs_is_not_rounded_by_autocast(method, options):
    weights = []
    for enabled in (False, True):
        model = network()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prune_once(model[:1], method, [(X,)], pattern="2:4", exclude_head=False, **options)
        weights.append(model[0].weight)
    assert torch.equal(*weights)


def test_constants_are_folded_without_autocast():
    parameters = []
    for enabled in (False, True):
        model = network()
        prune_once(model, pattern="1xchannel", target_sparsity=0.5, exclude_head=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            compact(model, (X,))
        assert model[0].out_features < 128
        parameters.append([*model.parameters()])
    torch.testing.assert_close(*parameters, rtol=0, atol=0)


def left_to_defaults(source):
    """Lines of calls that make a tensor of the default device or dtype."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            given = {keyword.arg for keyword in node.keywords} | (set() if FACTORIES[node.func.attr] else {"dtype"})
            if ast.unparse(node.func.value) == "torch" and not given >= {"device", "dtype"} and None not in given:
                yield node.lineno


@pytest.mark.parametrize("folder", ["kernels", "sparse_ops", "prune", "trisparse"])
def test_what_makes_a_tensor_says_where_and_of_what(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert [f"{path}:{line}" for path in paths for line in left_to_defaults(path.read_text())] == []


def test_a_call_that_leaves_it_to_defaults_would_be_found():
    source = "torch.zeros(3, device=d)\ntorch.tensor(3)\ntorch.tensor(3, device=d)\ntorch.rand(3, device=d, dtype=t)"
    assert list(left_to_defaults(source)) == [1, 2]
