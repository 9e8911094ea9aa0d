"""A folder is replaced whole: what goes, what stays, and what is left when that fails."""

import os
import tempfile
from pathlib import Path

import pytest

from trisparse import PruningError
from trisparse.prune.deploy.replaced_folder import replaced_folder


def write(folder, *names):
    with replaced_folder(folder) as half:
        for name in names:
            (half / name).write_text("new")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
    write(tmp_path, "model.safetensors", "config.json")
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
        write(tmp_path, "config.json", "model.safetensors")
    assert moved == ["model.safetensors"]
    assert names(tmp_path) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "config.json").write_text("old")
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(FileNotFoundError), replaced_folder(folder) as half:
            (half / "nowhere" / "config.json").write_text("new")
    assert names(tmp_path) == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "old"


def test_nothing_is_written_beside_the_folder(tmp_path):
    """It may be a mount point, a link to another disk, or in a folder that others own."""
    there = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=there) as elsewhere:
        (tmp_path / "link").symlink_to(elsewhere)
        with replaced_folder(tmp_path / "link") as half:
            assert names(tmp_path) == ["link"]
            assert half.parent == tmp_path / "link"
            (half / "config.json").write_text("new")
        assert names(Path(elsewhere)) == ["config.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PruningError, match="file: want a folder, found a file"):
        write(tmp_path / "file")
