"""A few seconds of the campaign against the page, and that its judge finds faults that are planted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.campaign.page import MODULE, attack, judge, toy
from tests.campaign.requests import ATTACKS, CLOSED, Attack, strange_host, strange_origin

OPEN = """
import sys
from rollout.server import Handler
from tests.campaign.page import host
Handler.check_sender = lambda self: None
host(sys.argv[1])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("page") / "run")


def test_every_kind_of_attack_is_answered(run: Path) -> None:
    tally = attack(["-m", MODULE, str(run), "1"], 3, 0)
    assert tally.clean, tally.faults
    assert tally.counts.total() > len(ATTACKS)
    assert min(tally.counts["right"], tally.counts["sentence"]) > 0


def test_a_page_that_answers_anybody_is_found(run: Path) -> None:
    tally = attack(["-c", OPEN, str(run)], 1, 0, (strange_host, strange_origin))
    assert tally.counts["silent"] >= 2
    assert any("host (0, 0)" in fault for fault in tally.faults)
    assert any("origin (0, 1)" in fault for fault in tally.faults)


@pytest.mark.parametrize(
    ("answer", "right", "verdict"),
    [
        (None, (CLOSED,), "hang"),
        (b"", (CLOSED,), "right"),
        (b"", (403,), "traceback"),
        (b"<h1>Bad request", (400,), "traceback"),
        (b'HTTP/1.0 500 x\r\n\r\n{"error": "KeyError: 1"}', (400,), "traceback"),
        (b'HTTP/1.0 403 x\r\n\r\n{"error": "go away"}', (403,), "sentence"),
        (b'HTTP/1.0 403 x\r\n\r\n{"error": "Traceback\\n 1"}', (403,), "traceback"),
        (b"HTTP/1.0 403 x\r\n\r\n", (403,), "traceback"),
        (b'HTTP/1.0 403 x\r\nContent-Length: 99\r\n\r\n{"error": "cut"}', (403,), "traceback"),
        (b"HTTP/1.0 200 x\r\n\r\n{}", (403,), "silent"),
        (b"HTTP/1.0 200 x\r\n\r\n{}", (200,), "right"),
    ],
)
def test_the_judge(answer: bytes | None, right: Sequence[int], verdict: str) -> None:
    assert judge(Attack("x", (b"GET /",), tuple(right)), answer)[0] == verdict
