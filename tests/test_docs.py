"""What the documentation says, run: its blocks, links, flags, keys and numbers."""

import doctest
import importlib
import itertools
import json
import re
import statistics
from importlib.util import find_spec
from pathlib import Path

import pytest

from trisparse.cli import COMMANDS
from trisparse.promises import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
TEXTS = {path.name: path.read_text() for path in PAGES}
FENCE = re.compile(
    r"^(?:<!-- (?:not run: (?P<why>[^\n]+)|run where it is installed: (?P<needs>\w+)) -->\n)?"
    r"```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# what was measured: milliseconds, times as fast, an accuracy or a share to two digits and more
MEASURED = re.compile(r"\d ms\b|\b\d+\.\d+x|\b\d+\.\d+ times|\b0\.\d{3,}|[+-]\d+\.\d+ ?%")


def page_ids(path):
    return path.name


@pytest.mark.parametrize("name", ["pruner.pruner", "config.config", "pruner.bits", "pruner.masked_adamw"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"trisparse.prune.{name}")
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("path", [p for p in PAGES if "```python" in p.read_text()], ids=page_ids)
def test_python_blocks_run_in_their_order(path, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    page: dict = {"__name__": "page"}
    for block in FENCE.finditer(path.read_text()):
        if block["kind"] == "python":
            assert block["why"] is None, "Python is run"
            if block["needs"] and not find_spec(block["needs"]):
                continue
            line = path.read_text()[: block.start("code")].count("\n")
            exec(compile("\n" * line + block["code"], path, "exec"), page)


@pytest.mark.parametrize("path", PAGES, ids=page_ids)
def test_other_blocks_say_why_they_are_not_run(path):
    for block in FENCE.finditer(path.read_text()):
        made = "make demo" in block["code"] or block["kind"] == "text"  # the two commands, and what one of them printed
        assert block["kind"] == "python" or block["why"] or made, block["code"]


@pytest.mark.parametrize("path", PAGES, ids=page_ids)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=page_ids)
def test_files_that_are_named_exist(path):
    folders = "prune|sparse_ops|kernels|tests|benchmarks|examples|trisparse|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", path.read_text()):
        assert (ROOT / name).exists() or list(ROOT.glob(f"{name}.*")), name


@pytest.mark.parametrize("path", PAGES, ids=page_ids)
def test_numbers_stand_beside_the_file_or_command_they_are_from(path):
    for section in re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE):
        if found := MEASURED.search(section):
            source = re.search(
                r"results/\w+\.json|tests/kernels/gpu/instructions\.json|`make demo`|\.py`|trisparse train|--\w+",
                section,
            )
            assert source, f"{section.splitlines()[0]}: {found[0]}"


def test_the_readme_is_a_door():
    assert len(TEXTS["README.md"].splitlines()) <= 180


def command_lines():
    """Every command line of ours in a block, its lines joined: the command and its words."""
    for name, text in TEXTS.items():
        for block in FENCE.finditer(text):
            for line in block["code"].replace("\\\n", " ").splitlines():
                called = re.match(r"\$ (?:torchrun .*\$\(which trisparse\) |trisparse[ -])(\w+) ([^#]*)", line)
                if called:
                    command = {"glue": "train"}.get(called[1], called[1])
                    yield pytest.param(command, called[2].split(), id=f"{name}: {' '.join(called[0].split())[:60]}")


