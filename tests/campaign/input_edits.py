"""Files that are whole, and hold something else than they should: edits that no checksum can tell."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from collect.tfrecord import masked_crc

ODD: tuple[Any, ...] = (None, -1, 0, 2**70, 1e300, "", "text", "\udcff", [], [[]], {}, True, "nan")


def edit_json(rng: np.random.Generator, path: Path) -> None:
    """Some value, at any depth, also of JSON within a string, becomes something odd, or goes."""
    path.write_text(json.dumps(edited(rng, json.loads(path.read_text()))))


def edited(rng: np.random.Generator, value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "{[" and value:
        return json.dumps(edited(rng, json.loads(value)))
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return ODD[rng.integers(len(ODD))]
    key = rng.choice(list(value)) if isinstance(value, dict) else int(rng.integers(len(value)))
    if rng.random() < 0.1:
        del value[key]
    else:
        value[key] = edited(rng, value[key])
    return value


def odd_array(rng: np.random.Generator, array: np.ndarray) -> Any:
    """Like another, but for its type, its shape or a number."""
    array = np.asarray(array)
    shape = list(array.shape) or [1]
    shape[rng.integers(len(shape))] = int(rng.integers(0, 12))
    loud = array.astype(np.float64) if array.dtype.kind in "fiub" else np.zeros(shape)
    if loud.size:
        loud.flat[rng.integers(loud.size)] = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1, 300])
    odd = (loud, np.zeros(shape, array.dtype), np.ones(shape), b"text", np.zeros((), array.dtype), array[..., None], 7)
    return odd[rng.integers(len(odd))]


def edit_hdf5(rng: np.random.Generator, path: Path) -> None:
    """An array becomes another, a group, or goes; an attribute becomes odd."""
    with h5py.File(path, "a") as file:
        arrays: list[str] = []
        file.visititems(lambda name, item: arrays.append(name) if isinstance(item, h5py.Dataset) else None)
        name = str(rng.choice(arrays))
        array, what = file[name][()], rng.random()
        if what < 0.2:
            file[name].attrs["image_format"] = str(rng.choice(["BGR", "YUV", ""])) if what < 0.1 else np.arange(3)
            return
        del file[name]
        if what < 0.3:
            file.create_group(name)
        elif what < 0.9:
            file[name] = odd_array(rng, array)


def edit_tfrecord(rng: np.random.Generator, path: Path) -> None:
    """Bytes of the data become others, under a checksum that is right; half of the time where names and numbers are."""
    data = bytearray(path.read_bytes()[12:-4])
    for _ in range(rng.integers(1, 4)):
        at = data.find(b"/action", int(rng.integers(len(data)))) if rng.random() < 0.5 else int(rng.integers(len(data)))
        data[at + int(rng.integers(20)) if at >= 0 else 0] = int(rng.integers(256))
    length = struct.pack("<Q", len(data))
    crc = struct.pack("<I", masked_crc(length)), struct.pack("<I", masked_crc(bytes(data)))
    path.write_bytes(length + crc[0] + bytes(data) + crc[1])


def edit_lines(rng: np.random.Generator, path: Path) -> None:
    """Lines go, come twice, change places or lose what stands behind the first space or tab."""
    lines = path.read_text().splitlines()
    i, j = rng.integers(len(lines), size=2)
    what = rng.integers(4)
    if what == 0:
        del lines[i]
    elif what == 1:
        lines.insert(i, lines[j])
    elif what == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines[i] = lines[i].replace("\t", " ").partition(" ")[0]
    path.write_text("".join(f"{line}\n" for line in lines))


EDITS: dict[str, Callable[[np.random.Generator, Path], None]] = {
    ".json": edit_json,
    ".hdf5": edit_hdf5,
    ".tfrecords": edit_tfrecord,
    ".txt": edit_lines,
    ".tsv": edit_lines,
}
