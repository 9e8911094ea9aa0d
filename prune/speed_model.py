"""What a product should take, where nothing may be measured: on a GPU of H200's class, or a core with AVX-512.

A roofline: the slower of bytes and multiplications, over a call. Its rates are what the kernels were seen to reach, on
an H200 (`benchmarks/results/NVIDIA-H200/`) and on a CPU (`benchmarks/results/cpu_products.json`). A format has to
promise a clear gain.
"""

from __future__ import annotations

GAIN = 1.15  # what a promise has to be
_BANDWIDTH = 3.4e12  # bytes a second of a product with few tokens
_DENSE = 750e12  # operations a second of cuBLAS in 16 bits
_LAUNCH = 5e-6  # seconds
_VECTORS = {4: 25e12, 8: 45e12, 16: 75e12, 32: 110e12}  # operations a second, by the height of a vector
_BLOCKS = {16: 65e12, 32: 190e12, 64: 330e12, 128: 400e12}
_FEW = 16  # tokens up to which packed 2:4 go to sparse tensor cores as they are
_OUTPUTS_24, _GAIN_24 = 3e6, 1.35  # of cuSPARSELt with at least so many outputs and 2048 rows and columns

# of one core, in float32
_CPU_BANDWIDTH, _CPU_PACKED_BANDWIDTH = 28e9, 20e9
_CPU_DENSE, _CPU_24, _CPU_BLOCKS = 160e9, 95e9, 120e9
_CPU_VECTORS = {1: 60e9, 2: 70e9}  # and of four rows and more
_CPU_TALL = 115e9
_CPU_CALL, _CPU_PACKED_CALL = 5e-6, 8e-6
_CPU_TURNED = 7e9  # numbers a second turned over, inputs and outputs


def dense_seconds(rows: int, cols: int, tokens: int, itemsize: int) -> float:
    """Of a dense product on a GPU."""
    moved = (rows * cols + tokens * (rows + cols)) * itemsize
    return max(moved / _BANDWIDTH, 2 * rows * cols * tokens / _DENSE) + _LAUNCH


def packed_seconds(
    kind: str, block: tuple[int, int], stored: float, nbytes: int, rows: int, cols: int, tokens: int, itemsize: int
) -> float:
    """Of a product on a GPU with a packed weight of `nbytes` bytes; `stored` is the share of the weights it holds."""
    moved = nbytes + tokens * (rows + cols) * itemsize
    work = 2 * rows * cols * tokens * stored
    if kind == "2:4":
        if tokens <= _FEW:
            return moved / _BANDWIDTH + _LAUNCH
        is_slow = rows * tokens < _OUTPUTS_24 or min(rows, cols) < 2048
        return dense_seconds(rows, cols, tokens, itemsize) / (0.9 if is_slow else _GAIN_24)
    height = max((n for n in _VECTORS if n <= block[0]), default=4)
    rate = _VECTORS[height] if kind == "vectors" else _BLOCKS[min(block)]
    return max(moved / (0.9 * _BANDWIDTH), work / rate) + _LAUNCH


def expected_gain(kind: str, block: tuple[int, int], stored: float, nbytes: int, *sizes: int) -> float:
    """How many times faster than dense on a GPU; `sizes` are rows, cols, tokens and bytes a weight."""
    return dense_seconds(*sizes) / packed_seconds(kind, block, stored, nbytes, *sizes)


def expected_gain_on_cpu(
    kind: str, block: tuple[int, int], stored: float, nbytes: int, rows: int, cols: int, tokens: int, itemsize: int
) -> float:
    """The same on a CPU."""
    work = 2 * rows * cols * tokens
    dense = max(rows * cols * itemsize / _CPU_BANDWIDTH, work / _CPU_DENSE) + _CPU_CALL
    rate = {"2:4": _CPU_24, "blocks": _CPU_BLOCKS}.get(kind) or _CPU_VECTORS.get(block[0], _CPU_TALL)
    turned = tokens * (rows + cols) / _CPU_TURNED if tokens > 4 else 0.0
    return dense / (max(nbytes / _CPU_PACKED_BANDWIDTH, work * stored / rate + turned) + _CPU_PACKED_CALL)
