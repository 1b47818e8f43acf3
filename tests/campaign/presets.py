"""Hostile presets: some that are no presets, and some with one wrong setting."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

LAUGHS = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijkl"))
NONE = [
    *(b"", b"null", b"- a", b"a", b"SECTION", b"run: 3", b"SECTION: 3", b"SECTION: [3]", b"\x00", b"nothing: {a: 1}"),
    *(b"SECTION: {out: \xff}", "SECTION: {}".encode("utf-16"), b"SECTION: {a: 1, a: 1}", b"SECTION: {}\nSECTION: {}"),
    *(LAUGHS.encode(), b"SECTION: &a {a: *a}", b"SECTION: {<<: &a {<<: [*a, *a]}}", b"SECTION: {<<: {a: 1}}"),
    *(b"SECTION: " + b"{a: " * 5000, b"[" * 90_000, b"# " + b"x" * 10**6, b"SECTION: {[1]: 2}", b"SECTION: {1: 2}"),
    *(
        b"SECTION: {a: 2024-99-99}",
        b"SECTION: {a: !!int ''}",
        b"SECTION: {a: !!float x}",
        b"SECTION: {a: !!timestamp x}",
    ),
    *(
        b"SECTION: {a: !!python/object/apply:os.getcwd []}",
        b"SECTION: {null: null}",
        b"SECTION: {a: " + b"9" * 5000 + b"}",
    ),
]
"""Which no script can take, its own section in the place of SECTION."""
VALUES = ["{}", "[]", "{a: 1}", "[[1]]", ".nan", "-.inf", "1e999", "9" * 24, "1.5", "-1", "0", "1", "yes", "''", "null"]


def none(section: str, rng: np.random.Generator) -> bytes:
    """No preset."""
    return NONE[rng.integers(len(NONE))].replace(b"SECTION", section.encode())


def one_setting(section: str, flag: str, rng: np.random.Generator) -> bytes:
    """A preset that sets what a flag such as `trainer.max-grad-norm` sets."""
    *groups, name = flag.replace("-", "_").split(".")
    before = "".join(f"{group}: {{" for group in (section, *groups))
    return f"{before}{name}: {rng.choice(VALUES)}{'}' * (1 + len(groups))}".encode()
