"""What the GLUE loop refuses, in one line and without leaving anything behind."""

import shutil

import pytest
import torch

from trisparse.cli import main
from trisparse.prune.glue.demo_data import write_task
from trisparse.prune.glue.models import check_capacity
from trisparse.prune.glue.output import _has_all_results
from trisparse.prune.glue.parse import parse_arguments

pytest.importorskip("transformers")
from transformers import XLNetConfig, XLNetForSequenceClassification


def test_a_checkpoint_of_another_run_is_refused(world, tmp_path, capsys, argv):
    def refused(message, folder="dense", *flags):
        where = str(world / folder)
        base = argv(world, "init", folder, "--num_train_epochs", "1", "--resume_from_checkpoint", where)
        assert main(["train", *base, *flags]) == 2
        assert message in capsys.readouterr().err

    refused(
        "is of another run: it had --learning_rate 0.001, this one has 0.002; resume with the same",
        "dense",
        "--learning_rate",
        "2e-3",
    )
    refused("elsewhere is not the folder of the checkpoint; give", "dense", "--output_dir", str(world / "elsewhere"))
    refused("is no checkpoint and holds no checkpoint.pt", "data")
    write_task(tmp_path, "mrpc", train=96, validation=40, seed=1)
    refused("is of a run on other data", "dense", "--dataset_dir", str(tmp_path))
    (world / "broken").mkdir()
    (world / "broken" / "checkpoint.pt").write_bytes((world / "dense" / "checkpoint.pt").read_bytes()[:5000])
    refused("checkpoint.pt is damaged", "broken")
    (world / "broken" / "checkpoint.pt").write_bytes(b"")
    refused("checkpoint.pt is damaged", "broken")
    state = torch.load(world / "dense" / "checkpoint.pt", weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "random"}, world / "broken" / "checkpoint.pt")
    refused("checkpoint.pt is damaged: it lacks random", "broken")
    assert not (world / "elsewhere").exists()


def test_a_run_that_did_not_get_to_its_compressed_model_has_not_ended(tmp_path):
    words = ["--model_name_or_path", "m", "--task_name", "sst2", "--output_dir", "o"]
    plain, packed = parse_arguments(words), parse_arguments([*words, "--compress", "memory"])
    path = tmp_path / "all_results.json"
    assert not _has_all_results(path, plain)
    for results, is_whole in (("{}", [True, False]), ('{"speed": {}}', [True, True]), ("{", [False, False])):
        path.write_text(results)
        assert [_has_all_results(path, args) for args in (plain, packed)] == is_whole


