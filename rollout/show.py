"""Look through the episodes of a store or of a run, on a local web page.

    python rollout/show.py --path runs/demo/data.zarr     # then open http://127.0.0.1:8000
    python rollout/show.py --path runs/demo               # also what its VQ-VAE makes of them

The page plays an episode as a film, with its actions, rewards and game variables as curves under it. For a run, the
reconstruction and the codes of each frame are beside the truth.

    GET  /            the page
    POST /store       what there is: episodes with their lengths and splits
    POST /episode     {"episode": 3}, its curves
    POST /frames      {"episode": 3, "first": 0}, some frames from the first one on

Each request returns JSON, with frames as PNG. `rollout/server.py` describes which requests are refused.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from configs import command
from rollout.episode_viewer import EpisodeViewer
from rollout.server import PageServer, open_page
from worldmodel.data.opening import open_store
from worldmodel.models.loading import load_vqvae
from worldmodel.utils.errors import UserError, is_url
from worldmodel.utils.settings import Address, Range, Settings

PAGE = Path(__file__).with_name("show.html")
TAKES: dict[str, dict[str, Any]] = {"store": {}, "episode": {"episode": int}, "frames": {"episode": int, "first": int}}
"""Commands and their arguments."""


@dataclass(frozen=True, kw_only=True)
class Args(Settings):
    """Serve a local web page to look through episodes."""

    path: str = "runs/demo"
    """Store, or run folder with a VQ-VAE."""
    data: Address | None = None
    """Store of a run, by default <run>/data.zarr."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port of the page, reachable from this machine only; 0 uses a free port."""


def make_viewer(args: Args) -> EpisodeViewer:
    """The episodes of a store, or those of a run with its VQ-VAE; `UserError` if the path is neither."""
    run = Path(args.path)
    if not is_url(args.path) and (run / "vqvae").is_dir():
        return EpisodeViewer(open_store(args.data or run / "data.zarr"), load_vqvae(run / "vqvae"))
    if args.data:
        raise UserError(f"{args.path} has no VQ-VAE, so it is not a run to show --data with; give --path {args.data}")
    return EpisodeViewer(open_store(args.path))


def serve(args: Args) -> PageServer:
    return open_page(args.port, PAGE, TAKES, make_viewer(args))


def main(args: Args) -> None:
    with serve(args) as server:
        server.run("look")


if __name__ == "__main__":
    command(main, "show")
