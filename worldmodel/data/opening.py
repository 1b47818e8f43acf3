"""Opens the store that a script is given, or all stores that a manifest names (`joined`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from worldmodel.data.joined import MANIFEST, JoinedStore
from worldmodel.data.shard_cache import ShardCache
from worldmodel.data.storage import open_storage, read_object, write_beside
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError, is_url


def open_store(path: str | Path, shards: ShardCache | None = None) -> Store:
    """Open a store, or all stores that a manifest names.

    Args:
        path: A folder, or any URL that fsspec supports.
        shards: As in `Store`.

    Raises:
        UserError: If there is no store, the manifest is damaged, or a store cannot be joined.
    """
    address = str(path)
    found = read_object(open_storage(address), MANIFEST)
    if found is None:
        return Store(path, shards)
    try:
        names = json.loads(found)["stores"]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(names)
    except (ValueError, TypeError, KeyError):
        raise UserError(f'{address}/{MANIFEST} must have {{"stores": [names]}}; write it anew') from None
    return JoinedStore(address, [Store(part_address(address, name), shards) for name in names])


def part_address(path: str, name: str) -> str:
    """The address of a store that the manifest at `path` names."""
    return name if is_url(name) or Path(name).is_absolute() else f"{path.rstrip('/')}/{name}"


def check_joinable(path: str) -> None:
    """`UserError` if there is a store where a manifest and the stores that it names would go."""
    if read_object(open_storage(path), "zarr.json") is not None:
        raise UserError(f"{path} is a store itself, so others cannot be put into it; use another folder")


def write_manifest(path: str, names: Sequence[str]) -> None:
    """Write the manifest of a folder of stores, or of a URL; `UserError` if it cannot be written."""
    check_joinable(path)
    write_beside(path, MANIFEST, json.dumps({"stores": list(names)}, indent=1).encode())


def open_tokens(run: Path) -> Store:
    """The codes of a run folder.

    Raises:
        UserError: If there are none yet.
    """
    path = run / "tokens.zarr"
    if not path.exists():
        raise UserError(f"{path} does not exist; run train/tokens.py --run {run} first")
    return Store(path)


def open_frame_store(tokens: Store, path: str | Path, shards: ShardCache | None = None) -> Store:
    """Open the store of frames that a store of codes was encoded from.

    Args:
        tokens: Store of codes.
        path: Store of frames.
        shards: As in `Store`.

    Raises:
        UserError: If the codes were encoded from other frames.
    """
    store = open_store(path, shards)
    if tokens.settings["data"] != store.settings:
        raise UserError(
            f"{tokens.path} was encoded from other frames than those of {path}; give --data the store that it was "
            "encoded from, or encode this one with train/tokens.py --restart"
        )
    return store
