"""Uploads, to something that stands in for the hub: what goes, and one line when it can't."""

import pytest

from trisparse import PruningError, compress, push_to_hub, save_pretrained

transformers = pytest.importorskip("transformers")
import huggingface_hub  # noqa: E402 (comes with transformers)
from huggingface_hub.utils import filter_repo_objects  # noqa: E402


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub; `hub["error"]` is raised by the next upload."""
    asked = {"error": None}

    class Api:
        def __init__(self, token=None):
            asked["token"] = token

        def create_repo(self, repo_id, private=None, exist_ok=False):
            asked["repo"] = (repo_id, private, exist_ok)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, repo_id, folder_path, allow_patterns, ignore_patterns, commit_message):
            if asked["error"]:
                raise asked["error"]
            files = [str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file()]
            kept = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
            asked["files"] = sorted(kept)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return asked


@pytest.fixture
def small(make_bert, tmp_path):
    model = make_bert()
    compress(model, prefer="memory", measure=False)
    save_pretrained(model, tmp_path / "small")
    return tmp_path / "small"


def test_all_but_hidden_files_go(hub, small):
    (small / "tokenizer.json").write_text("{}")
    (small / "1_Pooling").mkdir()
    (small / "1_Pooling" / "config.json").write_text("{}")
    (small / ".cache").mkdir()
    (small / ".cache" / "secret").write_text("")
    (small / "1_Pooling" / ".DS_Store").write_text("")
    url = push_to_hub(small, "me/tiny", token="hf_x", private=True)
    assert url == "https://huggingface.co/me/tiny"
    assert (hub["token"], hub["repo"]) == ("hf_x", ("me/tiny", True, True))
    assert hub["files"] == ["1_Pooling/config.json", "README.md", "config.json", "model.safetensors", "tokenizer.json"]


def test_a_refusal_is_one_line_and_the_files_stay(hub, small):
    hub["error"] = OSError("403 you may not\nand a page of details")
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    with pytest.raises(PruningError) as error:
        push_to_hub(str(small), "me/tiny")
    assert str(error.value) == f"me/tiny was not uploaded: 403 you may not; all files are in {small}"
    assert {path.name: path.read_bytes() for path in small.iterdir()} == before
    hub["error"] = None
    assert push_to_hub(small, "me/tiny")


def test_nothing_damaged_is_sent(hub, small, make_bert, tmp_path):
    weights = small / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(PruningError, match=r"model.safetensors: is not the file that was saved with this config"):
        push_to_hub(small, "me/tiny")
    with pytest.raises(PruningError, match="want a folder with config.json, found none"):
        push_to_hub(tmp_path / "none", "me/tiny")
    save_pretrained(make_bert(), tmp_path / "dense")
    (tmp_path / "dense" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(PruningError, match="model.safetensors: is truncated or damaged"):
        push_to_hub(tmp_path / "dense", "me/tiny")
    assert "repo" not in hub
