"""The one error a person is meant to read.

Everything that can go wrong through no fault of the code (a torn store, a wrong shape, an unknown
key) raises `UserError` with one sentence that names the thing and the cure. Commands print it and
exit with status 2; library users catch it as a `ValueError`.
"""

from __future__ import annotations

import re


class UserError(ValueError):
    """A mistake in what was asked, told in one sentence with its cure."""


def is_url(path: object) -> bool:
    """Whether a path is a URL, also one that `Path` has made `http:/x` of; `C:/x` is none."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", str(path)) is not None


def one_line(error: object) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