@pytest.mark.parametrize(("command", "words"), list(command_lines()))
def test_command_lines_parse(command, words, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from trisparse.prune.glue.parse import parse_arguments

    monkeypatch.chdir(tmp_path)
    for word in (word for word in words if word.endswith(".csv")):
        (tmp_path / word).touch()
    for flag, value in itertools.pairwise(words):
        if flag == "--dataset_dir":
            (tmp_path / value).mkdir(parents=True)
    if command == "train":
        assert parse_arguments(words).training.output_dir
        return
    parser = importlib.import_module(COMMANDS[command][0]).make_parser(f"trisparse {command}")
    _, rest = parser.parse_known_args(words)
    assert not rest or (command == "sweep" and parse_arguments(rest))


def test_flags_and_keys_exist():
    pytest.importorskip("transformers")
    from trisparse.prune.config.group import KEYS

    flags = {  # of other programs
        "record", "models", "logdir", "nproc_per_node", "out", "minilm", "rows", "seeds", "epochs", "runs", "compressed",
        "data", "recipes",
    }  # fmt: skip
    for command, (module, _) in COMMANDS.items():
        flags |= {flag.lstrip("-") for flag in importlib.import_module(module).make_parser(command).flags()}
    for name, text in TEXTS.items():
        assert set(re.findall(r"--([a-z_]+)", text)) <= flags | {"version", "help"}, name
    rows = re.findall(r"^\| (`.*?) \|", TEXTS["configuration.md"], re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"`(\w+)`", row)} == set(KEYS)


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def test_costs_of_pruning_are_those_of_their_file():
    for row in read("prune_step_cpu")["rows"]:
        for key in ("plain_ms", "ordinary_ms", "event_ms", "predecessor_ms", "predecessor_event_ms"):
            assert f"{row[key]:.1f}" in TEXTS["speed.md"], (row, key)


def test_instructions_are_those_recorded():
    record = json.loads((ROOT / "tests" / "kernels" / "gpu" / "instructions.json").read_text())["instructions"]["sm_90"]
    guard = record["score_tiles bf16 4x1 guard"]
    for names, ahead in [
        ("score_tiles bf16 4x1", f"{guard} + "), ("step_tiles bf16 4x1", f"{guard} + "), ("mask_tiles bf16 4x1", ""),
        ("mask_groups bf16 2:4", ""), ("mask_tiles_24 bf16", ""),
        ("pack_tiles bf16 magnitude cslt_sm90", ""), ("pack_tiles bf16 magnitude both ways cslt_sm90", ""),
        ("pack_tiles bf16 patterns both ways values cslt_sm90", ""), ("unpack_rows cslt_sm90", ""),
        ("write_mask", ""), ("multiply_sparse 8 cslt_sm90", ""),
        ("rank_quads 2:4", ""), ("thin_kept 2:4", ""),
    ]:  # fmt: skip
        assert f"| {ahead}{record[names]} " in TEXTS["operators.md"]


def test_what_was_promised_of_a_gpu_is_what_was_measured():
    page = TEXTS["speed.md"].split("## On a GPU")[1]
    promised = table(RESULTS / "NVIDIA-H200")[1:]
    for op, want, worst, verdict in re.findall(
        r"^\| (`\w+`|a compressed).* \| ([\d.]+) \| ([\d.]+) .*\| (met|missed) \|$", page, re.MULTILINE
    ):
        (row,) = (row for row in promised if row[0].startswith(op.strip("`")))
        assert (row[1], row[4].split(":")[0]) == (f"≥ {want}", verdict)
        assert float(worst) == pytest.approx(float(row[2]), abs=0.0051 if float(worst) < 2 else 0.5)


def test_gains_of_products_on_a_gpu_are_those_of_their_file():
    page, times = TEXTS["speed.md"].split("## On a GPU")[1], {}
    for row in read("NVIDIA-H200/mm_24")["rows"]:
        times.setdefault((row["op"], row["model"].split(" ", 1)[1]), {})[row["what"]] = row["median_ms"]
    lines = re.findall(r"^\| (\d+x\d+) \|(.*) \|$", page, re.MULTILINE)
    assert len(lines) == 5
    for shape, cells in lines:
        keys = [("mm_24", f"{shape} T={4**i}") for i in (0, 2, 3, 4, 5, 6, 7)] + [("training step", f"{shape} T=4096")]
        gains = [f"{times[key]['dense'] / times[key]['trisparse']:.2f}x" for key in keys]
        assert [cell.strip() for cell in cells.split("|")] == gains


