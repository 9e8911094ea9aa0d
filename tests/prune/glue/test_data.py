"""GLUE data in every file format, and metrics against their definitions."""

import csv
import json
import math

import pytest

from trisparse import PruningError
from trisparse.prune.glue.args import DataArguments
from trisparse.prune.glue.data import EpochSampler, load_splits, read_file
from trisparse.prune.glue.tasks import TASKS

pytest.importorskip("sklearn")

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


@pytest.mark.parametrize("grouped", [False, True])
def test_batches_depend_on_seed_and_epoch_alone(grouped):
    lengths = [(i * 7) % 13 + 1 for i in range(400)]

    def order(seed, epoch):
        sampler = EpochSampler(lengths, seed, 8, grouped)
        sampler.epoch = epoch
        return list(sampler)

    assert sorted(order(1, 0)) == list(range(400))
    assert order(1, 3) == order(1, 3)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    if grouped:
        sizes = [[lengths[i] for i in order(1, 0)[k : k + 8]] for k in range(0, 400, 8)]
        assert sum(max(size) - min(size) for size in sizes) / len(sizes) <= 2


def test_metrics_by_their_definitions():
    from trisparse.prune.glue.metrics import best_value, compute_metrics, majority_metrics

    said, true = [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 0]
    tp, fp, fn, tn = 3, 1, 1, 3
    assert compute_metrics(TASKS["mrpc"], said, true) == pytest.approx(
        {"accuracy": 6 / 8, "f1": 2 * tp / (2 * tp + fp + fn)}
    )
    matthews = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert compute_metrics(TASKS["cola"], said, true) == pytest.approx({"matthews_correlation": matthews})
    got = compute_metrics(TASKS["stsb"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert got == pytest.approx({"pearson": 0.3273268, "spearmanr": 0.5})
    assert best_value(TASKS["mrpc"], {"accuracy": 0.75, "f1": 0.5}) == 0.625, "as GLUE averages"
    assert best_value(TASKS["stsb"], got) == pytest.approx((0.3273268 + 0.5) / 2)
    assert compute_metrics(TASKS["stsb"], [1.0, 1.0, 1.0], [1.0, 3.0, 2.0]) == {"pearson": 0.0, "spearmanr": 0.0}
    assert majority_metrics(TASKS["mrpc"], [1] * 279 + [0] * 129) == pytest.approx(
        {"accuracy": 0.6838, "f1": 0.8122}, abs=1e-4
    )
    assert majority_metrics(TASKS["stsb"], [1.0, 2.0]) == {}


def test_metrics_agree_with_scikit_learn():
    import numpy as np
    from sklearn import metrics

    from trisparse.prune.glue.metrics import compute_metrics

    rng = np.random.default_rng(0)
    said, true = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    got = compute_metrics(TASKS["qqp"], said.tolist(), true.tolist())
    assert got == {"accuracy": metrics.accuracy_score(true, said), "f1": metrics.f1_score(true, said)}
    (got,) = compute_metrics(TASKS["cola"], said.tolist(), true.tolist()).values()
    assert got == metrics.matthews_corrcoef(true, said)


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
