"""`trisparse report`: one page that needs nothing else, says what the files say, and refuses what is damaged."""

import json
import re
import subprocess
from html.parser import HTMLParser

import pytest

from trisparse.cli import main

pytest.importorskip("matplotlib")

NASTY = '<script>alert("x")</script> & $\\frac{1}$'


@pytest.fixture
def make_run(tmp_path):
    """Write a run's files by hand; the folder. Keywords replace entries of all_results.json."""

    def make(name="mrpc-4x1", masks=True, **changes):
        layers = ["bert.encoder.layer.0.query", "bert.encoder.layer.1.key"]
        results = {
            "task": "mrpc", "pattern": "4x1", "target_sparsity": 0.9, "eval": {"accuracy": 0.78, "f1": 0.84},
            "best_eval": {"accuracy": 0.82, "f1": 0.88}, "teacher_eval": {"accuracy": 0.8, "f1": 0.84},
            "sparsity": {"pruned_layers": 0.9001, "matmul_gemm_conv": 0.8002, "all_parameters": 0.7003},
            "pattern_verified": True, "complete": True, "epochs": 2.0, "train_seconds": 3725.0, "steps_per_second": 0.01,
            "device": "a device", "versions": {"trisparse": "0.1.0", "torch": "2.13.0"},
            "steps": {"total_steps": 40, "start_step": 5, "end_step": 30, "pruning_frequency": 5}, "notes": [],
            "arguments": {"model_name_or_path": "runs/dense", "learning_rate": 0.001, "weight_decay": 0.0},
        } | changes  # fmt: skip
        history = {
            "steps": [
                {"step": s, "loss": 1 / s, "sparsity": s / 50, "flips": s, "steps_per_second": 2.5}
                for s in (10, 20, 30, 40)
            ],
            "evals": [{"step": s, "epoch": s // 20, **results["eval"]} for s in (20, 40)],
        }
        if masks:
            counts = [[0, 0], [100, 50], [3600, 3601]]
            history["masks"] = {"layers": layers, "weights": [4096, 4000], "steps": [0, 10, 30], "pruned": counts}
        rows = [
            {
                "name": name, "pattern": "4x1", "shape": [64, 64], "weights": 4096, "zeros": 3604, "extra_zeros": 3,
                "verified": True, "sparsity": 0.8799,
            }
            for name in layers
        ]  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        for file, value in (("all_results", results), ("history", history), ("sparsity", {"layers": rows})):
            (folder / f"{file}.json").write_text(json.dumps(value))
        return folder

    return make


@pytest.fixture
def make_dense_run(make_run):
    """The same of a run that prunes nothing."""

    def make():
        steps = {"total_steps": 40}
        folder = make_run(
            "dense", masks=False, pattern="dense", target_sparsity=0.0, teacher_eval={}, complete=None, steps=steps,
            pattern_verified=None,
        )  # fmt: skip
        (folder / "sparsity.json").unlink()
        return folder

    return make


class Page(HTMLParser):
    """Text of a page, its cells row by row, and its tags; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page():
    """Make the page of these folders; parsed."""

    def make(*folders, output=None):
        target = output or folders[0] / "report.html"
        flags = ["--output", str(output)] if output else []
        assert main(["report", *map(str, folders), *flags]) == 0
        return Page(target.read_text())

    return make


def test_it_says_what_the_files_say(make_run, page, capsys):
    folder = make_run(notes=["collapsed: it did"], complete=False)
    shown = page(folder)
    assert capsys.readouterr().out.startswith(f"wrote {folder / 'report.html'}, ")
    assert ["accuracy", "0.7800", "0.8200", "0.8000", "2.50% lower", "2.50% higher"] in shown.rows
    assert ["f1", "0.8400", "0.8800", "0.8400", "the same", "4.76% higher"] in shown.rows
    assert ["learning_rate", "0.001", "5e-05"] in shown.rows
    assert not any(row[0] == "weight_decay" for row in shown.rows), "it has its default"
    assert ["model", "runs/dense"] in shown.rows
    assert ["versions", "trisparse 0.1.0, torch 2.13.0"] in shown.rows
    assert ["pruning", "step 5 to 30, every 5"] in shown.rows
    assert ["training time", "1 h 2 min, 0.01 steps a second"] in shown.rows
    assert ["bert.encoder.layer.1.key", "4x1", "64x64", "4,096", "3,604", "3", "0.8799", "yes"] in shown.rows
    assert "0.9001 of the pruned layers, 0.8002 of all Linear and Conv layers, 0.7003 of all parameters" in shown.text
    assert "incomplete pattern verified collapsed collapsed: it did" in shown.text
    assert "7,201 are pruned at the end" in shown.text
    for heading in ("Loss, sparsity and evaluation", "Sparsity by layer", "Mask flips"):
        assert heading in shown.text
    assert {"0.query", "1.key", "weights newly pruned"} <= set(shown.words), "text of pictures stays text"
    assert "At the end; names are those within bert.encoder.layer" in shown.text


def test_it_needs_no_other_file(make_run, page):
    folder = make_run()
    shown = page(folder)
    tags = {tag for tag, _ in shown.tags}
    assert not tags & {"script", "link", "iframe", "object", "img"}
    assert [tag for tag, _ in shown.tags].count("svg") == 8, "5 curves, bars, heat map, flips"
    for tag, attributes in shown.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "src"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    text = (folder / "report.html").read_text()
    assert set(re.findall(r"\w+://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert page(folder)
    assert (folder / "report.html").read_text() == text, "the same run gives the same bytes"


def test_strings_are_escaped(make_run, page):
    folder = make_run(notes=[NASTY], device=NASTY, arguments={"model_name_or_path": NASTY, NASTY: NASTY})
    for file in ("history", "sparsity"):
        path = folder / f"{file}.json"
        path.write_text(path.read_text().replace("bert.encoder.layer.0.query", json.dumps(NASTY)[1:-1]))
    text = page(folder)
    assert text.text.count(NASTY) >= 7
    assert [NASTY, NASTY, "unknown"] in text.rows
    assert "<script" not in (folder / "report.html").read_text()


def test_several_runs_begin_with_a_comparison(make_run, make_dense_run, page, tmp_path):
    runs = [make_dense_run(), make_run(), make_run("cut short", complete=False, target_sparsity=[0.5, 0.9])]
    shown = page(*runs, output=tmp_path / "all.html")
    assert shown.text.index("Comparison") < shown.text.index("Results")
    assert shown.rows[1] == [
        "dense",
        "mrpc, dense",
        "accuracy",
        "0.7800",
        "0.8200",
        "-",
        "-",
        "0.9001",
        "0.7003",
        "1 h 2 min",
        "-",
    ]
    assert shown.rows[3][:2] == ["mrpc-4x1", "mrpc, 4x1 at 0.9"]
    assert shown.rows[3][5:] == ["0.8000", "2.50% lower", "0.9001", "0.7003", "1 h 2 min", "complete"]
    assert shown.rows[4] == ["f1", "0.8400", "0.8800", "0.8400", "the same"]
    assert (shown.rows[5][1], shown.rows[5][-1]) == ("mrpc, 4x1 at 0.5, 0.9", "incomplete")
    links = [attributes["href"] for tag, attributes in shown.tags if tag == "a" and "href" in attributes]
    targets = [attributes["id"] for tag, attributes in shown.tags if tag == "section" and "id" in attributes]
    assert links == [f"#{target}" for target in targets]
    assert len(links) == 3


def test_a_dense_run_and_one_of_an_earlier_version(make_run, make_dense_run, page):
    dense = page(make_dense_run())
    assert "Nothing was pruned." in dense.text
    assert "teacher" not in dense.text
    assert [tag for tag, _ in dense.tags].count("svg") == 5, "curves"
    earlier = page(make_run(masks=False))
    assert "history.json has no masks: an earlier version wrote it" in earlier.text
    assert [tag for tag, _ in earlier.tags].count("svg") == 6, "curves and bars"


@pytest.mark.parametrize(
    ("arguments", "headline", "fact"),
    [
        ({"pruning_type": "pattern_lock"}, "mrpc, 4x1 ", "none anew; the zeros of the model are held"),
        ({"pruning_config": "mine.yaml"}, "mrpc, 4x1 at 0.9 ", "as mine.yaml says"),
    ],
)
def test_runs_without_a_schedule_of_the_command_line(make_run, page, arguments, headline, fact):
    shown = page(make_run(arguments={"model_name_or_path": "m", **arguments}))
    assert ["pruning", fact] in shown.rows
    assert f"mrpc-4x1: {headline}Written by" in shown.text
    assert "Dotted" not in shown.text


def test_edges_of_numbers(make_run, page):
    folder = make_run(
        best_eval=None,
        eval={"accuracy": 0.5, "f1": -0.1},
        teacher_eval={"accuracy": 0.0, "f1": -0.2},
        train_seconds=3.21,
    )
    shown = page(folder)
    assert ["accuracy", "0.5000", "-", "0.0000", "-", "-"] in shown.rows
    assert ["f1", "-0.1000", "-", "-0.2000", "50.00% higher", "-"] in shown.rows
    assert ["training time", "3.21 s, 0.01 steps a second"] in shown.rows


def test_metrics_that_are_no_numbers(make_run, page):
    nan = float("nan")
    shown = page(make_run(eval={"accuracy": nan, "f1": 0.5}, teacher_eval={"accuracy": 0.8, "f1": nan}))
    assert ["accuracy", "nan", "0.8200", "0.8000", "-", "2.50% higher"] in shown.rows
    assert ["f1", "0.5000", "0.8800", "nan", "-", "-"] in shown.rows


def test_a_path_that_is_no_unicode(make_run, page):
    assert ["model", "m?"] in page(make_run(arguments={"model_name_or_path": "m\udcff"})).rows


def cut(text):
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("all_results", None, "{folder}: holds no all_results.json; want the output_dir of a trisparse train run that has ended"),
        ("history", None, "{folder}/history.json: is missing; without it the run cannot be shown"),
        ("sparsity", None, "{folder}/sparsity.json: is missing"),
        ("all_results", cut, "{folder}/all_results.json: is damaged: "),
        ("history", cut, "{folder}/history.json: is damaged: "),
        ("sparsity", cut, "{folder}/sparsity.json: is damaged: "),
        ("history", lambda text: "\x00", "{folder}/history.json: is damaged: Expecting value"),
        ("history", lambda text: "[]", "{folder}/history.json: is damaged: want dict, got []"),
        ("history", lambda text: "[" * 100_000, "{folder}/history.json: is damaged: "),
        ("history", lambda text: text.replace('"loss": 0.1', '"loss": "low"'), "is damaged: steps: 0: loss: want int or float, got \"low\""),
        ("history", lambda text: text.replace('"step": 10,', '"step": true,'), "is damaged: steps: 0: step: want int, got true"),
        ("history", lambda text: text.replace(', "flips": 40', ""), "is damaged: steps: 3: flips is missing"),
        ("history", lambda text: text.replace('"f1"', '"f2"'), "is damaged: evals: 0: f1 is missing"),
        ("history", lambda text: text.replace("[4096, 4000]", "[4096]"), "masks: want 3 rows of 2 layers, got lengths [1, 2]"),
        ("history", lambda text: '{"steps": [], "evals": []}', "is damaged: steps: want at least one, got none"),
        ("history", lambda text: text.replace('"loss": 0.1', '"loss": NaN'), "is damaged: steps: 0: loss: want a number below 2^53, got NaN"),
        ("history", lambda text: text.replace("3601", "1" + 30 * "0"), "is damaged: masks: pruned: 2: 1: want a number below 2^53"),
        ("history", lambda text: text.replace('"step": 10,', '"step": 20,'), "is damaged: steps: want steps that rise, got [20, 20, 30, 40]"),
        ("history", lambda text: text.replace("[0, 10, 30]", "[0, 30, 10]"), "is damaged: masks: want steps that rise, got [0, 30, 10]"),
        ("all_results", lambda text: text.replace("3725.0", "Infinity"), "train_seconds: want a number below 2^53, got Infinity"),
        ("all_results", lambda text: text.replace('{"accuracy": 0.78, "f1": 0.84}', "{}", 1), "eval: want at least one metric, got none"),
        ("all_results", lambda text: text.replace('"device"', '"divice"'), "all_results.json: is damaged: device is missing"),
        ("all_results", lambda text: text.replace('"end_step"', '"end"'), "all_results.json: is damaged: steps: end_step is missing"),
        ("all_results", lambda text: text.replace('"accuracy": 0.82', '"acc": 0.82'), "is damaged: best_eval: accuracy is missing"),
        ("sparsity", lambda text: text.replace('"zeros"', '"zeroes"'), "sparsity.json: is damaged: layers: 0: zeros is missing"),
    ],
)  # fmt: skip
def test_damaged_folders(make_run, tmp_path, capsys, file, change, message):
    good, folder = make_run("good"), make_run()
    path = folder / f"{file}.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    output = tmp_path / "report.html"
    output.write_text("the old one")
    assert main(["report", str(good), str(folder), "--output", str(output)]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("trisparse report: error: ")
    assert message.format(folder=folder) in line
    assert captured.out == ""
    assert output.read_text() == "the old one"
    assert {p.name for p in tmp_path.iterdir()} == {"good", "mrpc-4x1", "report.html"}


def test_other_mistakes(make_run, tmp_path, capsys, monkeypatch):
    folder = make_run()

    def refused(message, *arguments):
        assert main(["report", *map(str, arguments)]) == 2
        assert capsys.readouterr().err == f"trisparse report: error: {message}\n"

    refused("--output: missing; with several folders, name the file to write", folder, folder)
    refused("--output: want a file to write, got '.'", folder, "--output", ".")
    refused("--output: want a file to write, got '/'", folder, "--output", "/")
    refused(f"--output: want a file to write, got '{tmp_path}'", folder, "--output", tmp_path)
    nowhere = tmp_path / "no" / "page.html"
    refused(f"--output: {nowhere} can't be written to: No such file or directory", folder, "--output", nowhere)
    monkeypatch.setattr("trisparse.prune.run_report.page.find_spec", lambda name: name != "matplotlib" or None)
    message = "matplotlib is not installed, and the page needs it; pip install 'trisparse[plot]'"
    refused(message, folder)
    assert not (folder / "report.html").exists()


def test_only_a_page_is_written_over(make_run, tmp_path, capsys):
    folder = make_run()
    (tmp_path / "mine.html").write_text("mine")
    for output in (tmp_path / "mine.html", folder / "history.json"):
        before = output.read_text()
        flags = ["report", str(folder), "--output", str(output)]
        assert main(flags) == 2
        said = f"trisparse report: error: --output: {output} is no page of this command; give another file, or --overwrite\n"
        assert capsys.readouterr().err == said
        assert output.read_text() == before
    assert main(["report", str(folder), "--output", str(tmp_path / "mine.html"), "--overwrite"]) == 0
    assert main(["report", str(folder), "--output", str(tmp_path / "mine.html")]) == 0
    assert "Written by <code>trisparse report</code>" in (tmp_path / "mine.html").read_text()


def test_a_real_run_by_the_console_script(world, glue, script):
    flags = ["--max_train_steps", "2", "--overwrite_output_dir"]
    glue(world, "dense", "shown", *flags, "--do_prune", "--pruning_pattern", "2:4", "--distill_loss_weight", "2")
    done = subprocess.run([script("trisparse"), "report", world / "shown"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = Page((world / "shown" / "report.html").read_text())
    report = json.loads((world / "shown" / "sparsity.json").read_text())
    names = [row["name"] for row in report["layers"]]
    assert [row[0] for row in shown.rows if row[0] in names] == names
    assert "0.5000 of the pruned layers" in shown.text
    glue(world, "dense", "shown", *flags)
    assert not (world / "shown" / "report.html").exists(), "a page of the run before is not taken for the new run's"