def test_gains_of_removed_channels_are_those_of_their_files():
    page, rows = TEXTS["inference.md"], read("compact_cpu")["rows"]
    assert all(f"{row['times_faster']:.2f}x" in page for row in rows)
    again = [row["dense_again"] for row in rows]
    assert f"{min(again):.2f} to {max(again):.2f}" in page
    (real,) = read("compact_mrpc_cpu")["rows"]
    assert real["predictions_changed"] == 0
    assert f"All {real['texts']} validation predictions stay" in page
    ones, many = real["times_faster_1"], real["times_faster_32"]
    assert f"{ones:.2f}x as fast with 1 text and {many:.2f}x with 32, with {real['parameters_left']:.0%}" in page


def test_gains_of_compression_are_those_of_their_file():
    page, rows = TEXTS["inference.md"], read("compress_mrpc_cpu")["rows"]
    again = [value for row in rows for key, value in row.items() if key.startswith("dense_again")]
    assert f"A model against itself gives {min(again):.2f} to {max(again):.2f}." in page
    for row in rows:
        assert row["changed"] == 0
        assert f"| {row['times_faster_1']:.2f}x | {row['times_faster_32']:.2f}x |" in page
        if row["model"] != "mrpc-mixed":
            assert f"{row['times_faster_1']:.2f}x / {row['times_faster_32']:.2f}x" in TEXTS["README.md"]
        assert f"| {row['file_bytes_before'] / 2**20:.1f} → {row['file_bytes_after'] / 2**20:.1f} |" in page


def test_the_readmes_accuracies_are_those_of_the_published_rows():
    for row in ("2-4", "4x1", "1xchannel"):
        (cells,) = [
            line.split(" | ")
            for line in TEXTS["published-rows.md"].splitlines()
            if line.startswith(f"| bert-mini-mrpc-{row} | all-MiniLM-L6-v2 |")
        ]
        dense, sparse = cells[3].split()[0], cells[4].split()[0]
        assert f"| {dense} → {sparse} | {cells[5]} | {cells[6]} |" in TEXTS["README.md"]


def aim(row):
    return f"{row['goal']:.1f}: {'met' if row['times'] >= row['goal'] else 'missed'}" if row["goal"] else "-"


def product_row(row):
    times = f"{row['times']:.2f}x ({row['cold']:.2f}x) | {row['csr']:.2f}x | {row['bsr']:.2f}x"
    return (
        f"| {row['pattern']} | {row['zeros']} | {row['tokens']} | {times} | {row['share_of_peak']:.0%} | {aim(row)} |"
    )


def test_speeds_of_products_on_a_cpu_are_those_of_their_file():
    for row in read("cpu_products")["means"]:
        assert product_row(row) in TEXTS["speed.md"]


def test_speeds_of_products_without_avx512_are_those_of_their_file():
    means = read("cpu_products_avx2")["means"]
    for one, many in zip(means[::2], means[1::2], strict=True):
        times = " | ".join(f"{row['times']:.2f}x ({row['cold']:.2f}x)" for row in (one, many))
        said = f"| {many['pattern']} | {many['zeros']} | {times} | {many['share_of_peak']:.0%} |"
        assert said in TEXTS["speed.md"]


def test_speeds_of_a_model_without_avx512_are_those_of_their_file():
    rows, page = read("cpu_model_avx2")["rows"], " ".join(TEXTS["speed.md"].split())

    def times(name):
        return [f"{row['models'][name]['times']:.2f}" for row in rows]

    assert f"packed models are {' and '.join(times('packed'))} times as fast as dense, ONNX Runtime" in page
    assert f"ONNX Runtime {' and '.join(times('onnxruntime'))}, OpenVINO {' and '.join(times('openvino'))}" in page
    one, eight = times("packed")
    assert f"| {one} times with one text, {eight} times with eight |" in TEXTS["README.md"]


def test_seconds_of_recipes_are_those_of_their_file():
    for row in read("glue_training_time")["rows"]:
        dense, sparse = (statistics.median(row["seconds"][kind]) for kind in ("dense", "sparse"))
        line = f"| {row['recipe']} | {dense:.0f} s | {sparse:.0f} s | {row['times_faster']:.2f}x |"
        assert line in TEXTS["training.md"]


