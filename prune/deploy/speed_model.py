"""What a product should take on an H200-class GPU, where nothing may be measured.

A roofline: the slower of bytes and multiplications, over a launch. The rates of the packed formats are estimates from
the bytes that each has to gather for a multiplication, not measurements, so a format has to promise a clear gain.
"""

from __future__ import annotations

GAIN = 1.15  # what a promise has to be
_BANDWIDTH = 4.3e12  # bytes a second
_DENSE = 690e12  # operations a second of cuBLAS in 16 bits
_LAUNCH = 2.5e-6  # seconds
_VECTORS = 5.5e12  # operations a second, times the height of a vector
_BLOCKS = {16: 75e12, 32: 150e12, 64: 250e12, 128: 450e12}
_FEW = 64  # tokens up to which packed 2:4 are unpacked in registers
_GAIN_24 = 1.15  # of 2:4 libraries, with many tokens and large matrices


def dense_seconds(rows: int, cols: int, tokens: int, itemsize: int) -> float:
    """Of a dense product."""
    moved = (rows * cols + tokens * (rows + cols)) * itemsize
    return max(moved / _BANDWIDTH, 2 * rows * cols * tokens / _DENSE) + _LAUNCH


def packed_seconds(
    kind: str, block: tuple[int, int], stored: float, nbytes: int, rows: int, cols: int, tokens: int, itemsize: int
) -> float:
    """Of a product with a packed weight of `nbytes` bytes, `stored` being the share of the weights it holds."""
    moved = nbytes + tokens * (rows + cols) * itemsize
    work = 2 * rows * cols * tokens * stored
    if kind == "2:4":
        if tokens <= _FEW:
            return max(moved / (0.85 * _BANDWIDTH), 2 * work / (0.5 * _DENSE)) + _LAUNCH
        slow = tokens < 1024 or min(rows, cols) < 2048
        return dense_seconds(rows, cols, tokens, itemsize) / (0.9 if slow else _GAIN_24)
    rate = _VECTORS * block[0] if kind == "vectors" else _BLOCKS[min(block)]
    return max(moved / (0.7 * _BANDWIDTH), work / rate) + _LAUNCH


def expected_gain(kind: str, block: tuple[int, int], stored: float, nbytes: int, *sizes: int) -> float:
    """How many times faster than dense; `sizes` are rows, cols, tokens and bytes a weight."""
    return dense_seconds(*sizes) / packed_seconds(kind, block, stored, nbytes, *sizes)
