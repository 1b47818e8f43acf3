"""Does a dream follow its actions? Two measures of controllability.

    python rollout/controllability.py --run runs/take_cover

* Delta-PSNR (Bruce et al., 2024, Genie, section 3): PSNR of a frame predicted under the true actions minus PSNR under
  random actions, both against the real frame `steps_ahead` steps later. Above zero, actions matter.
* Inverse dynamics: a classifier, trained on real frames only, predicts the action from two consecutive frames
  (rollout/inverse_dynamics.py). The measure is its balanced accuracy on dreams divided by that on real frames under the
  same kind of actions. Dreams under the true actions are compared with the held-out frames. Dreams under random actions
  are compared with the engine under random actions, from states that a policy reached. This matters because the player
  has momentum: an action that reverses the previous one is harder to recognize in the engine too. Accuracy on
  reconstructions shows the effect of blur alone. Without an engine, both are compared with held-out frames.

Intervals are over episodes, or over starting states of the engine, each from a separate episode.
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

from configs import command
from configs.written import Written
from envs.policies import MAX_STACKED_FRAMES, Player, load_player, shipped_policies
from envs.vizdoom import make_engine
from rollout.heldout import HeldOutArgs, HeldOutClips, dream_frames, load_heldout, reconstructions
from rollout.inverse_dynamics import ActionClassifier, accuracy, accuracy_ratio, classify_actions, train_classifier
from rollout.verdicts import judge_control
from worldmodel.data.env_spec import EnvSpec, random_actions
from worldmodel.data.opening import open_store
from worldmodel.generation.dream import Dream
from worldmodel.metrics.frames import psnr
from worldmodel.metrics.interval import bootstrap, means_to_json
from worldmodel.training.verdicts import judge_split
from worldmodel.utils.checkpoint import weights_digest
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_json
from worldmodel.utils.hardware import Precision
from worldmodel.utils.progress import Progress
from worldmodel.utils.settings import Positive


@dataclass(frozen=True, kw_only=True)
class Args(HeldOutArgs):
    """Measure the controllability of a dream."""

    n_clips: Positive = 128
    """Number of starting points, spread over the split's episodes."""
    steps_ahead: Positive = 4
    """Step after the start at which PSNR is compared; 4 as in Genie."""
    steps: Positive = 8
    """Steps from each starting point whose actions are classified."""
    train_steps: Positive = 600
    """Training steps of the classifier, on batches of 128 pairs of frames."""
    policy: str = ""
    """Policy that plays the engine before the random actions start; by default a pretrained one, or else "random"."""
    max_lead_steps: Positive = 100
    """Largest number of steps that this policy plays."""
    precision: Precision = "float32"
    """Precision of the dream's models."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps_ahead > self.steps:
            raise UserError(f"steps must be at least steps_ahead, {self.steps_ahead}, not {self.steps}")


def random_actions_in_engine(args: Args, env_spec: EnvSpec, player: Player, actions: np.ndarray) -> np.ndarray:
    """Frames (n, t + 1, h, w, 3) of the engine under actions (n, t, ...), from states that a policy reached."""
    rng, videos = np.random.default_rng(args.seed), list[np.ndarray]()
    with contextlib.closing(make_engine(env_spec)) as engine:
        while len(videos) < len(actions):
            frames = [engine.reset(seed=int(rng.integers(2**31)))[0]]
            lead = int(rng.integers(args.max_lead_steps))
            for t in range(lead + actions.shape[1]):
                if t < lead:
                    action = player(np.stack(frames[-MAX_STACKED_FRAMES:])[:, None], rng)[0]
                else:
                    action = actions[len(videos)][t - lead]
                frame, _, over, _, _ = engine.step(action)
                frames.append(frame)
                if over:
                    break
            else:
                videos.append(np.stack(frames[lead:]))
    return np.stack(videos)


def measure(
    args: Args, dream: Dream, heldout_clips: HeldOutClips, reader: ActionClassifier, player: Player | None = None
) -> dict[str, Any]:
    """All metrics. `player` plays the engine before its random actions start; None if there is no engine."""
    n, c, steps = len(heldout_clips.codes), args.context_frames, args.steps
    spec, true = dream.env_spec.action, heldout_clips.actions_after(c, steps)
    random = random_actions(spec, n * steps, np.random.default_rng(args.seed)).reshape(true.shape)
    with Progress(total=2 * n * steps, unit=" steps", desc="dreams") as bar:
        true_action_frames, random_action_frames = (
            dream_frames(dream, heldout_clips, a, c, args.seed, 64, bar) for a in (true, random)
        )
    at, truth = args.steps_ahead - 1, heldout_clips.frames[:, c:]
    gain = psnr(true_action_frames[:, at], truth[:, at]) - psnr(random_action_frames[:, at], truth[:, at])
    decoded = reconstructions(dream, heldout_clips)[:, c - 1 : c + steps]
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
        accuracies["real frames, random actions"] = accuracy(strayed_real)  # each from a separate episode
        ratios["dreams, random actions"] = accuracy_ratio(found["dreams, random actions"], strayed_real, None)
    return {"delta_psnr": bootstrap(gain, heldout_clips.episode), "inverse_dynamics": accuracies, "ratio": ratios}


def main(args: Args) -> Written:
    dream = Dream.load(args.run, args.sampling, args.device, args.precision)
    store, env_spec = open_store(args.data or args.run / "data.zarr"), dream.env_spec
    policy = args.policy or next(iter(shipped_policies(env_spec.name)), "random")
    player = load_player(policy, env_spec) if env_spec.env_id == "VizdoomFrames-v0" else None
    if dream.stride > 1:
        raise UserError(
            "this dream has a time stride above 1, and actions are classified from single steps; use a run with a "
            "stride of 1"
        )
    heldout_clips = load_heldout(dream, args.run, args.data, args.split, args.n_clips, args.context_frames + args.steps)
    result = measure(args, dream, heldout_clips, train_classifier(store, args.train_steps, args.seed), player)
    print(f"delta-PSNR, {args.steps_ahead} steps ahead: {result['delta_psnr']} dB (above 0: actions matter)")
    for name, share in result["inverse_dynamics"].items():
        print(f"action read from {name:28}{share!s:>24}")
    for name, share in result["ratio"].items():
        print(f"{name}, over real frames under such actions: {share}")
    for verdict in [*judge_split(heldout_clips.episode), judge_control(result["delta_psnr"], args.steps_ahead)]:
        print(f"{args.run}: {verdict}")
    protocol = asdict(args) | {"data": store.path, "prior": weights_digest(args.run / "prior")}
    path = args.run / "evaluation" / "controllability.json"
    write_json(path, {"protocol": protocol} | means_to_json(result))
    return Written(path)


if __name__ == "__main__":
    command(main, "controllability")
