"""The page's server: who may ask, what it is asked, and that nobody can stop it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rollout.server import MAX_BODY_BYTES, MAX_CONNECTIONS, PageServer
from worldmodel.utils.errors import UserError

Say = Callable[[bytes], tuple[int, Any]]
JSON = b"Content-Type: application/json\r\n"


def answer(command: str, **told: int) -> dict[str, Any]:
    if command == "step" and told["action"] > 3:
        raise UserError(f"action {told['action']} is outside")
    if command == "state":
        raise RuntimeError("a fault of ours")
    return {"command": command, "told": told}


@contextlib.contextmanager
def serving(seconds: float) -> Iterator[PageServer]:
    takes: dict = {"step": {"action": int}, "fork": {}, "state": {}}
    server = PageServer(0, b"<p>the page", takes, answer, seconds=seconds)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def page() -> Iterator[PageServer]:
    with serving(30.0) as server:
        yield server


@pytest.fixture
def hasty() -> Iterator[PageServer]:
    """It waits a second for a request."""
    with serving(1.0) as server:
        yield server


def talk(page: PageServer, request: bytes, end: bool = True) -> bytes:
    """All that comes back; with `end` nothing more is sent."""
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=20) as line:
        line.sendall(request.replace(b"HOST", f"127.0.0.1:{page.server_port}".encode()))
        if end:
            line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(1 << 16), b""))


def status(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    version, code, _ = head.split(b"\r\n")[0].split(b" ", 2)
    assert version == b"HTTP/1.0"
    if code != b"200":
        assert list(json.loads(body)) == ["error"]
    return int(code)


def post(body: bytes, path: bytes = b"/step", host: bytes = b"HOST", more: bytes = JSON, length: bytes = b"") -> bytes:
    size = length or b"Content-Length: %d\r\n" % len(body)
    return b"POST %s HTTP/1.1\r\nHost: %s\r\n%s%s\r\n%s" % (path, host, more, size, body)


def works(page: PageServer) -> bool:
    told = talk(page, post(b'{"action": 2}'), end=False)
    return json.loads(told.partition(b"\r\n\r\n")[2]) == {"command": "step", "told": {"action": 2}}


def test_the_page_and_its_commands(page: PageServer) -> None:
    assert talk(page, b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n").endswith(b"\r\n\r\n<p>the page")
    assert works(page)
    assert status(talk(page, post(b"", b"/fork"))) == 200
    assert status(talk(page, post(b'{"action": 9}'))) == 400


@pytest.mark.parametrize(
    ("host", "more", "expected"),
    [
        (b"127.0.0.1:PORT", b"", 200),
        (b"localhost:PORT", b"", 200),
        (b"LocalHost:PORT", b"Origin: http://localhost:PORT\r\n", 200),
        (b"[::1]:PORT", b"Origin: http://127.0.0.1:PORT\r\n", 200),
        (b"rebound.example:PORT", b"", 403),
        (b"127.0.0.1", b"", 403),
        (b"127.0.0.1:1", b"", 403),
        (b"127.0.0.1:PORT.example", b"", 403),
        (b"127.0.0.1:PORT\r\nHost: rebound.example", b"", 403),
        (b"127.0.0.1:PORT", b"Origin: http://elsewhere.example\r\n", 403),
        (b"127.0.0.1:PORT", b"Origin: http://127.0.0.1:1\r\n", 403),
        (b"127.0.0.1:PORT", b"Origin: https://127.0.0.1:PORT\r\n", 403),
        (b"127.0.0.1:PORT", b"Origin: null\r\n", 403),
        (b"127.0.0.1:PORT", b"Origin:\r\n", 403),
        (b"127.0.0.1:PORT", b"Origin: http://127.0.0.1:PORT\r\nOrigin: http://elsewhere.example\r\n", 403),
    ],
)
def test_only_this_page_on_this_machine_is_answered(page: PageServer, host: bytes, more: bytes, expected: int) -> None:
    request = post(b'{"action": 1}', host=host, more=JSON + more)
    assert status(talk(page, request.replace(b"PORT", str(page.server_port).encode()))) == expected
    read = b"GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n" % (host, more)
    assert status(talk(page, read.replace(b"PORT", str(page.server_port).encode()))) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (post(b'{"action": 1}', more=b""), 415),
        (post(b'{"action": 1}', more=b"Content-Type: text/plain\r\n"), 415),
        (post(b"action=1", more=b"Content-Type: application/x-www-form-urlencoded\r\n"), 415),
        (post(b'{"action": 1}', more=b"Content-Type: application/json; charset=utf-8\r\n"), 200),
        (post(b'{"action": 1}', length=b"X: 1\r\n"), 411),
        (post(b"5\r\n12345\r\n0\r\n\r\n", length=b"Transfer-Encoding: chunked\r\n"), 411),
        (post(b'{"action": 1}', more=JSON + b"Transfer-Encoding: chunked\r\n"), 411),
        (post(b'{"action": 1}', length=b"Content-Length: -1\r\n"), 400),
        (post(b'{"action": 1}', length=b"Content-Length: 1e1\r\n"), 400),
        (post(b'{"action": 1}', length=b"Content-Length: 1_3\r\n"), 400),
        (post(b'{"action": 1}', length="Content-Length: \u0663\r\n".encode()), 400),
        (post(b'{"action": 1}', length=b"Content-Length:\r\n"), 400),
        (post(b'{"action": 1}', length=b"Content-Length: 13\r\nContent-Length: 13\r\n"), 400),
        (post(b'{"action": 1}', length=b"Content-Length: 99999999999999999999\r\n"), 413),
        (post(b'{"action": 1}', length=b"Content-Length: " + b"9" * 5000 + b"\r\n"), 413),
        (post(b" " * (MAX_BODY_BYTES + 1)), 413),
        (post(b" " * (MAX_BODY_BYTES - 13) + b'{"action": 1}'), 200),
        (post(b'{"action": 1}', length=b"Content-Length: 200\r\n"), 400),
        (post(b'{"action": 1}', length=b"Content-Length: 5\r\n"), 400),
        (post(b"[" * MAX_BODY_BYTES), 400),
        (post(b"[" * (MAX_BODY_BYTES // 2) + b"]" * (MAX_BODY_BYTES // 2)), 400),
        (post(b'{"action":' * (MAX_BODY_BYTES // 10)), 400),
        (post(b"[1]"), 400),
        (post(b"null"), 400),
        (post(b"3"), 400),
        (post(b'"action"'), 400),
        (post(b'{"action": "1"}'), 400),
        (post(b'{"action": 1.0}'), 400),
        (post(b'{"action": true}'), 400),
        (post(b'{"action": null}'), 400),
        (post(b'{"action": NaN}'), 400),
        (post(b'{"action": Infinity}'), 400),
        (post(b'{"action": {"action": 1}}'), 400),
        (post(b'{"action": 1%s}' % (b"0" * 1000)), 400),
        (post(b'{"action": 1, "more": 1}'), 400),
        (post(b'{"self": 1}'), 400),
        (post(b"{}"), 400),
        (post(b"\xff\xfe\x00"), 400),
        (post(b'{"action": 1}', b"/__init__"), 404),
        (post(b"{}", b"/close"), 404),
        (post(b'{"action": 1}', b"/step/"), 404),
        (post(b'{"action": 1}', b"//step"), 200),
        (post(b'{"action": 1}', b"/"), 404),
        (post(b"{}", b"/state"), 500),
        (b"GET /step HTTP/1.1\r\nHost: HOST\r\n\r\n", 404),
        (b"GET /../play.py HTTP/1.1\r\nHost: HOST\r\n\r\n", 404),
        (b"GET /\r\n\r\n", 403),
        (b"POST /step\r\n\r\n", 400),
        (post(b'{"action": 1}').replace(b"HTTP/1.1", b"HTTP/0.9"), 200),
        (b"DELETE / HTTP/1.1\r\nHost: HOST\r\n\r\n", 501),
        (b"OPTIONS /step HTTP/1.1\r\nHost: HOST\r\nOrigin: http://elsewhere.example\r\n\r\n", 501),
        (b"GET / HTTP/3.0\r\nHost: HOST\r\n\r\n", 505),
        (b"GET / HTTP/x\r\nHost: HOST\r\n\r\n", 400),
        (b"one two three four\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /%s HTTP/1.1\r\nHost: HOST\r\n\r\n" % (b"x" * 70_000), 414),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\nX: %s\r\n\r\n" % (b"x" * 70_000), 431),
        (b"GET / HTTP/1.1\r\nHost: HOST\r\n%s\r\n" % (b"X: 1\r\n" * 200), 431),
    ],
)
def test_every_request_has_a_status(page: PageServer, request_: bytes, expected: int) -> None:
    assert status(talk(page, request_)) == expected
    assert works(page)


def test_an_answer_to_head_has_no_body(page: PageServer) -> None:
    told = talk(page, b"HEAD / HTTP/1.1\r\nHost: HOST\r\n\r\n")
    assert told.startswith(b"HTTP/1.0 501 ")
    assert told.endswith(b"\r\n\r\n")


def test_a_refusal_reaches_who_is_still_sending(page: PageServer) -> None:
    """Megabytes that nobody reads would close the connection over the answer."""
    assert status(talk(page, post(b"x" * (8 << 20)))) == 413


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"", None),
        (b"POST /st", 400),
        (b"POST /step HTTP/1.1\r\nHost: HO", 403),
        (post(b'{"action"', length=b"Content-Length: 13\r\n"), 408),
        (post(b"", length=b"Content-Length: 13\r\n"), 408),
    ],
)
def test_who_falls_silent_is_let_go(hasty: PageServer, request_: bytes, expected: int | None) -> None:
    told = talk(hasty, request_, end=False)
    assert (status(told) if told else None) in (expected, None)
    assert works(hasty)


def test_who_sends_a_byte_now_and_then_is_let_go(hasty: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", hasty.server_port), timeout=20) as line:
        line.sendall(b"POST /step HTTP/1.1\r\nX: ")
        answered: list[socket.socket] = []
        for _ in range(100):
            line.sendall(b"x")
            answered, _, _ = select.select([line], [], [], 0.2)
            if answered:
                break
        assert answered
        told = b"".join(iter(lambda: line.recv(1 << 16), b""))
        assert status(told) == 403, "headers that were never finished name no host"
    assert works(hasty)


def test_connections_beyond_the_limit_are_told_and_those_within_it_go_on(page: PageServer) -> None:
    open_ = [socket.create_connection(("127.0.0.1", page.server_port), timeout=20) for _ in range(MAX_CONNECTIONS)]
    assert status(talk(page, b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", end=False)) == 503
    first, *others = open_
    for line in others:
        line.close()
    while status(told := talk(page, post(b"{}", b"/fork"), end=False)) == 503:
        pass  # until the server has seen that they are gone
    assert status(told) == 200
    first.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % page.server_port)
    assert first.recv(1 << 16).startswith(b"HTTP/1.0 200")
    first.close()


def test_a_machine_without_threads_loses_no_place(page: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("rollout.server.ThreadingHTTPServer.process_request", none)
        for _ in range(MAX_CONNECTIONS + 1):
            assert talk(page, b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", end=False) == b""
    assert works(page)
