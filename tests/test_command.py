"""The command `worldmodel` in the clone, and packages that are not installed. tests/test_wheel.py has the wheel's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import configs
import envs
import worldmodel.envs
from configs.scripts import python_arguments
from hatch_build import in_the_wheel
from tests.configs.test_help import SCRIPTS
from worldmodel import __main__ as command_line
from worldmodel import __version__
from worldmodel.utils.errors import UserError
from worldmodel.utils.extras import EXTRAS, extra

ROOT = Path(__file__).parents[1]


def test_the_environment_comes_right_after_dream(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(command_line.Script, "run", lambda script, flags: ran.append([script.path.name, *flags]))
    command_line.run(["dream", "CartPole-v1", "--minutes", "5"])
    command_line.run(["dream", "--env-id", "CartPole-v1"])
    assert ran == [["world.py", "--env-id", "CartPole-v1", "--minutes", "5"], ["world.py", "--env-id", "CartPole-v1"]]


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("runs/exported me/toy --private", "--run runs/exported --repo me/toy --private"),
        ("runs/exported --repo me/toy", "--run runs/exported --repo me/toy"),
        ("--repo me/toy", "--repo me/toy"),
        ("a b c", "--run a --repo b c"),
    ],
)
def test_the_run_and_the_repository_come_right_after_push(words: str, flags: str) -> None:
    assert command_line.with_first_flags("push", words.split()) == flags.split()


def test_it_lists_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    command_line.run([])
    text = capsys.readouterr().out
    lines = [line.split(maxsplit=3) for line in text.splitlines() if line.startswith("  worldmodel ")]
    assert sorted(f"{verb}.{name}" for _, verb, name, _ in lines if verb in ("collect", "train", "rollout")) == SCRIPTS
    assert "  worldmodel train export              Export a finished run at a sixth of its size" in text
    assert "  worldmodel play                      Play a dream, next to its engine if there is one" in text
    command_line.run(["--help"])
    assert capsys.readouterr().out == text
    command_line.run(["train"])
    train = capsys.readouterr().out
    assert train.count("\n  worldmodel train ") == train.count("\n  worldmodel ") == text.count("\n  worldmodel train ")
    command_line.run(["--version"])
    assert capsys.readouterr().out == f"worldmodel {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "there is no command worldmodel trian; did you mean 'train'?"),
        ("train tokns --help", "there is no command worldmodel train tokns; did you mean 'tokens'?"),
        ("train gym", "there is no command worldmodel train gym; known names: benchmark"),
        ("--preset demo", "there is no command worldmodel --preset; known names: collect"),
    ],
)
def test_a_command_that_is_none(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        command_line.run(words.split())
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(("words", "name"), [("train prior", "train prior"), ("play", "play")])
def test_it_runs_a_script(
    words: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["worldmodel", *words.split(), "--help"])
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert not stop.value.code
    assert capsys.readouterr().out.startswith(f"usage: worldmodel {name} [--preset NAME] [flags]\n")


@pytest.mark.parametrize(("words", "several"), [("train prior", True), ("collect gym", True), ("train tokens", False)])
def test_it_tells_what_torchrun_may_start_in_several_processes(
    words: str, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(configs, "command", lambda main, section, *, in_ranks: told.append(in_ranks))
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    command_line.run(words.split())
    assert told == [several]


def test_a_script_can_be_run_from_any_folder(tmp_path: Path) -> None:
    """As train/loop.py runs its stages."""
    command = [sys.executable, *python_arguments("train/export.py"), "--help"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python train/export.py ")


def test_the_environments_have_one_identity() -> None:
    """Under the name of the clone and the name of the wheel."""
    assert sys.modules["worldmodel.envs"] is worldmodel.envs is envs
    assert envs.__name__ == "envs"


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_missing_is_asked_for(name: str) -> None:
    with pytest.raises(UserError) as error, extra(name):
        import not_there  # type: ignore[import-not-found]  # noqa: F401
    assert str(error.value) == f"{EXTRAS[name]} is not installed; run pip install 'worldmodel[{name}]'"


def test_what_is_broken_is_asked_for() -> None:
    with pytest.raises(UserError) as error, extra("vizdoom"):
        raise ImportError("libSDL2.so:\ncannot open")
    said = "ViZDoom cannot be imported (libSDL2.so: cannot open); run pip install 'worldmodel[vizdoom]'"
    assert str(error.value) == said


def test_a_file_whose_imports_fail_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "stable_baselines3.py").write_text("raise ModuleNotFoundError")
    run = [sys.executable, str(ROOT / "train" / "policy.py"), "--help"]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stderr == "error: Stable-Baselines3 is not installed; run pip install 'worldmodel[sb3]'\n"
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("from configs import command", "from worldmodel.configs import command"),
        ("    from rollout.planning import a", "    from worldmodel.rollout.planning import a"),
        ("import envs  # noqa: F401", "import worldmodel.envs  # noqa: F401"),
        ("import envs; gymnasium.make", "import worldmodel.envs; gymnasium.make"),
        ("from collect.record import (\n    a,", "from worldmodel.collect.record import (\n    a,"),
        ("from trainer import fit", "from trainer import fit"),
        ("from .envs import a", "from .envs import a"),
        ("from worldmodel.envs import a", "from worldmodel.envs import a"),
        ("videos come\nfrom train to test", "videos come\nfrom train to test"),
    ],
)
def test_imports_in_the_wheel(here: str, there: str) -> None:
    assert in_the_wheel(here) == there
