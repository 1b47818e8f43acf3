"""Encode a store of frames into a store of codes, the training data of the prior (Figure 2).

    python train/tokens.py --run runs/demo

Reads <run>/data.zarr and <run>/vqvae, writes <run>/tokens.zarr and <run>/contexts.safetensors. The arrays of
tokens.zarr are described in worldmodel/training/tokens_stage.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written
from worldmodel.data.opening import open_tokens
from worldmodel.training.tokens_stage import TokensStage, encode_tokens


class Args(TokensStage):
    """Encode a store of frames into a store of codes."""


def main(args: Args) -> Written:
    encode_tokens(args)
    tokens = open_tokens(args.run)
    return Written(tokens.path, "train/prior.py", {"run": args.run}, {"actions": "condition" in tokens.array_names})


if __name__ == "__main__":
    command(main, "tokens")
