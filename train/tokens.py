"""Encode a store of frames once, into a store of codes (Figure 2, the second stage's data).

    python train/tokens.py --run runs/demo

Reads <run>/data.zarr and <run>/vqvae, writes <run>/tokens.zarr and <run>/contexts.safetensors. What a row of
codes holds is in worldmodel/training/tokens_stage.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from worldmodel.training.tokens_stage import TokensStage, encode_tokens


class Args(TokensStage):
    """Encode a store of frames into codes."""


def main(args: Args) -> None:
    encode_tokens(args)


if __name__ == "__main__":
    command(main, "tokens")
