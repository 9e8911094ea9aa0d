"""What only a GPU can show: no waiting, CUDA graphs, sizes beyond the interpreter."""

import copy

import pytest
import torch
from torch import nn

from trisparse import Pruner, PruningConfig
from trisparse.sparse_ops import Plan, apply_masks, nm_mask, nm_mask_2d, score_units, select_units
from trisparse.sparse_ops.choosing.nm_mask import nm_mask_reference
from trisparse.sparse_ops.choosing.nm_mask_2d import nm_mask_2d_reference

pytestmark = pytest.mark.gpu

PATTERNS = [("4x1", 0.8), ("1x1", 0.8), ("2:4", 0.5), ("1xchannel", 0.5), ("channelx1", 0.5), ("32x32", 0.8)]


def encoder(dtype=torch.float32):
    shapes = [(256, 256)] * 4 + [(256, 1024), (1024, 256)]
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for i, o in shapes)).to("cuda", dtype)


def fill_gradients(model):
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)


@pytest.fixture
def no_waiting():
    yield lambda mode: torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("pattern", "target"), PATTERNS)
def test_steps_and_events_do_not_wait_for_the_device(pattern, target, no_waiting):
    model = encoder()
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, start_step=1, end_step=41, pruning_frequency=4, exclude_head=False
    )
    pruner = Pruner(model, config)
    for step in range(1, 42):
        fill_gradients(model)
        no_waiting(
            "error" if step > 9 else "default"
        )  # kernels compile in the first two events, and the first asks whether every layer has a score
        pruner.observe()
        pruner.step()
        no_waiting("default")
    assert pruner.sparsity() == pytest.approx(target, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("pattern", "target"), PATTERNS)
def test_ten_events_by_replay_equal_ten_eager(pattern, target, dtype):
    torch.manual_seed(0)
    model = encoder(dtype)
    twin = copy.deepcopy(model)
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, start_step=1, end_step=21, pruning_frequency=2, exclude_head=False
    )
    captured, eager = Pruner(model, config).groups[0], Pruner(twin, config).groups[0]
    grads = [torch.randn_like(weight) for weight in model.parameters()]
    for weight, other, grad in zip(model.parameters(), twin.parameters(), grads, strict=True):
        weight.grad = other.grad = grad

    def score(group):
        group.scoring.score()

    def event(group):
        group.prune()
        group.write_masks(1)

    weights = [weight.detach().clone() for weight in model.parameters()]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warm up: compile, and make what is made once
        captured.selection.ask(0.1)
        score(captured)
        event(captured)
    torch.cuda.current_stream().wait_stream(stream)
    step_graph, event_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(step_graph):
        score(captured)
    with torch.cuda.graph(event_graph):
        event(captured)
    with torch.no_grad():
        for tensor in (*captured.scoring.scores, captured.scoring.seen):
            tensor.zero_()
        for mask in (*captured.units, *captured.choices):
            mask.fill_(True)
        for weight, value in zip(model.parameters(), weights, strict=True):
            weight.copy_(value)

    for i in range(10):
        with torch.no_grad():
            for weight, other, grad in zip(model.parameters(), twin.parameters(), grads, strict=True):
                noise = torch.randn_like(weight)
                weight.add_(noise)
                other.add_(noise)
                grad.copy_(torch.randn_like(grad))
            step_graph.replay()
            score(eager)
            for group in (captured, eager):
                group.selection.ask(target * (i + 1) / 10)
            event_graph.replay()
            event(eager)
        for mine, yours in zip(
            (*captured.units, *captured.choices, *model.parameters()),
            (*eager.units, *eager.choices, *twin.parameters()),
            strict=True,
        ):
            assert torch.equal(mine, yours)


