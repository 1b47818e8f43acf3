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

from worldmodel.data.clips import Clips, read_windows
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.utils.errors import UserError


@dataclass(frozen=True)
class PriorBatch:
    """A batch."""

    codes: Tensor
    """(b, t, h, w, g) int64."""
    condition: Tensor | None
    """(b, t, c), or (b, c) for a clip as a whole."""
    cond_frames: Tensor | None
    """(b, f, H, W, channels) uint8."""

    def __getitem__(self, part: slice | Tensor) -> PriorBatch:
        return PriorBatch(*(None if v is None else v[part] for v in vars(self).values()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> PriorBatch:
        return PriorBatch(*(None if v is None else v.to(device) for v in vars(self).values()))  # type: ignore[arg-type]


def encode_cond_frames(prior: Prior, batch: PriorBatch) -> Tensor | None:
    """Of the conditioning frames (b, m, units), as the prior's methods take them, if it looks at any."""
    return None if batch.cond_frames is None else prior.encode_cond_frames(batch.cond_frames)


def condition_scale(env_spec: EnvSpec, conditions: np.ndarray, n_classes: int = 0) -> tuple[float, ...]:
    """What numbers of conditions (..., c) are divided by, so that none speaks louder than another.

    Their standard deviations where actions are numbers (BAIR's dx is a tenth of a metre, its `up` up to 4); none where
    they are one-hot. The last `n_classes` of a condition are one-hot anyway.
    """
    if env_spec.action.kind != "Box":
        return ()
    scale = conditions.reshape(-1, conditions.shape[-1]).std(0)
    scale[scale.size - n_classes :] = 1
    return tuple(np.where(scale > 0, scale, 1).tolist())


class PriorDataset:
    """Clips of a split of codes, for a prior; `frame_store` is the store of frames that its conditioning frames are in.

    Without `terminal_frames` the frames that episodes ended with are left out.
    """

    def __init__(
        self,
        config: PriorConfig,
        tokens: Store,
        split: str,
        frame_store: Store | None = None,
        terminal_frames: bool = True,
    ) -> None:
        self.config, self.frame_store = config, frame_store
        self.action_dim = config.condition_dim - config.n_classes
        wanted = {"condition": self.action_dim, "label": config.n_classes, "frame_row": config.n_cond_frames}
        names = ["codes", *(name for name, size in wanted.items() if size)]
        for name in [*names, *(() if terminal_frames else ("done",))]:
            if name not in tokens.array_names:
                raise UserError(f"{tokens.path} has no {name}; collect data with it, or train a prior without")
        if config.n_cond_frames and frame_store is None:
            raise UserError(f"this prior looks at {config.n_cond_frames} frames; give the store of frames they are in")
        frames = config.latent_shape[0]
        self.clips = Clips(
            tokens, split, frames, names, align=frames if config.mode == "paper" else 1, terminal_frames=terminal_frames
        )

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
        """A random batch as arrays, for `to_batch`."""
        return self._to_arrays(self.clips.sample(rng, n))

    def fixed_sample(self, n: int, seed: int = 0) -> PriorBatch:
        """The same n clips every time."""
        return to_batch(
            {name: torch.from_numpy(array) for name, array in self._to_arrays(self.clips.fixed_sample(n, seed)).items()}
        )

    def _to_arrays(self, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {"codes": clips["codes"].astype(np.int32)}
        parts = [self._select_actions(clips["condition"])] if self.action_dim else []
        if self.config.n_classes:
            label = clips["label"][:, 0] if self.config.conditioning == "clip" else clips["label"]
            parts.append(np.eye(self.config.n_classes, dtype=np.float32)[label])
        if parts:
            given["condition"] = np.concatenate(parts, axis=-1)
        if self.config.n_cond_frames:
            assert self.frame_store is not None
            given["frames"] = read_windows(
                self.frame_store, "frames", clips["frame_row"][:, 0], self.config.n_cond_frames
            )
        return given

    def _select_actions(self, rows: np.ndarray) -> np.ndarray:
        """For a clip as a whole the last ones: the first action of all led into it, and is not inside."""
        return rows.reshape(len(rows), -1)[:, -self.action_dim :] if self.config.conditioning == "clip" else rows


def to_batch(arrays: dict[str, Tensor]) -> PriorBatch:
    """What `PriorDataset.sample` drew, as tensors."""
    return PriorBatch(arrays["codes"].long(), arrays.get("condition"), arrays.get("frames"))
