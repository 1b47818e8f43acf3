"""The campaign's hostile requests, each drawn from a generator, with the answers that are right for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rollout.play_session import FORKS
from rollout.server import MAX_BODY_BYTES

CLOSED = 0
"""Stands for an end of the connection without an answer, among the statuses that are right."""
JSON = b"Content-Type: application/json\r\n"
Rng = np.random.Generator


@dataclass(frozen=True)
class Attack:
    """What is sent, in pieces with a pause between them, and the statuses that are right answers."""

    name: str
    pieces: tuple[bytes, ...]
    right: tuple[int, ...]
    pause: float = 0.0
    end: str = "listen"
    """ "listen", "shut" (say that no more comes), or "reset" (be gone at once)."""


def post(body: bytes, path: bytes = b"state", more: bytes = JSON, length: bytes | None = None) -> bytes:
    size = b"Content-Length: %d\r\n" % len(body) if length is None else length
    return b"POST /%s HTTP/1.1\r\nHost: HOST\r\n%s%s\r\n%s" % (path, more, size, body)


def pick(rng: Rng, values: Sequence[Any]) -> Any:
    return values[rng.integers(len(values))]


def strange_host(rng: Rng) -> Attack:
    name = pick(rng, ["evil.example", "127.0.0.1.evil.example", "0.0.0.0", "", "[::]", "localhost@evil", "é"])
    host = f"{name}:{pick(rng, ['PORT', '1', '80', '', '99999999999'])}".encode()
    host = pick(rng, [host, host + b"\r\nHost: HOST", b"HOST\r\nHost: " + host, b"HOST, " + host, b"HOST/", b"x@HOST"])
    request = pick(rng, [post(b"{}"), post(b'{"action": 1}', b"step"), b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n"])
    return Attack("host", (request.replace(b"Host: HOST", b"Host: " + host),), (403,))


def strange_origin(rng: Rng) -> Attack:
    origins = [
        b"http://evil.example",
        b"null",
        b"",
        b"https://HOST",
        b"http://HOST.evil.example",
        b"http://HOST/",
        b"HOST",
    ]
    more = JSON + b"Origin: " + pick(rng, origins) + b"\r\n"
    return Attack("origin", (post(b'{"action": 1}', b"step", more),), (403,))


def strange_type(rng: Rng) -> Attack:
    kinds = [
        b"text/plain",
        b"application/x-www-form-urlencoded",
        b"multipart/form-data; boundary=x",
        b"",
        b"json",
        b"\xff",
    ]
    more = pick(rng, [b"", b"Content-Type: " + pick(rng, kinds) + b"\r\n"])
    return Attack("type", (post(b'{"action": 1}', b"step", more),), (415,))


def strange_length(rng: Rng) -> Attack:
    lengths = [
        b"-1",
        b"+2",
        b"2.0",
        b"1e1",
        b"0x2",
        b"2 2",
        b"2,2",
        b"",
        b"two",
        b"1_0",
        b"9" * 30,
        b"9" * 5000,
        b"\xb2",
    ]
    length = b"Content-Length: " + pick(rng, lengths) + b"\r\n"
    if rng.random() < 0.3:
        length = pick(rng, [b"", b"Content-Length: 2\r\nContent-Length: 2\r\n", b"Content-Length : 2\r\n"])
    return Attack("length", (post(b"{}", length=length),), (400, 411, 413))


def chunked(rng: Rng) -> Attack:
    coding = b"Transfer-Encoding: " + pick(rng, [b"chunked", b"gzip, chunked", b"identity", b"xchunked"]) + b"\r\n"
    length = pick(rng, [b"", b"Content-Length: 13\r\n"])
    return Attack("chunked", (post(b'd\r\n{"action": 1}\r\n0\r\n\r\n', b"step", JSON, coding + length),), (411,))


def deep(rng: Rng) -> Attack:
    depth = int(pick(rng, [100, MAX_BODY_BYTES // 2, MAX_BODY_BYTES, 5_000, 100_000]))
    opening, closing = pick(rng, [(b"[", b"]"), (b'{"a":', b"}"), (b"[[", b""), (b'{"action":', b"")])
    return Attack("deep", (post(opening * depth + closing * depth),), (400, 413))


def wrong_types(rng: Rng) -> Attack:
    values = ["null", "true", '"1"', "1.5", "NaN", "-Infinity", "[1]", "{}", "1e400", '"\\ud800"', "-", "01", "1" * 900]
    name = pick(rng, ["action", "seed", "fork", "steps", "self", "__class__", "", "action\\u0000"])
    told = pick(rng, [f'{{"{name}": {pick(rng, values)}}}', pick(rng, values), f'[{{"{name}": 1}}]', "", " ", "{"])
    path = pick(rng, [b"reset", b"step", b"goto"])
    return Attack("types", (post(told.encode(), path),), (400,))


def wrong_numbers(rng: Rng) -> Attack:
    number = pick(rng, [-1, 3, 2**31, 2**63, -(2**63) - 1, 10**30, 10**300, -(10**300)])
    path, name = pick(rng, [("step", "action"), ("goto", "fork"), ("reset", "seed"), ("rewind", "steps")])
    if path == "goto":
        number = abs(number) + FORKS
    if path in ("reset", "rewind"):
        number = -abs(number)
    return Attack("numbers", (post(json.dumps({name: number}).encode(), path.encode()),), (400,))


def unknown(rng: Rng) -> Attack:
    paths = [
        b"",
        b"close",
        b"__init__",
        b"state/",
        b"state?x=1",
        b"../play.py",
        b"%73tate",
        b"STATE",
        b"\xff",
        b"lock",
    ]
    if rng.random() < 0.5:
        return Attack("path", (post(b"{}", pick(rng, paths)),), (400, 404))
    method = pick(rng, [b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"P" * 100, b"\x00"])
    request = post(b"{}").replace(b"POST", method, 1)
    return Attack("method", (request.replace(b"HTTP/1.1", pick(rng, [b"HTTP/1.1", b"HTTP/1.0"])),), (501,))


def versions(rng: Rng) -> Attack:
    version = pick(
        rng, [b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1", b"HTTP/1.1.1", b"HTTP/-1.1", b"HTTP/" + b"9" * 5000, b"FTP/1.1", b""]
    )
    request = post(b"{}").replace(b"HTTP/1.1", version, 1)
    return Attack("version", (request,), (200,) if version == b"HTTP/0.9" else (400, 505))


def long_heads(rng: Rng) -> Attack:
    size = int(pick(rng, [5_000, 70_000, 1_000_000]))
    request = pick(
        rng,
        [
            b"GET /" + b"x" * size + b" HTTP/1.1\r\nHost: HOST\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: HOST\r\nX: " + b"x" * (size + 65_536) + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: HOST\r\n" + b"X: x\r\n" * size + b"\r\n",
        ],
    )
    return Attack("head", (request,), (404, 414, 431))


def large(rng: Rng) -> Attack:
    size = int(rng.integers(MAX_BODY_BYTES + 1, 4 << 20))
    return Attack("large", (post(b"x" * size),), (413,))


def garbage(rng: Rng) -> Attack:
    data = rng.bytes(int(rng.integers(1, 5000)))
    data = pick(
        rng, [data, data + b"\r\n\r\n", b"\x16\x03\x01" + data, b"\r\n" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    )
    return Attack("garbage", (data.replace(b"HOST", b""),), (CLOSED, 400, 403, 404, 414, 431, 501, 505), end="shut")


def mutated(rng: Rng) -> Attack:
    """A few bytes of a good request that changes nothing are changed."""
    request = bytearray(post(b"{}"))
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(request)))
        request[at : at + int(rng.integers(2))] = rng.bytes(int(rng.integers(3)))
    right = (CLOSED, 200, 400, 403, 404, 408, 411, 413, 414, 415, 431, 501, 505)
    return Attack("mutated", (bytes(request),), right, end=pick(rng, ["listen", "shut"]))


def half(rng: Rng) -> Attack:
    request = post(b'{"action": 1}', b"step")
    part = request[: rng.integers(len(request))]
    return Attack("half", (part,), (CLOSED, 400, 403, 408, 411, 415), end=pick(rng, ["listen", "shut", "reset"]))


def slow(rng: Rng) -> Attack:
    request = post(b'{"action": 1}', b"step")
    pieces = tuple(request[i : i + 1] for i in range(len(request)))
    return Attack("slow", pieces, (CLOSED, 400, 403, 408, 411, 415), pause=float(rng.uniform(0.05, 0.5)))


def pipelined(rng: Rng) -> Attack:
    """What follows a request on its connection is not a request."""
    again = post(b'{"action": 1}', b"step") * int(rng.integers(1, 50))
    return Attack("pipelined", (post(b"{}") + again,), (200,))


def short(rng: Rng) -> Attack:
    length = b"Content-Length: %d\r\n" % rng.integers(3, MAX_BODY_BYTES)
    return Attack("short", (post(b"{}", length=length),), (400, 408), end=pick(rng, ["listen", "shut"]))


def unheard(rng: Rng) -> Attack:
    """A good request whose sender is gone."""
    return Attack("unheard", (post(b"{}"),), (CLOSED,), end="reset")


ATTACKS: tuple[Callable[[Rng], Attack], ...] = (
    *(strange_host, strange_origin, strange_type, strange_length, chunked, deep, wrong_types, wrong_numbers, unknown),
    *(versions, long_heads, large, garbage, mutated, half, slow, pipelined, short, unheard),
)
