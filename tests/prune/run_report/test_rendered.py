"""The page in a browser: nothing is cut on a phone or a desk, and it is dark for who wants it dark."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest

from trisparse.cli import main
from trisparse.prune.plot_style import COLORS

pytest.importorskip("matplotlib")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

# Opens what is folded, and writes down which text lies outside of what shows it, and how small letters are.
LOOK = """<script>
for (const folded of document.querySelectorAll("details")) folded.open = true;
const cut = [], sizes = [];
for (const element of document.querySelectorAll("body *")) {
  const text = [...element.childNodes].filter(node => node.nodeType == Node.TEXT_NODE && node.textContent.trim());
  if (!text.length || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
  const range = document.createRange();
  range.selectNodeContents(element);
  const box = element.closest("svg") ? element.getBoundingClientRect() : range.getBoundingClientRect();
  if (!box.width) continue;
  let left = 0, right = innerWidth, top = 0, bottom = document.documentElement.scrollHeight;
  for (let around = element; around; around = around.parentElement) {
    if (getComputedStyle(around).overflowX == "visible" || around == document.documentElement) continue;
    const edge = around.getBoundingClientRect();
    left = Math.max(left, edge.left); right = Math.min(right, edge.right);
    top = Math.max(top, edge.top); bottom = Math.min(bottom, edge.bottom);
  }
  if (box.left < left - 1 || box.right > right + 1 || box.top < top - 1 || box.bottom > bottom + 1)
    cut.push(element.textContent.trim());
  const svg = element.closest("svg");
  if (svg) sizes.push(parseFloat(getComputedStyle(element).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width);
}
const found = {
  inner: innerWidth, width: document.documentElement.scrollWidth, cut, smallest: Math.min(...sizes),
  page: getComputedStyle(document.body).backgroundColor, text: getComputedStyle(document.body).color,
  label: getComputedStyle(document.querySelector("figure svg text")).fill,
};
document.documentElement.dataset.found = JSON.stringify(found);
</script></body>"""
# A window is 500 pixels wide or more, a frame as wide as it shall be.
FRAME = """<iframe srcdoc="{page}" style="width: {width}px; height: 900px; border: 0"
onload="document.documentElement.dataset.found = this.contentDocument.documentElement.dataset.found"></iframe>"""


@pytest.fixture
def look(tmp_path):
    """What a browser says of a page; `width` in pixels."""

    def ask(page, width, is_dark=False):
        copy = tmp_path / "looked-at.html"
        text = page.read_text().replace("</body>", LOOK)
        copy.write_text(FRAME.format(page=escape(text), width=width))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        flags += ["--window-size=1400,1000", f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"]
        command = [BROWSER, *flags, "--dump-dom", copy.as_uri()]
        text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return json.loads(unescape(re.search('data-found="([^"]*)"', text)[1]))

    return ask


@pytest.fixture
def page(tmp_path):
    """A page of two runs with long names and many layers."""
    names = [f"distilbert.transformer.layer.{i}.attention.{k}_lin" for i in range(6) for k in ("q", "k", "out")]
    zeros = {name: 100 + 10 * place for place, name in enumerate(names)}
    folders = []
    for pattern in ("4x1", "1x1 + 2:4"):
        metrics = {"accuracy": 0.7809, "f1": 0.84}
        results = {
            "task": "mrpc", "pattern": pattern, "target_sparsity": 0.9, "eval": metrics, "best_eval": metrics,
            "teacher_eval": metrics, "pattern_verified": True, "complete": False, "epochs": 2.0, "train_seconds": 3725.0,
            "sparsity": {"pruned_layers": 0.9001, "matmul_gemm_conv": 0.8002, "all_parameters": 0.7003},
            "steps_per_second": 0.01, "device": "a device", "versions": {"trisparse": "0.1.0", "torch": "2.13.0"},
            "steps": {"total_steps": 40, "start_step": 5, "end_step": 30, "pruning_frequency": 5},
            "notes": ["dense: " + ".".join(names)],
            "arguments": {"model_name_or_path": "runs/" + "a-long-name-without-a-space-" * 4},
        }  # fmt: skip
        history = {
            "steps": [
                {"step": s, "loss": 1 / s, "sparsity": min(s / 50, 0.9), "flips": 1_000_000 * s, "steps_per_second": 12.5}
                for s in (10, 20, 12340)
            ],
            "evals": [{"step": s, "epoch": s // 20, **metrics} for s in (20, 40)],
            "masks": {
                "layers": names, "weights": [400] * len(names), "steps": [0, 30],
                "pruned": [[0] * len(names), list(zeros.values())],
            },
        }  # fmt: skip
        layers = [
            {
                "name": name, "pattern": pattern, "shape": [3072, 768], "weights": 2359296, "zeros": 2123366,
                "extra_zeros": 3, "verified": True, "sparsity": zeros[name] / 400,
            }
            for name in names
        ]  # fmt: skip
        folder = tmp_path / f"mrpc-distilbert-base-uncased-{len(pattern)}-seed-42"
        folder.mkdir()
        for file, value in (("all_results", results), ("history", history), ("sparsity", {"layers": layers})):
            (folder / f"{file}.json").write_text(json.dumps(value))
        folders.append(folder)
    target = tmp_path / "page.html"
    assert main(["report", *map(str, folders), "--output", str(target)]) == 0
    return target


def rgb(color):
    return f"rgb({', '.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})"


@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (1280, True)])
def test_nothing_is_cut(page, look, width, is_dark):
    found = look(page, width, is_dark)
    assert found["inner"] == width
    assert found["width"] <= width, "it would scroll sideways"
    assert found["cut"] == []
    assert found["smallest"] >= 7.5, "pixels"
    for part, name in (("page", "page"), ("text", "ink"), ("label", "soft")):
        assert found[part] == rgb(COLORS[name][is_dark])


def test_what_is_cut_would_be_found(page, look, tmp_path):
    wide = tmp_path / "wide.html"
    wide.write_text(
        page.read_text().replace("</section>", "<p style='white-space: nowrap'>" + 99 * "wide " + "</p></section>")
    )
    found = look(wide, 390)
    assert found["width"] > 390
    assert found["cut"] == 3 * [(99 * "wide ").strip()]
