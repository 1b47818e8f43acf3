"""What can become of a tensor file: bytes that are lost or changed, and files that another program wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from worldmodel.utils.tensor_file import BLANK, KEY

Damage = Callable[[np.random.Generator, bytes], bytes]


def flipped(rng: np.random.Generator, data: bytes, bits: int = 1) -> bytes:
    damaged = bytearray(data)
    for at in rng.integers(len(data), size=bits):
        damaged[at] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def in_header(rng: np.random.Generator, data: bytes) -> bytes:
    """The header is small beside the tensors; half of the flips should not miss it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return flipped(rng, data[:end]) + data[end:]


def piece(rng: np.random.Generator, data: bytes) -> slice:
    """Some bytes; their number is as likely to be small as large."""
    start = int(rng.integers(len(data)))
    return slice(start, start + int(2 ** rng.uniform(0, np.log2(len(data)))))


def zeroed(rng: np.random.Generator, data: bytes) -> bytes:
    where, damaged = piece(rng, data), bytearray(data)
    damaged[where] = bytes(len(data[where]))
    return bytes(damaged)


def removed(rng: np.random.Generator, data: bytes) -> bytes:
    where = piece(rng, data)
    return data[: where.start] + data[where.stop :]


def inserted(rng: np.random.Generator, data: bytes) -> bytes:
    at = int(rng.integers(len(data)))
    return data[:at] + rng.bytes(int(rng.integers(1, 100))) + data[at:]


def parsed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the rest."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def edited(rng: np.random.Generator, data: bytes) -> bytes:
    """Another header, as an editor would write it: what is told, or the shape, type or place of a tensor."""
    header, rest = parsed(data)
    a, b = rng.choice([name for name in header if name != "__metadata__"], 2)
    match rng.integers(6):
        case 0:
            header["__metadata__"] = {"format": "pt"}
        case 1:
            header["__metadata__"][KEY] = header["__metadata__"][KEY][:-1] + ', "more": 1}'
        case 2:
            header[a]["data_offsets"] = header[b]["data_offsets"]
        case 3:
            header[a]["shape"] = [1, *header[a]["shape"]]
        case 4:
            header[a]["dtype"] = "I32" if header[a]["dtype"] == "F32" else "F32"
        case _:
            del header[a]
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + rest


def told_in(data: bytes) -> dict[str, Any]:
    told = json.loads(parsed(data)[0]["__metadata__"][KEY])
    return {name: value for name, value in told.items() if name != "sha256"}


def older(rng: np.random.Generator, data: bytes) -> bytes:
    """The same without a digest, as it was written before there were digests."""
    return save(load(data), {name: json.dumps(value) for name, value in told_in(data).items()})


def forged(tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> bytes:
    """A file with a right digest, whatever is in it."""
    data = save(tensors, {KEY: json.dumps({"sha256": BLANK.decode()} | info)})
    return data.replace(BLANK, hashlib.sha256(data).hexdigest().encode(), 1)


def crafted(rng: np.random.Generator, data: bytes) -> bytes:
    """A right digest, and contents that nothing here writes: each has to be refused."""
    info, tensors, nonsense = told_in(data), load(data), (None, [], "x", 3)
    config, any_of = info.get("config", {}), nonsense[int(rng.integers(4))]
    name = str(rng.choice(sorted(k for k, v in tensors.items() if v.is_floating_point() and v.numel())))
    match rng.integers(8):
        case 0:
            info["config" if config else "vqvae"] = any_of
        case 1 if config:
            config["kind"] = any_of
        case 2 if "model" in config:
            config["model"] = any_of
        case 3 if "model" in config:
            config["model"]["unheard_of"] = any_of
        case 4:
            tensors["unheard_of"] = torch.ones(1)
        case 5:
            tensors[name] = tensors[name][..., None]
        case 6:
            tensors[name].view(-1)[int(rng.integers(tensors[name].numel()))] = float(rng.choice([np.nan, np.inf]))
        case _:
            del tensors[name]
    return forged(tensors, info)


DAMAGES: dict[str, Damage] = {
    "flip": flipped,
    "flips": lambda rng, data: flipped(rng, data, int(rng.integers(2, 50))),
    "flip in header": in_header,
    "zeros": zeroed,
    "truncate": lambda rng, data: data[: int(rng.integers(len(data)))],
    "append": lambda rng, data: data + rng.bytes(int(rng.integers(1, 100))),
    "remove": removed,
    "insert": inserted,
    "edit": edited,
    "older version": older,
    "craft": crafted,
}
