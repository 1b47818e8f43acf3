"""The error that users are meant to read.

Everything that can go wrong without a bug (a damaged store, a wrong shape, an unknown key) raises `UserError`. Its
message is one sentence that says what is wrong and how to fix it. Scripts print it and exit with status 2; library
users catch it as a `ValueError`.
"""

from __future__ import annotations

import re


class UserError(ValueError):
    """Something that the user can fix; the message says what is wrong and how to fix it."""


def is_url(path: object) -> bool:
    """Whether a path is a URL, even if `Path` has collapsed it to `http:/x`; `C:/x` is not one."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", str(path)) is not None


def is_hub_name(name: object) -> bool:
    """Whether a name means a run on the Hugging Face Hub, even if `Path` has collapsed it to `hf:/owner/name`."""
    return str(name).startswith("hf:/")


def one_line(error: object) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def printable(text: str) -> str:
    """The text on one line, with bytes of file names that are not UTF-8 escaped."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()
