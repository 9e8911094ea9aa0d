"""How long a layer takes dense and packed, in turns, and where these times are remembered."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trisparse.kernels.cache import cache_folder, locked, processor
from trisparse.kernels.cpu.build import sources_digest
from trisparse.prune.files import atomic_write

_ROUNDS, _SECONDS = 25, 0.5  # at most, for a pair of layers
_FLUSH_BYTES = 1 << 28  # more than any L2 cache
_ERROR = 0.02  # of the largest output; more is a wrong product, not rounding
Times = dict[str, Any]  # `dense_ms`, `packed_ms`, and `equal`: whether the outputs were


@torch.no_grad()
def time_pair(dense: nn.Module, packed: nn.Module, x: Tensor) -> Times:
    """Median milliseconds of both layers, run in turns; on a GPU replayed from CUDA graphs with a cold L2 cache."""
    want, got = dense(x), packed(x)
    equal = _are_equal(want, got)
    calls = replayed(lambda: dense(x), x.device)[0], replayed(lambda: packed(x), x.device)[0]
    dense_ms, packed_ms = in_turns(*calls, clock_for(x.device))
    return {"dense_ms": dense_ms, "packed_ms": packed_ms, "equal": equal}


def _cpu_clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def in_turns(
    dense: Callable[[], object], packed: Callable[[], object], clock: Callable[..., float] = _cpu_clock
) -> tuple[float, float]:
    """Median milliseconds of two calls that were made before, in turns."""
    calls = dense, packed
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    for index in range(_ROUNDS):
        for which in (0, 1) if index % 2 else (1, 0):  # neither always comes second
            times[which].append(clock(calls[which]))
        if index >= 2 and time.perf_counter() - begin > _SECONDS:
            break
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _are_equal(want: Tensor, got: Tensor) -> bool:
    """But for rounding; what is not finite in a layer's outputs says nothing of its format."""
    both = want.isfinite() & got.isfinite()
    off, size = (torch.where(both, t.abs(), 0) for t in (got - want, want))
    return torch.equal(want.isfinite(), got.isfinite()) and bool(off.sum() == 0 or off.max() <= _ERROR * size.max())


def clock_for(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Runs a call and returns its milliseconds; on a GPU those of the device, with a cold L2 cache."""
    if device.type != "cuda":
        return _cpu_clock
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)

    def clock(call: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    return clock


def replayed(call: Callable[[], object], device: torch.device) -> tuple[Callable[[], object], bool]:
    """A call that was made before as the replay of a CUDA graph, and whether it is: some cannot be captured."""
    if device.type != "cuda":
        return call, False
    graph = torch.cuda.CUDAGraph()
    with contextlib.suppress(RuntimeError):
        with torch.cuda.graph(graph):
            call()
        return graph.replay, True
    torch.cuda.synchronize(device)
    return call, False


class TimingCache:
    """Times in a JSON file, one for each device and set of versions; several processes may write it at once.

    Args:
        folder: where; None for `$TRISPARSE_CACHE`, else `trisparse` in `$XDG_CACHE_HOME` or `~/.cache`.
        device: whose times these are.

    A file that cannot be read, or holds something else, counts as empty and is written anew. Where there is no folder,
    since a user has no home, nothing is remembered.
    """

    def __init__(self, folder: Path | None, device: torch.device) -> None:
        folder = folder or cache_folder()
        self.path = None if folder is None else folder / f"{machine(device)}.json"

    def get(self, key: str) -> Times | None:
        """What was measured, if it was."""
        found = self._read().get(key)
        if not isinstance(found, dict) or found.keys() != {"dense_ms", "packed_ms", "equal"}:
            return None
        times = found["dense_ms"], found["packed_ms"]
        is_sound = all(isinstance(ms, float) and 0 < ms < math.inf for ms in times)
        return found if is_sound and isinstance(found["equal"], bool) else None

    def put(self, key: str, times: Times) -> None:
        """Add a measurement to whatever the file holds by now; a folder that cannot be written to is no error."""
        if self.path is None:
            return
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path.with_suffix(".lock")):
                atomic_write(self.path, json.dumps(self._read() | {key: times}, indent=1, sort_keys=True) + "\n")

    def _read(self) -> dict[str, Any]:
        try:
            found = {} if self.path is None else json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def machine(device: torch.device) -> str:
    """Name of a device with all that its times depend on."""
    if device.type == "cuda":
        import triton

        name = torch.cuda.get_device_name(device)
        versions = f"cuda-{torch.version.cuda or torch.version.hip}_triton-{triton.__version__}"
    else:
        name, versions = processor(), f"threads-{torch.get_num_threads()}_kernels-{sources_digest()[:8]}"
    text = f"{name}_trisparse-{version('trisparse')}_torch-{torch.__version__}_{versions}"
    return "".join(c if c.isalnum() or c in "._-+" else "-" for c in text)
