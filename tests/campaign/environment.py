"""What callers of the environments get wrong: arguments, options of a reset, actions, snapshots, forks.

What is no good must be refused at that call, in a sentence, and leave the environment as it was, to the bit; what is
good after all must be taken, and the environment must work on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from envs.dream import DreamEnv
from envs.vector import DreamVectorEnv
from tests.campaign import calls, toy
from tests.campaign.calls import LANES, Call, Env
from tests.campaign.harness import Tally, Verdict, attempts, judge_call

OF_A_DREAM = (calls.reset, calls.own, calls.step, calls.restore, calls.fork)
OF_NONE = (calls.make, calls.made)


def run(seconds: float, seed: int, least: int = 1) -> Tally:
    tally = Tally("environment")
    with tempfile.TemporaryDirectory() as name:
        folder = toy.make(Path(name))
        dreams: tuple[Env, Env] = DreamVectorEnv(LANES, folder, autoreset_mode="Disabled"), DreamEnv(folder)
        for number in attempts(seconds, least):
            rng = np.random.default_rng([seed, number])
            env = dreams[rng.integers(2)]
            env.reset(seed=number)
            calls.vector(env).done[0] = rng.random() < 0.1
            at = int(rng.integers(len(OF_A_DREAM) + len(OF_NONE)))
            of_none = at - len(OF_A_DREAM)
            call = OF_A_DREAM[at](env, rng) if of_none < 0 else OF_NONE[of_none](folder, rng)
            verdict, detail = judge(call, env)
            tally.add(verdict, f"({seed}, {number}) {type(env).__name__}: {call.what}", detail)
    return tally


def judge(call: Call, env: Env) -> tuple[Verdict, str]:
    """What came of a call, and of the environment that was there."""
    before = calls.knows(env)
    verdict, detail = judge_call(call.do, lambda _: call.good)
    if verdict == "sentence" and call.good:
        return "silent", f"refused, though it is good: {detail}"
    if verdict == "sentence" and calls.knows(env) != before:
        return "silent", f"refused, but not left as it was: {detail}"
    if verdict == "right" and not works(env):
        return "silent", "taken, but then it did not work on"
    return verdict, detail


def works(env: Env) -> bool:
    """Can a dream be stepped, to frames and numbers as they should be?"""
    if calls.vector(env).done.any():
        env.reset()
    action = np.zeros(LANES, int) if isinstance(env, DreamVectorEnv) else 0
    frames, rewards, _, _, info = env.step(action)
    return frames in env.observation_space and all(np.isfinite(v).all() for v in (rewards, *info.values()))
