"""One style for all pictures: a colour a thing, plain numbers, the same on paper and on a dark page."""

import re

import pytest

from trisparse.prune import plot_style
from trisparse.prune.plot_style import COLOR, COLORS, css, pattern_look, plain_log, save, styled, to_svg, variable

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("pattern", "name", "marker"),
    [
        ("dense", "dense", "o"), ("1x1", "weights", "X"), ("4x1", "vectors-4", "o"), ("1x4", "vectors-4", "o"),
        ("3x1", "vectors-4", "o"), ("64x1", "vectors-32", "o"), ("4x1 of 16x1", "vectors-4", "o"),
        ("4x4", "blocks-16", "s"), ("128x128", "blocks-128", "s"), ("256x128", "blocks-128", "s"), ("2:4", "n-of-m", "D"),
        ("4:8", "n-of-m", "D"), ("1xchannel", "channels", "^"), ("channelx1", "channels", "^"),
        ("1x1 + 4x1", "ink", "P"), ("1xchannel + 4x1", "ink", "P"), ("mha", "ink", "P"), ("mine", "ink", "P"),
    ],
)  # fmt: skip
def test_a_pattern_has_one_look(pattern, name, marker):
    assert pattern_look(pattern) == {"color": COLOR[name], "marker": marker}


def luminance(color):
    """Relative luminance of WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_white_and_on_dark():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for is_dark in (0, 1):
        for name in ("ink", "soft", "link", "good", "bad"):
            assert contrast(COLORS[name][is_dark], COLORS["page"][is_dark]) >= 4.5, (name, is_dark)
            assert contrast(COLORS[name][is_dark], COLORS["pale"][is_dark]) >= 4.5, (name, is_dark)
        for name in COLORS.keys() - {"page", "pale", "line"}:
            assert contrast(COLORS[name][is_dark], COLORS["page"][is_dark]) >= 1.8, (name, is_dark)
    assert len(set(COLOR.values())) == len(COLOR), "a colour tells its name"


def test_a_figure_has_our_style_whatever_the_users_is_and_leaves_that_alone():
    from matplotlib import rc_context, rcParams

    with rc_context({"axes.grid": False, "font.size": 30, "axes.facecolor": "black"}):
        with styled(2, 2) as figure:
            axes = figure.subplots()
        assert rcParams["font.size"] == 30
    assert axes.get_facecolor() == (1, 1, 1, 1)
    assert not axes.spines["top"].get_visible()
    assert axes.xaxis.label.get_fontsize() == 9


@pytest.mark.parametrize(
    ("ticks", "low", "high", "shown"),
    [
        ([1, 512, 4096], 0, 0, ["1", "512", "4,096"]),
        (None, 0.5, 20, ["0.5", "1", "2", "5", "10", "20"]),
        (None, 0.8, 1.2, ["0.8", "0.9", "1", "1.1", "1.2"]),
    ],
)
def test_ticks_of_logarithmic_axes_are_plain_numbers(ticks, low, high, shown):
    with styled(3, 3) as figure:
        axes = figure.subplots()
        low, high = (low, high) if ticks is None else (1, 4096)
        axes.plot([1, 2], [low, high])
        plain_log(axes.yaxis, ticks, low, high)
        axes.set_ylim(low, high)
        figure.draw_without_rendering()
        assert axes.get_yscale() == "log"
        inside = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high * 1.001]
        assert [label.get_text() for label in inside] == shown
        assert axes.get_xscale() == "linear"
        assert len(axes.yaxis.get_minorticklocs()) == 0


def test_a_picture_in_a_page_takes_the_pages_colours():
    with styled(2, 2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=COLOR["vectors-4"])
        axes.set_title("#2585cc $x$ <b>")
        text = to_svg(figure)
    assert "var(--vectors-4)" in text
    assert "#2585cc $x$ &lt;b&gt;</text>" in text, "text stays as it is"
    styles = " ".join(re.findall('style="([^"]*)"', text))
    assert re.findall("#[0-9a-f]{6}", styles) == [], "each is a variable"
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= COLORS.keys()
    assert variable("#123456") == "#123456"
    assert "--page: #ffffff;" in css(is_dark=False)
    assert "--page: #0d1117;" in css(is_dark=True)


def test_a_picture_that_is_not_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_text("old")

    def half(temporary, dpi):
        temporary.write_text("half")
        raise OSError("full")

    with styled(1, 1) as figure:
        monkeypatch.setattr(figure, "savefig", half)
        with pytest.raises(OSError, match="full"):
            save(figure, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.png", "old")]


def test_nothing_is_imported_before_a_picture_is_made():
    assert "matplotlib" not in vars(plot_style)
