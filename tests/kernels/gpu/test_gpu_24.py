"""Packed 2:4 on a GPU: the layout of its library, both gradients, no waiting, CUDA graphs, large sizes."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from trisparse.kernels.layouts_24 import packed_size
from trisparse.sparse_ops import (
    Linear24,
    Linear24Train,
    Packed24,
    layout_24,
    mask_24,
    mm_24,
    nm_mask,
    pack_24,
    repack_24,
    unpack_24,
)
from trisparse.sparse_ops.two_four.libraries_24 import library_for
from trisparse.sparse_ops.two_four.pack_24 import pack_24_reference
from trisparse.sparse_ops.two_four.packed_24 import pack_reference

pytestmark = pytest.mark.gpu

HALVES = [torch.bfloat16, torch.float16]
CUDA = torch.device("cuda")


@pytest.fixture
def layout():
    return layout_24("cuda")


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def same(a, b):
    return torch.equal(a.view(torch.int16), b.view(torch.int16))


def test_the_layout_is_known(layout):
    library = library_for(CUDA)
    print(f"layout {layout}, library {library and library.name}, {torch.cuda.get_device_name()}")
    if torch.cuda.get_device_capability() == (9, 0) and torch.backends.cusparselt.is_available():
        assert layout == "cslt_sm90"
    assert layout != "library"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "shape", [(64, 64), (192, 320), (832, 64), (128, 128), (384, 1536), (3072, 768), (1024, 4096)], ids=str
)
def test_packs_what_the_library_compresses(layout, shape, dtype):
    library = library_for(CUDA)
    if library is None:
        pytest.skip("no library for 2:4")
    weight = torch.randn(shape, device="cuda").to(dtype)
    matrix = pack_24(weight, layout, transposed=True)
    dense = unpack_24(matrix)
    assert library.compress(dense).numel() == packed_size(*shape, layout, 2)[1]
    assert same(matrix.packed, library.compress(dense))
    assert same(matrix.packed_t, library.compress(dense.t().contiguous()))


@pytest.mark.parametrize("layout", ["bitmask", "cutlass_sm80", "cslt_sm80", "cslt_sm90"])
@pytest.mark.parametrize("both", [False, True])
def test_equals_the_reference_at_real_sizes(layout, both):
    for shape in ((3072, 768), (1028, 4100)):
        weight = torch.randn(shape, device="cuda").bfloat16()
        matrix = pack_24(weight, layout, transposed=both)
        want = pack_24_reference(weight, None, "magnitude", both, layout, torch.bfloat16)
        assert all(same(a, b) for a, b in zip(matrix[:3], want, strict=True))
        other = torch.randn(shape, device="cuda")
        repack_24(matrix, other)
        assert torch.equal(unpack_24(matrix), other.bfloat16().where(mask_24(matrix), 0))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tokens", [1, 16, 64, 65, 1000])
@pytest.mark.parametrize("shape", [(768, 768), (3072, 768), (100, 4100)])
def test_forward_and_both_gradients_are_as_exact_as_torchs(layout, shape, tokens, dtype):
    weight = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
    x = torch.randn(tokens, shape[1], device="cuda").to(dtype).requires_grad_()
    bias = torch.randn(shape[0], device="cuda").to(dtype).requires_grad_()
    grad = torch.randn(tokens, shape[0], device="cuda").to(dtype)
    matrix = pack_24(weight.detach(), layout, transposed=True)
    mask = mask_24(matrix)

    def everything(function, *inputs):
        y = function(*inputs)
        return y, *torch.autograd.grad(y, inputs, grad.to(y.dtype))

    ours = everything(lambda a, w, b: mm_24(a, matrix, b, w), x, weight, bias)
    dense = (x.detach().requires_grad_(), (weight.detach() * mask).requires_grad_(), bias.detach().requires_grad_())
    theirs = everything(linear, *dense)
    exact = everything(linear, *(t.detach().double().requires_grad_() for t in dense))
    for name, a, b, want in zip(("y", "x", "weight", "bias"), ours, theirs, exact, strict=True):
        b, want = (b * mask, want * mask) if name == "weight" else (b, want)
        assert (a - want).abs().max() <= 2 * (b - want).abs().max(), name


def test_nothing_waits_for_the_device(layout, no_waiting):
    layer = nn.Linear(768, 3072, device="cuda")
    train = Linear24Train.from_linear(layer, layout=layout)
    infer = Linear24.from_linear(train.to_linear(), train.mask(), dtype=torch.bfloat16, layout=layout)
    x = torch.randn(256, 768, device="cuda", requires_grad=True)
    for waiting in (False, True):  # the first time kernels compile
        if waiting:
            no_waiting()
        with torch.autocast("cuda", torch.bfloat16):
            y = train(x)
            infer(x.detach())
            infer(x[:4].detach())
        y.backward(torch.ones_like(y))
        pack_24(layer.weight.detach(), layout, transposed=True, dtype=torch.bfloat16)
        with torch.no_grad():
            layer.weight.sub_(layer.weight.grad)


@pytest.mark.parametrize("tokens", [16, 512])
def test_a_captured_training_step_replays(layout, tokens):
    torch.manual_seed(0)
    layers = [nn.Linear(256, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    trains = [Linear24Train.from_linear(layer, layout=layout) for layer in layers]
    x = torch.randn(tokens, 256, device="cuda", dtype=torch.bfloat16)

    def step(train):
        for parameter in train.parameters():
            parameter.grad = None
        train(x).square().mean().backward()
        with torch.no_grad():
            for parameter in train.parameters():
                parameter.sub_(parameter.grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for train in trains:
            step(train)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(trains[0])
    for _ in range(5):
        x.copy_(torch.randn_like(x))
        graph.replay()
        step(trains[1])
        assert torch.equal(layers[0].weight, layers[1].weight)
        assert torch.equal(trains[0](x), trains[1](x))


@pytest.mark.parametrize("own", [True, False], ids=["layout of its own", "library's packing"])
@pytest.mark.parametrize("tokens", [8, 300])
def test_inference_compiles_and_replays(layout, tokens, own):
    layout = layout if own or library_for(CUDA) is None else "library"
    linear_ = nn.Linear(512, 1024, device="cuda", dtype=torch.bfloat16)
    layer = Linear24.from_linear(linear_, nm_mask(linear_.weight.detach(), 2, 4, magnitude=True), layout)
    x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
    want = layer(x)
    compiled = torch.compile(layer, fullgraph=True)
    assert torch.equal(compiled(x), want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = layer(x)
    x.mul_(2)
    graph.replay()
    assert torch.equal(y, layer(x))


@pytest.mark.parametrize("own", [True, False], ids=["layout of its own", "library's packing"])
def test_training_compiles_and_follows_a_fused_optimizer(layout, own):
    layout = layout if own or library_for(CUDA) is None else "library"
    torch.manual_seed(0)
    layer = nn.Linear(256, 512, device="cuda")
    train = Linear24Train.from_linear(layer, layout=layout)
    compiled = torch.compile(train, fullgraph=True)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, fused=True)
    for tokens in (16, 200, 333):
        x = torch.randn(tokens, 256, device="cuda")
        with torch.autocast("cuda", torch.bfloat16):
            y = compiled(x)
            want = linear(x, layer.weight.where(train.mask(), 0), layer.bias)
        torch.testing.assert_close(y, want, rtol=2e-2, atol=2e-2)
        y.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_library_that_reads_an_unknown_order():
    library = library_for(CUDA)
    if library is None:
        pytest.skip("no library for 2:4")
    weight = torch.randn(200, 260, device="cuda").bfloat16()
    matrix = pack_24(weight, "library", transposed=True)
    mask = mask_24(matrix)
    assert torch.equal(unpack_24(matrix), weight.where(mask, 0))
    assert torch.equal(
        unpack_24(Packed24(matrix.packed_t, matrix.packed, matrix.patterns, 260, 200, "library")),
        weight.where(mask, 0).t(),
    )
    repack_24(matrix, weight * 2)
    assert torch.equal(unpack_24(matrix), (weight * 2).where(mask, 0))
    x = torch.randn(5, 260, device="cuda").bfloat16()
    torch.testing.assert_close(mm_24(x, matrix), linear(x, (weight * 2).where(mask, 0)), rtol=2e-2, atol=0.2)


def test_layers_move_to_the_gpu_and_back(layout):
    linear_ = nn.Linear(64, 64, dtype=torch.bfloat16)
    mask = nm_mask(linear_.weight.detach(), 2, 4, magnitude=True)
    infer, train = Linear24.from_linear(linear_, mask), Linear24Train.from_linear(linear_, mask=mask, transposed=False)
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    want = infer(x)
    for layer in (infer, train):
        assert layer.cuda().layout == layout
        torch.testing.assert_close(layer(x.cuda()).cpu(), want, rtol=2e-2, atol=2e-2)
        assert layer.cpu().layout == "bitmask"
        torch.testing.assert_close(layer(x), want)
    single = Linear24.from_linear(nn.Linear(64, 64), mask)
    with pytest.raises(TypeError, match="dtype: want torch.float16 or torch.bfloat16 on a GPU, got torch.float32"):
        single.cuda()
    assert single.packed.device.type == "cpu"
    with pytest.raises(TypeError, match="dtype: want torch.float16 or torch.bfloat16 on a GPU, got torch.float32"):
        Linear24.from_linear(nn.Linear(64, 64, device="cuda"), mask.cuda())


def test_more_weights_than_32_bits_count():
    weight = torch.randn(1024, 32_768, device="cuda", dtype=torch.bfloat16).repeat(70, 1)  # 2.3e9
    matrix = pack_24(weight, "cslt_sm90")
    last = weight[-1024:]
    want = pack_reference(last, nm_mask(last, 2, 4, magnitude=True), "cslt_sm90")
    values, all_values = last.numel() // 2, weight.numel() // 2
    assert same(matrix.packed[all_values - values : all_values], want[:values])
    assert same(matrix.packed[-want[values:].numel() :], want[values:])
    assert torch.equal(unpack_24(matrix)[-1024:], last.where(nm_mask(last, 2, 4, magnitude=True), 0))


@pytest.mark.parametrize("own", [True, False], ids=["layout of its own", "library's packing"])
def test_operators_on_cuda_pass_opcheck(layout, own):
    layout = layout if own or library_for(CUDA) is None else "library"
    weight = torch.randn(128, 192, device="cuda").bfloat16()
    packed, packed_t, patterns, *_ = matrix = pack_24(weight, layout, transposed=True)
    x, bias = (torch.randn(*n, device="cuda").bfloat16().requires_grad_() for n in ((5, 192), (128,)))
    ops = torch.ops.trisparse
    for op, args in [
        (ops.pack_24, (weight, None, "magnitude", True, layout, torch.bfloat16)),
        (ops.repack_24, (packed.clone(), packed_t.clone(), weight, patterns, layout)),
        (ops.unpack_24, (packed, 128, 192, layout)),
        (ops.mask_24, (patterns, 128, 192)),
        (ops.mm_24, (x, *matrix[:3], weight.clone().requires_grad_(), bias, 128, 192, layout, True)),
    ]:
        torch.library.opcheck(op.default, args)
