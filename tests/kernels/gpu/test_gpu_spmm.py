"""Packed blocks on a GPU: products and gradients at real sizes, no waiting, CUDA graphs."""

import pytest
import torch
from torch.nn.functional import linear

from trisparse.sparse_ops import block_spmm, pack_blocks, unpack_blocks, vector_spmm
from trisparse.sparse_ops.activations import ACTIVATIONS

pytestmark = pytest.mark.gpu

HALVES = [torch.bfloat16, torch.float16]
KINDS = [(4, 1, 4), (8, 1, 8), (16, 1, 4), (16, 1, 16), (32, 1, 32), (16, 16, 16), (32, 64, 32), (128, 128, 128)]


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def made(shape, kind, dtype=torch.bfloat16, density=0.1):
    """A weight of which a share is left, and the weight packed."""
    n, m, run = kind
    kept = torch.rand(-(-shape[0] // run), -(-shape[1] // m), device="cuda") < density
    kept = kept.repeat_interleave(run, 0).repeat_interleave(m, 1)[: shape[0], : shape[1]]
    weight = (torch.randn(shape, device="cuda") * kept).to(dtype)
    return weight, pack_blocks(weight, (n, m), run=run, transposed=True)


def product(x, matrix, bias=None, activation="none"):
    return (vector_spmm if matrix.block[1] == 1 else block_spmm)(x, matrix, bias, activation)


def forward_only(matrix):
    none = matrix.order[:0]
    return matrix._replace(slots_t=none, groups_t=none, pointers_t=none)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 64, 1000])
@pytest.mark.parametrize("shape", [(4096, 1024), (1000, 3100)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward_and_all_gradients_are_as_exact_as_torchs(kind, shape, tokens, dtype):
    weight, matrix = made(shape, kind, dtype)
    values = matrix.values.clone().requires_grad_()
    x = torch.randn(tokens, shape[1], device="cuda").to(dtype).requires_grad_()
    bias = torch.randn(shape[0], device="cuda").to(dtype).requires_grad_()
    grad = torch.randn(tokens, shape[0], device="cuda").to(dtype)

    def everything(function, *inputs):
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad.to(y.dtype))

    ours = everything(lambda a, v, b: product(a, matrix._replace(values=v), b), x, values, bias)
    dense = [t.detach().requires_grad_() for t in (x, weight, bias)]
    theirs = everything(linear, *dense)
    exact = everything(linear, *(t.detach().double().requires_grad_() for t in dense))
    kept = unpack_blocks(matrix._replace(values=torch.ones_like(values)))
    for name, a, b, want in zip(("y", "x", "weight", "bias"), ours, theirs, exact, strict=True):
        if name == "weight":
            a, b, want = unpack_blocks(matrix._replace(values=a)), b * kept, want * kept
        assert (a - want).abs().max() <= 2 * (b - want).abs().max(), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [4, 300])
@pytest.mark.parametrize("kind", [(8, 1, 8), (64, 64, 64)], ids=str)
def test_bias_and_activation(kind, tokens, activation, dtype):
    weight, matrix = made((4096, 1024), kind, dtype)
    x, bias = (torch.randn(*size, device="cuda").to(dtype) for size in ((tokens, 1024), (4096,)))
    act = ACTIVATIONS[activation]
    want = act(linear(x.double(), weight.double(), bias.double()))
    error = (product(x, matrix, bias, activation) - want).abs().max()
    assert error <= 2 * (act(linear(x, weight, bias)) - want).abs().max()


