"""What an environment is asked is checked when it is asked, and a call that is refused changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.dream import DreamEnv
from envs.pushing import Pushing
from envs.sb3 import SB3VecEnv
from envs.vector import DreamVectorEnv
from envs.vizdoom import VizdoomFrames
from tests.campaign.calls import knows
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.utils import memory
from worldmodel.utils.errors import UserError

NAN = float("nan")


@pytest.mark.parametrize("kind", [DreamEnv, DreamVectorEnv])
@pytest.mark.parametrize(
    ("argument", "value", "sentence"),
    [
        ("sample_done", "no", "sample_done should be of type bool, not 'no'"),
        ("sample_done", 1, "sample_done should be of type bool, not 1"),
        ("top_k", 2.5, "top_k should be of type int, not 2.5"),
        ("top_k", True, "top_k should be of type int, not True"),
        ("top_k", 10**23, "top_k must be at most 2147483647"),
        ("top_p", NAN, "top_p must be a fraction above 0 to 1, not nan"),
        ("temperature", "1", "temperature should be of type float, not '1'"),
        ("horizon", True, "horizon should be of type int, not True"),
        ("horizon", NAN, "horizon should be of type int, not nan"),
        ("world", None, "world should be of type str, not None"),
        ("world", "x", "no pretrained model is named 'x'"),
        ("model", np.zeros(3), "model should be of type str, not array"),
        pytest.param("model", 10**5000, "model should be of type str, not a very long int", id="longest"),
        ("temprature", 1.0, "unknown setting 'temprature' of a dream; did you mean 'temperature'"),
        ("model", "x" * 5000, "the folder .* cannot be opened .File name too long"),
        ("model", "a\0b", "no folder and no pretrained model is named"),
        pytest.param("device", 10**5000, "a very long int is not a device", id="long"),
        ("precision", np.zeros(3), "precision cannot be array"),
        ("device", None, "None is not a device; choose cpu or cuda"),
        ("device", "meta", "the device meta is not available on this machine; choose the device cpu"),
        ("precision", ["float32"], r"precision cannot be \['float32'\]; did you mean 'float32'"),
        ("render_mode", "ansi", "render_mode must be rgb_array.*, not 'ansi'"),
    ],
)
def test_arguments_of_a_dream(kind: Callable, argument: str, value: Any, sentence: str, toy_run: Path) -> None:
    model = {} if argument in ("model", "world") else {"model": toy_run}
    with pytest.raises(UserError, match=sentence):
        kind(**model | {argument: value})


def test_a_batch_that_there_is_not_the_memory_for_is_told_how_much_it_takes(
    toy_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lanes in (10**6, 10**23):
        with pytest.raises(UserError, match=rf"{lanes:,} lanes of this dream would take [\d,.]+ GB, but cpu has"):
            DreamVectorEnv(lanes, toy_run)
    env = DreamVectorEnv(2, toy_run)
    env.reset()
    for n in (10**5000, np.float64(2)):
        with pytest.raises(UserError, match="at least 1 copy"):
            env.fork(n)
    with pytest.raises(UserError, match="2,000,000,000,000 lanes would take"):
        env.fork(10**12)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 100)
    with pytest.raises(UserError, match=r"but cpu has 0\.0 GB; ask for fewer"):
        DreamVectorEnv(2, toy_run)
    DreamVectorEnv(1, toy_run)


def contexts(name: str, value: Any) -> dict[str, Any]:
    """A context of one's own with one thing wrong."""
    own = {"frames": np.zeros((4, 16, 16, 3), np.uint8), "actions": [0, 1, 2], "variables": [[1.0]] * 4}
    return {"options": own | {name: value}}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"options": [1]}, r"options must be a dictionary, not \[1\]"),
    ({"options": "context"}, "options must be a dictionary"),
    ({"options": {1: 2, "a": 3}}, "reset has no option 1; it takes context, frames"),
    ({"options": {"context": 2.5}}, r"context must be from 0 to 3, not 2\.5"),
    ({"options": {"context": True}}, "context must be from 0 to 3, not True"),
    ({"options": {"context": "a"}}, "context must be from 0 to 3, not 'a'"),
    ({"options": {"context": 10**23}}, "context must be from 0 to 3"),
    ({"options": {"context": [[0]]}}, "context must be one number or"),
    ({"options": {"context": 0, "frames": 1}}, "not both"),
    ({"options": {"reset_mask": [[True], [True, False]]}}, "reset_mask must be"),
    ({"options": {"reset_mask": None}}, "reset_mask must be"),
    ({"seed": -1}, "seed must be from 0 to"),
    ({"seed": 2.5}, r"seed should be of type int, not 2\.5"),
    ({"seed": "12"}, "seed should be of type int, not '12'"),
    ({"seed": b"x"}, "seed should be of type int, not b'x'"),
    ({"seed": True}, "seed should be of type int, not True"),
    (
        contexts("frames", np.zeros((257, 16, 16, 3), np.uint8)),
        "257 frames is too long; give the last 256",
    ),
    (contexts("frames", 5), "needs at least one frame, as uint8"),
    (contexts("frames", None), "needs at least one frame, as uint8"),
    (contexts("frames", [[1], [1, 2]]), "needs at least one frame, as uint8"),
    (contexts("frames", np.zeros((4, 8, 16, 3), np.uint8)), "this VQ-VAE takes clips of"),
    (contexts("actions", "abc"), "4 frames have 3 actions between them, but none are given"),
    (contexts("actions", [0, 1, 3]), r"action 3 is outside Discrete\(3\)"),
    (contexts("actions", [0, 1, NAN]), r"action \S+ is outside Discrete\(3\)"),
    (contexts("variables", [NAN]), "game variables must be finite numbers"),
    (contexts("variables", [[1.0]] * 3 + [[-np.inf]]), "game variables must be finite numbers"),
    (contexts("variables", [1e300]), "game variables must be finite numbers"),
    (contexts("variables", "abc"), "toy has 1 game variables"),
    (contexts("variables", [1, 2]), "toy has 1 game variables"),
]


