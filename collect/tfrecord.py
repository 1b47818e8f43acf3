"""Reads TFRecord files of `tf.train.Example` without TensorFlow.

A file is a sequence of records: length (8 bytes, little-endian), checksum of the length, data, checksum of the data. A
checksum is a CRC-32C, rotated and shifted by a constant. Both are checked: a flipped bit in a raw image would go
unnoticed, and a flipped bit in a length would read at a wrong offset.

Only the parts of protocol buffers that an Example uses are supported: messages, bytes, floats and integers, packed or
not. The context of a SequenceExample has the same field numbers as the features of an Example, so it is read too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from collect.files import BrokenFile

Feature = list[bytes] | np.ndarray
"""Values of a feature: a list of bytes, or an array (n,) of float32 or int64."""
VARINT, FIXED64, MESSAGE, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def masked_crc(data: bytes) -> int:
    """The checksum as stored in the file."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclass(frozen=True)
class Place:
    """Where the data of a record is in its file."""

    number: int
    start: int
    length: int


def places(path: Path) -> Iterator[Place]:
    """The records of a file, by their lengths alone; `BrokenFile` at the first whose length is damaged."""
    with path.open("rb") as file:
        size, at = path.stat().st_size, 0
        for i in range(size):
            file.seek(at)
            if not (head := file.read(12)):
                return
            if len(head) < 12:
                raise broken(path, f"record {i} is cut short")
            length, crc = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != crc:
                raise broken(path, f"the length of record {i} does not match its checksum")
            if at + 12 + length + 4 > size:
                raise broken(path, f"record {i} is cut short")
            yield Place(i, at + 12, length)
            at += 12 + length + 4


def record_at(path: Path, place: Place) -> bytes:
    """The data of a record; `BrokenFile` if it is damaged."""
    with path.open("rb") as file:
        file.seek(place.start)
        data, (crc,) = file.read(place.length), struct.unpack("<I", file.read(4))
    if masked_crc(data) != crc:
        raise broken(path, f"record {place.number} does not match its checksum")
    return data


def records(path: Path) -> Iterator[bytes]:
    """The records of a file; `BrokenFile` at the first that is damaged."""
    return (record_at(path, place) for place in places(path))


def examples(path: Path) -> Iterator[dict[str, Feature]]:
    """The Examples of a file, by the names of their features; `BrokenFile` for a file without any."""
    i = 0
    try:
        for record in records(path):
            yield example(record)
            i += 1
    except OSError as error:
        raise broken(path, f"it cannot be read ({error.strerror})", "repair it") from None
    except (ValueError, IndexError) as error:
        raise broken(path, f"record {i} is not an Example ({error})") from None
    if not i:
        raise broken(path, "it is empty")


def broken(path: Path, why: str, cure: str = "download it again") -> BrokenFile:
    return BrokenFile(f"{path}: {why}; {cure}")


def example(record: bytes) -> dict[str, Feature]:
    """The features of a serialized Example."""
    found: dict[str, Feature] = {}
    for features in messages(record, 1):
        for entry in messages(features, 1):
            name = b"".join(list(messages(entry, 1))[-1:]).decode()
            found[name] = feature(b"".join(list(messages(entry, 2))[-1:]))
    return found


def table(features: dict[str, Feature], name: str, rows: int) -> np.ndarray:
    """A feature that has equally many numbers for each row, as (rows, n); `ValueError` if it does not."""
    values = features[name]
    if isinstance(values, list) or not rows or len(values) % rows:
        what = "texts" if isinstance(values, list) else "numbers"
        raise ValueError(f"{name} has {len(values)} {what}, which do not fit {rows} steps")
    return values.reshape(rows, -1)


def feature(data: bytes) -> Feature:
    """The values of a Feature, whichever kind they are."""
    for number, _, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            return list(messages(value, 1))
        if number == 2 and isinstance(value, bytes):
            packed = b"".join(v for n, _, v in fields(value) if n == 1 and isinstance(v, bytes))
            return np.frombuffer(packed, "<f4").astype(np.float32)
        if number == 3 and isinstance(value, bytes):
            return np.array([i for v in fields(value) if v[0] == 1 for i in integers(v[1], v[2])], np.int64)
    return []


def integers(wire: int, value: int | bytes) -> Iterator[int]:
    """The int64 values of a field, single or packed; negative ones are stored as two's complement."""
    at = 0
    values = [value] if isinstance(value, int) else []
    while isinstance(value, bytes) and at < len(value):
        number, at = varint(value, at)
        values.append(number)
    yield from (v - (1 << 64) if v >> 63 else v for v in values if isinstance(v, int))


def messages(data: bytes, number: int) -> Iterator[bytes]:
    """The contents of all length-delimited fields with that number."""
    return (v for n, wire, v in fields(data) if n == number and wire == MESSAGE and isinstance(v, bytes))


def fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """The fields of a message: number, wire type, and value (an integer, or bytes for all other types)."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == MESSAGE:
            length, at = varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field of unknown type {wire}")
        if at + length > len(data):
            raise ValueError("a field is longer than what holds it")
        yield number, wire, data[at : at + length]
        at += length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The varint at an offset (seven bits per byte), and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")
