"""Packed 2:4 matrices in plain torch: metadata, patterns, and both ways between dense and packed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse.kernels.layouts_24 import PLACES, QUADS, WORD_BITS, nibble_table, padded, shift_of, word_of


class Packed24(NamedTuple):
    """A 2:4 matrix `[rows, cols]`, packed; `trisparse.kernels.layouts_24` has the format and an example.

    Attributes:
        packed: values, then metadata, flat.
        packed_t: the same of the transpose; empty if it was not packed.
        patterns: int16 `[rows / 4 rounded up, cols / 4]`, what is kept of each 4 x 4 tile, bit column + 4 * row.
        rows: of the dense matrix.
        cols: of the dense matrix.
        layout: of the metadata, a key of `layouts_24.MULTIPLE`.
    """

    packed: Tensor
    packed_t: Tensor
    patterns: Tensor
    rows: int
    cols: int
    layout: str


def check_patterns(matrix: Packed24) -> None:
    """Raise ValueError for a matrix that does not say what is kept."""
    want = [-(-matrix.rows // 4), matrix.cols // 4]
    if list(matrix.patterns.shape) != want:
        raise ValueError(f"patterns: want {want}, got {list(matrix.patterns.shape)}; take a matrix from pack_24")


def padded_to(matrix: Tensor, layout: str) -> Tensor:
    """A matrix with zeros to the right and below."""
    rows, cols = matrix.shape
    high, wide = padded(rows, cols, layout)
    return pad(matrix, (0, wide - cols, 0, high - rows))


def patterns_of(mask: Tensor) -> Tensor:
    """bool `[rows, cols]` to int16 patterns."""
    keep = pad(mask, (0, 0, 0, -mask.shape[0] % 4))
    rows, cols = keep.shape
    bits = 1 << torch.arange(16, device=mask.device)
    tiles = keep.view(rows // 4, 4, cols // 4, 4).transpose(1, 2).reshape(rows // 4, cols // 4, 16)
    return (tiles * bits).sum(-1).to(torch.int16)


def mask_of(patterns: Tensor, rows: int, cols: int) -> Tensor:
    """int16 patterns to bool `[rows, cols]`."""
    high, wide = patterns.shape
    bits = torch.arange(16, device=patterns.device)
    tiles = (patterns[..., None] >> bits & 1).bool().view(high, wide, 4, 4)
    return tiles.transpose(1, 2).reshape(high * 4, cols)[:rows].contiguous()


def pack_reference(weight: Tensor, mask: Tensor, layout: str) -> Tensor:
    """Pack one way the weights that a mask keeps, two of four at most."""
    keep = padded_to(mask, layout)
    rows, cols = keep.shape
    quads = padded_to(weight.where(mask, 0), layout).view(rows, cols // 4, 4)
    sets = (keep.view(rows, cols // 4, 4) << torch.arange(4, device=mask.device)).sum(-1)
    values = quads.gather(-1, torch.tensor(PLACES, device=mask.device)[sets])
    nibbles = torch.tensor(nibble_table(layout), device=mask.device)[sets]
    return torch.cat([values.flatten(), _write(nibbles, layout).view(weight.dtype)])


def _where(rows: int, cols: int, layout: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Each quad's word and how far up in it its nibble is, `[rows, cols / 4]`."""
    row, quad = torch.arange(rows, device=device)[:, None], torch.arange(cols // 4, device=device)[None, :]
    shift = torch.as_tensor(shift_of(row, quad, layout), device=device).expand(rows, cols // 4)
    return word_of(row, quad // QUADS[layout], rows, cols, layout), shift


def _write(nibbles: Tensor, layout: str) -> Tensor:
    """`[rows, quads]` nibbles to metadata, as bytes."""
    rows, quads = nibbles.shape
    word, shift = _where(rows, quads * 4, layout, nibbles.device)
    words = nibbles.new_zeros(nibbles.numel() * 4 // WORD_BITS[layout])
    words.index_add_(0, word.flatten(), (nibbles << shift).flatten())
    return words.to(torch.int16 if WORD_BITS[layout] == 16 else torch.int64).view(torch.uint8)


def read_nibbles(metadata: Tensor, rows: int, cols: int, layout: str) -> Tensor:
    """Metadata, as bytes, to nibbles `[rows, quads]`."""
    words = metadata.view(torch.int16 if WORD_BITS[layout] == 16 else torch.int64)
    word, shift = _where(rows, cols, layout, metadata.device)
    return words[word].long() >> shift & 0xF
