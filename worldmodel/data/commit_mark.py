"""The commit mark of a store: what it holds, and how to tell whether that is still what was written.

    format, world, settings, split_seed    what was recorded, the same from the first commit to the last
    commit.episodes, rows, progress        how far it is
    commit.arrays.<name>.metadata          digest of the array's own `zarr.json`
    commit.arrays.<name>.crc32c            CRC-32C of all its committed rows, one after another
    checksum                               of all of the above

It is the attributes of the root's `zarr.json`. The chunks of an array have checksums of their own, but nothing says
that a whole file is not an old one, and one bit of metadata can turn every number into another. So the mark vouches
for everything that tells how to read, and for what was read. The CRC of the rows grows with each append from the one
before, and whoever decodes a whole array, or maps its cache, compares it at ten gigabytes a second. Reading a few rows
does not: it would not find an old file, such as one in a copy that was made while the store grew.

The number of rows in an array's `zarr.json` is no part of its digest: an append changes it before the mark is written.
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
    """What an array held at a commit."""

    metadata: str
    crc32c: Annotated[int, Range(0, 2**32 - 1)]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """How far a store is."""

    episodes: int = 0
    rows: int = 0
    arrays: dict[str, ArrayContents] = field(default_factory=dict)
    """By their names in the store: data/frames, meta/episode_ends."""
    progress: Any = None
    """What came with the last episode."""


@dataclass(frozen=True, kw_only=True)
class CommitMark:
    """What a store holds."""

    world: EnvSpec
    """Named as in stores that were recorded before the class was."""
    settings: dict[str, Any]
    split_seed: int
    commit: Commit

    def __post_init__(self) -> None:
        if self.split_seed < 0:
            raise UserError(f"split_seed must be at least 0, not {self.split_seed}")
        if self.commit.episodes and EPISODE_ENDS not in self.commit.arrays:
            raise UserError(f"commit.arrays has no {EPISODE_ENDS}")

    def to_json(self) -> dict[str, Any]:
        """As it was written, or will be, but for the checksum."""
        values = {"format": FORMAT, **asdict(self), "world": self.world.to_json()}
        return json.loads(json.dumps(values))  # with lists for tuples, and strings for all keys


def to_attributes(mark: CommitMark) -> dict[str, Any]:
    """The attributes of the root: the mark and its checksum."""
    values = mark.to_json()
    return values | {"checksum": json_digest(values)}


def from_attributes(path: str, attributes: dict[str, Any]) -> CommitMark:
    """The mark of a store from the attributes of its root."""
    version = attributes.get("format")
    if type(version) is not int:
        raise UserError(f"{path} is no store of this toolkit; give another path")
    if version != FORMAT:
        cure = "collect it again" if version < FORMAT else "update the toolkit, or restore the store"
        raise UserError(f"{path} is a store of format {version}, and this version reads format {FORMAT}; {cure}")
    values = {name: value for name, value in attributes.items() if name != "checksum"}
    if attributes.get("checksum") != json_digest(values):
        raise UserError(f"{path}: zarr.json is damaged (its checksum is that of other values); {CURE}")
    del values["format"]
    return from_json(CommitMark, values, f"{path}: zarr.json", f"update the toolkit, {CURE}")


def json_digest(values: dict[str, Any]) -> str:
    """A digest of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def metadata_digest(document: dict[str, Any]) -> str:
    """The digest of an array's `zarr.json`."""
    return json_digest(document | {"shape": document["shape"][1:]})


def extend_crc32c(crc32c: int, rows: np.ndarray) -> int:
    """The CRC of an array after more rows."""
    return google_crc32c.extend(crc32c, np.ascontiguousarray(rows))
