"""Train the prior on codes (section 3, Table 9).

    python train/prior.py --run runs/demo --actions

Reads <run>/tokens.zarr and <run>/vqvae, writes <run>/prior. Conditioning:

* --actions: in stream mode each latent frame's own actions, in paper mode all actions of the clip.
* --classes: the class of the episode.
* --model.n-cond-frames 1: the first frame of the clip, through a ResNet.
* none of them: an unconditional prior.

TensorBoard shows the training loss, and on held-out clips bits/dim (bits per code) under true and under shuffled
conditions, and sampled clips next to the ground truth. A stream-mode prior continues the first quarter of a clip; a
paper-mode prior samples whole clips.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from worldmodel.data.opening import open_tokens
from worldmodel.training.outcome_stage import TARGETS
from worldmodel.training.prior_stage import PriorStage, train_prior


class Args(PriorStage):
    """Train a prior over the codes of a store."""


def main(args: Args) -> Written:
    train_prior(args)
    dreams = args.actions and args.model.mode == "stream" and set(TARGETS) <= set(open_tokens(args.run).array_names)
    if dreams:
        return Written(args.run / args.out, "train/outcome.py", {"run": args.run})
    prior = None if args.out == "prior" else args.out
    return Written(args.run / args.out, "rollout/sample.py", {"run": args.run, "prior": prior, "data": args.data})


if __name__ == "__main__":
    command(main, "prior", in_ranks=True)
