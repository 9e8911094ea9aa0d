"""How every picture looks: its colours, its axes, and how it is saved. matplotlib is optional, and imported late."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trisparse.prune.files import atomic_save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 6.0  # inches of a PNG: shown on a phone, 390 pixels wide, its letters still have 8
NARROW = 4.6  # of a picture within a page
_DPI = 160

# On white, on dark. Hues after Okabe and Ito (2008), which colour-blind readers tell apart; a larger block is darker.
COLORS = {
    "page": ("#ffffff", "#0d1117"),
    "pale": ("#f6f8fa", "#161b22"),
    "ink": ("#1f2328", "#e6edf3"),
    "soft": ("#57606a", "#9aa4af"),
    "line": ("#d8dde3", "#343b44"),
    "link": ("#0a5fb4", "#6cb2f7"),
    "good": ("#1a6b34", "#56c878"),
    "bad": ("#a12d16", "#ff8f73"),
    "dense": ("#7d838c", "#8b929b"),
    "weights": ("#e69f00", "#f0b030"),
    "vectors-2": ("#7fbfe8", "#b5dcf5"),
    "vectors-4": ("#2585cc", "#58aeec"),
    "vectors-8": ("#1d69a8", "#4a9bdb"),
    "vectors-16": ("#134c80", "#3c88c8"),
    "vectors-32": ("#0a2d52", "#2f74b3"),
    "blocks-16": ("#dd9bc1", "#edbcd8"),
    "blocks-32": ("#c4679e", "#dd8fbd"),
    "blocks-64": ("#9c3a78", "#cb6fa6"),
    "blocks-128": ("#611a48", "#b7548f"),
    "n-of-m": ("#d55e00", "#f08236"),
    "channels": ("#009e73", "#2cc497"),
}
COLOR = {name: light for name, (light, _) in COLORS.items()}
_NAMES = {light: name for name, light in COLOR.items()}
_STYLE: dict[str, Any] = {
    "text.parse_math": False,  # names of layers and folders may hold a dollar
    "text.color": COLOR["ink"],
    "font.size": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOR["dense"],
    "axes.labelcolor": COLOR["soft"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": COLOR["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOR["soft"],
    "ytick.color": COLOR["soft"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "trisparse",  # the same run gives the same bytes
}


def has_matplotlib() -> bool:
    """Whether pictures can be made."""
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def styled(width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches; what is drawn and saved inside has our style, whatever the user's own is."""
    from matplotlib import style
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    with style.context(["default", _STYLE]):
        yield Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    atomic_save(path, lambda temporary: figure.savefig(temporary, dpi=_DPI))


def to_svg(figure: Figure) -> str:
    """The `<svg>` element, without the XML header and metadata, which name addresses; its colours are CSS variables."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return re.sub('style="[^"]*"', _with_variables, text[text.index("<svg") :])


def _with_variables(style: re.Match[str]) -> str:
    return re.sub("#[0-9a-f]{6}", lambda color: variable(color[0]), style[0])


def variable(color: str) -> str:
    """What CSS calls a colour of ours; others stay as they are."""
    return f"var(--{_NAMES[color]})" if color in _NAMES else color


def css(is_dark: bool) -> str:
    """The variables of all colours, for a rule of CSS."""
    return " ".join(f"--{name}: {pair[is_dark]};" for name, pair in COLORS.items())


def pattern_look(pattern: str) -> dict[str, Any]:
    """Colour and marker of a pattern, the same in every picture. What is no single pattern has the colour of text."""
    size = re.match(r"(\d+)x(\d+)", pattern)
    n, m = sorted(map(int, size.groups())) if size else (0, 0)
    if pattern == "dense":
        name, marker = "dense", "o"
    elif "+" in pattern or not (size or ":" in pattern or "channel" in pattern):
        name, marker = "ink", "P"
    elif "channel" in pattern:
        name, marker = "channels", "^"
    elif ":" in pattern:
        name, marker = "n-of-m", "D"
    elif m == 1:
        name, marker = "weights", "X"
    else:
        kind, sizes, marker = ("vectors", (2, 4, 8, 16, 32), "o") if n == 1 else ("blocks", (16, 32, 64, 128), "s")
        name = f"{kind}-{next((step for step in sizes if step >= m), sizes[-1])}"
    return {"color": COLOR[name], "marker": marker}


def dense_line(axes: Axes, value: float, label: str = "dense") -> None:
    """The dense model, in every picture the same gray line, behind the others."""
    axes.axhline(value, color=COLOR["dense"], linewidth=1.3, linestyle="--", zorder=1, label=label)


def plain_log(axis: Axis, ticks: Sequence[float] | None = None, low: float = 0.0, high: float = 0.0) -> None:
    """A logarithmic axis whose ticks are plain numbers: those given, or a few between `low` and `high`."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter, NullLocator

    set_scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    set_scale("log")
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
    elif high > 4 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    else:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:,g}")