def test_speeds_of_a_model_on_a_cpu_are_those_of_their_file():
    for row in read("cpu_model")["rows"]:
        for name, found in row["models"].items():
            assert f"| {row['texts']} | {name} | {found['ms']:.1f} | {found['times']:.2f}x |" in TEXTS["speed.md"]
        assert f"{row['models']['packed']['times']:.2f} times" in TEXTS["README.md"]
    peers = (read("cpu_model")["rows"][0]["models"][name]["times"] for name in ("onnxruntime", "openvino"))
    assert " and ".join(f"{times:.2f}" for times in peers) in TEXTS["README.md"]
    for row in read("cpu_model")["rows"]:
        times = [row["models"][name]["times"] for name in ("packed", "onnxruntime", "openvino")]
        assert f"| {row['texts']} | {' | '.join(f'{found:.2f}x' for found in times)} |" in TEXTS["around.md"]


@pytest.mark.parametrize("file", ["sparse_training_cpu", "sparse_training_avx2"])
def test_speeds_of_sparse_training_are_those_of_their_file(file):
    found, page = read(file), TEXTS["training.md"]
    for row in found["layers"]:
        times = [*row["parts"].values(), row["times"], *([row["sparseprop"]] if "sparseprop" in row else [])]
        said = " | ".join(f"{ratio:.2f}x" for ratio in times)
        assert f"| {row['pattern']} | {row['zeros']} | {said} | {aim(row)} |" in page
        if (row["pattern"], row["zeros"]) == ("4x1", 0.9):
            assert f"| {row['times']:.2f} times |" in TEXTS["README.md"]
    for row in found["optimizers"]:
        said = f"{row['masked_ms']:.1f} against {row['fused_ms']:.1f} ms with {row['pattern']} at {row['zeros']}"
        assert said in " ".join(TEXTS["speed.md"].split())
    for row in found["steps"]:
        assert f"| {row['model']} | {row['pattern']} | {row['zeros']} | {row['times']:.2f}x | {aim(row)} |" in page


def test_what_faded_moments_cost_is_what_their_file_says():
    times = {(row["optimizer"], row["moments"]): row["ms"] for row in read("faded_moments_cpu")["rows"]}
    page = " ".join(TEXTS["training.md"].split())
    assert f"goes from {times['AdamW', 'early']:.1f} to {times['AdamW', 'faded']:.1f} ms" in page
    assert f"it stays at {times['AdamW, flushed', 'faded']:.1f} ms" in page


def test_what_budgets_came_to_is_what_their_file_says():
    found, page = read("budgets_mrpc_cpu"), TEXTS["configuration.md"]
    for row in found["runs"]:
        promised = f"{row['promised']:.2f}x" if row["promised"] else "-"
        assert (
            f"{row['asked']} | {promised} | {row['measured']:.2f}x | {row['zeros']:.3f} | {row['eval']['f1']:.4f} |"
            in page
        )
        if row["promised"] and row["promised"] < 2.6:
            assert abs(row["measured"] / row["promised"] - 1) < 0.05, "as the page says"


def test_speeds_of_the_loop_are_those_of_their_file():
    loop, text = read("glue_loop_cpu"), " ".join(TEXTS["recipes.md"].split())
    plain, ours = (loop["steps_per_second"][kind] for kind in ("plain", "ours"))
    assert f"{loop['times_faster']:.2f} times as many: {ours:.2f} steps a second against {plain:.2f}" in text
    assert f"rounds gave {', '.join(f'{ratio:.2f}' for ratio in loop['ratios'])}" in text
    plain, ours = (loop["trained"][kind] for kind in ("plain", "ours"))
    said = f"the plain loop ends at an accuracy of {plain['accuracy']:.4f} and an F1 of {plain['f1']:.4f}"
    assert f"{said}, ours at {ours['accuracy']:.4f} and {ours['f1']:.4f}" in text
