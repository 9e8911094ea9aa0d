"""A task's examples in every file format, whole and held out."""

import csv
import json

import pytest

from trisparse import PruningError
from trisparse.prune.data.arguments import DataArguments
from trisparse.prune.data.splits import load_splits, read_file
from trisparse.prune.data.tasks import TASKS
from trisparse.prune.glue.parse import parse_arguments

ROWS = [
    {"sentence1": 'she said "yes", twice', "sentence2": "yes", "label": 1},
    {"sentence1": "a\u2028b, c", "sentence2": "d", "label": 0},
]


def write(path, rows):
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".json"):
        path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\n\n", encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            tab = path.suffix == ".tsv"
            options = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if tab else {}
            writer = csv.DictWriter(file, rows[0].keys(), **options)
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_reads_the_same(tmp_path, ending):
    write(tmp_path / f"train.{ending}", ROWS)
    assert read_file(tmp_path / f"train.{ending}", TASKS["mrpc"]) == ROWS


def test_files_from_other_systems(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"sentence": "x", "label": 1}\r\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfsentence,label\r\nx,1\r\n")
    for name in ("a.jsonl", "a.csv"):
        assert read_file(tmp_path / name, TASKS["sst2"]) == [{"sentence": "x", "label": 1}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "sentence,label,label\nx,1,0\n", "line 1: a column is named twice"),
        ("t.csv", "sentence,label\n" + "x" * 200_000 + ",1\n", "t.csv: line 1: field larger than field limit"),
        ("t.jsonl", '{"sentence": "\\ud800", "label": 1}', "line 1: column 'sentence': holds half of a surrogate pair"),
    ],
)
def test_odd_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(PruningError, match=message):
        read_file(tmp_path / name, TASKS["sst2"])


def test_an_infinite_score_is_no_label(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"sentence1": "a", "sentence2": "b", "label": Infinity}')
    with pytest.raises(PruningError, match="label inf is none of stsb's; want a number"):
        read_file(tmp_path / "t.jsonl", TASKS["stsb"])


def test_splits_and_files(tmp_path):
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "validation.jsonl", ROWS[:1])
    write(tmp_path / "other.tsv", ROWS[1:])
    data = DataArguments(task_name="mrpc", dataset_dir=str(tmp_path))
    assert {k: len(v) for k, v in load_splits(data, TASKS["mrpc"]).items()} == {"train": 2, "validation": 1}
    data.validation_file = str(tmp_path / "other.tsv")
    assert load_splits(data, TASKS["mrpc"])["validation"] == ROWS[1:]


def test_labels_by_name_and_number(tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "label": x} for x in ("neutral", 2, "0", 1.0)]
    write(tmp_path / "t.jsonl", rows)
    assert [e["label"] for e in read_file(tmp_path / "t.jsonl", TASKS["mnli"])] == [1, 2, 0, 1]
    rows = [{"sentence1": "a", "sentence2": "b", "label": x} for x in (0, "4.25")]
    write(tmp_path / "s.jsonl", rows)
    assert [e["label"] for e in read_file(tmp_path / "s.jsonl", TASKS["stsb"])] == [0.0, 4.25]


def test_held_out_examples_are_of_the_training_set_and_always_the_same(tmp_path):
    write(tmp_path / "train.jsonl", [{**ROWS[0], "sentence1": f"number {i}"} for i in range(20)])
    write(tmp_path / "validation.jsonl", ROWS[:1])
    data = DataArguments(task_name="mrpc", dataset_dir=str(tmp_path), holdout_fraction=0.1)
    splits = load_splits(data, TASKS["mrpc"])
    texts = {name: [row["sentence1"] for row in rows] for name, rows in splits.items()}
    assert {name: len(rows) for name, rows in texts.items()} == {"train": 18, "validation": 2}
    assert sorted(texts["train"] + texts["validation"]) == sorted(f"number {i}" for i in range(20))
    assert load_splits(data, TASKS["mrpc"]) == splits
    data.holdout_fraction = 0.01
    with pytest.raises(PruningError, match="--holdout_fraction: 0.01 of 20 training examples leaves one part empty"):
        load_splits(data, TASKS["mrpc"])


def test_what_is_held_out_needs_no_validation_file(tmp_path):
    write(tmp_path / "train.jsonl", ROWS * 4)
    for where in ({"dataset_dir": str(tmp_path)}, {"train_file": str(tmp_path / "train.jsonl")}):
        splits = load_splits(DataArguments(task_name="mrpc", holdout_fraction=0.25, **where), TASKS["mrpc"])
        assert {name: len(rows) for name, rows in splits.items()} == {"train": 6, "validation": 2}
        parse_arguments(["--model_name_or_path", "m", "--task_name", "mrpc", "--holdout_fraction", "0.25", "--output_dir",
                         "o", *(word for key, value in where.items() for word in (f"--{key}", value))])  # fmt: skip
