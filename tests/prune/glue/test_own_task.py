"""Files of one's own without a task: columns, labels, a line for what is wrong, and runs."""

import json

import pytest

from trisparse import PruningError
from trisparse.cli import main
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.metrics import compute_metrics
from trisparse.prune.data.own_task import task_of
from trisparse.prune.data.splits import load_splits
from trisparse.prune.glue.parse import parse_arguments

transformers = pytest.importorskip("transformers")
BASE = ["--model_name_or_path", "m"]


@pytest.fixture
def made(tmp_path):
    """The task of a training file, and the splits that it reads beside a validation file."""

    def make(train, validation=None, ending="csv"):
        files = {}
        for split, text in (("train", train), ("validation", validation or train)):
            path = tmp_path / f"{split}.{ending}"
            path.write_text(text if isinstance(text, str) else json.dumps(text))
            files[f"{split}_file"] = str(path)
        data = DataArguments(**files)
        task = task_of(data)
        return task, load_splits(data, task)

    return make


@pytest.mark.parametrize(
    ("text", "columns", "labels"),
    [
        ("text,label\nyes,pos\nno,neg\n", ("text",), ("neg", "pos")),
        ("label,sentence2,sentence1\n1,b,a\n0,d,c\n", ("sentence1", "sentence2"), ("0", "1")),
        ("id,one,two,three,label\n7,a,b,c,10\n8,d,e,f,9\n9,g,h,i,10\n", ("one", "two"), ("9", "10")),  # 9 before 10
        ("text,label\na,True\nb,False\nc,maybe\n", ("text",), ("False", "True", "maybe")),
        ("text,label\na,3\nb,three\n", ("text",), ("3", "three")),
        ("text,label\na,007\nb,7\nc,10\n", ("text",), ("007", "7", "10")),  # codes, as they are written
    ],
)
def test_columns_and_classes(made, text, columns, labels):
    task, splits = made(text)
    assert (task.columns, task.labels, task.metrics) == (columns, labels, ("accuracy",))
    rows = [line.split(",") for line in text.splitlines()]
    place = rows[0].index("label")
    assert [row["label"] for row in splits["train"]] == [labels.index(row[place]) for row in rows[1:]]
    assert set(splits["validation"][0]) == {*columns, "label"}


@pytest.mark.parametrize("labels", [[0.0, 1.0], [1, 2.5], [-1e-3, 2]])
def test_a_decimal_point_makes_a_regression(made, labels):
    rows = [{"text": "a", "label": label} for label in labels]
    for content, ending in ((rows, "json"), ("text,label\n" + "".join(f"a,{x}\n" for x in labels), "csv")):
        task, splits = made(content, ending=ending)
        assert task.is_regression
        assert task.num_labels == 1
        assert [row["label"] for row in splits["train"]] == labels
    assert compute_metrics(task, [1.0, 3.0], [0.0, 5.0])["mse"] == (1**2 + 2**2) / 2


def test_a_label_of_json_and_of_csv_is_one(made, tmp_path):
    (tmp_path / "v.jsonl").write_text('{"text": "x", "label": 2}\n{"text": "y", "label": "1"}\n')
    (tmp_path / "t.csv").write_text("text,label\na,1\nb,2\n")
    data = DataArguments(train_file=str(tmp_path / "t.csv"), validation_file=str(tmp_path / "v.jsonl"))
    assert [row["label"] for row in load_splits(data, task_of(data))["validation"]] == [1, 0]


