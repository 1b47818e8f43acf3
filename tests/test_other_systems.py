"""The whole chain, from recording to a dream, without the modules and functions that Windows lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = """
import os, sys
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in ("killpg", "setpgid", "getpgid", "getuid", "geteuid", "posix_fallocate", "fork", "mkfifo", "O_DIRECTORY"):
    delattr(os, name)
inheritable = os.set_inheritable
def set_inheritable(fd, value):  # on Windows, fileno() of a multiprocessing connection is not a file descriptor
    if "pool" in sys._getframe(1).f_code.co_filename:
        raise OSError("bad file descriptor")
    inheritable(fd, value)
os.set_inheritable = set_inheritable
"""
CHAIN = '''
import importlib
import subprocess
from pathlib import Path

JUDGED = "--split all --context-frames 2 --steps-ahead 1 2 --n-clips 2 --n-dreams 1"
VQVAE = """
    --model.frame-size 16 16 --model.n-frames 2 --model.stride 1 4 4 --model.hidden-channels 8 --n-eval-clips 2
    --model.residual-channels 8 --model.n-codes 8 --model.n-res-blocks 1 --model.embedding-dim 4
    --model.time-kernel-size 1
"""
PRIOR = """
    --actions --n-latent-frames 4 --n-eval-clips 2 --model.d-model 8 --model.n-heads 1 --model.n-layers 1 --model.d-ff 8
    --model.window 2
"""
SHORT = "--trainer.steps 2 --trainer.batch-size 2"
RECORD = "--env-id CartPole-v1 --size 16 --episodes 20 --num-workers 1 --out run/data.zarr"
STAGES = (
    ("train.vqvae", "vqvae", f"--run run {VQVAE} {SHORT}"),
    ("train.tokens", "tokens", "--run run --n-contexts 2 --context-frames 2"),
    ("train.prior", "prior", f"--run run {PRIOR} {SHORT}"),
    ("train.outcome", "outcome", f"--run run --hidden-dim 8 --n-latent-frames 4 {SHORT}"),
    ("rollout.evaluate", "evaluate", f"--run run {JUDGED}"),
)


def main():
    # Imports are here because the process that plays imports this file too, and needs none of them.
    import gymnasium
    from configs import parse
    from envs.engine_cleanup import EngineFolder
    from rollout import play
    from train.commands import run_python, run_script

    try:
        run_python(["-c", "import time; time.sleep(60)"], 0.1)
    except subprocess.TimeoutExpired:
        print("stopped")
    folder = EngineFolder()
    folder.close()
    assert not folder.path.exists()
    run_script("collect/gym.py", RECORD.split())  # as `worldmodel dream` does
    for name, section, flags in STAGES:
        script = importlib.import_module(name)
        script.main(parse(script.Args, section, flags.split()))
    with play.serve(play.Args(run="run", port=0, engine=False)) as server:
        print("played", server.answer("step", action=1)["world"])
    for room in ("collect", "envs", "rollout", "train"):
        for path in Path(importlib.import_module(room).__path__[0]).glob("[!_]*.py"):
            importlib.import_module(f"{room}.{path.stem}")
    env = gymnasium.make("VideoGPTDream-v0", model="run")
    env.reset(seed=0)
    print("dreamed", env.step(1)[0].shape)


if __name__ == "__main__":
    main()
'''


def test_the_chain_runs_without_what_windows_lacks(tmp_path: Path) -> None:
    """Also in the processes that play; ViZDoom's cleanup can be imported."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKED)
    (tmp_path / "chain.py").write_text(CHAIN)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "chain.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("stopped\n")
    assert done.stdout.endswith("played CartPole-v1\ndreamed (16, 16, 3)\n")
