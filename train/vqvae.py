"""Train the VQ-VAE on the frames of a store (section 3, Table 8).

    python train/vqvae.py --run runs/demo --preset demo

Reads <run>/data.zarr, writes <run>/vqvae. TensorBoard shows the loss and its parts, codebook usage and perplexity, and
on held-out clips NMSE, PSNR and videos of reconstructions next to the ground truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from worldmodel.training.vqvae_stage import VQVAEStage, train_vqvae


class Args(VQVAEStage):
    """Train a VQ-VAE on the frames of a store."""


def main(args: Args) -> Written:
    train_vqvae(args)
    return Written(args.run / "vqvae", "train/tokens.py", {"run": args.run, "data": args.data})


if __name__ == "__main__":
    command(main, "vqvae", in_ranks=True)
