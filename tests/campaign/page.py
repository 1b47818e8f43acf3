"""Hostile requests to a running page of a toy dream.

Each must get one HTTP answer within a time limit, a refusal with one sentence if it asked for what it may not have, or
be let go if it falls silent. After each, a good request must be answered, with the state that was there before.

The page is a process of its own, so that nothing which breaks it breaks the judge. It waits two seconds for a request.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from rollout.play import Args, serve
from rollout.play_session import FORKS
from rollout.server import MAX_CONNECTIONS
from tests.campaign.harness import ROOT, Tally, Verdict, attempts, judge_message
from tests.campaign.requests import ATTACKS, CLOSED, Attack, Rng, half, pick, post, slow, strange_host
from tests.campaign.runs import make_run
from tests.conftest import TOY

LIMIT = 30.0
"""Seconds within which every connection must have ended."""
MODULE = "tests.campaign.page"


def host(run: str, seconds: str = "2") -> None:
    """Serve the page until SIGTERM, on a free port that is printed; a request may take so many seconds."""
    with serve(Args(run=run, port=0, trust_env=True)) as server:
        server.seconds = float(seconds)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            print(server.server_port, flush=True)
            server.serve_forever()


@dataclass
class Page:
    """The process, and its standard error."""

    process: subprocess.Popen[bytes]
    port: int
    told: IO[bytes]

    def send(self, attack: Attack) -> bytes | None:
        """All that comes back; None if the connection does not end."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT) as line:
            said = threading.Thread(target=self._say, args=(line, attack))
            said.start()
            answer, until = b"", time.monotonic() + LIMIT
            try:
                while time.monotonic() < until and attack.end != "reset":
                    if not (more := line.recv(1 << 16)):
                        break
                    answer += more
                else:
                    answer = answer if attack.end == "reset" else None  # type: ignore[assignment]
            except TimeoutError:
                return None
            except OSError:  # reset, which is no clean end if nothing was answered
                pass
            said.join()
            return answer

    def _say(self, line: socket.socket, attack: Attack) -> None:
        with contextlib.suppress(OSError):  # whoever is refused may still be sending
            for i, piece in enumerate(attack.pieces):
                time.sleep(attack.pause if i else 0)
                line.sendall(piece.replace(b"HOST", b"127.0.0.1:%d" % self.port))
            if attack.end == "shut":
                line.shutdown(socket.SHUT_WR)
            if attack.end == "reset":
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.close()

    def ask(self, path: str, **told: int) -> dict[str, Any]:
        """A good request: the state, without what depends on the time; "error" and "status" if it was refused."""
        good, until = Attack(path, (post(json.dumps(told).encode(), path.encode()),), (200,)), time.monotonic() + LIMIT
        while True:
            status, state = parsed(self.send(good) or b"HTTP/1.0 000\r\n\r\n{}")
            if status != 503 or time.monotonic() > until:
                break  # else connections of before are still being closed
        if "figures" not in state:
            return {"error": "no answer", "figures": {}} | state | {"status": status}
        del state["figures"]["frames/s"]
        return state


@contextlib.contextmanager
def opened(command: Sequence[str]) -> Iterator[Page]:
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=told)
        try:
            assert process.stdout is not None
            yield Page(process, int(process.stdout.readline()), told)
        finally:
            process.kill()
            process.communicate()


