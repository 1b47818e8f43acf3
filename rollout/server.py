"""A small web server for a page on this machine, with checks of every request.

Other pages in the same browser can send requests to any port of this machine. So the Host of a request must be this
machine, which excludes DNS rebinding, and its Origin must not be another page. The body of a POST must have the
Content-Type of JSON. A form cannot send that, and a script of another page would need a preflight request (CORS), which
this server does not answer.

There are limits on open connections, on the size of a request, and on the time it takes to arrive. All responses except
the page are JSON, with `{"error": "..."}` for a refused request. This is the standard library's server, with one
request per connection; it limits the headers itself (64 KiB per line, 100 lines). A library such as waitress has most
of these limits, but not on the total time of a request, and none of the checks above.
"""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from worldmodel.utils.errors import UserError, one_line
from worldmodel.utils.json_schema import load_json

MAX_CONNECTIONS = 32
"""Largest number of open connections."""
BUSY_RESPONSE = (
    b"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\r\n"
    + json.dumps({"error": f"there are already {MAX_CONNECTIONS} connections, the limit; close one"}).encode()
)
"""Response to connections beyond the limit."""
MAX_BODY_BYTES = 1 << 14
"""Largest request body in bytes; an action of some hundred numbers fits."""
TIMEOUT_SECONDS = 10.0
"""Time limit for receiving a request and for sending its response."""
LINGER_SECONDS = 1.0
"""Time for a client to close first. If it is still sending, closing the connection would discard the response."""
Answer = Callable[..., dict[str, Any]]
"""Called with a command and its arguments by name, integers or lists of numbers; returns the response."""


class Refused(Exception):
    """A refused request: a status other than 200, and a message."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """A page at /, and commands by POST: /step with {"action": 2} is `answer("step", action=2)`.

    Args:
        port: Port on this machine; 0 uses a free one.
        page: The HTML page.
        takes: Command -> its arguments by name, each with its type, int or int | list.
        answer: Handles a command.
        close: Called when the server closes.
        seconds: Time limit of a request.
    """

    request_queue_size = 128

    def __init__(
        self,
        port: int,
        page: bytes,
        takes: Mapping[str, Mapping[str, Any]],
        answer: Answer,
        close: Callable[[], None] = lambda: None,
        seconds: float = TIMEOUT_SECONDS,
    ) -> None:

        self.page, self.takes, self.answer, self.close, self.seconds = page, takes, answer, close, seconds
        self.free = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(("127.0.0.1", port), Handler)
        names = ("127.0.0.1", "localhost", "[::1]")
        self.hosts = {f"{name}:{self.server_port}" for name in names} | set(names if self.server_port == 80 else ())

    def server_close(self) -> None:
        super().server_close()
        self.close()

    def run(self, verb: str) -> None:
        """Print the address, such as "play at http://...", and serve until Ctrl-C or SIGTERM."""
        try:
            print(f"{verb} at http://127.0.0.1:{self.server_port} (Ctrl-C to stop)", flush=True)
            self.serve_forever()
        except KeyboardInterrupt:
            print()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a new thread, if the limit allows it."""
        if self.free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # the machine has no more threads
                self.free.release()
                raise
            return
        request.setblocking(False)
        with contextlib.suppress(OSError):
            request.recv(1 << 16)  # closing a connection with unread data may lose the response
        with contextlib.suppress(OSError):
            request.send(BUSY_RESPONSE)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that disconnected."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Session(Protocol):
    """What is behind a page."""

    def answer(self, command: str, **told: Any) -> dict[str, Any]:
        """Handle a command."""

    def close(self) -> None:
        """Close what is open."""


def open_page(port: int, page: Path, takes: Mapping[str, Mapping[str, Any]], session: Session) -> PageServer:
    """Serve a page and its commands, which a session handles; `UserError` if the port cannot be used."""
    try:
        return PageServer(port, page.read_bytes(), takes, session.answer, session.close)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error}); choose another one with --port") from None


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.seconds)  # for each read and write
        self.clock = threading.Timer(self.server.seconds, self.stop_reading)  # for the whole request
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
        """Send the response that `make` returns, or its error."""
        try:
            self.check_sender()
            kind, body = make()
        except Refused as refusal:
            self.send_error(refusal.status, str(refusal))
        except UserError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except Exception as error:  # a bug: print it, and keep serving
            traceback.print_exc()
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        else:
            self.send(HTTPStatus.OK, kind, body)

    def check_sender(self) -> None:
        """Refuse requests that do not come from this machine or from this page."""
        here = f"open http://127.0.0.1:{self.server.server_port} on this machine"
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, f"the Host header must name this machine; {here}")
        if not {origin.lower() for origin in origins} <= {f"http://{host}" for host in self.server.hosts}:
            raise Refused(HTTPStatus.FORBIDDEN, f"requests from other web pages are refused; {here}")

    def page_response(self) -> tuple[str, bytes]:
        if self.path != "/":
            raise Refused(HTTPStatus.NOT_FOUND, "the only page is /")
        return "text/html; charset=utf-8", self.server.page

    def command_response(self) -> tuple[str, bytes]:
        name = self.path.removeprefix("/")
        if name not in self.server.takes:
            raise Refused(
                HTTPStatus.NOT_FOUND, f"there is no such command; known names: {', '.join(self.server.takes)}"
            )
        info, wanted = parsed(self.body()), self.server.takes[name]
        if set(info) != set(wanted):
            raise UserError(f"{name} takes {' and '.join(wanted) or 'nothing'}, but was given {sorted(info) or 'none'}")
        for argument, kind in wanted.items():
            if not isinstance(info[argument], kind):
                raise UserError(f"{argument} must be a whole number, not {info[argument]}")
        return "application/json", json.dumps(self.server.answer(name, **info)).encode()

    def body(self) -> bytes:
        """Read the body, whose length must be in the headers; chunked bodies are refused."""
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
        """Send an error as JSON; http.server also calls this for invalid requests."""
        info = {"error": one_line(message or HTTPStatus(code).phrase)}
        self.send(code, "application/json", json.dumps(info).encode())

    def send(self, status: int, kind: str, body: bytes) -> None:
        self.request_version = "HTTP/1.0"  # http.server takes garbage for HTTP/0.9, and would send no status
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, since every frame is a request."""


def png(frame: np.ndarray) -> str:
    """A frame (h, w, 3) uint8 as the URL of an image, for a page."""
    data = BytesIO()
    Image.fromarray(frame).save(data, "png")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def parsed(body: bytes) -> dict[str, int | list[float]]:
    """Parse a JSON object of integers and lists of numbers; an empty body is an empty object."""
    try:
        told = load_json(body.decode() or "{}")
    except (ValueError, RecursionError):
        raise UserError("the body is not JSON that can be read") from None
    if not isinstance(told, dict) or not all(is_argument(value) for value in told.values()):
        raise UserError('the body is not an object of whole numbers and lists of numbers, such as {"action": 2}')
    return told


def is_argument(value: Any) -> bool:
    """Whether a value is an integer or a list of numbers."""
    return type(value) is int or (isinstance(value, list) and all(type(one) in (int, float) for one in value))
