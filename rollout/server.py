"""The server of a page on this machine: who may ask, and how much.

The browser that shows the page shows pages of others too, which can send requests to any port of this machine. So a
request has to name this machine as its host, which a name of theirs that points here does not (DNS rebinding), and may
not come from another page (its Origin). What a post says is JSON by its Content-Type: a form cannot say that, and a
script elsewhere would have to ask first, which nobody answers.

Everything has a limit: connections at once, a request's size, and the time that one takes to arrive. Every answer
but the page is JSON, `{"error": "..."}` where it is a refusal. This is the standard library's server, one request a
connection; it bounds the headers itself (64 KiB a line, 100 lines). A library such as waitress would set the other
limits, but that of a request's whole time, and make none of the checks above.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from worldmodel.utils.errors import UserError, one_line

MAX_CONNECTIONS = 32
"""Connections at once."""
BUSY_RESPONSE = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\r\n"
    + json.dumps({"error": f"{MAX_CONNECTIONS} connections are open, as many as may be; close one"}).encode()
)
"""What those beyond are told."""
MAX_BODY_BYTES = 1024
"""Bytes of a request's body. So few cannot be nested deep enough to exhaust a stack."""
TIMEOUT_SECONDS = 10.0
"""For a request to arrive, and for its answer to be taken."""
LINGER_SECONDS = 1.0
"""Seconds to wait for a client to close first: it may be sending still, and a closed door would lose it the answer."""
Answer = Callable[..., dict[str, Any]]
"""Called with a command and the whole numbers that it takes by name."""


class Refused(Exception):
    """An answer other than 200, and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """A page at /, and commands by POST: /step with {"action": 2} is `answer("step", action=2)`.

    `takes` says which whole numbers each command takes.
    """

    request_queue_size = 128

    def __init__(
        self,
        port: int,
        page: bytes,
        takes: Mapping[str, Collection[str]],
        answer: Answer,
        close: Callable[[], None] = lambda: None,
        seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`close` is called as the server closes."""
        self.page, self.takes, self.answer, self.close, self.seconds = page, takes, answer, close, seconds
        self.free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)
        names = ("127.0.0.1", "localhost", "[::1]")
        self.hosts = {f"{name}:{self.server_port}" for name in names} | set(names if self.server_port == 80 else ())

    def server_close(self) -> None:
        super().server_close()
        self.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread of its own, if there may be one more."""
        if self.free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # the machine has no more threads
                self.free.release()
                raise
            return
        request.setblocking(False)
        with contextlib.suppress(OSError):
            request.recv(1 << 16)  # a connection that is closed over what it was sent may lose its answer
        with contextlib.suppress(OSError):
            request.send(BUSY_RESPONSE)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet about a sender that is gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.seconds)  # of each wait, also for an answer to be taken
        self.clock = threading.Timer(self.server.seconds, self.stop_reading)  # of all waits for the request
        self.clock.daemon, self.late = True, False
        self.clock.start()

    def stop_reading(self) -> None:
        self.late = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def finish(self) -> None:
        super().finish()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(min(LINGER_SECONDS, self.server.seconds))
            while self.connection.recv(1 << 16):
                pass
        self.clock.cancel()

    def do_GET(self) -> None:
        self.respond(self.page_response)

    def do_POST(self) -> None:
        self.respond(self.command_response)

    def respond(self, make: Callable[[], tuple[str, bytes]]) -> None:
        """Answer with what is made, or with why it is not."""
        try:
            self.check_sender()
            kind, body = make()
        except Refused as refusal:
            self.send_error(refusal.status, str(refusal))
        except UserError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # a fault of ours, for the terminal; the page goes on
            traceback.print_exc()
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self.send(HTTPStatus.OK, kind, body)

    def check_sender(self) -> None:
        """A person at this machine, through this page."""
        here = f"open http://127.0.0.1:{self.server.server_port} on this machine"
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, f"this page has no other host than this machine; {here}")
        if not {origin.lower() for origin in origins} <= {f"http://{host}" for host in self.server.hosts}:
            raise Refused(HTTPStatus.FORBIDDEN, f"another page may not use this one; {here}")

    def page_response(self) -> tuple[str, bytes]:
        if self.path != "/":
            raise Refused(HTTPStatus.NOT_FOUND, "there is one page here, at /")
        return "text/html; charset=utf-8", self.server.page

    def command_response(self) -> tuple[str, bytes]:
        name = self.path.removeprefix("/")
        if name not in self.server.takes:
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no such command; known are {', '.join(self.server.takes)}")
        info, wanted = parsed(self.body()), self.server.takes[name]
        if set(info) != set(wanted):
            raise UserError(f"{name} takes {' and '.join(wanted) or 'nothing'}, but was given {sorted(info) or 'none'}")
        return "application/json", json.dumps(self.server.answer(name, **info)).encode()

    def body(self) -> bytes:
        """As long as it says it is; a chunked one says nothing."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with the Content-Type application/json")
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or not lengths:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "send the body in one piece, with its Content-Length")
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            raise Refused(HTTPStatus.BAD_REQUEST, "the Content-Length is not one whole number")
        if len(lengths[0]) > len(str(MAX_BODY_BYTES)) or int(lengths[0]) > MAX_BODY_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {MAX_BODY_BYTES} bytes")
        length = int(lengths[0])
        try:
            data = self.rfile.read(length)
        except TimeoutError:
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"the body did not come in {self.server.seconds} s") from None
        except ConnectionError:
            data = b""
        if len(data) < length:
            status = HTTPStatus.REQUEST_TIMEOUT if self.late else HTTPStatus.BAD_REQUEST
            raise Refused(status, f"the body ended after {len(data)} of {length} bytes")
        return data

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse; http.server calls this too, for what it cannot read."""
        info = {"error": one_line(message or HTTPStatus(code).phrase)}
        self.send(code, "application/json", json.dumps(info).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.request_version = "HTTP/1.0"  # to 0.9, which is http.server's guess at garbage, it would give no status
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: a line for every frame helps nobody."""


def parsed(body: bytes) -> dict[str, int]:
    """A JSON object of whole numbers; nothing is an empty one."""
    try:
        told = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise UserError("the body is not JSON that can be read") from None
    if not isinstance(told, dict) or any(type(value) is not int for value in told.values()):
        raise UserError('the body is not an object of whole numbers, such as {"action": 2}')
    return told
