"""Training data of a prior: clips of codes with their conditions and conditioning frames.

The condition consists of the clip's actions (flattened, or frame by frame) and then its class (one-hot), as the prior's
config says. Conditioning frames are the frames that were encoded (section 4.2: "single-frame conditional"), read from
the store of frames.

Dimensions: b batch, t latent frames, h w g codes, c condition, f conditioning frames, H W of a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldmodel.data.clips import ALL, RECONSTRUCTION, Clips, read_state, read_windows
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.utils.errors import UserError


@dataclass(frozen=True)
class PriorBatch:
    """A batch of clips, as `Prior` takes them."""

    codes: Tensor
    """(b, t, h, w, g) int64 codes."""
    condition: Tensor | None
    """(b, t, c) conditions of latent frames, or (b, c) of clips; None for an unconditional prior."""
    cond_frames: Tensor | None
    """(b, f, H, W, channels) uint8 conditioning frames, if the prior has any."""
    images: Tensor | None = None
    """(b, t, H, W, channels) uint8 reconstruction before each latent frame, if the prior takes it."""
    state: Tensor | None = None
    """(b, p, H, W, channels) uint8 state of a recurrent VQ-VAE before the clip, to decode it."""
    episode: Tensor | None = None
    """(b,) index of each clip's episode, of a fixed sample."""

    def __getitem__(self, part: slice | Tensor) -> PriorBatch:
        return PriorBatch(*(None if v is None else v[part] for v in vars(self).values()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str) -> PriorBatch:
        return PriorBatch(*(None if v is None else v.to(device) for v in vars(self).values()))  # type: ignore[arg-type]


def batch_features(prior: Prior, batch: PriorBatch) -> Tensor | None:
    """Features of the images or of the conditioning frames, if the prior takes any, as its other methods take them."""
    if prior.config.image_input:
        assert batch.images is not None, "codes of a recurrent VQ-VAE have images beside them"
        return prior.encode_images(batch.images)
    return None if batch.cond_frames is None else prior.encode_cond_frames(batch.cond_frames)


@torch.no_grad()
def bits_per_code(prior: Prior, batch: PriorBatch, n_given: int = 0, batch_size: int = 16) -> np.ndarray:
    """Bits per code (b,) of the latent frames after the first `n_given` (the paper's bits/dim).

    Args:
        prior: The prior, on its device.
        batch: The clips.
        n_given: Latent frames at the start of each clip that do not count.
        batch_size: Clips that go through the prior at a time.
    """
    nats = []
    for part in torch.arange(len(batch.codes)).split(batch_size):
        one = batch[part].to(prior.start_token.device)
        condition = None if one.condition is None else one.condition.to(prior.start_token.dtype)
        nats.append(prior.loss(one.codes, condition, batch_features(prior, one))[:, n_given:].mean(1).cpu())
    return torch.cat(nats).double().numpy() / math.log(2)


def condition_scale(env_spec: EnvSpec, conditions: np.ndarray, n_classes: int = 0) -> tuple[float, ...]:
    """Divisors that bring the numbers of conditions (..., c) to the same scale.

    For a Box these are standard deviations (BAIR's dx is about a tenth of a meter, its `up` is up to 4). One-hot
    actions need none, and the last `n_classes` numbers are one-hot in any case.

    Args:
        env_spec: The environment.
        conditions: Sample of conditions (..., c).
        n_classes: Number of classes at the end of a condition.

    Returns:
        One divisor for each number, or nothing for one-hot actions.
    """
    if env_spec.action.kind != "Box":
        return ()
    scale = conditions.reshape(-1, conditions.shape[-1]).std(0)
    scale[scale.size - n_classes :] = 1
    return tuple(np.where(scale > 0, scale, 1).tolist())


class PriorDataset:
    """Clips of codes of a split, for a prior."""

    def __init__(
        self,
        config: PriorConfig,
        tokens: Store,
        split: str,
        frame_store: Store | None = None,
        terminal_frames: bool = True,
    ) -> None:
        """Find the clips.

        Args:
            config: Config of the prior.
            tokens: Store of codes.
            split: "train", "valid" or "test".
            frame_store: Store of frames, for conditioning frames.
            terminal_frames: Whether clips may contain the last frame of an episode that terminated.

        Raises:
            UserError: If a store lacks what the prior takes, or no episode is long enough.
        """
        self.config, self.frame_store = config, frame_store
        self.action_dim = config.condition_dim - config.n_classes
        wanted = {"condition": self.action_dim, "label": config.n_classes, "frame_row": config.n_cond_frames}
        names = ["codes", *(name for name, size in wanted.items() if size)]
        images = (RECONSTRUCTION,) if config.image_input else ()
        for name in [*names, *images, *(() if terminal_frames else ("done",))]:
            if name not in tokens.array_names:
                raise UserError(f"{tokens.path} has no {name}; collect data that has it, or train a prior without it")
        if config.n_cond_frames and frame_store is None:
            raise UserError(
                f"this prior takes {config.n_cond_frames} conditioning frames; give the store of frames to read them "
                "from"
            )
        frames = config.latent_shape[0]
        self.clips = Clips(
            tokens, split, frames, names, align=frames if config.mode == "paper" else 1, terminal_frames=terminal_frames
        )

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, rng: np.random.Generator, n: int, share: slice = ALL) -> dict[str, np.ndarray]:
        """Sample n clips, and read a share of them.

        Args:
            rng: Draws the clips.
            n: Number of clips.
            share: Which of the n are read.

        Returns:
            Arrays (n, ...) by name, which `to_batch` turns into a batch.
        """
        return self._to_arrays(self.clips.sample(rng, n, share))

    def fixed_sample(self, n: int, seed: int = 0) -> PriorBatch:
        """The same n clips every time; see `Clips.fixed_sample`."""
        clips = self.clips.fixed_sample(n, seed)
        arrays = self._to_arrays(clips) | {"episode": clips["episode"]}
        if past_frames := self.clips.store.settings["vqvae"]["model"]["past_frames"]:
            arrays["state"] = read_state(self.clips.store, clips["row"], clips["start"], past_frames)
        return to_batch({name: torch.from_numpy(array) for name, array in arrays.items()})

    def _to_arrays(self, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {"codes": clips["codes"].astype(np.int32)}
        parts = [self._select_actions(clips["condition"])] if self.action_dim else []
        if self.config.n_classes:
            label = clips["label"][:, 0] if self.config.conditioning == "clip" else clips["label"]
            parts.append(np.eye(self.config.n_classes, dtype=np.float32)[label])
        if parts:
            given["condition"] = np.concatenate(parts, axis=-1)
        if self.config.image_input:
            n_frames = clips["codes"].shape[1]
            given["images"] = read_windows(self.clips.store, RECONSTRUCTION, clips["row"] - 1, n_frames)
        if self.config.n_cond_frames:
            assert self.frame_store is not None
            given["frames"] = read_windows(
                self.frame_store, "frames", clips["frame_row"][:, 0], self.config.n_cond_frames
            )
        return given

    def _select_actions(self, rows: np.ndarray) -> np.ndarray:
        """The actions of a condition; for a clip the last ones, since the first action led into the clip."""
        return rows.reshape(len(rows), -1)[:, -self.action_dim :] if self.config.conditioning == "clip" else rows


def to_batch(arrays: dict[str, Tensor]) -> PriorBatch:
    """Turn the arrays of `PriorDataset.sample`, as tensors, into a batch."""
    rest = (arrays.get(name) for name in ("condition", "frames", "images", "state", "episode"))
    return PriorBatch(arrays["codes"].long(), *rest)
