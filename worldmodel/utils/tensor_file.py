"""Tensor files that notice damage: safetensors whose header has a digest of every byte, the header's own included.

All that is told beside the tensors is JSON under one key of the header, since safetensors writes several keys in an
order of chance: equal contents make equal files. In it `sha256` is the digest of the file as it is with zeros in the
digest's own place. Values that are not finite are refused, on the way in and out: what was trained with them is
spoiled, and what goes on from them too.
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
    """A file of tensors, and of JSON that is told beside them."""
    if name := first_not_finite(tensors):
        raise UserError(f"{name} has values that are not finite")
    try:
        header = json.dumps({"sha256": BLANK.decode()} | info, allow_nan=False)
    except ValueError:
        raise UserError("what is told beside the tensors has numbers that are not finite") from None
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {KEY: header})
    return data.replace(BLANK, hashlib.sha256(data).hexdigest().encode(), 1)


def read(path: Path, cure: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and what is told beside them; `UserError` with a cure if it is not as it was written."""
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
        told = load_json(header[KEY])
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {cure}") from None
    if name := first_not_finite(tensors):
        raise UserError(f"{path} is spoiled: {name} has values that are not finite; {cure}")
    return dict(sorted(tensors.items())), told


def first_not_finite(tensors: dict[str, Tensor]) -> str:
    """The name of the first tensor with a value that is not finite; empty if there is none."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), "")


def _fault(data: bytes) -> str:
    """What is wrong with the bytes of a file, in words; empty if they are those that were written."""
    place = PLACE.search(data)
    if place is None:
        return "has no digest: it is damaged, or an older version wrote it"
    total = hashlib.sha256(data[: place.start(1)] + BLANK)
    total.update(memoryview(data)[place.end(1) :])
    return "" if total.hexdigest().encode() == place[1] else "is damaged (its digest is that of other bytes)"