@pytest.fixture(scope="module")
def dreams(toy_run: Path) -> list[tuple[Any, Any]]:
    """One and two lanes of a dream, amid an episode, and an action for each."""
    pairs: list[tuple[Any, Any]] = [(DreamEnv(toy_run), 1), (DreamVectorEnv(2, toy_run), [0, 1])]
    for env, action in pairs:
        env.reset(seed=5)
        env.step(action)
    return pairs


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_a_reset_that_is_refused_changes_nothing(
    given: dict[str, Any], sentence: str, dreams: list[tuple[Any, Any]]
) -> None:
    for env, _ in dreams:
        before = knows(env), env.np_random
        with pytest.raises(UserError, match=sentence) as error:
            env.reset(**({"seed": 6} | given))
        assert "\n" not in str(error.value)
        assert (knows(env), env.np_random) == before


def test_a_dream_takes_the_generator_that_it_is_given_and_tells_its_seed(toy_run: Path) -> None:
    env = DreamEnv(toy_run)
    with pytest.raises(UserError, match="seed should be of type int"):
        env.reset(seed=[1])  # type: ignore[arg-type]
    env.reset(seed=np.int64(3))  # type: ignore[arg-type]
    assert env.np_random_seed == 3
    state = env.np_random.bit_generator.state
    first = env.reset(seed=3)[0]
    assert env.np_random.bit_generator.state == state
    env.np_random = np.random.default_rng(3)
    assert np.array_equal(env.reset()[0], first)
    assert env.np_random is env.vector_env.rngs[0]


def test_an_action_that_is_refused_changes_nothing(toy_run: Path) -> None:
    for env in (DreamEnv(toy_run), DreamVectorEnv(1, toy_run)):
        env.reset(seed=5)
        before = knows(env)
        for action in (None, "a", b"", [[1], [1, 2]], NAN, 3, -1, 1.0, {}, object(), 10**23, np.zeros((2, 2))):
            with pytest.raises(UserError):
                env.step(action)
        assert knows(env) == before


def broken(moment: dict[str, Any]) -> list[Any]:
    """What is no snapshot, but nearly."""
    lanes = moment["lanes"]
    without_random = replace(lanes)  # as an earlier version pickled it
    del without_random.random
    return [
        *(None, [], {}, moment["lanes"]),
        *({k: v for k, v in moment.items() if k != name} for name in moment),
        *(moment | {name: None} for name in moment),
        *(moment | {name: moment[name].astype(np.float16)} for name in ("frames", "variables", "elapsed", "done")),
        *(moment | {name: moment[name][:1]} for name in ("frames", "variables", "elapsed", "done")),
        moment | {"elapsed": moment["elapsed"] - 9},
        moment | {"rngs": [1, 2]},
        moment | {"model_digests": {"vqvae": np.zeros(3)}},
        moment | {"memory": {"nothing": torch.zeros(2)}},
        moment | {"lanes": replace(lanes, kv_cache=None)},
        moment | {"lanes": replace(lanes, random=lanes.random[:1])},
        moment | {"lanes": without_random},
        moment | {"lanes": replace(lanes, hidden=lanes.hidden[:, :1])},
        moment | {"lanes": replace(lanes, hidden=lanes.hidden * NAN)},
        moment | {"lanes": replace(lanes, variables=lanes.variables[:, :0])},
        moment | {"lanes": replace(lanes, kv_cache=replace(lanes.kv_cache, kv=lanes.kv_cache.kv[:1]))},
        moment | {"lanes": replace(lanes, kv_cache=replace(lanes.kv_cache, codes=lanes.kv_cache.codes.float()))},
    ]


