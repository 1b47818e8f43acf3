"""Tensor files that detect damage: safetensors whose header has a digest of every byte, including the header's own.

The metadata is JSON under a single key of the header. Safetensors writes several keys in random order, and equal
content should make equal files. The metadata's `sha256` is the digest of the file with zeros in place of the digest.
Values that are not finite are refused when writing and reading, because a model that has them is ruined.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from worldmodel.utils.errors import UserError
from worldmodel.utils.json_schema import load_json

KEY, BLANK = "worldmodel", b"0" * 64
PLACE = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def pack(tensors: dict[str, Tensor], info: dict[str, Any]) -> bytes:
    """Serialize tensors and JSON metadata.

    Raises:
        UserError: If a value is not finite.
    """
    if name := first_not_finite(tensors):
        raise UserError(f"{name} has values that are not finite")
    try:
        header = json.dumps({"sha256": BLANK.decode()} | info, allow_nan=False)
    except ValueError:
        raise UserError("the metadata of the tensors has numbers that are not finite") from None
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {KEY: header})
    return data.replace(BLANK, hashlib.sha256(data).hexdigest().encode(), 1)


def read(path: Path, cure: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a tensor file.

    Args:
        path: The file.
        cure: How to fix a damaged file, for the message.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        UserError: If the file is damaged.
        FileNotFoundError: If there is no such file.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {cure}") from None
    if fault := _fault(data):
        raise UserError(f"{path} {fault}; {cure}")
    try:
        tensors, header = load(data), json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        info = load_json(header[KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {cure}") from None
    if name := first_not_finite(tensors):
        raise UserError(f"{path}: {name} has values that are not finite; {cure}")
    return dict(sorted(tensors.items())), info


def first_not_finite(tensors: dict[str, Tensor]) -> str:
    """The name of the first tensor with a value that is not finite; empty if there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def _fault(data: bytes) -> str:
    """Describe what is wrong with the bytes of a file; empty if they are intact."""
    place = PLACE.search(data)
    if place is None:
        return "has no checksum: it is damaged, or was written by an older version"
    total = hashlib.sha256(data[: place.start(1)] + BLANK)
    total.update(memoryview(data)[place.end(1) :])
    return "" if total.hexdigest().encode() == place[1] else "is damaged (its content does not match its checksum)"
