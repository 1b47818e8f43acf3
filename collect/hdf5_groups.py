"""Finds the files, the groups and the published split of HDF5 data, for collect/hdf5.py."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

import h5py

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
        has = ", ".join(list(file)[:MOST_KEYS])
        raise UserError(f"no group matches {pattern!r}; the file has {has}; set --episodes")
    return found


def published_split(file: h5py.File, found: list[h5py.Group]) -> dict[str, int]:
    """The split of each group, by its path, in a robomimic file; empty if the file does not have both lists.

    Raises:
        UserError: A group is in both lists or in none, or a list is not one of names.
    """
    lists = {mask: file.get(mask) for mask in MASKS}
    if not all(isinstance(names, h5py.Dataset) for names in lists.values()):
        return {}
    for mask, names in lists.items():
        if names.ndim != 1 or h5py.check_string_dtype(names.dtype) is None:
            raise UserError(f"{mask} is not a list of names; repair it, or delete it")
    members = {mask: set(names.asstr()[()]) for mask, names in lists.items()}
    splits = {}
    for group in found:
        name = str(group.name).rsplit("/", 1)[-1]
        in_lists = [mask for mask in MASKS if name in members[mask]]
        if len(in_lists) > 1:
            raise UserError(f"{name} is in both mask/train and mask/valid; repair these lists, or delete them")
        if not in_lists:
            raise UserError(f"{name} is neither in mask/train nor in mask/valid; add it to one, or delete both lists")
        splits[str(group.name)] = MASKS[in_lists[0]]
    return splits


def known(group: h5py.Group) -> str:
    """The keys of a group's arrays, for messages."""
    keys: list[str] = []
    group.visititems(lambda key, value: keys.append(key) if isinstance(value, h5py.Dataset) else None)
    more = f" and {len(keys) - MOST_KEYS} more" if len(keys) > MOST_KEYS else ""
    return (", ".join(keys[:MOST_KEYS]) or "no arrays") + more
