"""What compression did, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from trisparse.prune.deploy.compaction_report import CompactionReport
from trisparse.prune.pruner.report_table import name_of
from trisparse.prune.text_table import aligned


@dataclass
class CompressedLayer:
    """One linear layer or convolution.

    Attributes:
        name: in the model.
        shape: rows and columns of its weight, after channels were removed; of a convolution `[out, kernel * in]`.
        zeros: share of its weights that are zero.
        format: `dense`, `2:4`, `NxM` or `NxM of Rx1`, rows grouped anew in runs of R.
        bytes_before: of its weight, before channels were removed.
        bytes_after: of what is kept of it.
        expected: tokens -> how many times faster than dense by the static model.
        measured: tokens -> how many times faster than dense it was here; empty if it was not timed.
        rejected: format -> the same, of those that were timed and not taken; 0 where outputs differed.
        reason: why this format.
    """

    name: str
    shape: tuple[int, int]
    zeros: float
    format: str
    bytes_before: int
    bytes_after: int
    expected: dict[int, float] = field(default_factory=dict)
    measured: dict[int, float] = field(default_factory=dict)
    rejected: dict[str, dict[int, float]] = field(default_factory=dict)
    reason: str = ""


@dataclass
class CompressionReport:
    """What `compress` did.

    Attributes:
        prefer: `speed` or `memory`.
        layers: one entry for each linear layer and convolution that can be packed, in the model's order.
        bytes_before: of all parameters and buffers.
        bytes_after: the same, afterwards.
        channels: what became of channels and heads; None if none could be removed.
        verified: whether outputs were compared after packing; False where nothing was packed or the example is missing.
        note: why channels or layers stay that could have been tried.
    """

    prefer: str
    layers: list[CompressedLayer] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    channels: CompactionReport | None = None
    verified: bool = False
    note: str = ""

    def add_note(self, note: str) -> None:
        self.note = "; ".join(part for part in (self.note, note) if part)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> list[list[str]]:
        """A head and a row for each layer, or for all that are alike in it, as text."""
        tokens = sorted({t for layer in self.layers for t in (*layer.measured, *layer.expected)})
        head = ["layer", "shape", "zeros", "format", "KiB before", "after", *(f"x dense, T={t}" for t in tokens), ""]
        alike: dict[tuple[str, ...], list[str]] = {}
        for layer in self.layers:
            speed = [_times(layer.measured.get(t), layer.expected.get(t)) for t in tokens]
            cells = (
                f"{layer.shape[0]}x{layer.shape[1]}", f"{layer.zeros:.2f}", layer.format,
                f"{layer.bytes_before / 1024:.0f}", f"{layer.bytes_after / 1024:.0f}", *speed, layer.reason,
            )  # fmt: skip
            alike.setdefault(cells, []).append(layer.name)
        return [head, *([name_of(names), *cells] for cells, names in alike.items())]

    def summary(self) -> str:
        """How much smaller and faster it all became, what is kept how, and why the rest is not."""
        formats = Counter(layer.format for layer in self.layers if layer.format != "dense")
        kinds = ", ".join(f"{count} as {name}" for name, count in formats.most_common())
        removed = self._removed_channels()
        done = [*([self.verified] if formats else []), *([self.channels.verified] if removed and self.channels else [])]
        compared = "outputs equal" if all(done) else "outputs not compared, give example=…"
        is_told = not done or "outputs not compared" in self.note
        return "; ".join([
            f"{self.bytes_before / 2**20:.1f} -> {self.bytes_after / 2**20:.1f} MiB of tensors",
            f"{formats.total()} of {len(self.layers)} layers packed" + (f": {kinds}" if kinds else ""),
            *([removed] if removed else []),
            *self._speeds(),
            *([f"dense: {reasons}"] if (reasons := self._why_dense()) else []),
            *([] if is_told else [compared]),
            *([self.note] if self.note else []),
        ])  # fmt: skip

    def _removed_channels(self) -> str:
        """How many channels and heads went, of those of all chains; nothing where none did."""
        chains = self.channels.chains if self.channels else []
        units, kept = sum(chain.units for chain in chains), sum(chain.kept for chain in chains)
        return f"{units - kept} of {units} channels and heads removed" if kept < units else ""

    def _speeds(self) -> list[str]:
        """How many times as fast as dense the packed layers are, in the median of those that were timed."""
        measured: dict[int, list[float]] = {}
        for layer in self.layers:
            for tokens, gain in layer.measured.items():
                measured.setdefault(tokens, []).append(gain)
        gains = [f"{median(found):.2f} with T={tokens}" for tokens, found in sorted(measured.items())]
        return [f"their speed, dense = 1, T tokens, median: {', '.join(gains)}"] if gains else []

    def _why_dense(self) -> str:
        """The reasons of layers that are not packed, those of most layers first."""
        dense = [layer for layer in self.layers if layer.format == "dense"]
        counts = Counter(layer.reason.removeprefix("dense: ") for layer in dense)
        return ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())

    def __str__(self) -> str:
        return "\n".join([self.summary(), *aligned(self.table())])


def _times(measured: float | None, expected: float | None) -> str:
    if measured is not None:
        return f"{measured:.2f}"
    return "-" if expected is None else f"~{expected:.2f}"