def parsed(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and JSON; status -1 for what is no HTTP, or more than one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    kind, _, rest = lines[0].partition(b" ")
    length = [int(text.partition(b":")[2]) for text in lines if text.lower().startswith(b"content-length:")]
    if kind != b"HTTP/1.0" or not rest[:3].isdigit() or (length and length != [len(body)]):
        return -1, {}
    try:
        return int(rest[:3]), json.loads(body)
    except ValueError:
        return int(rest[:3]), {}


def judge(attack: Attack, answer: bytes | None) -> tuple[Verdict, str]:
    """What came of one request."""
    if answer is None:
        return "hang", f"no end within {LIMIT} s"
    if not answer:
        return ("right", "") if CLOSED in attack.right else ("traceback", "closed without an answer")
    status, info = parsed(answer)
    if status in (-1, 500):
        return "traceback", repr(answer[:300])
    if status not in attack.right:
        return "silent", f"{status} instead of {attack.right}"
    if status == 200:
        return "right", ""
    return judge_message(info.get("error", ""))


def crowd(page: Page, rng: Rng) -> tuple[Verdict, str]:
    """Many connections at once: idle ones, halves, refused ones and good ones, some of which find no place."""
    idle = Attack("idle", (b"",), (CLOSED,))
    kinds = [lambda rng: idle, half, slow, strange_host, lambda rng: Attack("good", (post(b"{}"),), (200,))]
    crowd = [pick(rng, kinds)(rng) for _ in range(rng.integers(MAX_CONNECTIONS, 5 * MAX_CONNECTIONS))]
    with ThreadPoolExecutor(len(crowd)) as pool:
        answers = list(pool.map(page.send, crowd))
    for attack, answer in zip(crowd, answers, strict=True):
        verdict, detail = judge(replace(attack, right=(*attack.right, 503)), answer)
        if verdict not in ("right", "sentence"):
            return verdict, f"{attack.name} in a crowd: {detail}"
    return "right", ""


def flood(page: Page, rng: Rng) -> tuple[Verdict, str]:
    """Steps from many hands: as many are made as are answered."""
    page.ask("reset", seed=0)
    with ThreadPoolExecutor(8) as pool:
        states = list(pool.map(lambda action: page.ask("step", action=action), rng.integers(3, size=100).tolist()))
    refused = [state["error"] for state in states if "error" in state]
    if refused:
        return "traceback", f"{len(refused)} steps were refused, one with {refused[0]}"
    counted = sorted(state["figures"]["step"][0] for state in states)
    after = page.ask("state")["figures"].get("step", [0])[0]
    right = counted == list(range(1, len(states) + 1)) and after == len(states)
    return ("right", "") if right else ("silent", f"of {len(states)} steps there are {counted}, and then {after}")


@dataclass
class Memory:
    """What a seed and actions led to when they were first played: they must lead there again."""

    seen: dict[tuple[int, ...], tuple[str, str]]

    def play(self, page: Page, rng: Rng) -> tuple[Verdict, str]:
        """Forks and steps, far more than are kept, then a way that was gone before."""
        seed, way = int(rng.integers(3)), pick(rng, [(), (1, 2, 2), (2, 0, 1, 1, 2)])
        page.ask("reset", seed=seed)
        forks = [page.ask("fork") for _ in range(int(rng.integers(2 * FORKS)))]
        kept = [len(state["forks"]) for state in forks if "error" not in state]
        if kept != list(range(1, min(len(forks), FORKS) + 1)):
            return "silent", f"after {len(forks)} forks: {kept}"
        for action in rng.integers(3, size=rng.integers(40)).tolist():
            page.ask("step", action=action)
        page.ask("goto", fork=0) if forks else page.ask("reset", seed=seed)
        states = [page.ask("step", action=action) for action in way] or [page.ask("state")]
        state = page.ask("reset", seed=seed)
        if any("error" in s for s in (*states, state)):
            return "traceback", str([s.get("error") for s in (*states, state)])
        led = states[-1]["dream"], state["dream"]
        if self.seen.setdefault((seed, *way), led) != led:
            return "silent", f"seed {seed} and actions {way} led elsewhere than before"
        return "right", ""


def unchanged(page: Page, before: dict[str, Any]) -> tuple[Verdict, str]:
    """Whether a good request is answered, with the state that was there."""
    after = page.ask("state")
    if after.get("status") == CLOSED:
        return "hang", "and then a good request was not answered"
    return ("right", "") if after == before else ("silent", f"and then the state was another: {str(after)[:300]}")


KINDS = (*ATTACKS, crowd, flood, "work")
"""What is tried in turn."""


def attack(command: Sequence[str], seconds: float, seed: int, kinds: Sequence[Any] = KINDS) -> Tally:
    """Attack the page that a command serves."""
    tally = Tally("page")
    with opened(command) as page:
        memory = Memory({})
        before = page.ask("reset", seed=0)
        for number in attempts(seconds, least=len(kinds)):
            rng = np.random.default_rng([seed, number])
            kind = kinds[number % len(kinds)]
            if kind in ATTACKS:
                one = kind(rng)  # type: ignore[operator]
                name, (verdict, detail) = one.name, judge(one, page.send(one))
                detail = f"{detail} {one.pieces[0][:200]!r}"
            else:
                many = memory.play if kind == "work" else kind
                name, (verdict, detail) = getattr(many, "__name__", ""), many(page, rng)  # type: ignore[operator]
                before = page.ask("reset", seed=0) if kind in (flood, "work") else before
            if verdict in ("right", "sentence") and (worse := unchanged(page, before))[0] != "right":
                verdict, detail = worse[0], f"{worse[1]} {detail}"
            tally.add(verdict, f"{name} ({seed}, {number})", detail)
        page.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            page.process.wait(LIMIT)
        page.told.seek(0)
        text = page.told.read().decode(errors="replace")
        end = "right" if (page.process.returncode, text) == (0, "") else "traceback"
        tally.add(end, "the end of the page", f"status {page.process.returncode}: {text}")  # type: ignore[arg-type]
    return tally


def toy(folder: Path) -> Path:
    """A run folder of the toy world, untrained, which names its engine."""
    make_run(folder, 0, replace(TOY, env_id="tests.rollout.toy_engine:ToyEngine-v0"))
    return folder


def run(seconds: float, seed: int) -> Tally:
    with tempfile.TemporaryDirectory() as folder:
        return attack(["-m", MODULE, str(toy(Path(folder) / "run"))], seconds, seed)


if __name__ == "__main__":
    host(*sys.argv[1:])