def test_a_captured_step_outlives_moved_gradients():
    weight, grad = torch.randn(64, 64, device="cuda"), torch.randn(64, 64, device="cuda")
    scores, seen, plan = [torch.zeros(16, 64, device="cuda")], torch.zeros(1, dtype=torch.bool, device="cuda"), Plan()
    score_units(scores, [weight], [grad], [(4, 1)], seen, "snip", plan=plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        score_units(scores, [weight], [grad], [(4, 1)], seen, "snip", plan=plan)
    for _ in range(20):  # tables of other addresses come and go
        score_units(scores, [weight], [torch.randn_like(grad)], [(4, 1)], seen, "snip", plan=plan)
    grad.fill_(1.0)
    graph.replay()
    torch.testing.assert_close(scores[0], weight.abs().view(16, 4, 64).mean(1))


@pytest.mark.parametrize("kind", ["random", "equal"])
def test_a_hundred_million_units(kind):
    sizes = [60_000_000, 40_000_000]
    scores = [torch.rand(n, device="cuda") if kind == "random" else torch.ones(n, device="cuda") for n in sizes]
    masks = [torch.ones(n, dtype=torch.bool, device="cuda") for n in sizes]
    low, high = torch.zeros(2, dtype=torch.int64, device="cuda"), torch.tensor(sizes, device="cuda")
    select_units(scores, masks, [1, 1], low, high, torch.tensor([70_000_001], device="cuda"))
    gone = ~torch.cat(masks)
    assert int(gone.sum()) == 70_000_001
    both = torch.cat(scores)
    want = torch.zeros_like(gone)
    want[torch.argsort(both, stable=True)[:70_000_001]] = True
    assert torch.equal(gone, want)


def test_more_weights_than_32_bits_count():
    weight = torch.ones(70_000, 32_768, dtype=torch.bfloat16, device="cuda")  # 2.3e9
    mask = torch.ones(17_500, 32_768, dtype=torch.bool, device="cuda")
    mask[-1] = False
    apply_masks([weight], [mask], [(4, 1)])
    assert int((weight[-4:] == 0).sum()) == 4 * 32_768
    assert bool((weight[:-4] == 1).all())


@pytest.mark.parametrize("shape", [(4096, 4096), (768, 3072)])
def test_masks_of_real_sizes(shape):
    weight = torch.randn(shape, device="cuda").bfloat16()
    for n, m in [(2, 4), (4, 8), (16, 32)]:
        assert torch.equal(nm_mask(weight, n, m, magnitude=True), nm_mask_reference(weight.abs(), n, m))
    assert torch.equal(nm_mask_2d(weight), nm_mask_2d_reference(weight))


def test_selection_by_devices_is_the_same():
    scores = [torch.rand(300, 1000), torch.rand(77, 13)]
    for sizes in ([4, 4], [4, 7]):
        cpu = [torch.ones_like(score, dtype=torch.bool) for score in scores]
        gpu = [mask.cuda() for mask in cpu]
        low, high, target = torch.tensor([0, 300]), torch.tensor([250_000, 1001]), torch.tensor([900_000])
        select_units(scores, cpu, sizes, low, high, target)
        select_units([s.cuda() for s in scores], gpu, sizes, low.cuda(), high.cuda(), target.cuda())
        assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, gpu, strict=True))


def test_operators_on_cuda_pass_opcheck():
    weights, scores = [torch.randn(8, 16, device="cuda")], [torch.rand(2, 16, device="cuda")]
    seen = torch.zeros(1, dtype=torch.bool, device="cuda")
    masks = [torch.ones(2, 16, dtype=torch.bool, device="cuda")]
    low, high = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.full((1,), 32, device="cuda")
    ops = torch.ops.trisparse
    for op, args in [
        (ops.score_units, (scores, weights, [weights[0].clone()], [4, 1], seen, "snip_momentum", "mean", 0.9, 1.0, [])),
        (ops.select_units, (scores, masks, [4], low, high, low + 40, [])),
        (ops.apply_masks, (weights, masks, [4, 1], [])),
        (ops.nm_mask, (weights[0], 2, 4, 1, True)),
        (ops.nm_mask_2d, (weights[0],)),
    ]:
        torch.library.opcheck(op.default, args)
