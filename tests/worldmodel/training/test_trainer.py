"""Training: golden losses, exact resume, and what stops it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from tests.tiny import tiny_prior, tiny_vqvae
from worldmodel.models.prior import Prior
from worldmodel.models.vqvae import VQVAE
from worldmodel.training.logging import Meter, log_on_disk, log_settings, open_log
from worldmodel.training.scalars import read_scalars
from worldmodel.training.trainer import fit
from worldmodel.training.trainer_config import TrainerConfig, learning_rate_at
from worldmodel.utils import tensor_file
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, checkpoints, read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock

Spoiled = Callable[[torch.Tensor], torch.Tensor]
QUIET = {"log_every": 2, "save_every": 100, "eval_every": 100}


def vqvae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(tiny_vqvae(n_frames=4, frame_size=(8, 8), n_codes=16))


def frames(rng: np.random.Generator, step: int = 0) -> dict[str, np.ndarray]:
    return {"frames": rng.integers(256, size=(4, 4, 8, 8, 3), dtype=np.uint8)}


def prior() -> Prior:
    torch.manual_seed(0)
    config = tiny_prior(latent_shape=(4, 2, 2), window=2, dropout=0.3)
    return Prior(config, torch.randn(1, 8, 4))


def codes(rng: np.random.Generator, step: int = 0) -> dict[str, np.ndarray]:
    return {"codes": rng.integers(4, size=(4, 4, 2, 2, 1))}


def run(kind: str, out: Path, config: TrainerConfig, **extra: object) -> torch.nn.Module:
    model = vqvae() if kind == "vqvae" else prior()
    if kind == "vqvae":
        fit(model, lambda batch: model(batch["frames"]), frames, config, out, {"kind": kind}, **extra)  # type: ignore[arg-type]
    else:
        fit(
            model,
            lambda batch: {"loss": model.loss(batch["codes"]).mean()},
            codes,
            config,
            out,
            {"kind": kind},
            **extra,
        )  # type: ignore
    return model


def steps(out: Path) -> list[int]:
    return sorted(e.step for e in read_scalars(out / "log", "train/learning_rate"))


def losses(out: Path) -> list[float]:
    return [e.value for e in read_scalars(out / "log", "train/loss")]


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    config = TrainerConfig(steps=8, batch_size=4, learning_rate=1e-2, lr_schedule="cosine", warmup_steps=2, **QUIET)
    run(kind, tmp_path / "whole", config)

    def interrupt(writer: object, step: int) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(kind, tmp_path / "parts", TrainerConfig(**{**vars(config), "eval_every": 4}), evaluate=interrupt)
    assert read_checkpoint(tmp_path / "parts").progress == {"step": 4}
    torch.manual_seed(1234)  # the state of the global generator must not matter
    run(kind, tmp_path / "parts", config)

    whole, parts = read_checkpoint(tmp_path / "whole"), read_checkpoint(tmp_path / "parts")
    assert whole.weights.keys() == parts.weights.keys()
    assert all(torch.equal(whole.weights[k], parts.weights[k]) for k in whole.weights)
    assert all(torch.equal(v, parts.optimizer[i][k]) for i, state in whole.optimizer.items() for k, v in state.items())
    assert steps(tmp_path / "parts") == steps(tmp_path / "whole") == [2, 4, 6, 8]
    if kind == "vqvae":
        assert whole.weights["quantizer.initialized"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte, and the last two stay meanwhile."""
    whole = TrainerConfig(
        steps=8, batch_size=4, learning_rate=1e-2, lr_schedule="cosine", **(QUIET | {"save_every": 2})
    )
    run("prior", tmp_path / "whole", whole)
    stopped = TrainerConfig(**(vars(whole) | {"eval_every": 5}))
    with pytest.raises(KeyboardInterrupt):
        run("prior", tmp_path / "parts", stopped, evaluate=lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert [progress(path) for path in checkpoints(tmp_path / "parts")] == [5, 4]
    damage(tmp_path / "parts" / CHECKPOINT_FILE)
    capsys.readouterr()
    run("prior", tmp_path / "parts", whole)
    said = capsys.readouterr().err
    assert said.count("is damaged") == 1 and "previous-1.safetensors, which came before it, is used" in said
    assert [progress(path) for path in checkpoints(tmp_path / "parts")] == [8, 6]
    for name in (CHECKPOINT_FILE, "previous-1.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def progress(path: Path) -> int:
    return tensor_file.read(path, "")[1]["progress"]["step"]


def test_an_overwritten_run_leaves_no_checkpoint_to_fall_back_to(tmp_path: Path) -> None:
    config = TrainerConfig(steps=3, batch_size=4, **(QUIET | {"save_every": 1}))
    run("prior", tmp_path, config)
    with pytest.raises(UserError, match="time is up after step 1"):
        run("prior", tmp_path, TrainerConfig(**(vars(config) | {"max_minutes": 1e-9})), restart=True)
    assert [progress(path) for path in checkpoints(tmp_path)] == [1]
    run("prior", tmp_path, TrainerConfig(**(vars(config) | {"keep_checkpoints": 3})))
    assert [progress(path) for path in checkpoints(tmp_path)] == [3, 2, 1]


def test_a_run_folder_has_one_trainer(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(UserError, match="is being written by another process"):
        run("prior", tmp_path, TrainerConfig(steps=1, batch_size=4, **QUIET))
    (tmp_path / f"{CHECKPOINT_FILE}.0123.part").touch()
    run("prior", tmp_path, TrainerConfig(steps=1, batch_size=4, **QUIET))
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT_FILE, "config.json", "log", "train.lock"]


def test_spoiled_weights_are_not_saved(tmp_path: Path) -> None:
    """The loss of a step is finite still, and its weights are not."""
    model, config = prior(), TrainerConfig(steps=2, batch_size=4, **(QUIET | {"eval_every": 1}))

    def spoil(_: object, step: int) -> None:
        model.start_token.data[0] = float("nan")

    def loss(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": sum((p.nan_to_num() ** 2).sum() for p in model.parameters())}  # type: ignore[dict-item]

    with pytest.raises(
        UserError, match=r"start_token has values that are not finite, so nothing was saved; run the same"
    ):
        fit(model, loss, codes, config, tmp_path, {}, spoil)
    assert not checkpoints(tmp_path)


def test_a_log_that_cannot_be_written_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk, which a thread of TensorBoard's finds out; what was saved before stays."""
    config = TrainerConfig(steps=40, batch_size=4, **(QUIET | {"save_every": 1, "log_every": 1}))
    write, records = RecordWriter.write, iter(range(1000))

    def filling(self: RecordWriter, data: bytes) -> None:
        if next(records) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    monkeypatch.setattr(RecordWriter, "write", filling)
    with pytest.raises(
        UserError, match=r"the log in .* could not be written \(No space left on device\), but the last check"
    ):
        run("prior", tmp_path, config)
    assert "Traceback" not in capfd.readouterr().err
    assert 1 <= read_checkpoint(tmp_path).progress["step"] < 40
    with pytest.raises(FileNotFoundError), log_on_disk(tmp_path):
        open(tmp_path / "another")  # noqa: SIM115 - an error of what is done meanwhile


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        run("prior", tmp_path / str(seed), TrainerConfig(steps=4, batch_size=4, seed=seed, **QUIET))
    a, b = (read_checkpoint(tmp_path / str(seed)).weights for seed in (0, 1))
    assert not torch.equal(a["start_token"], b["start_token"])


GOLDEN = {
    "vqvae": [1.45938, 1.41586, 1.39793, 1.41647, 1.42706],
    "prior": [2.07944, 2.03209, 1.94044, 1.81624, 1.73771],
}


@pytest.mark.parametrize("kind", ["vqvae", "prior"])
def test_five_steps_have_the_losses_they_always_had(kind: str, tmp_path: Path) -> None:
    """A change of these numbers is a change of the models or of the loop: on purpose, or a mistake."""
    run(
        kind,
        tmp_path,
        TrainerConfig(steps=5, batch_size=4, learning_rate=1e-2, precision="float32", **(QUIET | {"log_every": 1})),
    )
    assert losses(tmp_path) == pytest.approx(GOLDEN[kind], rel=1e-3)


def test_learning_rate_by_hand() -> None:
    config = TrainerConfig(steps=10, learning_rate=1.0, lr_schedule="cosine", warmup_steps=2)
    assert [learning_rate_at(config, s) for s in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1, 1, 0.5, 0.0380602337])
    assert learning_rate_at(TrainerConfig(steps=10, learning_rate=1.0), 9) == 1.0


def test_finished_runs_stay_as_they_are_and_other_settings_are_refused(tmp_path: Path) -> None:
    config = TrainerConfig(steps=2, batch_size=4, **QUIET)
    run("prior", tmp_path, config)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    run("prior", tmp_path, config)
    with pytest.raises(UserError, match=r"trainer.learning_rate = 0.0003, but 0.1 was asked for"):
        run("prior", tmp_path, TrainerConfig(steps=2, batch_size=4, learning_rate=0.1, **QUIET))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    run("prior", tmp_path, TrainerConfig(steps=2, batch_size=4, learning_rate=0.1, **QUIET), restart=True)
    assert read_checkpoint(tmp_path).config["trainer"]["learning_rate"] == 0.1


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_complete_run_goes_on_for_more_steps(
    schedule: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a constant rate it ends as a run that had them from the beginning."""

    def trained(folder: Path, steps: int, **changes: Any) -> bytes:
        config = TrainerConfig(steps=steps, batch_size=4, learning_rate=1e-2, lr_schedule=schedule, **QUIET, **changes)
        run("prior", folder, config)
        return (folder / CHECKPOINT_FILE).read_bytes()

    short = trained(tmp_path / "a", 4)
    with pytest.raises(UserError, match=r"trainer\.steps = 4, but 3 was asked for"):
        trained(tmp_path / "a", 3)
    with pytest.raises(UserError, match=r"trainer\.batch_size = 4, but 5 was asked for"):
        run("prior", tmp_path / "a", TrainerConfig(steps=8, batch_size=5, learning_rate=1e-2, **QUIET))
    assert (tmp_path / "a" / CHECKPOINT_FILE).read_bytes() == short
    capsys.readouterr()
    long, whole = trained(tmp_path / "a", 8), trained(tmp_path / "b", 8)
    rate = {"constant": "0.01", "cosine": "0.005"}[schedule]
    assert f"goes on from step 4 to 8, with a learning rate of {rate} at first" in capsys.readouterr().out
    assert (long == whole) == (schedule == "constant")
    saved = read_checkpoint(tmp_path / "a")
    config, progress = saved.config, saved.progress
    assert (config["trainer"]["steps"], progress["step"]) == (8, 8)
    assert [e.step for e in log(tmp_path / "a").Scalars("train/loss")] == [2, 4, 6, 8]
    with pytest.raises(UserError, match="time is up after step 9 of 16"):
        trained(tmp_path / "a", 16, max_minutes=1e-9)
    with pytest.raises(UserError, match=r"trainer\.steps = 16, but 20 was asked for"):
        trained(tmp_path / "a", 20)


def test_nonsense_is_refused() -> None:
    for name in ("steps", "batch_size", "log_every", "eval_every", "save_every", "keep_checkpoints"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, not 0"):
            TrainerConfig(**{name: 0})


def test_time_runs_out_with_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="time is up after step 1 of 50; run it again, without --restart, to resume"):
        run("prior", tmp_path, TrainerConfig(steps=50, batch_size=4, max_minutes=1e-9, **QUIET))
    assert read_checkpoint(tmp_path).progress == {"step": 1}


def spoiled_value(loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def spoiled_gradient(loss: torch.Tensor) -> torch.Tensor:
    return loss + (loss - loss.detach()).abs().sqrt()  # whose slope at zero is infinite


@pytest.mark.parametrize(("spoiled", "value"), [(spoiled_value, "nan"), (spoiled_gradient, r"\d+\.\d+")])
def test_what_is_no_number_stops_before_it_does_harm(spoiled: Spoiled, value: str, tmp_path: Path) -> None:
    model = prior()
    before = model.start_token.detach().clone()

    def loss(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": spoiled(model.loss(batch["codes"]).mean())}

    with pytest.raises(
        UserError, match=f"the loss is {value} and the norm of its gradient nan at step 0; run the same command"
    ):
        fit(model, loss, codes, TrainerConfig(steps=2, batch_size=4), tmp_path, {})
    assert not (tmp_path / "checkpoint.safetensors").exists()
    assert torch.equal(model.start_token, before)


def log(out: Path) -> EventAccumulator:
    events = EventAccumulator(str(out / "log"))
    events.Reload()
    return events


def told(events: EventAccumulator) -> dict[str, object]:
    """The settings in the HPARAMS tab."""
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_has_what_a_person_looks_for(tmp_path: Path) -> None:
    config = TrainerConfig(steps=4, batch_size=4, learning_rate=1e-2, lr_schedule="cosine", **QUIET)
    run("vqvae", tmp_path, config)
    events = log(tmp_path)
    last = {tag.removeprefix("train/"): events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    assert set(last) == {
        *("loss", "nmse", "commitment", "codes_used", "perplexity"),
        *("grad_norm", "learning_rate", "clips_per_second", "share_of_peak"),
    }
    assert all(event.step == 4 and event.value > 0 for event in last.values())
    assert last["loss"].value == pytest.approx(last["nmse"].value + 0.25 * last["commitment"].value)
    assert last["codes_used"].value <= 16
    assert last["learning_rate"].value == pytest.approx(learning_rate_at(config, 3))
    assert last["share_of_peak"].value < 1
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4]


def test_a_run_that_resumes_within_a_second_keeps_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the process that resumes it has a number that sorts before that of the process that began."""
    monkeypatch.setattr(os, "getpid", count(500, -1).__next__)
    for first, last in ((0, 2), (2, 5), (5, 7)):
        with open_log(tmp_path / "log", first) as writer:
            for step in range(first, last):
                writer.add_scalar("train/loss", 10 * step, step)
    assert [event.value for event in log(tmp_path).Scalars("train/loss")] == [0, 10, 20, 30, 40, 50, 60]


def test_throughput_and_share_of_peak_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a second, each of them a product of (4, 6) and (6, 2) there and back, at a peak of 1,000 FLOP/s."""
    monkeypatch.setattr("time.monotonic", iter([0.0, 100.0, 103.0, 108.0, 108.0, 200.0, 204.0]).__next__)
    meter, weight = Meter(1000.0), torch.ones(6, 2, requires_grad=True)
    with SummaryWriter(str(tmp_path / "log")) as writer:
        for step in range(5):
            with meter.count_flops():
                values = {"loss": (torch.ones(4, 6) @ weight).sum()}
                values["loss"].backward()
            meter.add({"loss": values["loss"].detach()}, 4)
            if step == 2:
                with meter.paused():  # 3 of the 108 seconds
                    pass
                meter.log(writer, 3, 0.1)
    (clips,), (share,) = (log(tmp_path).Scalars(f"train/{name}") for name in ("clips_per_second", "share_of_peak"))
    assert clips.value == pytest.approx(3 * 4 / 105)
    assert share.value == pytest.approx(3 / 105 * (2 * 2 * 4 * 6 * 2) / 1000)


def test_settings_are_text_and_can_be_compared(tmp_path: Path) -> None:
    """Also after a stop, and after a run of other settings in the same place."""
    run("prior", tmp_path, TrainerConfig(steps=2, batch_size=4, learning_rate=0.1, **QUIET))
    config = TrainerConfig(steps=4, batch_size=4, learning_rate=0.25, max_minutes=1e-9, **QUIET)
    for done, restart in ((1, True), (2, False)):
        with pytest.raises(UserError, match=f"time is up after step {done} of 4"):
            run("prior", tmp_path, config, restart=restart)
        events = log(tmp_path)
        wanted = {
            "kind": "prior",
            "trainer.learning_rate": 0.25,
            "trainer.steps": 4.0,
            "trainer.lr_schedule": "constant",
        }
        assert wanted.items() <= told(events).items()
        (text,) = events.Tensors("config/text_summary")
        assert "\ntrainer.learning_rate: 0.25\n" in text.tensor_proto.string_val[0].decode()
    assert [path.name for path in (tmp_path / "log").iterdir() if path.is_dir()] == [], "no run of its own"
    assert EXPERIMENT_TAG not in events.summary_metadata, "one run must not speak for all"
    with SummaryWriter(str(tmp_path / "long" / "log")) as writer:
        log_settings(writer, {"model": {"width": 4, "size": (8, 8), "changes": tuple(range(64)), "begin": None}})
    assert told(log(tmp_path / "long")) == {"model.width": 4.0, "model.size": "(8, 8)", "model.begin": "None"}
