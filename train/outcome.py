"""Train the outcome model, which predicts reward, termination and game variables from codes and actions.

    python train/outcome.py --run runs/demo

Reads <run>/tokens.zarr and <run>/vqvae, writes <run>/outcome.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from worldmodel.training.outcome_stage import OutcomeStage, train_outcome


class Args(OutcomeStage):
    """Train an outcome model on the codes of a store."""


def main(args: Args) -> Written:
    train_outcome(args)
    return Written(args.run / "outcome", "rollout/dream.py", {"run": args.run})


if __name__ == "__main__":
    command(main, "outcome", in_ranks=True)
