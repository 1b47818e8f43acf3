"""Runs on the Hugging Face Hub: `hf://owner/name`, or `hf://owner/name@revision` for a branch, tag or commit.

huggingface_hub downloads into its own cache, where a run is found again without a network. Only the tensors and the
JSON of a run are downloaded, no pickle and no code. Each tensor file has a digest of its bytes. It is checked here,
because the fix for a damaged file in the cache differs from that for one in a run folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldmodel.utils import tensor_file
from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.extras import extra
from worldmodel.utils.settings import short_repr

TENSOR_FILES = ("checkpoint.safetensors", "contexts.safetensors")
DOWNLOADED = [f"*{name}" for name in (*TENSOR_FILES, "config.json")]
"""Files that are downloaded; the rest of a repository stays there."""
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[\w.-]+"
NAME = re.compile(rf"hf:/{{1,2}}({REPOSITORY})(?:@([\w./-]+))?", re.ASCII)
"""A single slash is accepted too, because `Path` collapses the two."""


def download(name: str) -> Path:
    """The local folder of a run on the hub; it is downloaded if the cache does not have it.

    Args:
        name: `hf://owner/name` or `hf://owner/name@revision`.

    Raises:
        UserError: The name is invalid, there is no such repository, it has no run, it cannot be reached and is not in
            the cache, a file is damaged, or huggingface_hub is not installed.
    """
    with extra("hub"):
        from huggingface_hub import snapshot_download

    found = NAME.fullmatch(name)
    if not found:
        raise UserError(
            f"{short_repr(name)} is not a run on the hub; write hf://owner/name or hf://owner/name@revision"
        )
    with hub_errors(name):
        folder = Path(snapshot_download(found[1], revision=found[2], allow_patterns=DOWNLOADED))
    files = [path for file in TENSOR_FILES for path in sorted(folder.rglob(file))]
    if not files:
        raise UserError(f"{name} has no {TENSOR_FILES[0]}, so it is not a run; give one that train/push.py uploaded")
    for path in files:
        tensor_file.read(path, f"delete {folder.parents[1]}, and run the same command to download it again")
    return folder


def upload(files: dict[str, Path], card: str, repo: str, private: bool) -> None:
    """Upload files to a repository in one commit. A README.md that it already has stays.

    Args:
        files: Path in the repository -> local file.
        card: Text of README.md.
        repo: `owner/name`; the repository is made if it does not exist.
        private: Whether a new repository is private.

    Raises:
        UserError: The name is invalid, the hub refuses or cannot be reached, or huggingface_hub is not installed.
    """
    with extra("hub"):
        from huggingface_hub import CommitOperationAdd, HfApi

    if not re.fullmatch(REPOSITORY, repo, re.ASCII):
        raise UserError(f"{short_repr(repo)} is not the name of a repository; write owner/name")
    content: dict[str, Path | bytes] = {**files}
    api = HfApi()
    with hub_errors(f"hf://{repo}"):
        api.create_repo(repo, private=private, exist_ok=True)
        if not api.file_exists(repo, "README.md"):
            content["README.md"] = card.encode()
        operations = [CommitOperationAdd(name, source) for name, source in content.items()]
        api.create_commit(repo, operations, commit_message="Upload a world model")


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn any error of a request to the hub into a `UserError` that starts with the name of the run."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the repository has no such revision; give a branch, tag or commit of it") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name} does not exist or is private; check the name, or log in with `hf auth login`"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{name} is not a valid name ({one_line(error)}); give another one") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{name} is not in the cache, and the hub cannot be reached; run it again with a network connection"
        ) from None
    except errors.HfHubHTTPError as error:
        cure = "log in with `hf auth login`" if error.response.status_code in (401, 403) else "try again later"
        raise UserError(f"{name}: the hub refused ({one_line(error)}); {cure}") from None
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise UserError(
            f"{name}: the hub cannot be reached ({one_line(error)}); run it again with a network connection"
        ) from None
