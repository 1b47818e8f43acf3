"""Does the dream obey? Controllability of a world model, by two measures.

    python rollout/control.py --run runs/take_cover

* Delta-PSNR (Bruce et al., 2024, Genie, section 3): PSNR of the frame dreamed under the true actions minus PSNR of the
  one dreamed under random actions, both against the true frame, `ahead` steps on. Above zero: actions matter.
* Inverse dynamics: a classifier learns, from real frames of the training split only, to read the action from two
  frames in a row (rollout/inverse.py). Its accuracy (balanced over actions) on dreams of held-out starts, over that
  on real frames under actions of the same kind, says how much of an action's effect is dreamed: under the true
  actions, over the held-out frames they led to, and under random ones, over real frames of the engine under random
  ones, to which a policy led. (The player has momentum, so an action that goes against the one before is harder to
  read, in the engine as well.) On reconstructions the accuracy says what blur alone costs. Where there is no engine,
  held-out frames stand below both.

Intervals are over episodes, or over starts of the engine, each in an episode of its own.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from configs import Address, command
from envs.policies import MEMORY, Player, load_player, shipped_policies
from envs.vizdoom import engine_of
from rollout.evaluate import Held, dreams, held_out, plain, reconstructions
from rollout.inverse import Reader, accuracy, accuracy_ratio, learn, read
from worldmodel.checkpoint import digest, write_json
from worldmodel.dream import Dream
from worldmodel.errors import UserError
from worldmodel.metrics.frames import psnr
from worldmodel.metrics.interval import bootstrap
from worldmodel.rates import Precision
from worldmodel.sampling import Sampling
from worldmodel.settings import Positive, Seed, Settings
from worldmodel.store import Store
from worldmodel.world import World, random_actions


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Measure the controllability of a dream."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    data: Address | None = None
    """Store of frames; <run>/data.zarr if not given."""
    split: str = "test"
    clips: Positive = 128
    """Starting points, spread over the split's episodes."""
    context: Positive = 8
    """Latent frames that are given."""
    ahead: Positive = 4
    """Steps on at which PSNR is taken: Genie's t = 4."""
    steps: Positive = 8
    """Dreamed steps from each starting point whose actions are read."""
    train_steps: Positive = 600
    """Of the classifier, on batches of 128 pairs of frames."""
    policy: str = ""
    """Leads to where random actions begin in the engine; by default one that ships for the world, or else "random"."""
    lead: Positive = 100
    """The most steps for which it leads."""
    precision: Precision = "float32"
    """Of the dream."""
    sampling: Sampling = field(default_factory=Sampling)
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ahead > self.steps:
            raise UserError(f"steps must be at least ahead, {self.ahead}, not {self.steps}")


def strayed_for_real(args: Args, world: World, player: Player, actions: np.ndarray) -> np.ndarray:
    """Frames (n, t + 1, h, w, 3) of the engine under actions (n, t, ...), after a policy led to where they begin."""
    rng, films = np.random.default_rng(args.seed), list[np.ndarray]()
    with contextlib.closing(engine_of(world)) as engine:
        while len(films) < len(actions):
            frames, led = [engine.reset(seed=int(rng.integers(2**31)))[0]], int(rng.integers(args.lead))
            for t in range(led + actions.shape[1]):
                strays = t >= led
                action = actions[len(films)][t - led] if strays else player(np.stack(frames[-MEMORY:])[:, None], rng)[0]
                frame, _, over, _, _ = engine.step(action)
                frames.append(frame)
                if over:
                    break
            else:
                films.append(np.stack(frames[led:]))
    return np.stack(films)


def measure(args: Args, dream: Dream, held: Held, reader: Reader, player: Player | None = None) -> dict[str, Any]:
    """Every figure; the player, if there is an engine, leads to where its random actions begin."""
    n, c, steps = len(held.codes), args.context, args.steps
    spec, true = dream.world.action, held.actions[:, c - 1 : c - 1 + steps]
    random = random_actions(spec, n * steps, np.random.default_rng(args.seed)).reshape(true.shape)
    with tqdm(total=2 * n * steps, unit=" steps", desc="dreams") as bar:
        obeyed, strayed = (dreams(dream, held, a, c, args.seed, 64, bar) for a in (true, random))
    at, truth = args.ahead - 1, held.frames[:, c:]
    gain = psnr(obeyed[:, at], truth[:, at]) - psnr(strayed[:, at], truth[:, at])
    decoded = reconstructions(dream, held.codes)[:, c - 1 : c + steps]
    films = {
        "real frames": (held.frames[:, c - 1 : c + steps], true),
        "their reconstructions": (decoded, true),
        "dreams, true actions": (np.concatenate([decoded[:, :1], obeyed], 1), true),
        "dreams, random actions": (np.concatenate([decoded[:, :1], strayed], 1), random),
    }
    found = {k: read(reader, film, a) for k, (film, a) in films.items()}
    told = {k: accuracy(v, held.episode) for k, v in found.items()}
    real = found["real frames"]
    over = {k: accuracy_ratio(v, real, held.episode) for k, v in found.items() if k.startswith("dreams")}
    if player is not None:
        strayed_real = read(reader, strayed_for_real(args, dream.world, player, random), random)
        told["real frames, random actions"] = accuracy(strayed_real)  # each from an episode of its own
        over["dreams, random actions"] = accuracy_ratio(found["dreams, random actions"], strayed_real, None)
    return {"delta_psnr": bootstrap(gain, held.episode), "inverse_dynamics": told, "ratio": over}


def main(args: Args) -> None:
    dream = Dream.load(args.run, args.sampling, precision=args.precision)
    store, world = Store(args.data or args.run / "data.zarr"), dream.world
    policy = args.policy or next(iter(shipped_policies(world.name)), "random")
    player = load_player(policy, world) if world.env_id == "VizdoomFrames-v0" else None
    if dream.stride > 1:
        raise UserError("actions are read from single steps; this dream has a time stride")
    held = held_out(dream, args.run, args.data, args.split, args.clips, args.context + args.steps)
    result = measure(args, dream, held, learn(store, args.train_steps, args.seed), player)
    print(f"delta-PSNR, {args.ahead} steps ahead: {result['delta_psnr']} dB (above 0: actions matter)")
    for name, share in result["inverse_dynamics"].items():
        print(f"action read from {name:28}{share!s:>24}")
    for name, share in result["ratio"].items():
        print(f"{name}, over real frames under such actions: {share}")
    protocol = asdict(args) | {"run": str(args.run), "data": str(store.path), "prior": digest(args.run / "prior")}
    write_json(args.run / "evaluation" / "control.json", {"protocol": protocol} | plain(result))


if __name__ == "__main__":
    command(main, "control")
