"""bfloat16 is tried before it is used: planted faults are found, told in one sentence, and cost nothing but speed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.tiny import tiny_prior, tiny_vqvae
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.generation.context import Context
from worldmodel.generation.dream import Dream
from worldmodel.models.outcome_config import OutcomeConfig
from worldmodel.models.prior import Prior
from worldmodel.models.reward_done import OutcomeModel
from worldmodel.models.vqvae import VQVAE
from worldmodel.training.step import Batch, trial_step
from worldmodel.training.trainer import fit
from worldmodel.training.trainer_config import TrainerConfig
from worldmodel.utils import hardware
from worldmodel.utils.checkpoint import read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.hardware import Precision, verified_precision

CPU, MULTIPLIED, FASTER = torch.device("cpu"), hardware.supports_bfloat16, hardware.bfloat16_is_faster.__wrapped__
FRAMES, BOOK = (16, 16, 3), (1, 8, 4)


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bfloat16, or so it says. Its peak is not measured, which emulation makes slow."""
    monkeypatch.setattr(hardware, "supports_bfloat16", lambda: True)
    monkeypatch.setattr(hardware, "bfloat16_is_faster", lambda: True)
    monkeypatch.setattr("worldmodel.training.trainer.peak_flops", lambda device, precision: 1.0)


def vqvae(norm: str = "layer") -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(tiny_vqvae(n_frames=4, hidden_channels=16, norm=norm))


def prior() -> Prior:
    torch.manual_seed(0)
    config = tiny_prior(dropout=0.3, code_noise=0.1, conditioning="frame", condition_dim=3)
    model = Prior(config, torch.randn(BOOK))
    nn.init.normal_(model.head.out[0].weight)  # it begins at zero, and then all codes are as likely in any precision
    return model


def outcome() -> OutcomeModel:
    torch.manual_seed(0)
    return OutcomeModel(
        OutcomeConfig(latent_size=(4, 4), n_codes=8, embedding_dim=4, condition_dim=3, hidden_dim=8), torch.randn(BOOK)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vqvae": vqvae,
    "vqvae with batch norm": lambda: vqvae("batch"),
    "prior": prior,
    "outcome": outcome,
}


def sample(rng: np.random.Generator, step: int = 0) -> dict[str, np.ndarray]:
    return {
        "frames": rng.integers(256, size=(3, 4, *FRAMES), dtype=np.uint8),
        "codes": rng.integers(8, size=(3, 4, 4, 4, 1)),
        "condition": rng.random((3, 4, 3), dtype=np.float32),
    }


