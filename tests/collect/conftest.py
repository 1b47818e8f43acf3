"""What the readers' tests share."""

from __future__ import annotations

import pytest

from tests.collect.here import Here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process."""
    monkeypatch.setattr("collect.files.WorkerPool", Here)
