"""Presets and the command line.

A preset is a YAML file in this folder or any other. `run: folder` names the run folder. Below it is one section per
stage: `collect`, `vqvae`, `tokens`, `prior`, `outcome`, `evaluate`, and so on. An empty section uses the defaults.
Every script takes `--preset NAME`: the preset's section replaces the defaults, and flags override both. An unknown key
is an error that suggests the nearest one. A preset without a section for the script is an error too, because the
defaults belong to another environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, get_args, get_type_hints

import tyro
import yaml

from configs.help import short_help
from configs.scripts import PART, ROOT, program
from configs.written import Written, last_line
from worldmodel.utils import memory
from worldmodel.utils.errors import UserError, is_hub_name, is_url
from worldmodel.utils.settings import Address, check_value, declared_types, short_repr, suggestion

FOLDER = Path(__file__).parent
SECTIONS = (
    *("collect", "vqvae", "tune_hysteresis", "tokens", "prior", "outcome", "export", "push"),
    *("loop", "world", "policy", "imitate", "pusher"),
    *("dream", "evaluate", "evaluate_outcome", "evaluate_policy", "evaluate_pusher", "long_horizon", "controllability"),
    *("divergence", "full_turn", "report", "rank", "plan", "play", "show", "sample", "fvd", "ablate"),
    *("rollout_benchmark", "collect_benchmark", "train_benchmark", "scaling", "gpu"),
)
"""Sections of a preset, one per stage."""
MAX_PRESET_BYTES = 10**5
"""Largest size of a preset file."""
T = TypeVar("T")


class PresetLoader(yaml.SafeLoader):
    """A YAML loader with three changes.

    YAML 1.1 reads 1e-3 as text; here it is a number. YAML takes the last of two equal keys; here that is an error. An
    alias is an error too, because a few lines of aliases can expand to more than fits into memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias; write the values out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise yaml.YAMLError(f"{short_repr(twice)} occurs twice; remove one")
        return super().construct_mapping(node, deep)


PresetLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def read_preset(name: str) -> dict[str, Any]:
    """Read a preset by name (`demo`) or by path (`my/world.yaml`).

    Returns:
        Section -> settings; `run`, if given, is the run folder.

    Raises:
        UserError: The preset does not exist, is not YAML, or has unknown sections.
    """
    path = FOLDER / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name)
    if not path.exists():
        raise UserError(f"unknown preset {name!r}; {suggestion(name, [p.stem for p in FOLDER.glob('*.yaml')])}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PRESET_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a YAML file") from None
    if len(data) > MAX_PRESET_BYTES:
        raise UserError(f"{path} is larger than {MAX_PRESET_BYTES:,} bytes, too large for a preset; give another file")
    try:
        sections = yaml.load(data.decode(), PresetLoader)
    except Exception as error:  # PyYAML also raises other errors, from parsing dates, numbers and nested nodes
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct it") from None
    if not isinstance(sections, dict) or not sections:
        raise UserError(f"{path} has no sections; add one, such as `vqvae:`")
    for section, values in sections.items():
        if section not in ("run", *SECTIONS):
            near = suggestion(str(section), SECTIONS)
            raise UserError(f"{path} has an unknown section {short_repr(section)}; {near}")
        if section == "run":
            check_value(str, values, f"{path}: run")
        elif not isinstance(values, dict | None):
            raise UserError(f"{path}: section {section} should be a group of settings, not {short_repr(values)}")
    return {section: {} if values is None else values for section, values in sections.items()}


def read_section(name: str, section: str, kind: type) -> dict[str, Any]:
    """Read the settings of one stage from a preset.

    Args:
        name: Name or path of the preset.
        section: The stage.
        kind: Dataclass of the stage's settings. If it has a path `run`, the preset's run folder becomes its value.

    Raises:
        UserError: See `read_preset`, or the preset has no such section.
    """
    sections = read_preset(name)
    run = sections.pop("run", None)
    if section not in sections:
        raise UserError(
            f"preset {name!r} has no section {section!r}, only {', '.join(sections) or 'none'}; "
            "add the section, or use flags instead of --preset"
        )
    if run is None:
        return sections[section]
    if section == "collect":
        return {"out": f"{run}/data.zarr"} | sections[section]
    of_a_run = declared_types(kind).get("run") in (Path, Path | None)
    return ({"run": run} if of_a_run else {}) | sections[section]


def overlay(default: T, values: dict[str, Any], where: str) -> T:
    """A copy of a dataclass instance with some values replaced, also in nested dataclasses.

    Args:
        default: The instance.
        values: New values by name; a nested dict for a nested dataclass.
        where: Place of the values, named in errors.

    Raises:
        UserError: A name is unknown, or a value is invalid.
    """
    types = declared_types(type(default))
    changes = {}
    for key, value in values.items():
        if key not in types:
            raise UserError(f"{where} has no setting {short_repr(key)}; {suggestion(str(key), list(types))}")
        current, place = getattr(default, key), f"{where}.{key}"
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UserError(f"{place} is a group of settings, not {short_repr(value)}")
            changes[key] = overlay(current, value, place)
        else:
            changes[key] = check_value(types[key], value, place)
    try:
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]
    except UserError as error:
        raise placed(error, where, type(default)) from None


