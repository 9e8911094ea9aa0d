"""What compaction did, as a table and as a dict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from trisparse.prune.text_table import aligned

NEEDED = "stays: the model fails without its zero channels"  # begins the reason of a chain whose size a forward knows


@dataclass
class CompactedChain:
    """What became of one chain: units (channels, or heads) before, removable, and kept; why, if none went."""

    producers: list[str]
    consumer: str
    units: int
    removable: int
    kept: int
    reason: str = ""


@dataclass
class CompactionReport:
    """What `compact` did.

    Attributes:
        chains: one entry for each chain of the model.
        masked: layers in no chain with rows that stay, as zeros: name -> how many.
        reasons: what reads those, or why that is not known.
        parameters: before and after.
        verified: whether the outputs were compared; False without an example.
        note: why chains were found by names, and not by running the model; or an empty string.
    """

    chains: list[CompactedChain] = field(default_factory=list)
    masked: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    parameters: tuple[int, int] = (0, 0)
    verified: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        head = ("made by", "read by", "units", "removable", "kept", "")
        rows = [head]
        for c in self.chains:
            rows.append((_joined(c.producers), c.consumer, str(c.units), str(c.removable), str(c.kept), c.reason))
        lines = aligned(rows)
        lines += [
            f"{name}: {count} rows stay, as zeros; {self.reasons.get(name, '')}" for name, count in self.masked.items()
        ]
        lines += [f"chains were found by names, since {self.note}"] if self.note else []
        before, after = self.parameters
        lines.append(f"{after} of {before} parameters are left; outputs {'equal' if self.verified else 'not compared'}")
        return "\n".join(lines)


def _joined(names: list[str]) -> str:
    """`a.b.x` and `a.b.y` as `a.b.{x,y}`."""
    prefix, _, _ = names[0].rpartition(".")
    return names[0] if len(names) == 1 else f"{prefix}.{{{','.join(name.rpartition('.')[2] for name in names)}}}"
