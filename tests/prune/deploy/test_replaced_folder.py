"""A folder is replaced whole: what goes, what stays, and what is left when that fails."""

import os
import tempfile
from pathlib import Path

import pytest

from trisparse import PruningError
from trisparse.prune.deploy.replaced_folder import EXPORTED, RECORD, SAVED, replaced_folder


def write(folder, *names, by=SAVED, text="new", overwrite=False):
    with replaced_folder(folder, by, overwrite) as half:
        for name in names:
            (half / name).write_text(text)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != RECORD)


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.name != RECORD}


def test_only_weights_of_another_checkpoint_go(tmp_path):
    stay = [
        "training_args.bin", "optimizer.bin", "adapter_model.safetensors", "vectors.bin", "model_of_mine.bin",
        "my-model.safetensors", "vocab.txt",
    ]  # fmt: skip
    go = [
        "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
        "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json",
    ]  # fmt: skip
    for name in (*stay, *go):
        (tmp_path / name).write_text("old")
    write(tmp_path, "model.safetensors", "config.json", overwrite=True)
    assert names(tmp_path) == sorted([*stay, "model.safetensors", "config.json"])
    assert {(tmp_path / name).read_text() for name in stay} == {"old"}


def test_a_mixture_of_two_checkpoints_has_no_config(tmp_path, monkeypatch):
    for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"):
        (tmp_path / name).write_text("old")
    moved = []

    def stop(source, target):
        moved.append(Path(target).name)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "config.json", "model.safetensors", overwrite=True)
    assert moved == [RECORD]
    assert names(tmp_path) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "config.json").write_text("old")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(FileNotFoundError), replaced_folder(folder, SAVED, overwrite=True) as half:
            (half / "nowhere" / "config.json").write_text("new")
    assert names(tmp_path) == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "old"


def test_nothing_is_written_beside_the_folder(tmp_path):
    """It may be a mount point, a link to another disk, or in a folder that others own."""
    there = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=there) as elsewhere:
        (tmp_path / "link").symlink_to(elsewhere)
        with replaced_folder(tmp_path / "link", SAVED) as half:
            assert names(tmp_path) == ["link"]
            assert half.parent == tmp_path / "link"
            (half / "config.json").write_text("new")
        assert names(Path(elsewhere)) == ["config.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruningError, match="file: want a folder, found a file"):
        write(tmp_path / "file")


NEW = ("config.json", "model.safetensors", "vocab.txt")


def test_what_the_same_means_wrote_is_replaced_whole(tmp_path):
    write(tmp_path, *NEW, "merges.txt", text="old")
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, *NEW)
    assert texts(tmp_path) == {**dict.fromkeys(NEW, "new"), "notes.txt": "mine"}  # merges.txt would be half of the old


def refused(folder, match, **how):
    before = {path.name: path.read_text() for path in folder.iterdir()}
    with pytest.raises(PruningError, match=match) as caught:
        write(folder, *NEW, **how)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    write(folder, *NEW, overwrite=True, **how)
    assert {name: texts(folder)[name] for name in NEW} == dict.fromkeys(NEW, "new")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt"])
def test_what_something_else_wrote_is_not(tmp_path, name):
    (tmp_path / name).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path, f"holds {name}, which save_pretrained did not write .*; give another folder, or overwrite=True")
    assert texts(tmp_path)["notes.txt"] == "mine"


def test_what_was_changed_since_is_not(tmp_path):
    write(tmp_path, *NEW, text="old")
    (tmp_path / "model.safetensors").write_text("trained further")
    refused(tmp_path, "holds model.safetensors, which save_pretrained did not write or which changed since")


def test_what_another_command_wrote_is_not(tmp_path):
    write(tmp_path, *NEW, by=EXPORTED)
    refused(tmp_path, "holds config.json, model.safetensors, which save_pretrained did not write")
    refused(tmp_path, "holds config.json, model.safetensors, which export did not write", by=EXPORTED)


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"by": "save_pretrained"}', '{"by": "save_pretrained", "files": 3}']
)
def test_a_damaged_record_is_none(tmp_path, record):
    write(tmp_path, *NEW)
    (tmp_path / RECORD).write_text(record)
    refused(tmp_path, "holds config.json, model.safetensors, which")


def test_a_run_that_was_interrupted_is_made_again(tmp_path, monkeypatch):
    write(tmp_path, *NEW, text="old")
    replace, moved = os.replace, []

    def stop(source, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, *NEW)
    monkeypatch.undo()
    assert "config.json" not in names(tmp_path)
    write(tmp_path, *NEW)
    assert texts(tmp_path) == dict.fromkeys(NEW, "new")


def test_a_compressed_model_that_others_saved_is_replaced_by_one(tmp_path):
    """As transformers' own save_pretrained does, or an earlier version, which left no record."""
    config = '{"quantization_config": {"quant_method": "trisparse"}}'
    for name, text in (("config.json", config), ("model.safetensors", "old"), ("generation_config.json", "old")):
        (tmp_path / name).write_text(text)
    (tmp_path / "vocab.txt").write_text("mine")
    with pytest.raises(PruningError, match="holds config.json, model.safetensors, which export"):
        write(tmp_path, "config.json", "model.safetensors", by=EXPORTED)
    with pytest.raises(PruningError, match="holds vocab.txt, which save_pretrained"):
        write(tmp_path, *NEW)
    write(tmp_path, "config.json", "model.safetensors")
    assert texts(tmp_path) == {"config.json": "new", "model.safetensors": "new", "vocab.txt": "mine"}
