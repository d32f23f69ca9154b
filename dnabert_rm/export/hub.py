"""Upload an exported folder to the Hugging Face hub.

huggingface_hub reads the hub's address from `HF_ENDPOINT`, and the token from `HF_TOKEN` or from the file that
`hf auth login` writes. See docs/predictions.md.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dnabert_rm.model.pretrained import PROVENANCE_NAME
from dnabert_rm.utils.errors import DataError, HubError
from dnabert_rm.utils.files import read_json, read_json_or_empty

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
EXPORT_FILES = ("model*.safetensors", "model.safetensors.index.json", "vocab.txt", "tokenizer*")
"""Patterns of the files that an export may write. Those of an earlier upload are deleted if they are not replaced.

Otherwise transformers would load an earlier `model.safetensors` instead of new shards.
"""


@dataclass(frozen=True)
class HubTarget:
    """A repository and branch of the hub. The flags of `export` and `push` have the same meaning."""

    repo: str
    """OWNER/NAME."""
    private: bool | None = None
    """Visibility of a new repository, and required visibility of an existing one. None: the owner's default."""
    revision: str = MAIN

    def command(self, folder: Path) -> str:
        """Return the command that uploads `folder` to this target."""
        words = ["dnabert-rm", "push", str(folder), self.repo]
        if self.private is not None:
            words += ["--hub-private", str(self.private).lower()]
        if self.revision != MAIN:
            words += ["--hub-revision", self.revision]
        return shlex.join(words)


@dataclass(frozen=True)
class Upload:
    """A finished upload."""

    url: str
    """Web page of the branch."""
    commit: str
    """Full id of the branch's last commit."""


def repo_problems(repo: str, flag: str) -> Iterator[str]:
    """Yield an error message that starts with `flag` if `repo` can't be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1 or "" in repo.split("/"):
        yield f"{flag} {repo}: must be OWNER/NAME, such as my-lab/dna-bert"
        return
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        yield f"{flag} {repo}: {' '.join(str(error).split())}"


def check_export_folder(folder: Path) -> None:
    """Raise `DataError` unless `folder` is a complete export. Weight files are opened, but their tensors not read."""
    from safetensors import SafetensorError, safe_open

    if not (folder / PROVENANCE_NAME).is_file() or not (folder / "config.json").is_file():
        raise DataError(f"{folder}: is not an export; run `dnabert-rm export RUN --output HFDIR` first")
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index).get("weight_map", {}).values()) if index.is_file() else {"model.safetensors"}
    for name in sorted(shards):
        try:
            with safe_open(folder / name, framework="np"):  # fails if the file is shorter than its header says
                pass
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / name}: cannot be read ({error}); export again to a new folder") from None


def push(folder: Path, target: HubTarget) -> Upload:
    """Upload all files of `folder` in one commit. Create the repository and the branch if they are missing.

    Files of an earlier upload that an export writes (`EXPORT_FILES`) are replaced or deleted, and other files are kept.

    Raises `HubError` if the hub can't be reached or refuses the upload. `folder` is never changed.
    """
    from huggingface_hub import HfApi

    step = read_json_or_empty(folder / PROVENANCE_NAME).get("step")
    with _as_hub_error(folder, target):
        api = HfApi()
        _prepare_branch(api, target)
        commit = api.upload_folder(
            repo_id=target.repo,
            folder_path=folder,
            revision=target.revision,
            commit_message="Upload an export" if step is None else f"Upload the export of step {step}",
            delete_patterns=list(EXPORT_FILES),
        )
        return Upload(f"{api.endpoint}/{target.repo}/tree/{target.revision}", commit.oid)


def _prepare_branch(api: HfApi, target: HubTarget) -> None:
    """Create the repository and the branch if they are missing. Raise `_UploadError` if nothing may be uploaded."""
    from huggingface_hub import get_token, is_offline_mode

    if is_offline_mode():
        raise _UploadError("offline mode is on", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if get_token() is None:
        raise _UploadError("no token", "set HF_TOKEN to a token with write permission, or run `hf auth login`")
    api.create_repo(target.repo, private=target.private, exist_ok=True)
    if target.private is not None:
        # The hub ignores the wanted visibility of a repository that exists.
        found = bool(api.model_info(target.repo).private)
        if found != target.private:
            raise _UploadError(
                f"the repository exists and is {'private' if found else 'public'}",
                "change this in its settings, choose another OWNER/NAME, or leave out --hub-private",
            )
    if target.revision != MAIN:
        api.create_branch(target.repo, branch=target.revision, exist_ok=True)


class _UploadError(Exception):
    """Reason why nothing was uploaded, and what the user should do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.reason, self.advice = reason, advice


@contextlib.contextmanager
def _as_hub_error(folder: Path, target: HubTarget) -> Iterator[None]:
    """Convert every error of an upload into a `HubError`, which says how to repeat the upload."""
    try:
        yield
    # The libraries for HTTP, for the hub's storage and for threads have no common base class of errors.
    except Exception as error:
        cause = error if isinstance(error, _UploadError) else _explain(error, target)
        raise HubError(
            f"{folder}: the export is complete, but not uploaded to {target.repo} ({cause.reason}); "
            f"{cause.advice}, then repeat only the upload: {target.command(folder)}"
        ) from None


def _explain(error: BaseException, target: HubTarget) -> _UploadError:
    """Return the reason of an upload's error, and advice. Errors of an HTTP answer are distinguished by its status."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading" a file
        error = error.__cause__
    if not isinstance(error, HfHubHTTPError):
        # A server that is not a hub answers with a web page in place of JSON.
        is_network = isinstance(error, OSError | json.JSONDecodeError) or type(error).__module__.startswith("http")
        advice = "check the network and HF_ENDPOINT" if is_network else "see the reason above"
        return _UploadError(f"{type(error).__name__}: {_one_line(error)}", advice)
    status = error.response.status_code
    owner = target.repo.partition("/")[0]
    known = {
        401: _UploadError("the hub refused the token", "set HF_TOKEN to a valid token with write permission"),
        403: _UploadError(
            f"the token has no permission to write to {owner}", "use a token with write permission or another owner"
        ),
        404: _UploadError(
            f"the hub did not find {target.repo}", "check OWNER/NAME, and that the token may write to it"
        ),
    }
    other = _UploadError(f"HTTP status {status}: {error.server_message or _one_line(error)}", "see the reason, or wait")
    return known.get(status, other)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
