"""The commit in a run's results: that of the checkout whose code ran, and of no other."""

import subprocess

import pytest

pytest.importorskip("transformers")
from trisparse.prune.glue.versions import commit_of, versions


def git(folder, *words):
    names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", "-C", folder, *names, *words], check=True, capture_output=True, text=True).stdout


def test_a_commit_is_told_where_the_file_is_tracked(tmp_path):
    file, beside = tmp_path / "code.py", tmp_path / "installed.py"
    file.write_text("a = 1\n")
    assert commit_of(file) is None, "no checkout"
    git(tmp_path, "init")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "one")
    beside.write_text("b = 1\n")
    head = git(tmp_path, "rev-parse", "HEAD").strip()
    assert head.startswith(commit_of(file))
    assert commit_of(beside) is None, "a package that lies untracked inside somebody's checkout is not of its commit"
    link = tmp_path / "link.py"
    link.symlink_to(file)
    assert head.startswith(commit_of(link))
    file.write_text("a = 2\n")
    assert commit_of(file).endswith("-dirty")


def test_git_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit" not in versions()
    assert "torch" in versions()
