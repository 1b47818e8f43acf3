"""Presets under the command line, and what is said about mistakes in them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest
import torch

from configs import FOLDER, SECTIONS, command, overlay, parse, read_preset, read_section
from configs.help import short_help
from tests.scripts import run_script, section_of
from train import outcome, policy, prior, tokens, vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, Fraction, Seed, Settings

ROOT = FOLDER.parent


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Inner."""

    rate: float = 1.0
    size: tuple[int, int] = (1, 2)
    mode: Literal["paper", "stream"] = "paper"


@dataclass(frozen=True, kw_only=True)
class Args:
    """Something."""

    out: Path = Path("a")
    steps: int = 10
    inner: Inner = field(default_factory=Inner)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_lie_over_the_preset_and_the_preset_over_defaults(tmp_path: Path) -> None:
    preset = write(tmp_path / "x.yaml", "vqvae:\n  out: b\n  steps: 20\n  inner: {rate: 1e-3, size: [3, 4]}\n")
    args = parse(Args, "vqvae", ["--preset", preset, "--steps", "30"])
    assert args == Args(out=Path("b"), steps=30, inner=Inner(rate=1e-3, size=(3, 4)))
    assert parse(Args, "vqvae", [f"--preset={preset}", "--inner.rate", "2"]).inner == Inner(rate=2.0, size=(3, 4))
    with pytest.raises(UserError, match=r"x.yaml' has no section 'prior', only vqvae; add the section, or use flags"):
        parse(Args, "prior", ["--preset", preset])


@dataclass(frozen=True, kw_only=True)
class Seeded(Settings):
    """Chance."""

    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Usual(Settings):
    """What many scripts have."""

    device: str = "cpu"
    chance: Seeded = field(default_factory=Seeded)


