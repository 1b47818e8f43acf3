"""The one error a person is meant to read.

Everything that can go wrong through no fault of the code (a torn store, a wrong shape, an unknown
key) raises `UserError` with one sentence that names the thing and the cure. Commands print it and
exit with status 2; library users catch it as a `ValueError`.
"""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what was asked, told in one sentence with its cure."""
