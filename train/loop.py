"""Record, train a dream, train a policy in it, and let that policy record what comes next, round after round.

    python train/loop.py --preset health_gathering_loop

The first round records random play. Every later round records the policy of the previous round, with some random
actions. A round:

    record     collect/vizdoom.py            into <run>/data.zarr/<round>; all rounds are read as one store
    tokenizer  train/vqvae.py                on all data, initialized from the previous round
    codes      train/tokens.py               and the contexts that dreams start from
    prior      train/prior.py                initialized from the previous round
    outcome    train/outcome.py              from scratch
    policy     train/policy.py               in the dream, initialized from the previous round
    score      rollout/evaluate_policy.py    in the engine, always on the same seeds

The policy never learns in the engine. Its score against the number of engine steps is in TensorBoard (<run>/log) and in
<run>/score.png. With `--engine-steps`, PPO is also trained in the engine alone, and its scores are plotted too.

The preset has a section for each of these scripts, with their settings, and one for the loop. Every stage runs its
script as a command, which is printed first. So an interrupted loop resumes within the stage it was in.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: import from the project's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command, read_preset, split_presets
from configs.written import Written
from train.loop_report import Curves, read_score, report
from train.loop_stages import Args, State, engine_stages, round_stages, run_stages
from worldmodel.data.opening import write_manifest
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock

SCRIPTS = ("collect", "vqvae", "tokens", "prior", "outcome", "policy", "evaluate_policy")
"""Sections that a preset needs besides `loop`."""


def loop(args: Args, presets: list[str]) -> Written:
    """Run the rounds, then PPO in the engine alone."""
    if not presets:
        raise UserError("the loop needs the settings of every stage; give --preset health_gathering_loop, or your own")
    for preset in presets:
        if missing := [name for name in SCRIPTS if name not in read_preset(preset)]:
            raise UserError(f"preset {preset!r} has no section {missing[0]}, which the loop needs; add it")
    curves: Curves = {}
    data = args.run / "data.zarr"
    with folder_lock(args.run, "loop.lock"):
        state = State(args)
        before = state.scored
        for k in range(max(args.rounds, before)):
            collect, *rest = round_stages(args, k)
            run_stages(state, [collect], presets)
            if k >= before:
                write_manifest(str(data), [str(i) for i in range(state.recorded)])
            run_stages(state, rest, presets)
            stores = [Store(data / str(i)) for i in range(k + 1)]
            frames = sum(store.n_rows - len(store.episode_ends) for store in stores)  # the last one has no action
            curves.setdefault("in the dream", []).append((frames, read_score(args.run / f"round-{k}")))
            if k >= before - 1:
                report(args.run, curves)
        for steps, stages in engine_stages(args) if args.engine_steps else ():
            run_stages(state, stages, presets)
            curves.setdefault("in the engine", []).append((steps, read_score(args.run / "engine" / str(steps))))
            report(args.run, curves)
    return Written(args.run / "score.png")


def main(args: Args) -> Written:
    return loop(args, split_presets(sys.argv[1:])[0])


if __name__ == "__main__":
    command(main, "loop")
