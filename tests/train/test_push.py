"""A run goes to the hub and comes back: what is uploaded, what is downloaded, and what is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import envs  # noqa: F401
from rollout import play
from tests.hub import Hub
from train import export, push
from worldmodel.models.hub import download
from worldmodel.models.loading import load_prior
from worldmodel.utils.checkpoint import read_checkpoint, save_checkpoint
from worldmodel.utils.errors import UserError

FILES = {
    "contexts.safetensors",
    *(f"{part}/{file}" for part in ("vqvae", "prior", "outcome") for file in ("checkpoint.safetensors", "config.json")),
}


@pytest.fixture(scope="session")
def exported(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run as train/export.py writes it; do not write into it."""
    out = tmp_path_factory.mktemp("exported") / "run"
    export.main(export.Args(run=toy_run, out=out))
    return out


@pytest.fixture
def pushed(hub: Hub, exported: Path) -> Hub:
    push.main(push.Args(run=exported, repo="somebody/toy"))
    return hub


def dreamed(model: str) -> np.ndarray:
    """A few frames of a dream."""
    env = gymnasium.make("VideoGPTDream-v0", model=model)
    frames = [env.reset(seed=3)[0], *(env.step(action)[0] for action in (1, 2, 1))]
    env.close()
    return np.stack(frames)


def test_what_was_pushed_comes_back(pushed: Hub, exported: Path) -> None:
    files = pushed.repos["somebody/toy"]
    assert files.keys() == FILES | {"README.md"}
    folder = download("hf://somebody/toy")
    assert all((folder / name).read_bytes() == (exported / name).read_bytes() == files[name] for name in FILES)
    np.testing.assert_array_equal(dreamed("hf://somebody/toy"), dreamed(str(exported)))
    assert sorted(pushed.sent) == sorted(FILES), "each file is downloaded once, and no other"
    assert not pushed.private["somebody/toy"]


def test_without_a_network_the_cache_answers(pushed: Hub) -> None:
    online = dreamed("hf://somebody/toy")
    pushed.shutdown()
    pushed.server_close()
    np.testing.assert_array_equal(dreamed("hf://somebody/toy"), online)
    with pytest.raises(UserError, match="hf://somebody/other is not in the cache, and the hub cannot be reached; run"):
        dreamed("hf://somebody/other")


def test_a_revision_stays_when_the_branch_moves_on(pushed: Hub, exported: Path, tmp_path: Path) -> None:
    first = pushed.commit_of("somebody/toy")
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    saved = read_checkpoint(other / "prior")
    config, progress = saved.config, saved.progress
    save_checkpoint(other / "prior", load_prior(other / "prior"), config, progress | {"step": 451})
    assert download(f"hf://somebody/toy@{first}") == download("hf://somebody/toy")
    push.main(push.Args(run=other, repo="somebody/toy"))
    steps = [
        read_checkpoint(download(name) / "prior").steps("step")
        for name in ("hf://somebody/toy", f"hf://somebody/toy@{first}", "hf://somebody/toy@main")
    ]
    assert steps == [451, 450, 451]


def test_the_card_says_what_it_is(pushed: Hub, exported: Path) -> None:
    card = pushed.repos["somebody/toy"]["README.md"].decode()
    for line in (
        'env = gymnasium.make("VideoGPTDream-v0", model="hf://somebody/toy")',
        "| environment | recordings, without an engine |",
        "| frames | 16x16x3, 5 a second |",
        "| actions | Discrete(3) |",
        "| variables | COLUMN |",
        "| starting contexts | 4 |",
    ):
        assert line in card.splitlines()
    found = read_checkpoint(exported / "prior")
    size = sum(tensor.nbytes for tensor in found.weights.values())
    assert f"| prior | {size / 1e6:.2f} MB | 450 | `{found.digest}` |" in card.splitlines()


def test_a_card_that_its_author_wrote_stays(hub: Hub, exported: Path) -> None:
    hub.repos["somebody/toy"] = {"README.md": b"mine"}
    push.main(push.Args(run=exported, repo="somebody/toy"))
    assert hub.repos["somebody/toy"]["README.md"] == b"mine"
    assert hub.repos["somebody/toy"].keys() == FILES | {"README.md"}


def test_a_new_repository_can_be_private(hub: Hub, exported: Path) -> None:
    push.main(push.Args(run=exported, repo="somebody/secret", private=True))
    assert hub.private == {"somebody/secret": True}


