"""The commands of train/loop.py, and which of them are done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.scripts import flag_words
from train.commands import run_script
from train.run_state import RunState
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AtLeast2, Count, Fraction, NonEmpty, Positive, Seed, Settings

Flags = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Record, dream and learn, round after round."""

    run: Path = Path("runs/loop")
    """Folder of all rounds."""
    scenario: str = "health_gathering_supreme"
    """ViZDoom scenario."""
    rounds: Positive = 4
    """Number of rounds. A larger number continues a loop that is complete."""
    episodes: NonEmpty[Positive] = (100,)
    """Episodes that each round records; here and below, the last value also holds for all later rounds."""
    exploration: NonEmpty[Fraction] = (0.05, 0.3)
    """Fractions of random actions while a policy records; groups of four episodes cycle through them."""
    vqvae_steps: NonEmpty[Positive] = (6000, 3000)
    """Training steps of the VQ-VAE."""
    prior_steps: NonEmpty[Positive] = (3000, 2000)
    """Training steps of the prior."""
    policy_steps: NonEmpty[Positive] = (200_000,)
    """Steps of the policy in the dream."""
    score_episodes: AtLeast2 = 100
    """Episodes in the engine that a policy is scored on."""
    score_seed: Seed = 10_000
    """Seed of these episodes."""
    engine_steps: Count = 0
    """Steps of PPO in the engine alone, for comparison; 0 leaves it out."""
    engine_scores: Positive = 5
    """Number of times that this PPO is scored during training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.engine_steps < self.engine_scores:
            raise UserError(f"engine_steps must be at least engine_scores, {self.engine_scores}, or 0")


@dataclass(frozen=True)
class Stage:
    """A command of the loop."""

    name: str
    """Its name in the state, such as round-0/prior."""
    script: str
    flags: Flags


def of_round(values: tuple[Any, ...], k: int) -> Any:
    """The value for round k; the last value also holds for all later rounds."""
    return values[min(k, len(values) - 1)]


def round_stages(args: Args, k: int) -> list[Stage]:
    """The commands of round k."""
    here, before, data = (args.run / name for name in (f"round-{k}", f"round-{k - 1}", "data.zarr"))
    players = [f"{before / 'policy'}@{share}" for share in args.exploration] if k else ["random"]

    def after(part: str) -> Flags:
        return {"init_from": before / part} if k else {}

    recording = {"scenario": args.scenario, "episodes": of_round(args.episodes, k), "seed": k}
    scoring = {"scenario": args.scenario, "episodes": args.score_episodes, "seed": args.score_seed}
    stages: dict[str, tuple[str, Flags]] = {
        "collect": ("collect/vizdoom.py", {"out": data / str(k), "policy": players} | recording),
        "vqvae": (
            "train/vqvae.py",
            {"run": here, "data": data, "trainer.steps": of_round(args.vqvae_steps, k)} | after("vqvae"),
        ),
        "tokens": ("train/tokens.py", {"run": here, "data": data}),
        "prior": (
            "train/prior.py",
            {"run": here, "actions": True, "trainer.steps": of_round(args.prior_steps, k)} | after("prior"),
        ),
        "outcome": ("train/outcome.py", {"run": here}),
        "policy": (
            "train/policy.py",
            {"run": here, "out": here / "policy", "total_timesteps": of_round(args.policy_steps, k)} | after("policy"),
        ),
        "score": ("rollout/evaluate_policy.py", {"policy": here / "policy", "out": here} | scoring),
    }
    return [Stage(f"round-{k}/{name}", *stage) for name, stage in stages.items()]


def engine_stages(args: Args) -> Iterator[tuple[int, list[Stage]]]:
    """The commands that train PPO in the engine alone and score it, after each part of its steps."""
    folder = args.run / "engine"
    for i in range(1, args.engine_scores + 1):
        steps = args.engine_steps * i // args.engine_scores
        training = {"env_id": "VizdoomFrames-v0", "scenario": args.scenario, "out": folder / "policy"}
        training |= {"total_timesteps": args.engine_steps, "stop_at_step": steps}
        scoring = {"scenario": args.scenario, "episodes": args.score_episodes, "seed": args.score_seed}
        scoring |= {"policy": folder / "policy", "out": folder / str(steps)}
        yield (
            steps,
            [
                Stage(f"engine/{steps}/policy", "train/policy.py", training),
                Stage(f"engine/{steps}/score", "rollout/evaluate_policy.py", scoring),
            ],
        )


def words(stage: Stage, presets: list[str]) -> list[str]:
    """The script of a stage and its flags."""
    line = [stage.script]
    if not stage.name.startswith("engine/"):
        line += [word for name in presets for word in ("--preset", name)]
    return line + flag_words(stage.flags)


class State(RunState):
    """Which commands of a loop are done, in <run>/loop.json."""

    value: list[str]

    def __init__(self, args: Args) -> None:
        """Read it, or start a loop. The number of rounds may change.

        Raises:
            UserError: If the loop was started with other settings, or its state is lost.
        """
        super().__init__(args.run, "loop", args, ("run", "rounds"), "done", [])
        if not self.path.exists():
            if any((args.run / name).exists() for name in ("data.zarr", "round-0", "engine")):
                raise UserError(f"{args.run} has data or models, but no {self.path.name}; use another --run")
            self.write()

    @property
    def recorded(self) -> int:
        """The number of rounds that have recorded."""
        return sum(name.endswith("/collect") for name in self.value)

    @property
    def scored(self) -> int:
        """The number of rounds that are complete."""
        return sum(name.startswith("round-") and name.endswith("/score") for name in self.value)

    def add(self, name: str) -> None:
        """Record that a command is done."""
        self.value.append(name)
        self.write()


def run_stages(state: State, stages: list[Stage], presets: list[str]) -> None:
    """Run the commands that are not done yet; `UserError` if one fails."""
    for stage in stages:
        if stage.name in state.value:
            continue
        script, *flags = words(stage, presets)
        run_script(script, flags, stage.name)
        state.add(stage.name)
