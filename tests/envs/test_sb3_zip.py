"""Hostile and damaged files in place of a saved policy: nothing in them runs, and each is one sentence."""

from __future__ import annotations

import base64
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.sb3_agent import load_sb3_agent
from tests.envs.sb3_models import MODELS, SIDES, VECTOR, rewrite
from worldmodel.utils.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "agent.zip"
    MODELS["ppo"]().save(path)
    return path.read_bytes()


@pytest.fixture
def agent(saved: bytes, tmp_path: Path) -> Path:
    """A file that can be spoilt."""
    path = tmp_path / "agent.zip"
    path.write_bytes(saved)
    return path


def load(path: Path, trust: bool = False) -> Any:
    return load_sb3_agent(path, VECTOR, SIDES, trust=trust)


def weights_of(path: Path, **how: Any) -> Any:
    with zipfile.ZipFile(path) as archive:
        return torch.load(io.BytesIO(archive.read("policy.pth")), **how)


def text(path: Path, name: str) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))[name]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("place", ["policy_class", "policy_kwargs", "observation_space", "lr_schedule"])
def test_a_payload_in_the_description_does_not_run(place: str, agent: Path, tmp_path: Path) -> None:
    evil = base64.b64encode(pickle.dumps(Payload(tmp_path / "ran"))).decode()
    rewrite(
        agent, **{place: text(agent, place) | {":type:": "<class 'gymnasium.spaces.box.Box'>", ":serialized:": evil}}
    )
    load(agent)
    assert not (tmp_path / "ran").exists()
    used = place.startswith("policy")
    try:
        load(agent, trust=True)
    except UserError:  # what `mkdir` returns is no class
        assert used
    assert (tmp_path / "ran").exists() == used, "a trusted file is unpickled, but for no more than the policy"


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_payload_among_the_weights_never_runs(whole: bool, trust: bool, agent: Path, tmp_path: Path) -> None:
    evil: Any = Payload(tmp_path / "ran")
    rewrite(agent, weights=evil if whole else {"action_net.weight": torch.zeros(1), "action_net.bias": evil})
    with pytest.raises(UserError, match=r"agent.zip cannot be read .*policy.pth has more than weights.; save it again"):
        load(agent, trust)
    assert not (tmp_path / "ran").exists()
    weights_of(agent, weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have run"


def test_names_of_parts_are_not_files(agent: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.rglob("*"))
    with zipfile.ZipFile(agent, "a") as archive:
        for name in ("../evil", "/tmp/worldmodel_evil", "data/../../evil", "evil.pth"):
            archive.writestr(name, "evil")
    load(agent)
    assert sorted(tmp_path.parent.rglob("*")) == before and not Path("/tmp/worldmodel_evil").exists()


def repack(path: Path, **changes: Any) -> None:
    """Write a zip again, with other parts; compressed if `compression` says so, without those that are None."""
    compression = changes.pop("compression", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, part in parts.items():
            if part is not None:
                archive.writestr(name, part)


def bombed(path: Path) -> None:
    """A gigabyte of zeros among the weights, in a megabyte."""
    torch.save({"action_net.weight": torch.zeros(3)}, inner := path.with_suffix(".pth"))
    with zipfile.ZipFile(inner) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
    with zipfile.ZipFile(inner, "a", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{name}0", "w") as part:
        for _ in range(64):
            part.write(bytes(2**20))
    repack(path, **{"policy.pth": inner.read_bytes()})


UNREADABLE = {
    "compressed": (lambda p: repack(p, compression=zipfile.ZIP_DEFLATED), "it is compressed"),
    "compressed inside": (bombed, "it is compressed"),
    "no weights": (lambda p: repack(p, **{"policy.pth": None}), "There is no item named 'policy.pth' in the archive"),
    "no description": (lambda p: repack(p, data=None), "There is no item named 'data' in the archive"),
    "no JSON": (lambda p: repack(p, data=b"{"), "Expecting property name"),
    "a list": (lambda p: repack(p, data=b"[]"), "data is not a group of values"),
    "deep": (lambda p: repack(p, data=b"[" * 100_000), "maximum recursion depth"),
    "a long number": (lambda p: repack(p, data=b'{"a": ' + b"1" * 9999 + b"}"), "Exceeds the limit"),
    "not text": (lambda p: repack(p, data=b"\xff\xfe{"), "codec can't decode"),
    "no tensors": (lambda p: repack(p, **{"policy.pth": b"garbage"}), "File is not a zip file"),
    "no zip": (lambda p: p.write_bytes(b"garbage"), "File is not a zip file"),
    "empty": (lambda p: p.write_bytes(b""), "File is not a zip file"),
    "a flipped bit": (lambda p: p.write_bytes(p.read_bytes().replace(b'"verbose"', b'"Verbose"')), "Bad CRC-32"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_one_sentence(case: str, agent: Path) -> None:
    spoil, why = UNREADABLE[case]
    spoil(agent)
    with pytest.raises(UserError, match=rf"agent.zip cannot be read as a policy of Stable-Baselines3 \(.*{why}.*\); s"):
        load(agent)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off(share: float, agent: Path, saved: bytes) -> None:
    agent.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(UserError, match=r"agent.zip cannot be read as a policy of Stable-Baselines3"):
        load(agent)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    for name in ("none.zip", "folder.zip"):
        with pytest.raises(UserError, match=rf"there is no file .*/{name}; give one that model.save"):
            load(tmp_path / name)


def function(name: str, module: str = "stable_baselines3.common.policies") -> dict[str, Any]:
    return {"policy_class": {"__module__": module, "__init__": f"<function {name}.__init__ at 0x1>"}}


def arguments(**values: Any) -> dict[str, Any]:
    return {"policy_kwargs": values}


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


ACTIVATION, LAYERS = "torch.nn.modules.activation", "stable_baselines3.common.torch_layers"
NOT_REBUILT = {
    "another module": (function("system", "os"), "its policy is a class of the module os, which is not rebuilt"),
    "no policy": (function("partial"), "it needs stable_baselines3.common.policies.partial, which the installed"),
    "no class": ({"policy_class": 3}, "its policy is a class of the module None, which is not rebuilt"),
    "a list of modules": (
        {"policy_class": {"__module__": ["os"]}},
        "its policy is a class of the module .'os'., w",
    ),
    "an abstract class": (function("BasePolicy"), "it cannot be rebuilt as BasePolicy .*abstract.*; give module:Class"),
    "another policy": (function("ActorCriticCnnPolicy"), "it cannot be rebuilt as ActorCriticCnnPolicy .*image"),
    "another module's class": (arguments(activation_fn="<class 'os.system'>"), "its activation_fn is <class 'os.sys"),
    "no activation": (arguments(activation_fn=f"<class '{ACTIVATION}.warnings'>"), f"it needs {ACTIVATION}.warnings"),
    "a function": (arguments(features_extractor_class=f"<class '{LAYERS}.create_mlp'>"), f"it needs {LAYERS}.create_m"),
    "unknown": (arguments(colour=1), "it cannot be rebuilt as ActorCriticPolicy .*'colour'"),
    "text": (arguments(net_arch="wide"), "its net_arch is wide, which is not rebuilt without unpickling"),
    "letters that move the cursor": (
        arguments(net_arch="\x1b[2J" + 999 * "x y"),
        r"its net_arch is \?\[2Jx .* \.\.\., which",
    ),
    "other sizes": (
        arguments(net_arch=[32, 32]),
        r"its weights do not fit .*size mismatch.*\.\.\.\); give module:Class",
    ),
    "large": (arguments(net_arch=[10**6, 10**6]), "the sizes in its policy_kwargs are not those of its weights; save"),
    "deep": (arguments(net_arch=[64] * 10**5), "the sizes in its policy_kwargs are not those of its weights; save it"),
    "nested": (arguments(net_arch=nested(900)), "it cannot be rebuilt as ActorCriticPolicy"),
    "endless": (arguments(net_arch=[float("inf")]), "the sizes in its policy_kwargs are not those of its weights"),
    "no observations": ({"observation_space": None}, "it was trained on observations without a class, not Box"),
    "endless stacks": (
        {"observation_space": {":type:": "<class 'gymnasium.spaces.box.Box'>", "_shape": [3 * 10**9]}},
        r"it was trained on observations Box\(3000000000,\), not Box",
    ),
}


@pytest.mark.parametrize("case", NOT_REBUILT)
def test_what_is_not_rebuilt_is_one_sentence(case: str, agent: Path) -> None:
    data, why = NOT_REBUILT[case]
    rewrite(agent, **data)
    with pytest.raises(UserError, match=f"agent.zip: {why}"):
        load(agent)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_training_that_diverged(value: float, agent: Path) -> None:
    weights = weights_of(agent, weights_only=True)
    weights["action_net.bias"][1] = value
    rewrite(agent, weights=weights)
    with pytest.raises(UserError, match="has weights that are NaN or infinite; give a policy whose training did not"):
        load(agent)


def test_a_recurrent_policy_asks_for_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MODELS["recurrent"]().save(tmp_path / "agent.zip")
    monkeypatch.setitem(sys.modules, "sb3_contrib.common.recurrent.policies", None)
    with pytest.raises(UserError, match=r"SB3 Contrib is not installed; run pip install 'worldmodel\[sb3-contrib\]'"):
        load(tmp_path / "agent.zip")
