"""A training script under torchrun itself: stopped by Ctrl-C with one checkpoint, and finished by one rank."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import configs
from configs import parse
from tests.scripts import run_script
from tests.tiny import VQVAE_SETTINGS
from train import vqvae
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint

ROOT = Path(__file__).parents[2]


def test_ctrl_c_stops_all_ranks_with_one_checkpoint_and_one_rank_goes_on(toy_store: Path, tmp_path: Path) -> None:
    run, steps = toy_store.parent, 200
    model = VQVAE_SETTINGS | {"frame_size": [16, 16], "stride": [1, 4, 4], "hidden_channels": 8}
    trainer = {"steps": steps, "batch_size": 4, "save_every": 5, "eval_every": steps, "precision": "float32"}
    preset = tmp_path / "toy.yaml"
    preset.write_text(yaml.dump({"vqvae": {"model": model, "trainer": trainer, "n_eval_clips": 2}}))
    flags = ["--preset", str(preset), "--run", str(run)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--", "train/vqvae.py"]
    with open(tmp_path / "said.txt", "wb") as log:
        process = subprocess.Popen([*torchrun, *flags], cwd=ROOT, stdout=log, stderr=log)
        while not (run / "vqvae" / CHECKPOINT_FILE).exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    said = (tmp_path / "said.txt").read_text()
    assert said.count("interrupted; run the same command again, without --restart, to resume") == 1, said
    assert "error:" not in said and "forcefully" not in said, said
    stopped = read_checkpoint(run / "vqvae").progress["step"]
    assert 5 <= stopped < steps
    vqvae.main(parse(vqvae.Args, "vqvae", flags))
    assert read_checkpoint(run / "vqvae").progress["step"] == steps


def test_what_runs_in_one_process_refuses_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(configs, "ranks", contextlib.nullcontext)
    with pytest.raises(SystemExit) as ended:
        run_script("train/tokens.py", ["--run", str(tmp_path / "run")])
    assert ended.value.code == 2
    said = "error: this command runs in one process; start it without torchrun\n"
    assert capsys.readouterr().err == said and not (tmp_path / "run").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit):
        run_script("train/tokens.py", ["--run", str(tmp_path / "run")])
    assert "run/data.zarr" in capsys.readouterr().err
