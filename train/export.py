"""Make a finished run small enough to ship: half precision, and no optimizer.

    python train/export.py --run runs/take_cover --out worldmodel/pretrained/take_cover

Reads <run>/vqvae, <run>/prior, <run>/outcome and <run>/contexts.safetensors; `--out` then is a run folder that
dreams, a sixth of the size. The codes of the contexts stay those of the full-precision VQ-VAE, and so may a store of
codes beside it: `exported_from` says which VQ-VAE it was.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from worldmodel.generation.dream import CONTEXTS_FILE, Context, Dream
from worldmodel.utils.checkpoint import codes_digest, read_header, save_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Positive, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Make a run small enough to ship."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder."""
    out: Path = Path("runs/exported")
    """Folder for the small models."""
    contexts: Positive = 64
    """Starting contexts to keep."""


def main(args: Args) -> None:
    if args.out.resolve() == args.run.resolve():
        raise UserError(f"{args.out} is the run itself; give --out another folder, so that nothing is lost")
    dream, contexts = Dream.load(args.run), Context.load(args.run)  # says what does not belong together
    for name in ("vqvae", "prior", "outcome"):
        config, progress = read_header(args.run / name)
        if name == "vqvae":
            config["exported_from"] = codes_digest(args.run / "vqvae")
        else:
            config["vqvae"] = codes_digest(args.out / "vqvae")
        with folder_lock(args.out / name):
            save_checkpoint(args.out / name, getattr(dream, name).half(), config, progress)
    every = torch.linspace(0, len(contexts) - 1, min(args.contexts, len(contexts))).round().long()  # starts come first
    contexts[every].save(args.out / CONTEXTS_FILE, codes_digest(args.out / "vqvae"))
    size = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    print(f"exported: {args.out}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    command(main, "export")
