"""What a prior is given: clips of codes with their condition and their conditioning frames.

The condition is the clip's actions, flattened or frame by frame, then its class, one-hot, as the prior's config says.
Conditioning frames are those the VQ-VAE saw (section 4.2: "single-frame conditional"), read from the store of frames.

Dimensions: b batch, t latent frames, h w g codes, c condition, f conditioning frames, H W of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.clips import Clips, rows_of
from worldmodel.errors import UserError
from worldmodel.prior import Prior, PriorConfig
from worldmodel.store import Store
from worldmodel.world import World


@dataclass(frozen=True)
class Given:
    """A batch."""

    codes: Tensor
    """(b, t, h, w, g) int64."""
    condition: Tensor | None
    """(b, t, c), or (b, c) for a clip as a whole."""
    frames: Tensor | None
    """(b, f, H, W, channels) uint8."""

    def __getitem__(self, part: slice | Tensor) -> Given:
        return Given(*(None if v is None else v[part] for v in vars(self).values()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> Given:
        return Given(*(None if v is None else v.to(device) for v in vars(self).values()))  # type: ignore[arg-type]


def features(prior: Prior, given: Given) -> Tensor | None:
    """Of the conditioning frames (b, m, units), as the prior's methods take them, if it looks at any."""
    return None if given.frames is None else prior.look(given.frames)


def scale_of(world: World, conditions: np.ndarray, classes: int = 0) -> tuple[float, ...]:
    """What numbers of conditions (..., c) are divided by, so that none speaks louder than another.

    Their standard deviations where actions are numbers (BAIR's dx is a tenth of a metre, its `up` up to 4); none where
    they are one-hot. The last `classes` of a condition are one-hot anyway.
    """
    if world.action.kind != "Box":
        return ()
    spread = conditions.reshape(-1, conditions.shape[-1]).std(0)
    spread[spread.size - classes :] = 1
    return tuple(np.where(spread > 0, spread, 1).tolist())


class CodeClips:
    """Clips of a split of codes, for a prior; `data` is the store of frames that its conditioning frames are in.

    Without `ends` the frames that episodes ended with are left out.
    """

    def __init__(
        self, config: PriorConfig, tokens: Store, split: str, data: Store | None = None, ends: bool = True
    ) -> None:
        self.config, self.data = config, data
        self.actions = config.condition_dim - config.classes
        wanted = {"condition": self.actions, "label": config.classes, "row": config.seen}
        names = ["codes", *(name for name, size in wanted.items() if size)]
        for name in [*names, *(() if ends else ("ended",))]:
            if name not in tokens.names:
                raise UserError(f"{tokens.path} has no {name}; collect data with it, or train a prior without")
        if config.seen and data is None:
            raise UserError(f"this prior looks at {config.seen} frames; give the store of frames they are in")
        frames = config.latent[0]
        self.clips = Clips(tokens, split, frames, names, align=frames if config.mode == "paper" else 1, ends=ends)

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """A random batch as arrays, for `batch`."""
        return self._given(self.clips.sample(rng, n))

    def fixed(self, n: int, seed: int = 0) -> Given:
        """The same n clips every time."""
        return batch({name: torch.from_numpy(array) for name, array in self._given(self.clips.fixed(n, seed)).items()})

    def _given(self, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {"codes": clips["codes"].astype(np.int32)}
        parts = [self._actions(clips["condition"])] if self.actions else []
        if self.config.classes:
            label = clips["label"][:, 0] if self.config.condition == "clip" else clips["label"]
            parts.append(np.eye(self.config.classes, dtype=np.float32)[label])
        if parts:
            given["condition"] = np.concatenate(parts, axis=-1)
        if self.config.seen:
            assert self.data is not None
            given["frames"] = rows_of(self.data, "frames", clips["row"][:, 0], self.config.seen)
        return given

    def _actions(self, rows: np.ndarray) -> np.ndarray:
        """For a clip as a whole the last ones: the first action of all led into it, and is not inside."""
        return rows.reshape(len(rows), -1)[:, -self.actions :] if self.config.condition == "clip" else rows


def batch(arrays: dict[str, Tensor]) -> Given:
    """What `CodeClips.sample` drew, as tensors."""
    return Given(arrays["codes"].long(), arrays.get("condition"), arrays.get("frames"))
