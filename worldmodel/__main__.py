"""The command `worldmodel`: `worldmodel train prior --run runs/mine` is `python train/prior.py --run runs/mine`.

The scripts are in the folders collect, train and rollout, which the wheel has inside `worldmodel` and the clone beside
it (hatch_build.py). A script is imported under its own name and its `main` is called, so that spawned processes can
import what it defines. Listing the scripts only reads their files and imports nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path

from worldmodel import __version__
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import suggestion

VERBS = {
    "dream": "train/world.py",
    "play": "rollout/play.py",
    "show": "rollout/show.py",
    "push": "train/push.py",
    "collect": "collect",
    "train": "train",
    "rollout": "rollout",
}
"""The word after `worldmodel` -> a folder, whose scripts are the next word, or a script."""
FIRST = {"dream": ("--env-id",), "show": ("--path",), "push": ("--run", "--repo")}
"""Flags that may be left out: `worldmodel dream ID` is short for `worldmodel dream --env-id ID`."""
HERE = Path(__file__).resolve().parent
IN_WHEEL = (HERE / "configs").is_dir()
ROOT, PACKAGE = (HERE, "worldmodel.") if IN_WHEEL else (HERE.parent, "")
MAIN = re.compile(r'^    command\(main, "(\w+)"(, in_ranks=True)?\)', re.MULTILINE)
"""The end of a script, with its section of a preset, and whether torchrun may start it in several processes."""


@dataclass(frozen=True)
class Script:
    """A script and the words that run it."""

    words: str
    path: Path

    @property
    def line(self) -> str:
        """The script in a list: its words and the first line of its docstring."""
        text = ast.get_docstring(ast.parse(self.path.read_text())) or ""
        return f"  {self.words:<36} {text.partition(chr(10))[0]}"

    def run(self, flags: list[str]) -> None:
        """Run the script as if its file were run."""
        ((section, in_ranks),) = MAIN.findall(self.path.read_text())
        name = ".".join(self.path.relative_to(ROOT).with_suffix("").parts)
        sys.argv = [self.words, *flags]
        module = import_module(PACKAGE + name)
        import_module(f"{PACKAGE}configs").command(module.main, section, in_ranks=bool(in_ranks))


def scripts(verb: str) -> dict[str, Script]:
    """The scripts of a verb by name; a single one has the name ""."""
    place = ROOT / VERBS[verb]
    if place.is_file():
        return {"": Script(f"worldmodel {verb}", place)}
    found = [path for path in sorted(place.glob("*.py")) if MAIN.search(path.read_text())]
    return {path.stem: Script(f"worldmodel {verb} {path.stem}", path) for path in found}


def listing(verbs: list[str]) -> str:
    """What can be run, a line for each script."""
    groups = ["\n".join(script.line for script in scripts(verb).values()) for verb in verbs]
    end = "Each has --help and --preset NAME."
    return "\n\n".join(["usage: worldmodel COMMAND [flags]", *groups, end])


def with_first_flags(verb: str, words: list[str]) -> list[str]:
    """The words after a verb, with the flags of `FIRST` inserted where the user left them out."""
    given = list(takewhile(lambda word: not word.startswith("-"), words))[: len(FIRST.get(verb, ()))]
    pairs = zip(FIRST.get(verb, ()), given, strict=False)
    return [part for pair in pairs for part in pair] + words[len(given) :]


def run(words: list[str]) -> None:
    """Run the script that the words name, or list scripts; `UserError` if there is none of that name."""
    verb, *flags = words or ["--help"]
    if verb in ("-h", "--help"):
        print(listing(list(VERBS)))
    elif verb == "--version":
        print(f"worldmodel {__version__}")
    elif verb not in VERBS:
        raise UserError(f"there is no command worldmodel {verb}; {suggestion(verb, list(VERBS))}")
    elif "" in (found := scripts(verb)):
        found[""].run(with_first_flags(verb, flags))
    elif not flags or flags[0] in ("-h", "--help"):
        print(listing([verb]))
    elif flags[0] not in found:
        raise UserError(f"there is no command worldmodel {verb} {flags[0]}; {suggestion(flags[0], list(found))}")
    else:
        found[flags[0]].run(flags[1:])


def main() -> None:
    """Run the command line; the entry point of the installed command."""
    if not IN_WHEEL:
        sys.path.insert(0, str(ROOT))  # ahead of the user's own folders named `train` or `envs`
    try:
        run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
