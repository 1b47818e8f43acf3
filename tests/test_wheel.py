"""The wheel: what it puts into site-packages, and the installed command in an empty folder, away from the clone.

It is built as pip builds it and installed into a folder, once for all tests. `sitecustomize` there takes the clone off
the path of every process, and hides the packages that `HIDDEN` names.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hatch_build import FOLDERS
from tests.rollout.browser import CHROMIUM, Browser
from worldmodel import __version__
from worldmodel.utils.extras import EXTRAS

ROOT = Path(__file__).parents[1]
SITE = """
import os, sys
sys.path[:] = [folder for folder in sys.path if not os.path.exists(os.path.join(folder, "pyproject.toml"))]

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ.get("HIDDEN", "").split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
MINE = """
import gymnasium
import numpy as np

class Blink(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def frame(self):
        return np.full((64, 64, 3), 40 + 80 * (self.steps % 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.frame(), {}

    def step(self, action):
        self.steps += 1
        return self.frame(), float(action), False, False, {}

gymnasium.register("Blink-v0", Blink, max_episode_steps=20)
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--disable-pip-version-check", "--target", str(folder / "site"), str(wheel)], check=True)
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    return folder / "site"


@pytest.fixture
def away(site: Path, tmp_path: Path) -> dict[str, Any]:
    """Where a command runs, as arguments of `subprocess`: an empty folder, with the wheel and an empty home."""
    env = {"PYTHONPATH": str(site), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    for name in ("home", "here"):
        (tmp_path / name).mkdir()
    return {"cwd": tmp_path / "here", "env": env, "text": True}


@pytest.fixture
def run(away: dict[str, Any]) -> Run:
    """Runs Python there; `hidden` has the packages that cannot be imported."""

    def run(*words: str, hidden: str = "") -> subprocess.CompletedProcess[str]:
        env = away["env"] | {"HIDDEN": hidden}
        return subprocess.run([sys.executable, *words], **away | {"env": env}, capture_output=True)

    return run


@cache
def not_required(*extras: str) -> str:
    """The modules of all installed packages that the wheel, with these extras, does not ask for, not even indirectly.

    In a fresh virtual environment they would not be there.
    """
    todo, found = [("worldmodel", extras)], set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in found:
            continue
        found.add((name, wanted))
        for requirement in map(Requirement, metadata.requires(name) or ()):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                todo.append((canonicalize_name(requirement.name), tuple(requirement.extras)))
    required, makers = {name for name, _ in found}, metadata.packages_distributions()
    return ",".join(module for module in makers if not required & set(map(canonicalize_name, makers[module])))


def lines(*commands: str) -> str:
    """Python that runs command lines in one process, and prints the exit status of each that ends with one."""
    return f"""
import shlex, sys
from worldmodel.__main__ import main

for line in {commands!r}:
    sys.argv = ["worldmodel", *shlex.split(line)]
    try:
        main()
    except SystemExit as stop:
        print("status", stop.code, file=sys.stderr)
"""


def test_it_claims_only_its_own_name(site: Path) -> None:
    tops = {path.name for path in site.iterdir()} - {"bin", "sitecustomize.py", "__pycache__"}
    assert tops == {"worldmodel", f"worldmodel-{__version__}.dist-info"}
    for name in (
        "envs/dream.py",
        "envs/scenarios/battle2.cfg",
        "rollout/play.html",
        "rollout/show.html",
        "configs/demo.yaml",
    ):
        assert (site / "worldmodel" / name).is_file()
    assert not (site / "worldmodel" / "envs.py").exists()
    assert list((site / "worldmodel" / "pretrained").rglob("*.safetensors"))


def test_it_has_every_file_of_the_folders(site: Path) -> None:
    kinds = (".py", ".yaml", ".html", ".cfg")
    for name in FOLDERS:
        here, there = (
            {path.relative_to(top) for path in (top / name).rglob("*") if path.suffix in kinds}
            for top in (ROOT, site / "worldmodel")
        )
        assert here == there and here


def test_no_module_imports_a_name_of_the_clone(site: Path) -> None:
    """And what is imported by `import worldmodel.x` is not used by its name in the clone."""
    for path in (site / "worldmodel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            wrong = {name.partition(".")[0] for name in names} & set(FOLDERS)
            assert not wrong, f"{path.relative_to(site)} imports {wrong}"
    check = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821", str(site)]
    subprocess.run(check, check=True)


def test_the_library_is_the_installed_one(run: Run, site: Path) -> None:
    code = """
