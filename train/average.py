"""Make one policy of several: the mean of their weights (Wortsman et al., 2022, "Model soups").

    python train/average.py --policy runs/first runs/second --out runs/mean

A policy that learns in a dream learns what is true of the world, and what the dream has wrong. Policies that grew from
the same beginning, in other dreams or with other settings, share the first more than the second, so their mean keeps
more of it. Of policies with different beginnings only the shapes are alike, and their mean plays like none of them.

What is written is in half precision, as policies ship; `train/policy.py --begin` takes it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from configs import command
from envs.policies import load_policy, policy_folder, save_policy
from worldmodel.checkpoint import difference, digest, read_header
from worldmodel.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Make one policy of several."""

    policy: tuple[str, ...] = ()
    """Folders of policies, or names of those that ship, each of the same shape."""
    out: Path = Path("runs/mean_policy")
    """Folder for the mean."""


def alike(folders: list[Path]) -> None:
    """`UserError` naming the first thing in which the policies differ, but for how they were trained."""
    first, *others = [{k: v for k, v in read_header(folder)[0].items() if k != "training"} for folder in folders]
    for folder, config in zip(folders[1:], others, strict=True):
        if differs := difference(config, first):
            raise UserError(f"{folder} has {differs} as in {folders[0]}; only policies of one shape have a mean")


@torch.no_grad()
def main(args: Args) -> None:
    if len(args.policy) < 2:
        raise UserError("a mean is of at least two policies; give their folders with --policy")
    folders = [policy_folder(name) for name in args.policy]
    if args.out.resolve() in [folder.resolve() for folder in folders]:
        raise UserError(f"{args.out} is one of the policies; give --out another folder, so that nothing is lost")
    alike(folders)
    mean, *others = [load_policy(folder) for folder in folders]
    for parameter, *same in zip(mean.parameters(), *(other.parameters() for other in others), strict=True):
        parameter.copy_(torch.stack([parameter, *same]).mean(0))
    save_policy(args.out, mean.half(), {"mean_of": [digest(folder) for folder in folders]}, {}, resumable=False)
    print(f"policy: {args.out}, the mean of {len(folders)}")


if __name__ == "__main__":
    command(main, "average")
