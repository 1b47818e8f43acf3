"""Every number that any script or model can be set to is finite and bounded."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Settings, declared_types

ROOT = Path(__file__).parents[2]
ROOMS = ("collect", "train", "rollout")
SCRIPTS = sorted(
    f"{room}.{path.stem}"
    for room in ROOMS
    for path in (ROOT / room).glob("*.py")
    if "\n    command(main," in path.read_text()
)


def groups(settings: Any) -> Iterator[Settings]:
    """Settings and those inside them."""
    assert isinstance(settings, Settings), f"{type(settings)} would take any number"
    yield settings
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(value := getattr(settings, field.name)):
            yield from groups(value)


def numbers(kind: Any) -> set[type]:
    """`int` or `float`, if a type is one or has one inside."""
    if get_origin(kind) is Annotated:
        return numbers(get_args(kind)[0])
    return {kind} & {int, float} | {n for inside in get_args(kind) for n in numbers(inside)}


def wrong(kind: Any, value: Any) -> Any:
    """A value of a type, or of the same form, with the number replaced by a wrong one."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        kinds = [k for k in get_args(kind) if k is not Ellipsis]
        return tuple(wrong(k, value) if numbers(k) else "HEALTH" for k in kinds)
    return value


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_setting_of_a_script_is_nan_infinite_or_beyond_all_bounds(script: str) -> None:
    tried = 0
    args = importlib.import_module(script).Args()
    for group in (*groups(args), OutcomeConfig()):
        for name, kind in declared_types(type(group)).items():
            for value in (float("nan"), float("-inf"), 10**400) if numbers(kind) else ():
                tried += 1
                with pytest.raises(UserError, match=f"^{name} "):
                    dataclasses.replace(group, **{name: wrong(kind, value)})  # type: ignore[type-var]
    assert tried
    assert len(SCRIPTS) > 25