import gymnasium, sys, worldmodel.envs.dream, worldmodel.envs.policies as policies
policies.load_policy("health_gathering_supreme")
print(policies.__file__, gymnasium.spec("VideoGPTDream-v0").entry_point, "envs" in sys.modules)
"""
    done = run("-P", "-c", code)
    assert done.stdout.split() == [
        str(site / "worldmodel" / "envs" / "policies.py"), "worldmodel.envs.dream:DreamEnv", "False"
    ], done.stderr  # fmt: skip


def test_the_command_lists_and_helps(run: Run, site: Path) -> None:
    command = str(site / "bin" / "worldmodel")
    listed = run(command, hidden=not_required() + ",torch,gymnasium")
    assert "\n  worldmodel train vqvae " in listed.stdout and listed.stdout == run("-m", "worldmodel", "--help").stdout
    assert run(command, "--version").stdout == f"worldmodel {__version__}\n"
    for words in ((command, "train", "vqvae"), ("-m", "worldmodel.train.vqvae")):
        helped = run(*words, "--preset", "demo", "--help")
        assert helped.stdout.startswith("usage: worldmodel train vqvae [--preset NAME]"), helped.stderr
        assert "[runs/demo]" in helped.stdout
    unknown = run(command, "train", "vqva")
    assert (unknown.returncode, unknown.stderr) == (
        2, "error: there is no command worldmodel train vqva; did you mean 'vqvae'?\n"
    )  # fmt: skip


def test_every_stage_runs_in_an_empty_folder(run: Run, site: Path, tmp_path: Path) -> None:
    """On an environment from the user's own package `envs`, which the wheel's must not hide."""
    mine = tmp_path / "here" / "envs" / "blink.py"
    mine.parent.mkdir(parents=True)
    mine.write_text(MINE)
    record = "collect gym --env-id envs.blink:Blink-v0 --out runs/mine/data.zarr --episodes 20 --num-workers 1"
    done = run(str(site / "bin" / "worldmodel"), *record.split())
    assert done.stdout.endswith("written: runs/mine/data.zarr (next: worldmodel train vqvae --run runs/mine)\n"), done
    fit = "--preset demo --run runs/mine --trainer.steps 2 --trainer.batch-size 2 --n-eval-clips 2"
    code = """
import json, threading, urllib.request
from worldmodel.rollout import play, show
for made in (play.serve(play.Args(run="runs/mine", port=0)), show.serve(show.Args(path="runs/mine", port=0))):
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    with made, urllib.request.urlopen(f"http://127.0.0.1:{made.server_port}/") as page:
        print("<title>" in page.read().decode())
        made.shutdown()