def loss_of(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    if isinstance(model, VQVAE):
        return model(batch["frames"])
    if isinstance(model, Prior):
        return {"loss": model.loss(batch["codes"], batch["condition"]).mean()}
    assert isinstance(model, OutcomeModel)
    none = torch.zeros(len(batch["codes"]), 4)
    return model.loss(batch["codes"], batch["condition"], none + 1, none > 0, none[..., None][..., :0], none == 0)


def train(kind: str, out: Path, precision: Precision, minutes: float = 0) -> dict[str, Tensor]:
    """Train a model, or go on; returns its weights, its buffers and what the optimizer knows."""
    model = MODELS[kind]()
    config = TrainerConfig(steps=4, batch_size=3, learning_rate=1e-2, precision=precision, max_minutes=minutes)
    fit(model, lambda batch: loss_of(model, batch), sample, config, out, {"kind": kind})
    found = read_checkpoint(out)
    return found.weights | {f"{i}.{k}": v for i, state in found.optimizer.items() for k, v in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def nan(y: Tensor) -> Tensor:
    return y * float("nan")


def double(y: Tensor) -> Tensor:
    return y * 2


def steep(y: Tensor) -> Tensor:
    """Right, but for the gradient."""
    return y + 3 * (y - y.detach())


def plant(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Tensor], Tensor], inputs: int = 0) -> None:
    """Spoil a function of torch, of so many input channels or of any, in bfloat16 alone."""
    right = getattr(F, name)

    def wrong(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        y = right(x, weight, *rest)
        return spoil(y) if y.dtype == torch.bfloat16 and inputs in (0, weight.shape[1]) else y

    monkeypatch.setattr(F, name, wrong)


def sentences(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Those of stderr, but for progress bars."""
    return [
        line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if "float32 is used instead" in line
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_that_proved_itself_is_the_run_it_would_have_been(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where it goes on, which tries it again."""
    whole, parts = train(kind, tmp_path / "auto", "auto"), tmp_path / "parts"
    assert same(whole, train(kind, tmp_path / "bfloat16", "bfloat16"))
    assert not same(whole, train(kind, tmp_path / "float32", "float32"))
    with pytest.raises(UserError, match="time is up after step 1"):
        train(kind, parts, "auto", minutes=1e-9)
    assert same(whole, train(kind, parts, "auto"))
    assert sentences(capsys) == []


@pytest.mark.parametrize(
    ("kind", "name", "inputs", "spoil", "told"),
    [
        ("vqvae", "conv3d", 3, nan, "loss is nan in bfloat16 and {} in float32, more than 10% apart"),  # of the encoder
        ("vqvae", "conv3d", 0, double, "gradient is {} in bfloat16 and {} in float32, more than 100% apart"),
        ("vqvae with batch norm", "conv3d", 0, nan, "loss is nan in bfloat16 and {} in float32, more than 10% apart"),
        ("prior", "linear", 0, nan, "loss is nan in bfloat16 and {} in float32, more than 10% apart"),
        ("prior", "linear", 0, double, "loss is {} in bfloat16 and {} in float32, more than 10% apart"),
        ("prior", "linear", 0, steep, "gradient is {} in bfloat16 and {} in float32, more than 100% apart"),
        ("outcome", "linear", 0, nan, "loss is nan in bfloat16 and {} in float32, more than 10% apart"),
    ],
)
def test_a_run_goes_on_in_float32_where_bfloat16_is_wrong(
    kind: str, name: str, inputs: int, spoil: Callable[[Tensor], Tensor], told: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    exact, peaks = train(kind, tmp_path / "float32", "float32"), list[str]()
    plant(monkeypatch, name, spoil, inputs)
    monkeypatch.setattr(
        "worldmodel.training.trainer.peak_flops", lambda device, precision: peaks.append(precision) or 1.0
    )
    assert same(exact, train(kind, tmp_path / "auto", "auto"))
    assert peaks == ["float32"]
    (sentence,) = sentences(capsys)
    number = r"\d[\d.e+-]*"
    assert re.fullmatch(f"{tmp_path / 'auto'}: {told.format(number, number)}; float32 is used instead", sentence)


@pytest.mark.parametrize("kind", MODELS)
def test_a_trial_leaves_everything_as_it_was(kind: str) -> None:
    model = MODELS[kind]()
    before, luck = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    figures = [
        trial_step(model, lambda b: loss_of(model, b), sample, TrainerConfig(), 3, p) for p in ("float32", "bfloat16")
    ]
    assert same(before, model.state_dict())
    assert torch.equal(luck, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(figures[0]["gradient"], figures[1]["gradient"])


def made(precision: Precision) -> Dream:
    action = ActionSpec(kind="Discrete", nvec=(3,))
    env_spec = EnvSpec(name="noise", frame_shape=FRAMES, action=action, fps=5.0, max_episode_steps=40)
    return Dream(vqvae(), prior(), outcome(), env_spec, precision=precision)


def play(dream: Dream) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(8, (2, 3, 4, 4, 1), generator=generator)
    lanes, frame, _ = dream.reset(Context(codes, torch.zeros(2, 3, 3), torch.zeros(2, 3, 0)), [1, 2])
    steps = [dream.step(lanes, np.array([i % 3, 1])) for i in range(4)]
    return [frame, *(value for step in steps for value in vars(step).values())]


def test_a_dream_that_proved_itself_is_the_dream_it_would_have_been(capsys: pytest.CaptureFixture[str]) -> None:
    luck = torch.get_rng_state()
    dreams = {precision: made(precision) for precision in ("float32", "bfloat16", "auto")}
    torch.set_rng_state(luck)
    types = [dream.prior.start_token.dtype for dream in dreams.values()]
    assert types == [torch.float32, torch.bfloat16, torch.bfloat16]
    exact, cast, auto = map(play, dreams.values())
    assert all(torch.equal(a, b) for a, b in zip(cast, auto, strict=True))
    assert not torch.equal(exact[-2], auto[-2]), "of other likelihoods"
    assert sentences(capsys) == []


@pytest.mark.parametrize("spoil", [nan, double])
@pytest.mark.parametrize(("name", "figure"), [("linear", "nats per code"), ("conv3d", "picture")])
def test_a_dream_goes_on_in_float32_where_bfloat16_is_wrong(
    name: str, figure: str, spoil: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    exact = made("float32")
    plant(monkeypatch, name, spoil)
    dream = made("auto")
    for part in ("vqvae", "prior", "outcome"):
        assert same(getattr(exact, part).state_dict(), getattr(dream, part).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(play(exact), play(dream), strict=True))
    (sentence,) = sentences(capsys)
    other = "nan" if spoil is nan else r"\d[\d.e+-]*"
    text = rf"dream of noise: {figure} is {other} in bfloat16 and \d[\d.e+-]* in float32, more than 10% apart"
    assert re.fullmatch(f"{text}; float32 is used instead", sentence)


def test_only_auto_is_tried_and_only_where_there_is_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(precision: Precision) -> dict[str, Tensor]:
        raise AssertionError

    assert [verified_precision("x", CPU, p, never) for p in ("float32", "bfloat16")] == ["float32", "bfloat16"]
    monkeypatch.setattr(hardware, "supports_bfloat16", lambda: False)
    assert verified_precision("x", CPU, "auto", never) == "float32"


@pytest.mark.parametrize(
    ("exact", "rounded", "expected"),
    [
        ([3.0, 4.0], [3.0, 4.4], "bfloat16"),
        ([3.0, 4.0], [3.0, 4.6], "float32"),
        ([3.0, 4.0], [4.0, 3.0], "float32"),  # as long
        ([3.0, 4.0], [3.0, float("inf")], "float32"),
        ([0.0, 0.0], [0.0, 0.0], "bfloat16"),
        ([float("nan"), 4.0], [float("nan"), 4.0], "bfloat16"),  # not the fault of bfloat16
    ],
)
def test_a_tenth_apart_by_hand(exact: list[float], rounded: list[float], expected: Precision) -> None:
    found = {"float32": torch.tensor(exact), "bfloat16": torch.tensor(rounded)}
    assert verified_precision("x", CPU, "auto", lambda precision: {"loss": found[precision]}) == expected


@pytest.mark.parametrize(
    ("supported", "wide", "units", "expected"),
    [(True, True, True, True), (True, True, False, False), (True, False, False, True), (False, False, False, False)],
    ids=["AVX-512 or AMX with them", "AVX-512 without", "other processors", "neither"],
)
def test_a_processor_that_emulates_bfloat16_does_not_multiply_it(
    supported: bool, wide: bool, units: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: wide)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    assert MULTIPLIED() == expected


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, "bfloat16"), (2.0, "float32")])
def test_auto_takes_bfloat16_only_where_it_is_faster(
    seconds: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processors have the instructions and are slower with them."""
    monkeypatch.setattr(hardware, "bfloat16_is_faster", FASTER)
    monkeypatch.setattr(hardware, "seconds_per_product", {"bfloat16": seconds, "float32": 1.0}.__getitem__)
    assert hardware.resolve_precision(CPU, "auto") == expected
    assert hardware.resolve_precision(CPU, "bfloat16") == "bfloat16"


def test_a_product_is_timed() -> None:
    assert 1e-5 < hardware.seconds_per_product("float32") < 10