@pytest.mark.parametrize("transposed", [True, False], ids=["both ways", "one way"])
@pytest.mark.parametrize("tokens", [4, 300])
@pytest.mark.parametrize("kind", [(16, 1, 16), (32, 32, 32)], ids=str)
def test_nothing_waits_for_the_device(no_waiting, kind, tokens, transposed):
    _, matrix = made((1024, 768), kind)
    matrix = matrix if transposed else forward_only(matrix)
    values = matrix.values.clone().requires_grad_()
    x = torch.randn(tokens, 768, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    for waiting in (False, True):  # the first time kernels compile
        if waiting:
            no_waiting()
        y = product(x, matrix._replace(values=values), bias, "gelu")
        y.backward(torch.ones_like(y))
        with torch.no_grad():
            product(x, matrix, bias, "gelu")


@pytest.mark.parametrize("tokens", [1, 8, 300])
@pytest.mark.parametrize("kind", [(4, 1, 4), (32, 1, 8), (64, 64, 64)], ids=str)
def test_inference_replays_with_other_values(kind, tokens):
    _, matrix = made((1024, 4096), kind, density=0.5)
    x = torch.randn(tokens, 4096, device="cuda", dtype=torch.bfloat16)
    bias = torch.randn(1024, device="cuda", dtype=torch.bfloat16)
    product(x, matrix, bias, "relu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = product(x, matrix, bias, "relu")
    for _ in range(3):
        for part in (x, bias, matrix.values):
            part.copy_(torch.randn_like(part))
        graph.replay()
        assert torch.equal(y, product(x, matrix, bias, "relu"))


@pytest.mark.parametrize("tokens", [4, 300])
@pytest.mark.parametrize("kind", [(8, 1, 8), (32, 32, 32)], ids=str)
def test_a_captured_training_step_replays(kind, tokens):
    _, matrix = made((512, 256), kind, density=0.5)
    inputs = [matrix.values, torch.randn(512, device="cuda", dtype=torch.bfloat16)]
    pairs = [[t.clone().requires_grad_() for t in inputs] for _ in range(2)]
    x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step(values, bias):
        y = product(x, matrix._replace(values=values), bias, "gelu")
        grads = torch.autograd.grad(y.square().mean(), (x, values, bias))
        with torch.no_grad():
            values.sub_(grads[1])
            bias.sub_(grads[2])
        return grads[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for pair in pairs:
            step(*pair)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grad_x = step(*pairs[0])
    for _ in range(5):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert torch.equal(grad_x, step(*pairs[1]))
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))


@pytest.mark.parametrize("kind", [(8, 1, 8), (32, 32, 32)], ids=str)
def test_training_compiles(kind):
    _, matrix = made((512, 256), kind, density=0.5)
    values = matrix.values.clone().requires_grad_()

    def step(x, values):
        return product(x, matrix._replace(values=values), None, "gelu").float().square().mean()

    for tokens in (4, 200, 333):
        x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        found, want = (
            torch.autograd.grad(f(x, values), (x, values)) for f in (torch.compile(step, fullgraph=True), step)
        )
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-4)


@pytest.mark.parametrize("kind", [(8, 1, 8), (64, 64, 64)], ids=str)
def test_more_numbers_than_32_bits_count(kind):
    tokens, cols = 70_000, 32_768
    weight, matrix = made((128, cols), kind)
    x = torch.randn(1000, cols, device="cuda", dtype=torch.bfloat16).repeat(tokens // 1000, 1)  # 2.3e9
    y = product(x, matrix)
    assert torch.equal(y[-1000:], y[:1000])
    torch.testing.assert_close(y[:1000], linear(x[:1000], weight), rtol=2e-2, atol=0.5)
    grad = torch.zeros(tokens, 128, device="cuda", dtype=torch.bfloat16)
    grad[-1000:] = torch.randn(1000, 128, device="cuda")
    ops = torch.ops.trisparse
    found, want = ops.sddmm(grad, x, *matrix), ops.sddmm(grad[-1000:], x[-1000:], *matrix)
    torch.testing.assert_close(found, want, rtol=2e-2, atol=0.5)
    del x
    grad_x = ops.spmm_t(grad, *matrix)
    assert torch.equal(grad_x[-1000:], ops.spmm_t(grad[-1000:], *matrix))
    assert not grad_x[:-2000].any()


@pytest.mark.parametrize("kind", [(8, 1, 4), (16, 32, 16)], ids=str)
def test_operators_on_cuda_pass_opcheck(kind):
    _, matrix = made((128, 192), kind, density=0.5)
    x, grad, bias = (torch.randn(*n, device="cuda").bfloat16() for n in ((20, 192), (20, 128), (128,)))
    trained = matrix._replace(values=matrix.values.clone().requires_grad_())
    ops = torch.ops.trisparse
    for op, args in [
        (ops.vector_spmm if kind[1] == 1 else ops.block_spmm, (x.clone().requires_grad_(), *trained, bias, "none")),
        (ops.spmm_t, (grad, *matrix)),
        (ops.sddmm, (grad, x, *matrix)),
    ]:
        torch.library.opcheck(op.default, args)
