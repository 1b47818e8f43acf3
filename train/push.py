"""Upload an exported run to the Hugging Face Hub, with a model card that is made from its configs.

    python train/push.py --run runs/exported --repo owner/name

Then `gymnasium.make("VideoGPTDream-v0", model="hf://owner/name")` works on any machine. It needs a token that may
write: `hf auth login`, or the environment variable HF_TOKEN. A README.md that the repository already has stays.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from configs.written import Written, make_dream
from train.card import model_card
from worldmodel.generation.context import CONTEXTS_FILE, Context
from worldmodel.generation.dream import Dream
from worldmodel.models.hub import upload
from worldmodel.utils.checkpoint import CHECKPOINT_FILE, read_checkpoint
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Upload an exported run to the Hugging Face Hub."""

    run: Path = Path("runs/exported")
    """Run folder that train/export.py wrote."""
    repo: str = ""
    """Repository, as owner/name; it is made if it does not exist."""
    private: bool = False
    """Make a new repository private."""


def main(args: Args) -> Written:
    dream, contexts = Dream.load(args.run), Context.load(args.run)  # also checks that the parts belong together
    parts = {name: read_checkpoint(args.run / name) for name in ("vqvae", "prior", "outcome")}
    for name, part in parts.items():
        if part.optimizer:
            raise UserError(
                f"{args.run / name} contains optimizer state, which dreams do not need; export the run with "
                "train/export.py, and upload what it wrote"
            )
    names = [CONTEXTS_FILE, *(f"{part}/{file}" for part in parts for file in (CHECKPOINT_FILE, "config.json"))]
    card = model_card(args.repo, dream.env_spec, len(contexts), parts)
    upload({name: args.run / name for name in names}, card, args.repo, args.private)
    return Written(f"hf://{args.repo}", make_dream(f"hf://{args.repo}"))


if __name__ == "__main__":
    command(main, "push")