def test_seeds_and_devices_that_cannot_be_are_refused_for_every_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cpu", "cuda", "cuda:0"):
        assert parse(Usual, "vqvae", ["--device", device]).device == device
    for flags, sentence in (
        ("--chance.seed -1", "seed must be from 0 to 2147483647, not -1"),
        ("--chance.seed 2147483648", "seed must be from 0"),
        ("--device cuda:1", "the device cuda:1 is not available on this machine; choose the device cpu"),
        ("--device gpu", "'gpu' is not a device; choose cpu or cuda"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse(Usual, "vqvae", flags.split())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="the device cuda is not available on this machine"):
        parse(Usual, "vqvae", ["--device", "cuda"])


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things are."""

    out: Path = Path("a")
    name: str = "b"
    several: tuple[Path, ...] = ()
    data: Address | None = None
    stores: tuple[Address, ...] = ()


def test_a_url_stays_whole_where_stores_are_read_and_is_refused_elsewhere(tmp_path: Path) -> None:
    url = "s3://bucket/data.zarr"
    preset = write(tmp_path / "x.yaml", f"vqvae:\n  data: {url}\n  stores: [{url}, a]\n")
    for flags in (["--data", url, "--stores", url, "a"], ["--preset", preset]):
        assert parse(Places, "vqvae", flags) == Places(data=Address(url), stores=(Address(url), Address("a")))
    written = write(tmp_path / "y.yaml", f"vqvae:\n  out: {url}\n")
    for flags, name in (
        (["--out", url], "out"),
        (["--out=file:///a"], "out"),
        (["--name", url], "name"),
        (["--several", "a", url], "several"),
        (["--preset", written], "out"),
    ):
        with pytest.raises(UserError, match=f"{name} must be a local path, but .* is a URL; give a path on this"):
            parse(Places, "vqvae", flags)
    for name in ("out", "data"):
        with pytest.raises(UserError, match=f"{name} is empty; give a path, or leave it out"):
            parse(Places, "vqvae", [f"--{name}", ""])
    assert parse(Places, "vqvae", ["--out", "C:/a", "--name", "module:name"]).out == Path("C:/a")


@pytest.mark.parametrize(("folders", "name", "least"), [(("train", "rollout"), "data", 9), (("collect",), "out", 10)])
def test_every_store_that_a_script_reads_or_writes_may_be_a_url(
    folders: tuple[str, ...], name: str, least: int
) -> None:
    scripts = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    modules = [f"{path.parent.name}.{path.stem}" for path in scripts if "command(main" in path.read_text()]
    kinds = [get_type_hints(importlib.import_module(module).Args) for module in modules]
    declared = [kind[name] for kind in kinds if name in kind]
    assert len(declared) >= least
    assert all({Address, tuple[Address, ...]} & {kind, *get_args(kind)} for kind in declared)


@dataclass
class InRun:
    run: Path = Path("runs/default")
    model: str = ""


@dataclass
class OfModel:
    run: str = ""
    out: str = "runs/scores"


def test_the_run_of_a_preset_is_that_of_its_sections(tmp_path: Path) -> None:
    preset = ["--preset", write(tmp_path / "x.yaml", "run: runs/x\ncollect:\ntokens:\nprior: {model: a}\nplan:\n")]
    assert parse(InRun, "tokens", preset) == InRun(run=Path("runs/x"))
    assert parse(InRun, "prior", preset) == InRun(run=Path("runs/x"), model="a")
    assert parse(InRun, "prior", [*preset, "--run", "elsewhere"]).run == Path("elsewhere")
    assert parse(OfModel, "collect", preset).out == "runs/x/data.zarr"
    assert parse(OfModel, "plan", preset) == OfModel(), "its run may also be empty: the model that ships"


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    for text, sentence in (
        ("vqvae: {stesp: 1}", "has no setting 'stesp'; did you mean 'steps'"),
        ("vqvae: {inner: {raet: 1}}", r"vqvae.inner has no setting 'raet'; did you mean 'rate'"),
        ("vqvae: [", "is not valid YAML"),
        ("vqvae: {inner: 3}", "vqvae.inner is a group of settings, not 3"),
        ("vqvae: {steps: many}", "vqvae.steps should be of type int, not 'many'"),
        ("- vqvae", "has no sections"),
        ("vqave: {steps: 1}", "has an unknown section 'vqave'; did you mean 'vqvae'"),
        ("vqvae: 3", "section vqvae should be a group of settings, not 3"),
        ("run: 3", "run should be of type str, not 3"),
        ("vqvae: {out: 5}", "vqvae.out should be of type str, not 5"),
        ("vqvae: {inner: {size: 4}}", "vqvae.inner.size should be a list of 2, not 4"),
        ("vqvae: {inner: {size: [1, a]}}", "vqvae.inner.size should be of type int, not 'a'"),
        ("vqvae: {inner: {mode: strem}}", "vqvae.inner.mode cannot be 'strem'; did you mean 'stream'"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse(Args, "vqvae", ["--preset", write(tmp_path / "x.yaml", text)])
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\); give a YAML file"):
        (tmp_path / "folder.yaml").mkdir()
        read_preset(str(tmp_path / "folder.yaml"))
    with pytest.raises(UserError, match="unknown preset 'dmeo'; did you mean 'demo'"):
        read_preset("dmeo")


LAUGHS = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijkl"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"vqvae: {out: \xff}", "is not valid YAML: 'utf-8' codec can't decode byte 0xff"),
        ("vqvae: {}".encode("utf-16"), "is not valid YAML"),
        (b"", "has no sections"),
        (b"null", "has no sections"),
        (b"vqvae", "has no sections"),
        (b"[]", "has no sections"),
        (b"vqvae: {steps: 1}\nvqvae: {steps: 2}", "'vqvae' occurs twice"),
        (b"vqvae: {inner: {rate: 1, rate: 2}}", "'rate' occurs twice"),
        (LAUGHS.encode(), "it has an alias; write the values out"),
        (b"a: &a {<<: *a}", "it has an alias"),
        (b"vqvae: {steps: 1} # " + b" " * 10**6, "is larger than 100,000 bytes"),
        (b"vqvae: " + b"[" * 50_000, "is not valid YAML"),
        (b"vqvae: {steps: " + b"9" * 5_000 + b"}", "is not valid YAML"),
        (b"vqvae: {steps: 2024-13-45}", "is not valid YAML"),
        (b"vqvae: {steps: !!int ''}", "is not valid YAML"),
        (b"vqvae: {out: !!python/object/apply:os.getcwd []}", "is not valid YAML"),
        (b"vqvae: {steps: " + b"9" * 30 + b"}", "vqvae.steps must be at most"),
        (b"vqvae: {inner: {rate: .nan}}", "vqvae.inner.rate must be a finite number, not nan"),
        (b"vqvae: {inner: {size: [[1], {2: 3}]}}", r"vqvae.inner.size should be of type int, not \[1\]"),
        (b"vqvae: {[1, 2]: 3}", "is not valid YAML"),
        (b"vqvae: {1: 3}", "vqvae has no setting 1"),
        (b"1: {}", "has an unknown section 1"),
    ],
)
def test_what_is_no_preset_is_told_in_a_sentence(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(data)
    with pytest.raises(UserError, match=sentence) as error:
        parse(Args, "vqvae", ["--preset", str(tmp_path / "x.yaml")])
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    """A group in a group."""

    inner: Usual = field(default_factory=Usual)
    share: Fraction = 0.0


def test_a_group_of_settings_is_named_by_flags_and_presets(tmp_path: Path) -> None:
    preset = write(tmp_path / "x.yaml", "vqvae: {inner: {chance: {seed: -1}}}")
    for flags, sentence in (
        ("--inner.chance.seed -1", "^inner.chance.seed must be from 0 to 2147483647, not -1$"),
        ("--share nan", "^share must be a fraction from 0 to 1, not nan$"),
        (f"--preset {preset}", r"x.yaml: vqvae.inner.chance.seed must be from 0"),
        ("--inner.device gpu", "'gpu' is not a device"),
    ):
        with pytest.raises(UserError, match=sentence):
            parse(Outer, "vqvae", flags.split())


def test_what_is_no_flag_is_told_by_the_parser(capsys: pytest.CaptureFixture) -> None:
    for flags in ("--shrae 1", "--share", "--share x", "--inner.chance.seed 1.5"):
        with pytest.raises(SystemExit) as stopped:
            parse(Outer, "vqvae", flags.split())
        assert stopped.value.code == 2
        assert flags.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_preset_fits_the_scripts(path: Path) -> None:
    import collect.bair
    import collect.benchmark
    import collect.moving_mnist
    import collect.robonet
    import collect.tgif
    import collect.ucf101
    import collect.vizdoom
    import rollout.ablate
    import rollout.benchmark
    import rollout.controllability
    import rollout.divergence
    import rollout.dream
    import rollout.evaluate
    import rollout.evaluate_outcome
    import rollout.evaluate_policy
    import rollout.evaluate_pusher
    import rollout.full_turn
    import rollout.fvd
    import rollout.long_horizon
    import rollout.plan
    import rollout.play
    import rollout.rank
    import rollout.report
    import rollout.sample
    import rollout.show
    import train.benchmark
    import train.export
    import train.gpu
    import train.imitate
    import train.loop
    import train.push
    import train.pusher
    import train.scaling
    import train.tune_hysteresis
    import train.world

    readers = {
        "bair": collect.bair, "robonet": collect.robonet, "tgif": collect.tgif, "ucf101": collect.ucf101,
        "ucf101_128": collect.ucf101, "moving_mnist": collect.moving_mnist,
        "moving_mnist_small": collect.moving_mnist,
    }  # fmt: skip
    sections = {
        "policy": policy,
        "imitate": train.imitate,
        "pusher": train.pusher,
        "evaluate_pusher": rollout.evaluate_pusher,
        "collect": readers.get(path.stem, collect.vizdoom),
        "vqvae": vqvae,
        "tune_hysteresis": train.tune_hysteresis,
        "tokens": tokens,
        "prior": prior,
        "outcome": outcome,
        "loop": train.loop,
        "world": train.world,
        "dream": rollout.dream,
        "evaluate": rollout.evaluate,
        "evaluate_policy": rollout.evaluate_policy,
        "export": train.export,
        "push": train.push,
        "evaluate_outcome": rollout.evaluate_outcome,
        "long_horizon": rollout.long_horizon,
        "controllability": rollout.controllability,
        "report": rollout.report,
        "rollout_benchmark": rollout.benchmark,
        "collect_benchmark": collect.benchmark,
        "train_benchmark": train.benchmark,
        "scaling": train.scaling,
        "gpu": train.gpu,
        "rank": rollout.rank,
        "plan": rollout.plan,
        "divergence": rollout.divergence,
        "full_turn": rollout.full_turn,
        "play": rollout.play,
        "show": rollout.show,
        "sample": rollout.sample,
        "fvd": rollout.fvd,
        "ablate": rollout.ablate,
    }
    preset = read_preset(path.stem)
    assert sections.keys() == set(SECTIONS)
    preset.pop("run", None)
    for section in preset:
        kind = sections[section].Args
        args = overlay(kind(), read_section(path.stem, section, kind), section)
        text = short_help(section, args).splitlines()
        assert len(text) <= 60 and max(map(len, text)) <= 110


def test_every_preset_of_a_documented_command_has_a_section_for_its_script() -> None:
    pages = [ROOT / "README.md", ROOT / "Makefile", *ROOT.glob("docs/*.md"), *ROOT.glob("worldmodel/**/*.md")]
    scripts = [path for room in ("collect", "train", "rollout") for path in (ROOT / room).glob("*.py")]
    text = "\n".join(path.read_text() for path in [*pages, *scripts]).replace("\\\n", " ")
    found = set(re.findall(r"((?:collect|train|rollout)/\w+\.py)[^\n`]*? --preset (\w+)", text))
    assert len(found) > 30
    for script, preset in found:
        assert section_of(script) in read_preset(preset), f"{script} --preset {preset}"


def test_a_mistake_on_the_command_line_is_one_line_and_status_2(tmp_path: Path) -> None:
    script = [sys.executable, ROOT / "train/vqvae.py", "--run", tmp_path / "nothing"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "nothing" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "flags", "sentence"),
    [
        ("train/tokens.py", "--run nothing", "nothing"),
        ("train/prior.py", "--run nothing", "nothing"),
        ("train/outcome.py", "--run nothing", "nothing"),
        ("train/policy.py", "--num-envs 0", "num_envs must be at least 1, not 0"),
        ("train/policy.py", "--seed -1", "seed must be from 0 to"),
        ("rollout/play.py", "--max-rewind -1", "max_rewind must be from 0 to 10000, not -1"),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence_and_status_2(
    script: str,
    flags: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run_script(script, flags.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said
    if flags == "--run nothing":
        assert said.startswith("error: ") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--preset", "dmeo"], "unknown preset 'dmeo'; did you mean 'demo'"),
        (["--preset", "bad.yaml"], "has no setting 'modle'; did you mean 'model'"),
        (["--model.frame-size", "32", "32"], "has frames of (16, 16, 3), but the VQ-VAE is set to (32, 32, 3)"),
        (["--model.n-frames", "64"], "ask for shorter clips"),
        (["--data", "few.zarr"], "has no episodes in split 'valid'"),
        (["--data", "torn.zarr"], "is damaged"),
        (["--model.hidden-channels", "16"], "holds a run with model.hidden_channels = 8, but 16 was asked for"),
    ],
)
def test_every_mistake_of_a_command_is_one_line_and_status_2(
    flags: list[str],
    sentence: str,
    tmp_path: Path,
    toy_fill: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    toy_fill(tmp_path / "data.zarr", 10)
    small = (
        "--model.frame-size 16 16 --model.stride 1 4 4 --model.n-frames 4 --model.hidden-channels 8 "
        "--model.residual-channels 8 --model.n-res-blocks 1"
    )
    fast = "--model.n-codes 8 --model.embedding-dim 4 --trainer.steps 1 --trainer.batch-size 2 --run"
    usual = [*small.split(), *fast.split(), str(tmp_path)]
    if "few.zarr" in flags:
        toy_fill(tmp_path / "few.zarr", 1)
    if "torn.zarr" in flags:
        (victim,) = (toy_fill(tmp_path / "torn.zarr", 10) / "data" / "frames").glob("c*")
        victim.write_bytes(victim.read_bytes()[:-5000])
    write(tmp_path / "bad.yaml", "vqvae: {modle: 1}")
    if sentence.startswith("holds"):
        monkeypatch.setattr(sys, "argv", ["vqvae.py", *usual])
        command(vqvae.main, "vqvae")
        capsys.readouterr()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "cache" not in p.parts}
    monkeypatch.setattr(sys, "argv", ["vqvae.py", *usual, *flags])
    with pytest.raises(SystemExit) as stopped:
        command(vqvae.main, "vqvae")
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert all(p.read_bytes() == data for p, data in before.items())