"""
    done = run(
        "-c",
        lines(
            f"train vqvae {fit}",
            "train tokens --preset demo --run runs/mine --n-contexts 4",
            f"train prior {fit} --actions",
            f"train outcome {fit}",
            "rollout dream --preset demo --run runs/mine --n-clips 1 --steps 2",
        )
        + code,
    )
    assert re.findall(r"\(next: worldmodel (\w+ \w+)", done.stdout) == [
        "train tokens", "train prior", "train outcome", "rollout dream", "rollout evaluate"
    ], done.stderr  # fmt: skip
    assert "status" not in done.stderr
    assert list((tmp_path / "here" / "runs" / "mine" / "dreams").glob("*.gif"))
    assert not list((tmp_path / "home").rglob("*.py"))
    alone = "playing without the engine: Blink-v0 was recorded from 'envs.blink:Blink-v0', which is not part of"
    assert f"\n{alone}" in done.stdout and done.stdout.endswith("\nTrue\nTrue\n"), done


def test_one_command_makes_a_world_that_is_played_in_a_browser(
    run: Run, site: Path, away: dict[str, Any], tmp_path: Path
) -> None:
    """The path of a new user, with nothing replaced: too short a time for a good model, which it says."""
    here, command = tmp_path / "here", str(site / "bin" / "worldmodel")
    (here / "my_env.py").write_text(MINE)
    flags = "--run runs/mine --minutes 1 --size 32"
    done = run(command, "dream", "my_env:Blink-v0", *flags.split(), hidden=not_required("tensorboard"))
    assert done.returncode == 0, done.stderr
    for name in ("reconstruction.png", "evaluation/results.json", "dreams/strip.png", "world.json"):
        assert (here / "runs/mine" / name).is_file(), name
    said = dict(re.findall(r"^(\w[\w ]*): +(.*)$", done.stdout, re.MULTILINE))
    assert said["better"].startswith("the time was too short for vqvae")
    for verdict in ("runs/mine/vqvae: reconstructions are ", "runs/mine/prior: actions ", "runs/mine: the dream is "):
        assert f"\n{verdict}" in done.stdout, done.stdout
    assert said["play it"] == "worldmodel play --run runs/mine"
    assert "(--trust-env also runs my_env:Blink-v0 itself" in done.stdout
    if not CHROMIUM:
        pytest.skip("no Chromium here to play in; all before that is tested")
    play = [sys.executable, command, "play", "--run", "runs/mine", "--port", "0"]
    with subprocess.Popen(play, **away, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.:]+", line)))
            with Browser(url, tmp_path / "profile") as page:
                page.wait("document.querySelectorAll('#figures tr').length > 3")
                page.key(" ", down=True)
                page.wait("+document.querySelector('#figures tr').cells[1].innerText >= 3")
                assert page.value("document.querySelector('#dream').naturalWidth") == 32
        finally:
            server.terminate()


def test_a_robot_needs_no_vizdoom(run: Run) -> None:
    """What plans for both engines imports the one that it is asked for."""
    done = run(
        "-c",
        "import worldmodel.rollout.plan; from worldmodel.rollout.planning import visual_foresight",
        hidden="vizdoom",
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_starts_without_any_extra(run: Run) -> None:
    (code, *_) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert "range(100)" in code
    done = run("-c", code.replace("range(100)", "range(3)") + "print(frame.shape)", hidden=not_required())
    assert done.stdout == "(64, 64, 3)\n", done.stderr


def test_each_missing_extra_is_asked_for(run: Run) -> None:
    asking = {
        "collect vizdoom": "vizdoom",
        "rollout evaluate_policy": "vizdoom",
        "rollout plan": "vizdoom",
        "collect pushing": "mujoco",
        "train policy": "sb3",
        "train pusher": "mujoco",
        "collect gym --env-id CartPole-v1 --policy health_gathering_supreme": "sb3",
        "train gpu --device cpu": "tensorboard",
        "collect minari": "minari",
        "collect lerobot": "parquet",
        "dream CartPole-v1": "tensorboard",
        "play --run hf://somebody/dream": "hub",
    }
    done = run("-c", lines(*asking), hidden=not_required())
    said = [f"error: {EXTRAS[name]} is not installed; run pip install 'worldmodel[{name}]'" for name in asking.values()]
    ends = [line for line in done.stderr.splitlines() if line.endswith(("]'", "status 2"))]  # pygame also says things
    assert ends == [line for text in said for line in (text, "status 2")]


def test_the_log_of_a_training_asks_for_tensorboard(run: Run) -> None:
    code = "from pathlib import Path; from worldmodel.training.logging import open_log; open_log(Path('log'))"
    done = run("-c", code, hidden="tensorboard")
    assert done.stderr.endswith("TensorBoard is not installed; run pip install 'worldmodel[tensorboard]'\n")