def test_a_broken_snapshot_is_refused_and_changes_nothing(toy_run: Path) -> None:
    env = DreamVectorEnv(2, toy_run)
    env.reset(seed=1)
    moment = env.snapshot()
    env.step(np.array([1, 2]))
    before = knows(env)
    for i, wrong in enumerate(broken(moment)):
        with pytest.raises(UserError, match=r"this is not a snapshot; give what snapshot\(\) returned"):
            env.restore(wrong)
            raise AssertionError(i)
    with pytest.raises(UserError, match="from another dream"):
        env.restore(moment | {"model_digests": {}})
    assert knows(env) == before
    env.restore(moment)


def test_a_fork_is_refused_when_it_is_asked(toy_run: Path) -> None:
    env = DreamVectorEnv(3, toy_run, horizon=1, autoreset_mode="Disabled")
    env.reset(seed=1)
    for n in (0, -1, 2.5, "2", None, True):
        with pytest.raises(UserError, match="a lane needs at least 1 copy, not"):
            env.fork(n)  # type: ignore[arg-type]
    for seed in (-1, 2.5, "a"):
        with pytest.raises(UserError, match=r"^seed "):
            env.fork(2, seed)  # type: ignore[arg-type]
    env.step(np.zeros(3, int))
    env.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(UserError, match=r"lanes \[1\] have ended; reset them before forking"):
        env.fork(2)


def test_contexts_that_are_not_of_these_models_are_refused(toy_run: Path) -> None:
    dream, context = Dream.load(toy_run), Context.load(toy_run)
    for wrong, sentence in (
        (replace(context, codes=context.codes + 16), "has codes that are not between 0 and 15"),
        (replace(context, codes=context.codes - 99), "has codes that are not between 0 and 15"),
        (replace(context, codes=context.codes[:, :, :2]), "the codes of this context have shape"),
        (replace(context, condition=context.condition[..., :1]), "the condition of this context have shape"),
        (replace(context, variables=context.variables * NAN), "the variables of this context are not finite"),
        (context[:0], "the codes of this context have shape"),
    ):
        with pytest.raises(UserError, match=sentence):
            dream.reset(wrong, [0] * len(context))


def test_models_and_a_world_that_do_not_belong_together_are_refused(toy_run: Path) -> None:
    dream = Dream.load(toy_run)
    for wrong in (replace(dream.env_spec, frame_shape=(8, 8, 3)), replace(dream.env_spec, variables=())):
        with pytest.raises(UserError, match="models and environment do not fit each other"):
            Dream(dream.vqvae, dream.prior, dream.outcome, wrong)


@pytest.mark.parametrize(
    ("kind", "given", "sentence"),
    [
        (VizdoomFrames, {"size": 2.5}, "size should be of type int, not 2.5"),
        (VizdoomFrames, {"size": 10**6}, "size must be from 1 to 4096, not 1000000"),
        (VizdoomFrames, {"frame_skip": 0}, "frame_skip must be at least 1, not 0"),
        (VizdoomFrames, {"horizon": -1}, "horizon must be at least 0, not -1"),
        (VizdoomFrames, {"scenario": ["basic"]}, "scenario should be of type str"),
        (VizdoomFrames, {"render_mode": "ansi"}, "must be rgb_array or human, or not given, not 'ansi'"),
        (Pushing, {"size": NAN}, "size should be of type int, not nan"),
        (Pushing, {"horizon": 0}, "horizon must be at least 1, not 0"),
        (Pushing, {"render_mode": 1}, "must be rgb_array or human, or not given, not 1"),
        (SB3VecEnv, {"env": 3}, "needs a vector environment, not int"),
    ],
)
def test_arguments_of_the_others(kind: Callable, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        kind(**given)


def test_an_engine_is_told_to_begin_first_and_takes_no_options() -> None:
    for env in (VizdoomFrames("basic", render_mode="rgb_array"), Pushing(render_mode="rgb_array")):
        with pytest.raises(UserError, match="no episode has started; call reset first"):
            env.step(0)
        with pytest.raises(UserError, match="nothing to render yet; call reset first"):
            env.render()
        for given in ({"seed": -1}, {"seed": 2.5}, {"options": [1]}, {"options": {"context": 1}}):
            with pytest.raises(UserError):
                env.reset(**given)  # type: ignore[arg-type]
        env.close()
