"""Hostile command lines, from each script's own settings: a line that works, with a few things wrong.

A line is doomed if it has something that no script can take. One that is not may still be refused, or run.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from PIL import Image

from tests.campaign.forks import ROOT, SCRIPTS
from tests.campaign.presets import none, one_setting
from worldmodel.__main__ import MAIN

FIT = "--trainer.steps 2 --trainer.batch-size 2 --trainer.log-every 1"
SMALL = (
    "--model.frame-size 16 16 --model.n-frames 8 --model.stride 1 4 4 --model.hidden-channels 16 "
    "--model.residual-channels 16 --model.n-res-blocks 1 "
    "--model.n-codes 16 --model.embedding-dim 8 --model.window 2"
)
GPT = "--model.window 4 --model.d-model 32 --model.n-heads 2 --model.n-layers 2 --model.d-ff 64"
WORKS = {
    "collect/bair.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/benchmark.py": (
        "--rows 600 --n-stores 2 --frame-size 4 --rounds 1 --seconds 0.01 --folder frames --results out.json"
    ),
    "collect/gym.py": "--env-id CartPole-v1 --episodes 2 --max-episode-steps 3 --size 8 --num-workers 1 --out out.zarr",
    "collect/hdf5.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/lerobot.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/minari.py": "--dataset toy/toy-v0 --num-workers 1 --out out.zarr",
    "collect/moving_mnist.py": "--episodes 2 --length 4 --num-workers 1 --out out.zarr",
    "collect/pushing.py": "--episodes 1 --policy random --num-workers 1 --out out.zarr",
    "collect/rlds.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/robonet.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/tgif.py": "--source tgif --gifs gifs --min-frames 2 --size 8 --num-workers 1 --out out.zarr",
    "collect/ucf101.py": "--source empty --num-workers 1 --out out.zarr",
    "collect/video.py": "--source tgif --min-frames 2 --size 8 --num-workers 1 --out out.zarr",
    "collect/vizdoom.py": "--scenario basic --policy random --episodes 1 --num-workers 1 --out out.zarr",
    "train/benchmark.py": "--workloads masks --seconds 0.01 --rounds 1 --out out.json",
    "train/export.py": "--run run --out out --contexts 2",
    "train/gpu.py": "--out out --device cpu --small --minutes 0.0001",
    "train/imitate.py": "--scenario basic --n-rounds 1 --steps-per-round 16 --num-envs 1 --out out",
    "train/loop.py": "--run out --rounds 1",
    "train/outcome.py": f"--run run --n-latent-frames 8 --hidden-dim 32 --restart {FIT}",
    "train/policy.py": "--env-id VideoGPTDream-v0 --total-timesteps 16 --num-envs 2 --n-steps 8 --n-epochs 1 --out out",
    "train/prior.py": f"--run run --actions --n-latent-frames 8 --out other {GPT} {FIT}",
    "train/push.py": "--run run --repo someone/toy",
    "train/pusher.py": "--total-timesteps 64 --num-envs 2 --n-steps 16 --n-epochs 1 --out out",
    "train/scaling.py": "--batch-sizes 1 3 --batch-size 2 --steps 1 --rounds 1 --large-prior.n-layers 1 --out out.json",
    "train/tune_hysteresis.py": "--run run --hysteresis 0 0.1 --episodes 2 --n-frames 8",
    "train/tokens.py": "--run run --n-contexts 4 --context-frames 4 --restart",
    "train/vqvae.py": f"--run run --restart {SMALL} {FIT}",
    "train/world.py": "--env-id Missing-v0 --minutes 1 --run out",
    "rollout/ablate.py": "--data run/data.zarr --n-clips 2 --n-trials 1 --out out",
    "rollout/benchmark.py": "--run run --num-envs 1 --seconds 0.1 --precision float32 --out out.json",
    "rollout/controllability.py": (
        "--run run --n-clips 2 --context-frames 2 --steps-ahead 1 --steps 2 --train-steps 2 --max-lead-steps 2"
    ),
    "rollout/divergence.py": "--run run --n-starts 2 --steps 2 --n-shown 1 --steps-ahead 1 2 --batch-size 4",
    "rollout/dream.py": "--run run --n-clips 2 --context-frames 2 --steps 3",
    "rollout/long_horizon.py": "--run run --steps 60 --window 30 --num-envs 2",
    "rollout/evaluate.py": "--run run --n-clips 2 --context-frames 2 --steps-ahead 1 2 --n-dreams 1 --batch-size 2",
    "rollout/fvd.py": (
        "--run run --features random_conv --n-clips 2 --n-trials 1 --n-frames 8 --n-cond-frames 1 --batch-size 2 "
        "--out out"
    ),
    "rollout/full_turn.py": "--run run --episodes 2 --steps 4 --min-steps 2 --out out.json",
    "rollout/evaluate_outcome.py": (
        "--run run --n-clips 2 --context-frames 2 --steps 2 --n-dreams 1 --n-negatives 10 --n-particles 2"
    ),
    "rollout/plan.py": "--run run --episodes 2 --out out.json",
    "rollout/play.py": "--run run --port 0",
    "rollout/show.py": "--path run --port 0",
    "rollout/evaluate_policy.py": "--policy random --scenario basic --episodes 1 --out out",
    "rollout/evaluate_pusher.py": "--policy pushing --episodes 2 --out out",
    "rollout/rank.py": "--run run --policy random cycle:0x1 cycle:1x1 --episodes 2 --out out.json",
    "rollout/report.py": "--run run --compare-runs run",
    "rollout/sample.py": "--run run --n-clips 2 --samples-per-clip 1 --context-frames 2 --batch-size 2",
}
"""Of each script a line that works on the toy run, or has a sentence for what is missing."""
NINES = "9" * 24
NUMBERS: dict[type, tuple[list[str], list[str]]] = {
    int: (
        ["nan", "inf", "2.5", "", "one", NINES, f"-{NINES}", "9" * 5000, "1e3", "0x10"],
        ["-1", "0", "1", "7", "999999"],
    ),
    float: (["nan", "-inf", "inf", "1e999", "", "half", "0,5", "1e300"], ["-1", "0", "1", "1e-30", "1e30", "-1e9"]),
}
"""What no setting of a number can be, and what some can."""
TEXTS = [
    *("", " ", "-", "..", "a\nb", "ü", "\U0001f916", "\udcff", "x" * 300, "x" * 5000),
    *("%s{}", "nan", "random@2", "cycle:9x9", "cycle:0x999999999", "module:none", "[1]"),
]
PATHS = [
    *("nothing", "empty", "damaged", "damaged/inside", "empty/new", "", "run", "run/vqvae", "run/data.zarr", "\udcff"),
    *("/dev/null", "/proc/none", "x" * 300, "y/" * 3000, "http://127.0.0.1:9/x", "ü \U0001f916/x", "notes.txt"),
]


@dataclass(frozen=True)
class Line:
    """A command line."""

    script: str
    argv: list[str]
    preset: bytes
    """Of x.yaml."""
    doomed: bool


def inputs(folder: Path) -> None:
    """What lines speak of, besides the run."""
    for name in ("empty", "tgif/gifs"):
        (folder / name).mkdir(parents=True)
    pictures = [Image.fromarray(np.full((12, 16, 3), 40 * i, np.uint8)) for i in range(4)]
    pictures[0].save(folder / "tgif/gifs/a.gif", save_all=True, append_images=pictures[1:], duration=100)
    (folder / "tgif/tgif-v1.0.tsv").write_text("https://x.org/a.gif\ta square turns white\n")
    (folder / "damaged").write_bytes(bytes(range(256)) * 4)
    (folder / "notes.txt").write_text("not a picture\n")


def line(rng: np.random.Generator) -> Line:
    """A line that works with one to three things wrong."""
    script = SCRIPTS[rng.integers(len(SCRIPTS))]
    section, settings = section_of(script), importlib.import_module(module(script)).Args()
    known, argv, preset, doomed = list(flags(settings)), WORKS[script].split(), b"", dict[str, bool]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, kind = known[rng.integers(len(known))]
        values, hopeless = hostile(kind, rng)
        wrong = rng.random()
        if wrong < 0.04:
            argv, doomed["unknown"] = [*argv, f"--{name}x"], True
        elif wrong < 0.07:
            argv, doomed["stray"] = [*argv, name, *values], True
        elif wrong < 0.1:
            argv, doomed = argv[: rng.integers(len(argv) + 1)], {}  # a line that was cut
        elif wrong < 0.13:
            argv, preset, doomed["preset"] = [*argv, "--preset", "x.yaml"], none(section, rng), True
        elif wrong < 0.25:
            argv, preset = [*argv, "--preset", "x.yaml"], one_setting(section, name, rng)
            doomed["preset"] = False
        else:
            argv += [f"--{name}", *values] if kind is not bool or not values else [f"--{name}={values[0]}"]
            doomed[name] = hopeless  # of two equal flags the last counts
    return Line(script, argv, preset, any(doomed.values()))


def module(script: str) -> str:
    return script.removesuffix(".py").replace("/", ".")


def section_of(script: str) -> str:
    """The preset's section for a script."""
    ((section, _),) = MAIN.findall((ROOT / script).read_text())
    return str(section)


