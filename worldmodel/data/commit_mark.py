"""The commit record of a store: what the store contains, and checksums to detect damage.

    format, world, settings, split_seed    what was recorded; the same in every commit
    commit.episodes, rows, progress        how much was recorded
    commit.arrays.<name>.metadata          digest of the array's `zarr.json`
    commit.arrays.<name>.crc32c            CRC-32C of all its committed rows
    checksum                               digest of all of the above

The record is stored as the attributes of the root's `zarr.json`. The chunks of an array have checksums, but these do
not detect a file that was replaced by an older version of itself, and a single bit of metadata can change how every
number is read. So the record covers both the metadata and the content. The CRC of the rows is extended by each append.
It is checked, at ten gigabytes a second, when a whole array is decoded or its cache is mapped. Reading a few rows does
not check it, and so would not detect an old file, for example in a copy that was made while the store grew.

The number of rows in an array's `zarr.json` is not part of its digest, because an append changes it before the record
is written.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import google_crc32c
import numpy as np

from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.errors import UserError
from worldmodel.utils.json_schema import from_json
from worldmodel.utils.settings import Range

FORMAT = 2
EPISODE_ENDS = "meta/episode_ends"
CURE = "restore it, or delete the store and collect again"


@dataclass(frozen=True, kw_only=True)
class ArrayContents:
    """Checksums of an array at a commit."""

    metadata: str
    """Digest of its `zarr.json`."""
    crc32c: Annotated[int, Range(0, 2**32 - 1)]
    """CRC-32C of its rows."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The state of a store at a commit."""

    episodes: int = 0
    """Number of episodes."""
    rows: int = 0
    """Number of rows of all episodes together."""
    arrays: dict[str, ArrayContents] = field(default_factory=dict)
    """Checksums of arrays by their path in the store, such as data/frames or meta/episode_ends."""
    progress: Any = None
    """JSON that was appended with the last episode."""


@dataclass(frozen=True, kw_only=True)
class CommitMark:
    """The commit record of a store."""

    world: EnvSpec
    """The recorded environment; the name of this field is part of the file format."""
    settings: dict[str, Any]
    """How it was recorded."""
    split_seed: int
    """Seed of the split into train, valid and test."""
    commit: Commit
    """The last commit."""

    def __post_init__(self) -> None:
        if self.split_seed < 0:
            raise UserError(f"split_seed must be at least 0, not {self.split_seed}")
        if self.commit.episodes and EPISODE_ENDS not in self.commit.arrays:
            raise UserError(f"commit.arrays has no {EPISODE_ENDS}")

    def to_json(self) -> dict[str, Any]:
        """The record as it is written, without the checksum."""
        values = {"format": FORMAT, **asdict(self), "world": self.world.to_json()}
        return json.loads(json.dumps(values))  # with lists for tuples, and strings for all keys


def to_attributes(mark: CommitMark) -> dict[str, Any]:
    """The attributes of the root group: the record and its checksum."""
    values = mark.to_json()
    return values | {"checksum": json_digest(values)}


def from_attributes(path: str, attributes: dict[str, Any]) -> CommitMark:
    """Read the commit record from the attributes of the root group.

    Args:
        path: Path of the store, for messages.
        attributes: The attributes.

    Raises:
        UserError: If it is not a store, has another format, or is damaged.
    """
    version = attributes.get("format")
    if type(version) is not int:
        raise UserError(f"{path} is not a store of this toolkit; give another path")
    if version != FORMAT:
        cure = "collect it again" if version < FORMAT else "update the toolkit, or restore the store"
        raise UserError(f"{path} is a store of format {version}, but this version reads format {FORMAT}; {cure}")
    values = {name: value for name, value in attributes.items() if name != "checksum"}
    if attributes.get("checksum") != json_digest(values):
        raise UserError(f"{path}: zarr.json is damaged (its content does not match its checksum); {CURE}")
    del values["format"]
    return from_json(CommitMark, values, f"{path}: zarr.json", f"update the toolkit, {CURE}")


def json_digest(values: dict[str, Any]) -> str:
    """A digest of JSON that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def metadata_digest(document: dict[str, Any]) -> str:
    """The digest of an array's `zarr.json`, without the number of rows."""
    return json_digest(document | {"shape": document["shape"][1:]})


def extend_crc32c(crc32c: int, rows: np.ndarray) -> int:
    """Extend the CRC-32C of an array by more rows."""
    return google_crc32c.extend(crc32c, np.ascontiguousarray(rows))