def test_a_mistake_that_only_one_process_sees_is_said(world, tmp_path, capsys, argv, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", *argv(world, "init", "refused", "--dataset_dir", str(tmp_path))]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("trisparse train: process 1: error: --dataset_dir: ")


def test_bad_input_is_one_line_and_leaves_nothing(world, tmp_path, capsys, argv):
    def refused(*flags, model="init", message, data=None):
        base = argv(world, model, "refused", *flags)
        if data is not None:
            base += ["--dataset_dir", str(data)]
        assert main(["train", *base]) == 2
        captured = capsys.readouterr()
        (line,) = captured.err.strip().splitlines()
        assert line.startswith("trisparse train: error: ")
        assert message in line
        assert not (world / "refused").exists()

    def data(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder

    good = '{"sentence1": "a", "sentence2": "b", "label": 1}\n'
    refused(message="holds no train as .jsonl", data=data())
    refused(message="train.jsonl: line 2: is no JSON", data=data(train__jsonl=good + "{oops\n", validation__jsonl=good))
    refused(
        message="line 1: column 'sentence2' is missing",
        data=data(train__jsonl='{"sentence1": "a"}', validation__jsonl=good),
    )
    refused(
        message="line 2: label 7 is none of mrpc's; want 0 to 1",
        data=data(train__jsonl=good + good.replace("1}", "7}"), validation__jsonl=good),
    )
    refused(
        message="line 1: column 'sentence1': want text, got 3",
        data=data(train__jsonl=good.replace('"a"', "3"), validation__jsonl=good),
    )
    refused(
        message="validation.csv: line 3: want 3 columns",
        data=data(train__jsonl=good, validation__csv="sentence1,sentence2,label\na,b,1\na,b\n"),
    )
    refused(message="train.jsonl: holds no examples", data=data(train__jsonl="", validation__jsonl=good))
    refused(message="is no parquet file", data=data(train__parquet="no", validation__jsonl=good))
    refused("--do_prune", "--pruning_pattern", "5x1", message="pattern: 5x1 does not divide")
    refused(
        "--do_prune",
        "--pruning_pattern",
        "4x1",
        "--num_train_epochs",
        "2",
        "--cooldown_epochs",
        "3",
        message="pruning would start at step 1 and end at -12",
    )
    refused("--distill_loss_weight", "1", message="has no trained classification head to distil from")
    refused(
        "--distill_loss_weight",
        "1",
        "--teacher_model_name_or_path",
        str(world / "dense"),
        message="matching hidden states never trains one",
    )
    refused("--task_name", "stsb", model="dense", message="answers with 2 labels, stsb has 1")
    refused(model="nowhere", message="can't be loaded")
    refused("--mixed_precision", "fp16", message="--mixed_precision: fp16")


def test_a_used_folder_is_refused_and_overwritten_on_request(world, capsys, monkeypatch, argv, glue):
    import transformers

    assert main(["train", *argv(world, "init", "dense")]) == 2
    assert "holds another run; give --overwrite_output_dir" in capsys.readouterr().err
    glue(world, "dense", "again", "--max_train_steps", "1", "--do_prune", "--pruning_pattern", "2:4")
    again = world / "again"
    (again / "mine.txt").write_text("kept")
    (again / "mine.safetensors").write_text("kept")
    (again / "best").mkdir(exist_ok=True)
    (again / "best" / "mine.txt").write_text("kept")
    before = {p: p.read_bytes() for p in again.rglob("*") if p.is_file()}
    flags = ["--max_train_steps", "1", "--overwrite_output_dir"]
    with monkeypatch.context() as patch:
        patch.setattr(
            transformers,
            "get_scheduler",
            lambda n, optimizer, *_: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e36),
        )
        assert main(["train", *argv(world, "init", "again", "--max_train_steps", "3", "--overwrite_output_dir")]) == 2
    assert {p: p.read_bytes() for p in again.rglob("*") if p.is_file()} == before, (
        "a run that fails at once costs nothing"
    )
    glue(world, "dense", "again", *flags)
    assert not (again / "pruner.pt").exists()
    assert not (again / "sparsity.png").exists()
    assert (again / "mine.txt").read_text() == (again / "best" / "mine.txt").read_text() == "kept"
    assert (again / "mine.safetensors").exists()
    for model in ("again", "again/best"):
        assert main(["train", *argv(world, model, "again", *flags)]) == 2
        assert "again holds the model of --model_name_or_path; give another folder" in capsys.readouterr().err


def test_a_model_that_is_of_no_run_is_not_written_over(world, tmp_path, capsys, argv):
    for name in ("config.json", "model.safetensors", "notes.md"):
        (tmp_path / name).write_text("mine")
    flags = ["--output_dir", str(tmp_path), "--overwrite_output_dir"]
    assert main(["train", *argv(world, "init", "mine", *flags)]) == 2
    assert "holds config.json, model.safetensors of something that is no run; give" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "notes.md"}


def test_a_folder_that_is_a_link_to_another_disk(world, tmp_path, glue):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    glue(world, "init", "x", "--max_train_steps", "1", "--output_dir", str(tmp_path / "link"))
    assert {"all_results.json", "model.safetensors", "best"} <= {p.name for p in (tmp_path / "real").iterdir()}
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link"}, "nothing is written beside the folder"


def test_a_model_without_a_limit_takes_texts_of_any_length():
    model = XLNetForSequenceClassification(XLNetConfig(vocab_size=9, d_model=4, n_layer=1, n_head=1, d_inner=4))
    assert model.config.max_position_embeddings == -1
    check_capacity("model_name_or_path", model, longest=10_000, largest_token=8)


def test_models_that_cannot_take_the_data(world, tmp_path, capsys, argv):
    def refused(message, *flags, model="dense"):
        assert main(["train", *argv(world, model, "refused", "--max_train_steps", "1", *flags)]) == 2
        (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("trisparse train: "))
        assert message in line
        assert not (world / "refused").exists()

    def copy(name, *without):
        shutil.copytree(
            world / "dense", tmp_path / name, ignore=shutil.ignore_patterns("best", "checkpoint.pt", *without)
        )
        return tmp_path / name

    refused(
        "--max_length: texts have up to 128 tokens, the model of --model_name_or_path takes 64", "--pad_to_max_length"
    )
    refused("has no tokenizer", "--model_name_or_path", str(copy("bare", "tokenizer*")))
    broken = copy("broken")
    (broken / "model.safetensors").write_bytes(b"12345678")
    refused("broken can't be loaded", "--model_name_or_path", str(broken))
    other = copy("other")
    text = (other / "tokenizer.json").read_text().replace('"bought"', '"b0ught"')
    (other / "tokenizer.json").write_text(text)
    refused("it would read other words", "--distill_loss_weight", "1", "--teacher_model_name_or_path", str(other))
    refused("can't be written to", "--output_dir", "/proc/nowhere")