def flags(settings: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """The flags of a dataclass of settings, groups inside it too, each with its type."""
    types = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        name, value = before + field.name.replace("_", "-"), getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from flags(value, f"{name}.")
        else:
            yield name, types[field.name]


def hostile(kind: Any, rng: np.random.Generator) -> tuple[list[str], bool]:
    """Values for a flag of a type, and whether no script can take them."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return hostile(inside[0], rng)
    if origin is tuple:
        n = int(rng.integers(4))
        kinds = inside[:1] * n if inside[-1] is Ellipsis else [inside[min(i, len(inside) - 1)] for i in range(n)]
        each = [hostile(kind, rng) for kind in kinds]
        wrong_number = inside[-1] is not Ellipsis and n != len(inside)
        return [v for values, _ in each for v in values], wrong_number or any(hopeless for _, hopeless in each)
    if NoneType in inside:
        return hostile(next(k for k in inside if k is not NoneType), rng)
    if kind in NUMBERS:
        never, some = NUMBERS[kind]
        hopeless = bool(rng.random() < 0.3)
        return [str(rng.choice(never if hopeless else some))], hopeless
    if kind is bool:
        return ([], False) if rng.random() < 0.7 else (["maybe"], True)
    if origin is Literal:
        return (["nonsense"], True) if rng.random() < 0.5 else ([str(inside[rng.integers(len(inside))])], False)
    texts = PATHS if kind is Path else [*TEXTS, *PATHS]
    return [texts[rng.integers(len(texts))]], False