def test_a_json_array_is_read(made):
    rows = [{"text": "a\n[", "label": "x"}, {"text": "b", "label": "y"}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n\n  " + json.dumps(rows)):
        assert made(text, ending="json")[1]["train"] == [{"text": "a\n[", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ("text,class\na,1\n", None, r"train.csv: line 2: column 'label' is missing; it has text, class"),
        ("label\n1\n0\n", None, r"train.csv: no column beside 'label' holds text; it has label"),
        ("id,label\n1,1\n2,0\n", None, r"train.csv: no column beside 'label' holds text; it has id, label"),
        ("text,label\na,1\nb,\n", None, r"train.csv: line 3: column 'label': want text or a number, got ''"),
        ("text,label\na,x\nb,x\n", None, r"train.csv: all 2 labels are 'x'; want two classes or more"),
        ("text,label\n", None, r"train.csv: holds no examples"),
        ("text,label\na,x\nb,y\n", "text,label\nc,z\n", r"validation.csv: line 2: label 'z' is not in the training file, which has x, y"),
        ("text,label\na,1\nb,2\n", "text,label\nc,0\n", r"validation.csv: line 2: label '0' is not in the training file, which has 1, 2"),
        ("text,label\na,1\nb,2\n", "words,label\nc,1\n", r"validation.csv: line 2: column 'text' is missing; it has words, label"),
        ("text,label\na,0.5\nb,2\n", "text,label\nc,x\n", r"validation.csv: line 2: label 'x' is none of .*; want a number"),
    ],
)  # fmt: skip
def test_mistakes(made, train, validation, message):
    with pytest.raises(PruningError, match=message) as caught:
        made(train, validation)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"text": "a", "label": 1}, 2]', "train.json: row 2: want a JSON object, got int"),
        ('[\n{"text": "a"\n', r"train.json: line 3: is no JSON: .* at column 1"),
        ("[" * 100_000, "train.json: is nested too deep"),
        ('[{"text": "a", "label": null}]', "train.json: row 1: column 'label': want text or a number, got None"),
        ('[{"text": "a", "label": NaN}]', "train.json: row 1: column 'label': want text or a number, got nan"),
        ('[{"text": "a", "label": [1]}]', r"train.json: row 1: column 'label': want text or a number, got \[1\]"),
        ("[]", "train.json: holds no examples"),
    ],
)
def test_mistakes_in_json(made, text, message):
    with pytest.raises(PruningError, match=message):
        made(text, ending="json")


