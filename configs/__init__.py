"""Presets and the command line.

A preset is a YAML file in this folder (or anywhere), with one section per stage: `collect`, `vqvae`, `tokens`,
`prior`, `outcome`, `evaluate`, and so on. Every script takes `--preset NAME`; its section is laid under the
command line, and flags override it. A key that no setting has is an error that names the nearest one, and so is a
preset without a section for the script: the defaults are those of another world.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NewType, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from worldmodel.errors import UserError, is_url

FOLDER = Path(__file__).parent
SECTIONS = (
    *("policy", "score", "imitate", "pusher", "pusher_score"),
    *("collect", "vqvae", "steady", "tokens", "prior", "outcome", "export", "dream", "evaluate"),
    *("outcome_scores", "endless", "control", "benchmark", "speed", "rank", "plan", "play", "sample", "fvd", "ablate"),
    "diverge",
)
"""The stages, each a section of a preset."""
T = TypeVar("T")
Address = NewType("Address", str)
"""Where a store is read: a folder or any URL that fsspec knows, of which `Path` would lose a slash."""


def nearest(word: str, known: Sequence[str]) -> str:
    """', did you mean X?' for the known word nearest to a mistyped one, else the list of all."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def read_preset(name: str) -> dict[str, Any]:
    """A preset by name (`demo`) or by path (`my/world.yaml`)."""
    path = FOLDER / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name)
    if not path.exists():
        raise UserError(f"there is no preset {name!r}; {nearest(name, [p.stem for p in FOLDER.glob('*.yaml')])}")
    try:
        sections = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(sections, dict):
        raise UserError(f"{path} has no sections; it should begin with one, such as `vqvae:`")
    for section, values in sections.items():
        if section not in SECTIONS:
            raise UserError(f"{path} has a section {section!r}; {nearest(str(section), SECTIONS)}")
        if not isinstance(values, dict):
            raise UserError(f"{path}: section {section} has no settings; remove it or add some")
    return sections


def section_of(name: str, section: str) -> dict[str, Any]:
    """The settings of a stage in a preset."""
    sections = read_preset(name)
    if section not in sections:
        raise UserError(
            f"preset {name!r} has no section {section!r}, only {', '.join(sections) or 'none'}; "
            "add it, or give flags instead of --preset"
        )
    return sections[section]


def overlay(default: T, values: dict[str, Any], where: str) -> T:
    """A copy of a dataclass instance with values laid over it, nested ones too."""
    types = get_type_hints(type(default))
    changes = {}
    for key, value in values.items():
        if key not in types:
            raise UserError(f"{where} has no setting {key!r}; {nearest(str(key), list(types))}")
        current, place = getattr(default, key), f"{where}.{key}"
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{place} is a group of settings, not {value!r}")
            changes[key] = overlay(current, value, place)
        else:
            changes[key] = _convert(types[key], value, place)
    return dataclasses.replace(default, **changes)  # type: ignore[type-var]


def _convert(kind: Any, value: Any, place: str) -> Any:
    """A YAML value as the type that a setting is declared to have."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in inside:
            raise UserError(f"{place} cannot be {value!r}; {nearest(str(value), [str(v) for v in inside])}")
        return value
    if origin is tuple:
        variable = inside[-1] is Ellipsis
        if not isinstance(value, list) or not (variable or len(value) == len(inside)):
            length = "a list" if variable else f"a list of {len(inside)}"
            raise UserError(f"{place} should be {length}, not {value!r}")
        kinds = [inside[0]] * len(value) if variable else inside
        return tuple(_convert(k, v, place) for k, v in zip(kinds, value, strict=True))
    if origin in (Union, UnionType):
        return None if value is None else _convert(next(k for k in inside if k is not NoneType), value, place)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)  # YAML reads 1e-3 as a string
    wanted = str if kind in (Path, Address) else kind
    if type(value) is not wanted:
        raise UserError(f"{place} should be of type {wanted.__name__}, not {value!r}")
    return kind(value)


def parse(kind: type[T], section: str, argv: Sequence[str]) -> T:
    """Defaults, then the preset's section, then the flags."""
    rest, default = list(argv), kind()
    for flag in [a for a in rest if a == "--preset" or a.startswith("--preset=")]:
        at = rest.index(flag)
        name = flag.partition("=")[2] or (rest[at + 1] if at + 1 < len(rest) else "")
        del rest[at : at + (1 if "=" in flag else 2)]
        default = overlay(default, section_of(name, section), f"{name.removesuffix('.yaml')}.yaml: {section}")
    args = tyro.cli(
        kind,
        default=default,
        args=rest,
        description=f"{kind.__doc__}\n\n--preset NAME lays configs/NAME.yaml under the flags.",
    )
    check(args)
    return args


def check(settings: Any) -> None:
    """`UserError` for a seed that no generator takes, a device that is not here, a URL where only a folder will do."""
    types = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), types[field.name]
        if Address not in (kind, *get_args(kind)):
            for path in filter(is_url, value if isinstance(value, tuple) else (value,)):
                raise UserError(f"{field.name} must be on this machine, but {path} is a URL; give a local path")
        if dataclasses.is_dataclass(value):
            check(value)
        elif field.name == "seed" and not 0 <= value < 2**31:
            raise UserError(f"seed must be from 0 to {2**31 - 1}, not {value}")
        elif field.name == "device":
            from worldmodel.rates import check_device  # torch, which scripts without a device need not load

            check_device(value)


def command(main: Callable[[Any], None], section: str) -> None:
    """Run a script's `main` with its arguments; a `UserError` is one line and exit status 2."""
    kind = next(iter(get_type_hints(main).values()))
    try:
        main(parse(kind, section, sys.argv[1:]))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again, without --restart, to go on", file=sys.stderr)
        sys.exit(130)
