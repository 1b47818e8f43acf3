"""The house: who may import whom. tests/test_wheel.py has what a wheel puts into site-packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ABOVE = {
    "worldmodel": {"envs", "configs", "collect", "train", "rollout", "tests"},
    "envs": {"configs", "collect", "train", "rollout", "tests"},
    "configs": {"envs", "collect", "train", "rollout", "tests"},
    "collect": {"train", "rollout", "tests"},
    "train": {"collect", "rollout", "tests"},
    "rollout": {"collect", "train", "tests"},
}
EXCEPT = {"worldmodel/utils/memory.py": {"resource"}, "worldmodel/envs.py": {"envs"}}
"""How much memory there is does without `resource` where there is none. The other is the clone's name for the wheel's
package, and not in the wheel."""
FOREIGN = {"worldmodel": {"gymnasium", "stable_baselines3", "vizdoom", "mujoco", "tyro", "yaml", "fcntl", "resource"}}
"""The last two are not on Windows."""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ABOVE)
def test_imports_point_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        name = str(path.relative_to(ROOT))
        wrong = imports(path) & (ABOVE[room] | FOREIGN.get(room, set())) - EXCEPT.get(name, set())
        assert not wrong, f"{name} must not import {wrong}"


ROOMS = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils", "models"},
    "metrics": {"utils", "models"},
    "generation": {"utils", "models", "data"},
    "training": {"utils", "models", "data", "metrics", "generation"},
}
"""Which rooms of worldmodel each of them may import."""


def modules(path: Path) -> set[str]:
    """The modules of this project that a file imports, dotted."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_worldmodel_import_one_way(room: str) -> None:
    files = list((ROOT / "worldmodel" / room).glob("*.py"))
    assert len(files) > 1
    for path in files:
        used = {name.split(".")[1] for name in modules(path) if name.startswith("worldmodel.")}
        wrong = (used & ROOMS.keys()) - ROOMS[room] - {room}
        assert not wrong, f"worldmodel/{room}/{path.name} must not import {wrong}"


def test_no_script_imports_a_script() -> None:
    files = [path for room in ("collect", "train", "rollout") for path in (ROOT / room).rglob("*.py")]
    scripts = {f"{path.parent.name}.{path.stem}" for path in files if "__main__" in path.read_text()}
    assert len(scripts) > 30
    for path in files:
        wrong = modules(path) & scripts
        assert not wrong, f"{path.relative_to(ROOT)} must not import the script {wrong}"


def test_every_module_says_what_it_is() -> None:
    for room in ABOVE:
        for path in (ROOT / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} has no docstring"


def test_registering_loads_no_torch() -> None:
    code = "import sys, envs; assert not {'torch', 'vizdoom', 'mujoco'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
