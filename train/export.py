"""Export a finished run at a sixth of its size: half precision, without optimizer state.

    python train/export.py --run runs/take_cover --out worldmodel/pretrained/take_cover

Reads <run>/vqvae, <run>/prior, <run>/outcome and <run>/contexts.safetensors, and writes them to `--out`, a run folder
that can be opened as a dream. The codes of the contexts stay those of the full-precision VQ-VAE. A store of codes may
stay in use too: `exported_from` in the config identifies the VQ-VAE that encoded it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from configs.written import Written, make_dream
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.generation.dream import Dream
from worldmodel.utils.checkpoint import codes_digest, read_checkpoint, save_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.lock import folder_lock
from worldmodel.utils.settings import Positive, Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Export a run in half precision, without optimizer state."""

    run: Path = Path("runs/health_gathering_supreme")
    """Run folder to export."""
    out: Path = Path("runs/exported")
    """Folder to write; it must differ from the run folder."""
    contexts: Positive = 64
    """Number of starting contexts to keep."""


def main(args: Args) -> Written:
    if args.out.resolve() == args.run.resolve():
        raise UserError(f"{args.out} is the run folder itself and would be overwritten; use another folder for --out")
    dream, contexts = Dream.load(args.run), Context.load(args.run)  # also checks that the parts belong together
    for name in ("vqvae", "prior", "outcome"):
        saved = read_checkpoint(args.run / name)
        config, progress = saved.config, saved.progress
        if name == "vqvae":
            config["exported_from"] = codes_digest(args.run / "vqvae")
        else:
            config["vqvae"] = codes_digest(args.out / "vqvae")
        with folder_lock(args.out / name):
            save_checkpoint(args.out / name, getattr(dream, name).half(), config, progress)
    # evenly spaced, because the contexts at starts of episodes come first
    every = torch.linspace(0, len(contexts) - 1, min(args.contexts, len(contexts))).round().long()
    contexts[every].save(args.out / CONTEXTS_FILE, codes_digest(args.out / "vqvae"))
    size = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    print(f"exported {size / 1e6:.1f} MB")
    return Written(args.out, make_dream(args.out))


if __name__ == "__main__":
    command(main, "export")
