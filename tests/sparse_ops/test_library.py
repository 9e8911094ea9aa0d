"""The operators as torch sees them: schemas, fakes, torch.compile."""

import pytest
import torch

from trisparse.sparse_ops import (
    apply_masks,
    mask_24,
    mm_24,
    nm_mask,
    nm_mask_2d,
    pack_24,
    pack_blocks,
    repack_24,
    score_units,
    select_units,
    unpack_24,
)

OPS = torch.ops.trisparse


def layers():
    weights = [torch.randn(8, 16), torch.randn(4, 16).bfloat16()]
    return weights, [torch.randn_like(w) for w in weights], [torch.rand(2, 16), torch.rand(1, 16)]


def samples():
    weights, grads, scores = layers()
    masks = [torch.ones_like(score, dtype=torch.bool) for score in scores]
    blocks, zero, high = [4, 1, 4, 1], torch.zeros(2, dtype=torch.int64), torch.tensor([32, 16])
    seen = torch.zeros(2, dtype=torch.bool)
    return {
        "score_units": (scores, weights, [grads[0], None], blocks, seen, "snip_momentum", "mean", 0.9, 1.0, []),
        "select_units": (scores, masks, [4, 4], zero, high, torch.tensor([90]), []),
        "apply_masks": (weights, [score > 0.5 for score in scores], blocks, []),
        "nm_mask": (weights[0], 2, 4, 1, True),
        "cost_groups": (scores, scores, [s > 2 for s in scores], [s[:, :4].clone() for s in scores], 2, 4, []),
        "thin_groups": (masks, [s > 0.5 for s in scores], *([m[:, :4].clone() for m in masks] for _ in "ab"), 4, []),
        "nm_mask_2d": (weights[0],),
        **samples_24(),
        **samples_blocks(),
    }


def samples_blocks():
    x, bias = torch.randn(5, 40, requires_grad=True), torch.randn(36, requires_grad=True)
    vectors, blocks = (
        pack_blocks(torch.randn(36, 40), (8, 1), transposed=True),
        pack_blocks(torch.randn(36, 40), (16, 16)),
    )
    trained = vectors._replace(values=vectors.values.clone().requires_grad_())
    return {
        "vector_spmm": (x, *trained, bias, "none"),
        "vector_spmm, gelu": (x.detach(), *vectors, bias.detach(), "gelu"),
        "block_spmm": (x, *blocks, None, "none"),
        "spmm_t": (torch.randn(5, 36), *vectors),
        "sddmm": (torch.randn(5, 36), x.detach(), *blocks),
    }


def samples_24():
    weight = torch.randn(8, 12).half()
    packed, packed_t, patterns, *_ = matrix = pack_24(weight, "cslt_sm90", transposed=True)
    x, bias = torch.randn(5, 12).half().requires_grad_(), torch.randn(8).half().requires_grad_()
    return {
        "pack_24": (weight, None, "magnitude", True, "cslt_sm80", torch.bfloat16),
        "pack_24, patterns": (weight, patterns, "patterns", True, "cslt_sm90", torch.float16),
        "repack_24": (packed.clone(), packed_t.clone(), weight, patterns, "cslt_sm90"),
        "unpack_24": (packed, 8, 12, "cslt_sm90"),
        "mask_24": (patterns, 8, 12),
        "mm_24": (x, *matrix[:3], weight.clone().requires_grad_(), bias, 8, 12, "cslt_sm90", True),
    }


@pytest.mark.parametrize("name", sorted(samples()))
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name.split(",")[0]).default, samples()[name])


def test_no_layers_at_all():
    none = torch.zeros(0, dtype=torch.int64)
    score_units([], [], [], [], torch.zeros(0, dtype=torch.bool))
    select_units([], [], [], none, none, torch.tensor([3]))
    apply_masks([], [], [])


def test_tensors_of_several_devices_or_odd_dtypes_are_refused():
    weight, mask = torch.zeros(4, 4), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="masks: want all on cpu like weights, got meta"):
        apply_masks([weight], [mask.to("meta")], [(4, 1)])
    with pytest.raises(TypeError, match=r"weights\[0\]: want torch.float32, .*, got torch.int32"):
        apply_masks([weight.int()], [mask], [(4, 1)])
    with pytest.raises(TypeError, match="scores: want torch.float32, .*, got torch.int64"):
        nm_mask(weight.long(), 2, 4)
    with pytest.raises(TypeError, match="weight: want torch.float32, .*, got torch.int64"):
        nm_mask_2d(weight.long())
    with pytest.raises(TypeError, match="seen: want contiguous torch.bool"):
        score_units([torch.zeros(1, 4)] * 2, [weight] * 2, [weight] * 2, [(4, 1)] * 2, torch.zeros(4).bool()[::2])


def test_every_operator_compiles_whole():
    def prune(weights, grads, scores, masks, seen, low, high, target):
        score_units(scores, weights, grads, [(4, 1)] * 2, seen)
        select_units(scores, masks, [4, 4], low, high, target)
        apply_masks(weights, masks, [(4, 1)] * 2)
        return nm_mask(weights[0], 2, 4), nm_mask_2d(weights[0])

    def arguments():
        torch.manual_seed(0)
        weights, grads, scores = layers()
        masks = [torch.ones_like(score, dtype=torch.bool) for score in scores]
        low, high, target = torch.zeros(2, dtype=torch.int64), torch.tensor([32, 16]), torch.tensor([100])
        return weights, grads, scores, masks, torch.zeros(2, dtype=torch.bool), low, high, target

    eager, compiled = arguments(), arguments()
    want = prune(*eager)
    got = torch.compile(prune, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip(want, got, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(eager, compiled, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)
    assert int(sum((~mask).sum() for mask in eager[3])) == 25


def test_operators_of_packed_matrices_compile_whole():
    def train(x, weight):
        matrix = pack_24(weight.detach(), "cslt_sm90", transposed=True)
        repack_24(matrix, weight.detach() * 2)
        return mm_24(x, matrix, None, weight), unpack_24(matrix), mask_24(matrix)

    x, weight = torch.randn(3, 12, requires_grad=True), torch.randn(8, 12, requires_grad=True)
    results = []
    for function in (train, torch.compile(train, fullgraph=True, backend="aot_eager")):
        outputs = function(x, weight)
        results.append((*outputs, *torch.autograd.grad(outputs[0].sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["mm_24", "vector_spmm", "block_spmm", "spmm_t"])
def test_products_are_exported_for_any_number_of_tokens(name):
    operator = getattr(OPS, name)
    x, *rest = (part.detach() if isinstance(part, torch.Tensor) else part for part in samples()[name])

    class Product(torch.nn.Module):
        def forward(self, x):
            return operator(x, *rest)

    tokens = torch.export.Dim("tokens", min=0)
    exported = torch.export.export(Product(), (x,), dynamic_shapes=({0: tokens},)).module()
    for count in (0, 1, 9):
        more = torch.randn(count, x.shape[1]).to(x)
        assert torch.equal(exported(more), operator(more, *rest))
