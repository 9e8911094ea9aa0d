"""Upload a saved model to the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trisparse.prune.deploy.checkpoint import check_folder
from trisparse.prune.deploy.checkpoint_files import read_config, read_headers, weight_files
from trisparse.prune.deploy.layer_spec import is_ours
from trisparse.prune.errors import PruningError


def push_to_hub(folder: str | Path, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """Upload a folder that `save_pretrained` wrote, all files but hidden ones.

    The repository is made if it is not there, and what it holds under other names stays. Nothing here changes, so that
    after a failure the same call tries again.

    Args:
        folder: a transformers checkpoint, compressed or not.
        repo_id: `owner/name`.
        token: of the upload; by default the one you are logged in with.
        private: of a new repository.

    Returns:
        Its address.

    Raises:
        PruningError: a file that is missing or damaged, before anything is sent; the hub refuses or can't be reached.
    """
    folder = Path(folder)
    if is_ours(read_config(folder).get("quantization_config")):
        check_folder(folder)
    else:
        read_headers(weight_files(folder))
    return upload(folder, repo_id, token, private, "Upload of a pruned model", ignore=[".*", "*/.*"])


def upload(
    folder: Path, repo_id: str, token: str | None, private: bool | None, message: str,
    allow: Sequence[str] | None = None, ignore: Sequence[str] | None = None,
) -> str:  # fmt: skip
    """Upload what fits `allow` and not `ignore`, in one commit; as `push_to_hub`, without its checks."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, allow_patterns=None if allow is None else list(allow),
            ignore_patterns=None if ignore is None else list(ignore), commit_message=message,
        )  # fmt: skip
    except Exception as error:  # of the network, the name, the rights to it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PruningError(f"{repo_id} was not uploaded: {reason}; all files are in {folder}") from None
    return str(url)