@pytest.mark.parametrize(
    ("flags", "folder"),
    [
        (["--task_name", "MRPC"], "runs/mrpc-dense"),
        (["--task_name", "sst2", "--do_prune"], "runs/sst2-4x1"),
        (["--task_name", "sst2", "--do_prune", "--pruning_pattern", "2:4"], "runs/sst2-2-4"),
        (["--task_name", "mrpc", "--do_prune", "--pruning_config", "mixed"], "runs/mrpc-mixed"),
        (["--recipe", "bert-mini-mrpc-1xchannel"], "runs/mrpc-1xchannel"),
        (["--train_file", "reviews.csv", "--validation_file", "data/validation.csv"], "runs/reviews-dense"),
        (["--train_file", "data/train.csv", "--validation_file", "data/validation.csv"], "runs/data-dense"),
        (["--dataset_dir", "data"], "runs/data-dense"),
        (["--task_name", "mrpc", "--resume_from_checkpoint", "data"], "data"),
        (["--task_name", "mrpc", "--resume_from_checkpoint", "data/checkpoint.pt"], "data"),
        (["--task_name", "mrpc", "--output_dir", "mine"], "mine"),
    ],
)
def test_the_folder_that_nobody_named(tmp_path, monkeypatch, flags, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("reviews.csv", "data/train.csv", "data/validation.csv"):
        (tmp_path / name).write_text("")
    assert parse_arguments([*BASE, *flags]).training.output_dir == folder


def test_runs_on_own_files(world, tmp_path, monkeypatch, capsys, forget_precision):
    monkeypatch.chdir(tmp_path)
    words = ["bought", "sold", "the", "a", "car"]
    classes = [{"body": f"she {words[i % 5]} it", "label": ("low", "mid", "top")[i % 3]} for i in range(12)]
    scores = [{"sentence1": "a car", "sentence2": words[i % 5], "label": i / 4} for i in range(12)]
    for name, rows in (("grades", classes), ("scores", scores)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    flags = ["train", "--max_train_steps", "2", "--do_prune", "--max_length", "16", "--model_name_or_path"]
    files = ["--train_file", "grades.json", "--validation_file", "grades.json"]
    assert main([*flags, str(world / "init"), *files]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "output_dir runs/grades-4x1; grades: body to one of low, mid, top; accuracy"
    assert second.startswith("steps_per_epoch 2, ")
    results = json.loads((tmp_path / "runs/grades-4x1/all_results.json").read_text())
    assert results["task"] == "grades"
    assert set(results["eval"]) == {"accuracy"}
    model = transformers.AutoModelForSequenceClassification.from_pretrained("runs/grades-4x1")
    assert model.config.id2label == {0: "low", 1: "mid", 2: "top"}
    assert main([*flags, str(world / "init"), *files]) == 2
    assert "--output_dir: runs/grades-4x1 holds another run; give --overwrite_output_dir" in capsys.readouterr().err

    config = json.loads((tmp_path / "runs/grades-4x1/config.json").read_text())
    config["id2label"], config["label2id"] = {0: "top", 1: "mid", 2: "low"}, {"top": 0, "mid": 1, "low": 2}
    (tmp_path / "runs/grades-4x1/config.json").write_text(json.dumps(config))
    forget_precision()
    assert main([*flags, "runs/grades-4x1", *files, "--output_dir", "again"]) == 2
    assert capsys.readouterr().err.endswith(
        "runs/grades-4x1 has the labels in another order, top, mid, low; write 0 to 2 in column 'label', as this model "
        "counts them\n"
    )

    files = ["--train_file", "scores.json", "--validation_file", "scores.json"]
    forget_precision()
    assert main([*flags, str(world / "init"), *files]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == ("output_dir runs/scores-4x1; scores: sentence1 and sentence2 to a number; pearson, spearmanr, mse")
    results = json.loads((tmp_path / "runs/scores-4x1/all_results.json").read_text())
    assert set(results["eval"]) == {"pearson", "spearmanr", "mse"}
    teacher = [*flags, "runs/scores-4x1", *files, "--distill_loss_weight", "1", "--distill_mode", "logits"]
    forget_precision()
    assert main([*teacher, "--output_dir", "again"]) == 2
    assert capsys.readouterr().err.endswith("--distill_mode: 'logits' needs classes, and scores has none; use hidden\n")


@pytest.mark.parametrize("text", ['1,good\n0,"bad one\n1,fine\n', '1,good\n0,"bad" one\n1,fine\n'])
def test_a_stray_quotation_mark_takes_no_rows_with_it(made, text):
    with pytest.raises(PruningError, match=r"train.csv: line \d: .*; texts with quotation marks stand in such"):
        made("label,text\n" + text)
    _, splits = made('label,text\n1,"so ""good"", yes"\n0,"two\nlines"\n')
    assert [row["text"] for row in splits["train"]] == ['so "good", yes', "two\nlines"]


def test_a_number_of_thousands_of_digits_is_one_line(made):
    for ending, text in (
        ("json", '[{"label": 0, "text": "a", "n": %s}]'),
        ("jsonl", '{"label": 0, "text": "a", "n": %s}'),
    ):
        with pytest.raises(PruningError, match="can't be read: ValueError: Exceeds the limit"):
            made(text % ("1" * 5000), ending=ending)


def test_a_column_that_the_first_row_lacks_is_read(made):
    rows = [{"label": 0, "sentence1": "a"}, {"label": 1, "sentence1": "b", "sentence2": "c"}]
    with pytest.raises(PruningError, match="sentence2"):
        made(rows, ending="json")


def test_two_files_of_one_split_are_refused(tmp_path):
    for ending, text in (("jsonl", '{"label": 0, "sentence": "a"}'), ("csv", "label,sentence\n0,a\n")):
        (tmp_path / f"train.{ending}").write_text(text)
    with pytest.raises(PruningError, match=r"holds train.jsonl and train.csv; leave one of them"):
        task_of(DataArguments(dataset_dir=str(tmp_path)))
