"""Fixtures of the kernel tests."""

import importlib
from pathlib import Path

import pytest
import torch

from trisparse import sparse_ops
from trisparse.sparse_ops import Plan, library
from trisparse.sparse_ops.blocks import spmm

KERNELS = {
    "score_units": ["score_tiles", "score_lines"],
    "select_units": [
        "count_digits", "set_limits", "pick_common", "share_out", "pick_own", "count_ties", "write_units",
    ],
    "apply_masks": ["mask_tiles", "mask_lines"],
    "masked_adamw": ["step_tiles", "step_lines"],
    "nm_mask": ["mask_groups"],
    "cost_groups": ["rank_groups", "rank_quads"],
    "thin_groups": ["thin_kept"],
    "nm_mask_2d": ["mask_tiles_24"],
    "pack_24": ["pack_tiles"],
    "unpack_24": ["unpack_rows"],
    "mask_24": ["write_mask"],
    "mm_24": ["multiply_few"],
    "vector_spmm": ["multiply_vectors", "multiply_vectors_few", "add_shares"],
    "block_spmm": ["multiply_blocks"],
    "spmm_t": ["multiply_vectors_t"],
    "sddmm": ["gradient_of_vectors", "gradient_of_blocks"],
}  # fmt: skip


@pytest.fixture
def kernels_on_cpu(monkeypatch):
    """The operators run their kernels on CPU tensors too, under the interpreter, with tables of their plans."""
    if torch.cuda.is_available():
        pytest.skip("a GPU runs the kernels by itself")
    monkeypatch.setattr(Plan, "_is_for_kernels", lambda self, device: True)
    wings = {path.stem: path.parent.name for path in Path(sparse_ops.__file__).parent.glob("*/*.py")}
    kernels = {
        name: importlib.import_module(f"trisparse.sparse_ops.{wings[name]}.{name}")._kernel
        for name in (*KERNELS, "repack_24")
    }
    with monkeypatch.context() as instead:  # see what defining a product registers
        instead.setattr(spmm, "define", lambda schema, _, kernel, *rest: kernels.update({schema.split("(")[0]: kernel}))
        instead.setattr(spmm, "differentiable", lambda *functions: None)
        for name in ("vector_spmm", "block_spmm"):
            spmm.define_product(name, kernels[name])
    monkeypatch.setattr(spmm, "is_seen", lambda *tensors: True)  # so that the dispatcher has its say
    monkeypatch.setattr(library, "is_watched", lambda *tensors: True)
    own = torch.library.Library("trisparse", "IMPL")
    for name, kernel in kernels.items():
        own.impl(name, kernel, "CPU", allow_override=True)
    yield
    own._destroy()


def conv(weight):
    """[out, in, kh, kw] -> [out, taps, in]"""
    return weight.flatten(2).transpose(1, 2)


# name -> shape of the parameter, its unit view, block (0: all of that side)
LAYOUTS = {
    "4x1": ((64, 320), lambda w: w, (4, 1)),
    "4x1, ragged tiles": ((36, 272), lambda w: w, (4, 1)),
    "4x1, unaligned rows": ((8, 30), lambda w: w, (4, 1)),
    "4x1 of a transposed weight": ((320, 64), lambda w: w.t(), (4, 1)),
    "3x1": ((12, 48), lambda w: w, (3, 1)),
    "1x1": ((24, 288), lambda w: w, (1, 1)),
    "1x2": ((24, 320), lambda w: w, (1, 2)),
    "1x4": ((24, 320), lambda w: w, (1, 4)),
    "1x5": ((8, 40), lambda w: w, (1, 5)),
    "16x16": ((48, 80), lambda w: w, (16, 16)),
    "32x32": ((64, 288), lambda w: w, (32, 32)),
    "48x1": ((96, 32), lambda w: w, (48, 1)),
    "one unit": ((24, 40), lambda w: w, (24, 40)),
    "rows": ((20, 272), lambda w: w, (1, 0)),
    "rows, unaligned": ((5, 37), lambda w: w, (1, 0)),
    "rows of a transposed weight": ((272, 48), lambda w: w.t(), (1, 0)),
    "columns": ((40, 144), lambda w: w.t(), (1, 0)),
    "a slice": ((16, 65), lambda w: w[:, 1:], (4, 1)),
    "conv 4x1": ((8, 16, 3, 3), conv, (4, 1)),
    "conv 1x4": ((8, 16, 3, 3), conv, (1, 4)),
    "conv filters": ((8, 16, 3, 3), conv, (1, 0)),
    "conv channels": ((8, 16, 3, 3), lambda w: conv(w).permute(2, 0, 1), (1, 0)),
    "conv of one tap": ((32, 64, 1, 1), conv, (4, 1)),
    "conv of one channel": ((16, 1, 3, 3), conv, (4, 1)),
}


def maker(name, device):
    shape, view, (n, m) = LAYOUTS[name]

    def make(dtype, values=torch.randn):
        weight = view(values(shape).to(device, dtype))
        return weight, (n, m or weight[0].numel())

    return make


@pytest.fixture(params=LAYOUTS)
def layout(request, device):
    """A function from dtype to a random unit view and its block."""
    return maker(request.param, device)


@pytest.fixture(params=["4x1", "1x4", "32x32", "rows", "columns", "conv 4x1"])
def main_layout(request, device):
    """The same for one layout of each path, where all would take a GPU's compiler too long."""
    return maker(request.param, device)


class Counted:
    """A kernel that notes its launches."""

    def __init__(self, kernel, name, launched):
        self.kernel, self.name, self.launched = kernel, name, launched

    def __getitem__(self, grid):
        self.launched.append(self.name)
        return self.kernel[grid]


@pytest.fixture
def count_launches(monkeypatch):
    """A list that gets the name of every kernel launched from now on."""
    launched = []
    for name in KERNELS:
        module = importlib.import_module(f"trisparse.kernels.gpu.{name}")
        for key in KERNELS[name]:
            monkeypatch.setattr(module, key, Counted(getattr(module, key), key, launched))
    return launched
