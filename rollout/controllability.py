"""Does the dream obey? Controllability of a world model, by two measures.

    python rollout/controllability.py --run runs/take_cover

* Delta-PSNR (Bruce et al., 2024, Genie, section 3): PSNR of the frame dreamed under the true actions minus PSNR of the
  one dreamed under random actions, both against the true frame, `steps_ahead` steps on. Above zero: actions matter.
* Inverse dynamics: a classifier learns, from real frames of the training split only, to read the action from two
  frames in a row (rollout/inverse_dynamics.py). Its accuracy (balanced over actions) on dreams of held-out starts, over
  that on real frames under actions of the same kind, says how much of an action's effect is dreamed: under the true
  actions, over the held-out frames they led to, and under random ones, over real frames of the engine under random
  ones, to which a policy led. (The player has momentum, so an action that goes against the one before is harder to
  read, in the engine as well.) On reconstructions the accuracy says what blur alone costs. Where there is no engine,
  held-out frames stand below both.

Intervals are over episodes, or over starts of the engine, each in an episode of its own.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs import command
from envs.policies import MAX_STACKED_FRAMES, Player, load_player, shipped_policies
from envs.vizdoom import make_engine
from rollout.heldout import HeldOutArgs, HeldOutClips, dream_frames, load_heldout, reconstructions
from rollout.inverse_dynamics import ActionClassifier, accuracy, accuracy_ratio, classify_actions, train_classifier
from worldmodel.data.env_spec import EnvSpec, random_actions
from worldmodel.data.store import Store
from worldmodel.generation.dream import Dream
from worldmodel.metrics.frames import psnr
from worldmodel.metrics.interval import bootstrap, means_to_json
from worldmodel.utils.checkpoint import weights_digest, write_json
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision
from worldmodel.utils.settings import Positive


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Measure the controllability of a dream."""

    n_clips: Positive = 128
    """Starting points, spread over the split's episodes."""
    steps_ahead: Positive = 4
    """Steps on at which PSNR is taken: Genie's t = 4."""
    steps: Positive = 8
    """Dreamed steps from each starting point whose actions are read."""
    train_steps: Positive = 600
    """Of the classifier, on batches of 128 pairs of frames."""
    policy: str = ""
    """Leads to where random actions begin in the engine; by default one that ships for the world, or else "random"."""
    max_lead_steps: Positive = 100
    """The most steps for which it leads."""
    precision: Precision = "float32"
    """Of the dream."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_ahead > self.steps:
            raise UserError(f"steps must be at least steps_ahead, {self.steps_ahead}, not {self.steps}")


def random_actions_in_engine(args: Args, env_spec: EnvSpec, player: Player, actions: np.ndarray) -> np.ndarray:
    """Frames (n, t + 1, h, w, 3) of the engine under actions (n, t, ...), after a policy led to where they begin."""
    rng, videos = np.random.default_rng(args.seed), list[np.ndarray]()
    with contextlib.closing(make_engine(env_spec)) as engine:
        while len(videos) < len(actions):
            frames, led = [engine.reset(seed=int(rng.integers(2**31)))[0]], int(rng.integers(args.max_lead_steps))
            for t in range(led + actions.shape[1]):
                strays = t >= led
                action = (
                    actions[len(videos)][t - led]
                    if strays
                    else player(np.stack(frames[-MAX_STACKED_FRAMES:])[:, None], rng)[0]
                )
                frame, _, over, _, _ = engine.step(action)
                frames.append(frame)
                if over:
                    break
            else:
                videos.append(np.stack(frames[led:]))
    return np.stack(videos)


def measure(
    args: Args, dream: Dream, heldout_clips: HeldOutClips, reader: ActionClassifier, player: Player | None = None
) -> dict[str, Any]:
    """Every figure; the player, if there is an engine, leads to where its random actions begin."""
    n, c, steps = len(heldout_clips.codes), args.context_frames, args.steps
    spec, true = dream.env_spec.action, heldout_clips.actions[:, c - 1 : c - 1 + steps]
    random = random_actions(spec, n * steps, np.random.default_rng(args.seed)).reshape(true.shape)
    with tqdm(total=2 * n * steps, unit=" steps", desc="dreams") as bar:
        true_action_frames, random_action_frames = (
            dream_frames(dream, heldout_clips, a, c, args.seed, 64, bar) for a in (true, random)
        )
    at, truth = args.steps_ahead - 1, heldout_clips.frames[:, c:]
    gain = psnr(true_action_frames[:, at], truth[:, at]) - psnr(random_action_frames[:, at], truth[:, at])
    decoded = reconstructions(dream, heldout_clips.codes)[:, c - 1 : c + steps]
    films = {
        "real frames": (heldout_clips.frames[:, c - 1 : c + steps], true),
        "their reconstructions": (decoded, true),
        "dreams, true actions": (np.concatenate([decoded[:, :1], true_action_frames], 1), true),
        "dreams, random actions": (np.concatenate([decoded[:, :1], random_action_frames], 1), random),
    }
    found = {k: classify_actions(reader, film, a) for k, (film, a) in films.items()}
    accuracies = {k: accuracy(v, heldout_clips.episode) for k, v in found.items()}
    real = found["real frames"]
    ratios = {k: accuracy_ratio(v, real, heldout_clips.episode) for k, v in found.items() if k.startswith("dreams")}
    if player is not None:
        strayed_real = classify_actions(reader, random_actions_in_engine(args, dream.env_spec, player, random), random)
        accuracies["real frames, random actions"] = accuracy(strayed_real)  # each from an episode of its own
        ratios["dreams, random actions"] = accuracy_ratio(found["dreams, random actions"], strayed_real, None)
    return {"delta_psnr": bootstrap(gain, heldout_clips.episode), "inverse_dynamics": accuracies, "ratio": ratios}


def main(args: Args) -> None:
    dream = Dream.load(args.run, args.sampling, precision=args.precision)
    store, env_spec = Store(args.data or args.run / "data.zarr"), dream.env_spec
    policy = args.policy or next(iter(shipped_policies(env_spec.name)), "random")
    player = load_player(policy, env_spec) if env_spec.env_id == "VizdoomFrames-v0" else None
    if dream.stride > 1:
        raise UserError("actions are read from single steps; this dream has a time stride")
    heldout_clips = load_heldout(dream, args.run, args.data, args.split, args.n_clips, args.context_frames + args.steps)
    result = measure(args, dream, heldout_clips, train_classifier(store, args.train_steps, args.seed), player)
    print(f"delta-PSNR, {args.steps_ahead} steps ahead: {result['delta_psnr']} dB (above 0: actions matter)")
    for name, share in result["inverse_dynamics"].items():
        print(f"action read from {name:28}{share!s:>24}")
    for name, share in result["ratio"].items():
        print(f"{name}, over real frames under such actions: {share}")
    protocol = asdict(args) | {
        "run": str(args.run),
        "data": str(store.path),
        "prior": weights_digest(args.run / "prior"),
    }
    write_json(args.run / "evaluation" / "controllability.json", {"protocol": protocol} | means_to_json(result))


if __name__ == "__main__":
    command(main, "controllability")
