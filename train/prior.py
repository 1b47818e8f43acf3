"""Train the prior on codes (section 3, Table 9).

    python train/prior.py --run runs/demo --actions

Reads <run>/tokens.zarr and <run>/vqvae, writes <run>/prior. With --actions a stream-mode prior is conditioned
on each latent frame's own actions, a paper-mode one on all the actions of the clip; with --classes on the class of the
episode; with --model.n-cond-frames 1 on the clip's first frame, through a ResNet; with none of them it is
unconditional. TensorBoard gets the training loss, and of held-out clips bits/dim (bits per code), under true and under
shuffled conditions, and sampled clips beside the truth: a stream continues a quarter of it, a paper-mode prior begins
anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from worldmodel.training.prior_stage import PriorStage, train_prior


class Args(PriorStage):
    """Train a prior over the codes of a store."""


def main(args: Args) -> None:
    train_prior(args)


if __name__ == "__main__":
    command(main, "prior")
