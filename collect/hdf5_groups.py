"""Finds the files, the groups and the published split of HDF5 data, for collect/hdf5.py."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import h5py
import numpy as np

from worldmodel.utils.errors import UserError

SUFFIXES = (".hdf5", ".h5", ".hdf")
MOST_KEYS = 20
"""Keys that a message lists."""
MASKS = {"mask/train": 0, "mask/valid": 1}
"""robomimic's lists of the episodes of a split, and the number of that split in a store."""


def list_files(source: Path) -> list[Path]:
    """The file, or all files of the folder at any depth."""
    if source.is_file():
        return [source]
    return sorted((p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()), key=by_number)


def by_number(name: object) -> list[tuple[bool, int, str]]:
    """Sort key: demo_2 comes before demo_10."""
    words = re.split(r"(\d+)", str(name))
    return [(word.isdigit(), int(word) if word.isdigit() else 0, word) for word in words]


def groups(file: h5py.File, pattern: str) -> list[h5py.Group]:
    """The groups whose name fits a pattern."""
    found: list[h5py.Group] = [file]
    for part in filter(None, pattern.split("/")):
        inside = [g[key] for g in found for key in sorted(g, key=by_number) if fnmatchcase(key, part)]
        found = [group for group in inside if isinstance(group, h5py.Group)]
    if not found:
        raise UserError(f"no group matches {pattern!r}, only {', '.join(list(file)[:MOST_KEYS])}; set --episodes")
    return found


def published_split(file: h5py.File, found: list[h5py.Group]) -> dict[str, int]:
    """The split of each group (its path) in a robomimic file; empty if the file does not have both lists.

    Raises:
        UserError: A group is in both lists or in none.
    """
    if not all(isinstance(file.get(mask), h5py.Dataset) for mask in MASKS):
        return {}
    names = {split: {name.decode() for name in np.asarray(file[mask])} for mask, split in MASKS.items()}
    splits = {}
    for group in found:
        name = str(group.name).rsplit("/", 1)[-1]
        of = [split for split, members in names.items() if name in members]
        if len(of) != 1:
            raise UserError(
                f"{name} is in {'both' if of else 'neither'} of {' and '.join(MASKS)}; repair these lists, or delete "
                "them for a random split"
            )
        splits[str(group.name)] = of[0]
    return splits


def known(group: h5py.Group) -> str:
    """The keys of a group's arrays, for messages."""
    keys: list[str] = []
    group.visititems(lambda key, value: keys.append(key) if isinstance(value, h5py.Dataset) else None)
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return (", ".join(keys[:MOST_KEYS]) or "no arrays") + more
