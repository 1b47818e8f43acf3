"""Pages that mkdocs makes from the sources: the API of each room, every setting, every error.

The sources are read, never imported (`griffe` and `ast`), so the site builds without torch or an engine, and a default
such as `min(os.cpu_count() or 1, 16)` is printed as it is written, not as it comes out on the machine that builds.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOMS = {
    "worldmodel.data": "Stores of trajectories, clips of them, and what was recorded.",
    "worldmodel.models": "The VQ-VAE, the prior over its codes, and the model of reward and end.",
    "worldmodel.generation": "Sampling from the prior, and the dream that is stepped.",
    "worldmodel.training": "The training loop, its log, and the paper's ablations.",
    "worldmodel.metrics": "What results are measured by.",
    "worldmodel.utils": "Checkpoints, hardware, pictures and errors.",
    "envs": "Gymnasium environments: the engines, the dream, and wrappers. Importing `envs` registers the ids.",
    "collect": "What the recorders and readers of data sets share.",
    "train": "What the training scripts share.",
    "rollout": "What the scripts that evaluate share, and planning.",
    "configs": "Presets and the command line.",
}
"""Rooms of the API reference."""
PART = re.compile(r"<!-- (settings|presets|errors) -->.*?<!-- end -->", re.DOTALL)
"""A part of a page that is generated, with what stands in its place where the Markdown file is read."""
ERRORS = ("UserError", "BrokenFile")
"""Errors that are meant to be read."""
PACKAGES = ("worldmodel", "envs", "configs", "collect", "train", "rollout")
PLURAL = {"collect": "Collect", "train": "Train", "rollout": "Evaluate, plan and play"}


def sources(room: str) -> list[Path]:
    """The Python files of a room, libraries and scripts."""
    return sorted((ROOT / room.replace(".", "/")).rglob("*.py"))


def section(path: Path) -> str:
    """The section of a preset that a script reads; "" for a library."""
    found = re.search(r'^    command\(main, "(\w+)"\)', path.read_text(), re.MULTILINE)
    return found[1] if found else ""


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each room."""
    for room, summary in ROOMS.items():
        modules = [module(path) for path in sources(room) if not section(path)]
        text = f"# {room}\n\n{summary}\n\n" + "\n".join(f"::: {name}\n" for name in modules)
        files.append(File.generated(config, f"api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace what a handwritten page says of its generated parts by these parts."""
    parts = {"settings": settings, "presets": presets, "errors": errors}
    return PART.sub(lambda found: parts[found[1]](), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """The site needs no network: refuse a page that loads something from elsewhere."""
    for path in Path(config.site_dir).rglob("*.html"):
        if found := re.search(
            r"<(?:script|img|iframe)[^>]*src=.?https?://[^ >]+|<link[^>]*stylesheet[^>]*https?://", path.read_text()
        ):
            raise PluginError(f"{path} loads from the network: {found[0]}")


# Configuration


def settings() -> str:
    """Each script's arguments, then the groups of settings that several share."""
    modules = load_modules()
    groups: dict[str, griffe.Class] = {}
    pages = []
    for room, title in PLURAL.items():
        pages.append(f"## {title}\n")
        for path in sources(room):
            if not (name := section(path)):
                continue
            args = modules[module(path)]["Args"]
            pages.append(f"### {path.relative_to(ROOT)}\n\n{text(args)} Section `{name}` of a preset.\n")
            pages.append(table(modules, args, groups))
    pages.append("## Groups of settings\n")
    done: set[str] = set()
    while more := [name for name in groups if name not in done]:  # a group may have groups
        for name in more:
            done.add(name)
            pages.append(f"### {name}\n\n{text(groups[name])}\n\n{table(modules, groups[name], groups)}")
    return "\n".join(pages)


def load_modules() -> griffe.ModulesCollection:
    """All packages, each read once: to load a module again would read its whole package again."""
    loader = griffe.GriffeLoader(search_paths=[ROOT])
    for package in PACKAGES:
        loader.load(package)
    return loader.modules_collection


def text(thing: griffe.Object) -> str:
    """A docstring as one line."""
    return " ".join(thing.docstring.value.split()) if thing.docstring else ""


def table(modules: griffe.ModulesCollection, kind: griffe.Class, groups: dict[str, griffe.Class]) -> str:
    """Fields of a dataclass: flag, default, meaning. Groups of settings are noted in `groups`."""
    rows = ["| flag | default | what it sets |", "|---|---|---|"]
    for name, field in fields(modules, kind):
        flag, default = "--" + name.replace("_", "-"), str(field.value or "")
        if group := nested(modules, field):
            groups.setdefault(group.name, group)
            rows.append(f"| `{flag}.*` | [{group.name}](#{group.name.lower()}) | {cell(text(field))} |")
        else:
            rows.append(f"| `{flag}` | {code(default)} | {cell(text(field))} |")
    return "\n".join(rows) + "\n"


def fields(modules: griffe.ModulesCollection, kind: griffe.Class) -> Iterator[tuple[str, griffe.Attribute]]:
    """A dataclass's fields, its parents' first, each once with its last definition."""
    found: dict[str, griffe.Attribute] = {}
    for parent in [*reversed(list(ancestors(modules, kind))), kind]:
        for name, member in parent.members.items():
            if member.is_attribute and member.annotation is not None and "class-attribute" in member.labels:
                hidden = "Suppress" in str(member.annotation) or "Fixed" in str(member.annotation)
                found.pop(name, None) if hidden else found.update({name: member})
    yield from found.items()


def ancestors(modules: griffe.ModulesCollection, kind: griffe.Class) -> Iterator[griffe.Class]:
    for base in kind.bases:
        if parent := find(modules, kind, str(base)):
            yield parent
            yield from ancestors(modules, parent)


def nested(modules: griffe.ModulesCollection, field: griffe.Attribute) -> griffe.Class | None:
    """The dataclass that a field holds."""
    kind = find(modules, field.parent, str(field.annotation)) if field.parent else None
    return kind if kind is not None and "dataclass" in kind.labels else None


def find(modules: griffe.ModulesCollection, scope: griffe.Object, name: str) -> griffe.Class | None:
    """The class of a name as it is seen from `scope`, if it is one of ours."""
    if not re.fullmatch(r"[\w.]+", name):
        return None
    try:
        path = scope.resolve(name)
    except griffe.NameResolutionError:
        return None
    if path.split(".")[0] not in PACKAGES:
        return None
    try:
        found = modules[path]
    except KeyError:
        return None
    found = found.final_target if found.is_alias else found
    return found if found.is_class else None


def code(default: str) -> str:
    default = re.sub(r"field\(default_factory=(?:lambda: )?(.*)\)", r"\1", default)
    return f"`{default.replace('|', chr(92) + '|')}`" if default else "required"


def cell(words: str) -> str:
    return words.replace("|", "\\|")


def presets() -> str:
    """Each preset with the comment at its head."""
    pages = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines = path.read_text().splitlines()
        head = [line[1:].strip() for line in lines[: next(i for i, x in enumerate(lines) if not x.startswith("#"))]]
        keys = ", ".join(f"`{key}`" for key in yaml.safe_load(path.read_text()))
        body = "\n".join(f"    {line}" for line in path.read_text().rstrip().splitlines())
        intro = " ".join(line for line in head) or "Sections: " + keys + "."
        pages.append(f'### {path.stem}\n\n{intro}\n\n??? note "configs/{path.name}"\n\n    ```yaml\n{body}\n    ```\n')
    return "\n".join(pages)


# Errors


def errors() -> str:
    """Every message of the sources by file: what is wrong, and after the last semicolon what to do."""
    pages = []
    for room in ("collect", "train", "rollout", "configs", "envs", "worldmodel"):
        for path in sources(room):
            found = list(dict.fromkeys(messages(path)))
            if found:
                pages.append(f"### {path.relative_to(ROOT)}\n\n" + "\n".join(map(item, found)) + "\n")
    return "\n".join(pages)


def item(message: str) -> str:
    cause, _, cure = html.escape(message, quote=False).replace("*", r"\*").rpartition("; ")
    return f"- {cause}<br>**{cure}**" if cause else f"- {cure}"


def messages(path: Path) -> Iterator[str]:
    """What the errors of a file say; what is filled in stands in braces."""
    for node in ast.walk(ast.parse(path.read_text())):
        error = isinstance(node, ast.Call) and node.args and getattr(node.func, "id", "") in ERRORS
        if error and (message := said(node.args[0])):
            yield message


def said(node: ast.expr) -> str:
    """A string expression as text; "" where nothing of it is written in the source."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(said(value) if isinstance(value, ast.Constant) else hole(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return said(left) + said(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{said(body)} / {said(other)}"
    return ""


def hole(value: Any) -> str:
    """A short name for what is filled in."""
    words = re.findall(r"[A-Za-z_]\w*", ast.unparse(value.value))
    return f"{{{words[-1] if words else ''}}}"