def placed(error: UserError, where: str, kind: type) -> UserError:
    """The error, with the name of the group of settings that it comes from in front."""
    joint = "." if str(error).split()[0] in declared_types(kind) else ": "
    return UserError(f"{where}{joint}{error}".removeprefix(joint))


def parse(kind: type[T], section: str, argv: Sequence[str]) -> T:
    """Parse the arguments of a script: defaults, replaced by the preset's section, replaced by flags.

    Raises:
        UserError: The preset or a value is invalid.
    """
    names, rest = split_presets(argv)
    default = kind()
    for name in names:
        default = overlay(default, read_section(name, section, kind), f"{name.removesuffix('.yaml')}.yaml: {section}")
    args = from_flags(kind, default, rest)
    check_places(args)
    return args


def split_presets(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of the presets in the arguments, and the other arguments."""
    names, rest = [], list(argv)
    for flag in [a for a in rest if a == "--preset" or a.startswith("--preset=")]:
        at = rest.index(flag)
        names.append(flag.partition("=")[2] or (rest[at + 1] if at + 1 < len(rest) else ""))
        del rest[at : at + (1 if "=" in flag else 2)]
    return names, rest


def from_flags(kind: type[T], default: T, flags: Sequence[str]) -> T:
    """A dataclass of settings from flags, with `--help` and `--help-all`.

    tyro prints its own errors in a box. A `UserError` raised by a setting inside tyro is raised again here, so that it
    is reported like everywhere else.
    """
    if any(flag in ("-h", "--help") for flag in flags):
        print(short_help(program(), default))
        sys.exit()
    flags = ["--help" if flag == "--help-all" else flag for flag in flags]
    description = f"{kind.__doc__}\n\n--preset NAME takes the defaults from configs/NAME.yaml."
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(kind, prog=program(), default=default, args=flags, description=description)
    except SystemExit as stop:
        error, where = stop.__context__, ""
        while error is not None and not isinstance(error, UserError):  # tyro's error around it has the place
            error, where = error.__context__, getattr(error, "arg", "")
        if error is None:
            sys.stderr.write(box.getvalue())
            raise
    group = reduce(lambda group, name: declared_types(group)[name], where.split(".") if where else [], kind)
    raise placed(error, where, group)


def check_places(settings: Any) -> None:
    """`UserError` for a device that is not available, or a URL where a local path is needed.

    Only a setting of type `Address` may be a URL. A setting of type `str` may be a run on the hub: `hf://owner/name`.
    """
    types = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), types[field.name]
        store = Address in (kind, *get_args(kind))
        if (value == Path() or (store and value == "")) and field.default != value:
            raise UserError(f"{field.name} is empty; give a path, or leave it out")
        if not store:
            given = value if isinstance(value, tuple) else (value,)
            for path in (p for p in given if is_url(p) and not (isinstance(p, str) and is_hub_name(p))):
                raise UserError(f"{field.name} must be a local path, but {path} is a URL; give a path on this machine")
        if dataclasses.is_dataclass(value):
            check_places(value)
        elif field.name == "device":
            from worldmodel.utils.hardware import check_device  # imports torch, which not all scripts need

            check_device(value)


def ranks() -> contextlib.AbstractContextManager[None]:
    """Context that connects this process with the others that torchrun has started, if it has."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return contextlib.nullcontext()
    from worldmodel.training.distributed import process_group  # imports torch, which not all scripts need

    return process_group()


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a `UserError` that a script's imports raise, such as for a missing engine, as one line; exit status 2."""
    if not isinstance(error, UserError):
        return sys.__excepthook__(kind, error, trace)
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


if sys.argv[0].endswith(".py") and Path(sys.argv[0]).resolve().parents[1] == ROOT:  # a script is this process's program
    sys.excepthook = report


def command(main: Callable[[Any], Written | None], section: str, *, in_ranks: bool = False) -> None:
    """Run a script's `main` with the arguments of the command line.

    A `UserError` is printed as one line, with exit status 2; under torchrun one rank prints it. SIGTERM acts like
    Ctrl-C, so that files are closed and training saves a checkpoint.

    Args:
        main: Function of one dataclass of settings. What it returns is printed as the last line.
        section: Section of a preset that has the script's settings.
        in_ranks: Whether torchrun may start the script in several processes.
    """
    kind = next(iter(get_type_hints(main).values()))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    memory.limit_memory()
    try:
        with ranks():
            if not in_ranks and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ:
                raise UserError("this command runs in one process; start it without torchrun")
            written = main(parse(kind, section, sys.argv[1:]))
            if written is not None:
                print(last_line(written, {name: read_preset(name) for name in split_presets(sys.argv[1:])[0]}))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError, ValueError) as error:
        if not memory.is_out_of_memory(error):
            raise
        available = memory.available_bytes("cuda" if "CUDA" in str(error) else "cpu")
        text = f"error: this needs more than the available memory of {available / 1e9:,.1f} GB; use smaller sizes"
        print(f"{text} ({' '.join(str(error).split())})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if PART not in os.environ:
            without = ", without --restart," if "restart" in declared_types(kind) else ""
            print(f"\ninterrupted; run the same command again{without} to resume", file=sys.stderr)
        sys.exit(130)