def test_pickles_and_code_stay_there(pushed: Hub) -> None:
    evil = ("policy.zip", "prior/model.bin", "model.pt", "prior/weights.pkl", "setup.py", "huge.safetensors")
    pushed.repos["somebody/toy"] |= dict.fromkeys(evil, b"\x80\x04.")
    folder = download("hf://somebody/toy")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    assert set(pushed.sent) == FILES


@pytest.mark.parametrize("name", ["contexts.safetensors", "prior/checkpoint.safetensors"])
def test_a_damaged_download_is_one_sentence(name: str, pushed: Hub, tmp_path: Path) -> None:
    data = bytearray(pushed.repos["somebody/toy"][name])
    data[len(data) // 2] ^= 1
    pushed.repos["somebody/toy"][name] = bytes(data)
    with pytest.raises(UserError) as error:
        dreamed("hf://somebody/toy")
    cache = tmp_path / "hf_home" / "hub" / "models--somebody--toy"
    assert f"{name} is damaged (its content does not match its checksum); delete {cache}, and run" in str(error.value)
    assert cache.is_dir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://somebody/none", "hf://somebody/none does not exist or is private; check the name, or log in with"),
        ("hf://somebody/toy@v9", "hf://somebody/toy@v9: the repository has no such revision; give a branch, tag or"),
        ("hf://toy", "'hf://toy' is not a run on the hub; write hf://owner/name or hf://owner/name@revision"),
        ("hf://somebody/../../x", "is not a run on the hub"),
        ("hf://somebody/a--b", "hf://somebody/a--b is not a valid name"),
        ("hf://somebody/empty", "hf://somebody/empty has no checkpoint.safetensors, so it is not a run; give one that"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(name: str, said: str, pushed: Hub) -> None:
    pushed.repos["somebody/empty"] = {"README.md": b"nothing"}
    with pytest.raises(UserError) as error:
        dreamed(name)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_was_not_exported_is_refused(hub: Hub, toy_run: Path) -> None:
    with pytest.raises(UserError, match=r"vqvae contains optimizer state.*; export the run with train/export.py"):
        push.main(push.Args(run=toy_run, repo="somebody/toy"))
    assert not hub.repos


@pytest.mark.parametrize("repo", ["", "toy", "a/b/c", "../b"])
def test_a_name_that_is_none_is_refused(repo: str, hub: Hub, exported: Path) -> None:
    with pytest.raises(UserError, match="is not the name of a repository; write owner/name"):
        push.main(push.Args(run=exported, repo=repo))


def test_who_may_not_write_is_told_to_log_in(hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_somebody_else")
    with pytest.raises(UserError, match=r"hf://somebody/toy: the hub refused \(.*401.*\); log in with `hf auth login`"):
        push.main(push.Args(run=exported, repo="somebody/toy"))
    assert not hub.repos


def test_an_engine_that_a_download_names_needs_trust(
    hub: Hub, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(exported, tmp_path / "run"))
    saved = read_checkpoint(run / "prior")
    config, progress = saved.config, saved.progress
    config["env_spec"] |= {"env_id": "foreign_module:Foreign-v0", "env_kwargs": {}}
    save_checkpoint(run / "prior", load_prior(run / "prior"), config, progress)
    push.main(push.Args(run=run, repo="somebody/toy"))
    play.serve(play.Args(run="hf://somebody/toy", port=0)).server_close()
    why = "which is not part of this project and may run any code; give --trust-env"
    assert (
        f"playing without the engine: toy was recorded from 'foreign_module:Foreign-v0', {why}"
        in capsys.readouterr().out
    )


def test_the_command_pushes(hub: Hub, exported: Path) -> None:
    command = [sys.executable, "-m", "worldmodel", "push", str(exported), "somebody/toy", "--private"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=os.environ.copy(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = (
        'written: hf://somebody/toy (next: import envs; gymnasium.make("VideoGPTDream-v0", model="hf://somebody/toy"))'
    )
    assert done.stdout.splitlines()[-1] == said
    assert hub.private == {"somebody/toy": True}
    serving = [sys.executable, "rollout/play.py", "--run", "hf://somebody/toy", "--port", "0"]
    with subprocess.Popen(serving, cwd=root, env=os.environ.copy(), stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        alone, address = page.stdout.readline(), page.stdout.readline()
        page.terminate()
    assert "toy was not recorded from a Gymnasium environment" in alone
    assert address.startswith("play at http://127.0.0.1:")
