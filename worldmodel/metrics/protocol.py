"""Protocols: everything besides the model that a metric of Tables 1 to 7 depends on.

A Fréchet distance depends on the number of clips and of samples for each clip: under different protocols, results of
the same model may be tens of points apart. So each result carries its protocol, and is compared with a published one
only if both protocols are equal in every field.

    paper   Tables 1 and 3 to 7: 256 clips of 16 frames, and one sample per clip, which continues its first frame; mean
            and standard deviation of ten trials
    pooled  later papers on BAIR: 100 samples per clip, all pooled, against the 256 clips
    large   2,048 unconditional samples against 2,048 clips, once
    tgan2   Table 2's inception score: 2,048 unconditional samples, ten times

The conditioning frames are among the 16. Samples contain them as the model decodes them, not copied. Standard
deviations divide by the number of trials (ten, not nine), as in the paper's code and TGAN2's. Two things differ from
the paper's code: decoded frames are rounded to uint8, not truncated, and R-FVD is the mean of all trials, not of one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from worldmodel.metrics.features import C3D_LOGITS, I3D_LOGITS
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AtLeast2, Count, PixelsOr0, Positive, Settings

ProtocolName = Literal["paper", "pooled", "large", "tgan2"]


@dataclass(frozen=True, kw_only=True)
class Protocol(Settings):
    """How a metric is measured."""

    name: str
    """Name of the protocol."""
    metric: Literal["frechet", "inception"]
    """Fréchet distance or inception score."""
    n_frames: Positive = 16
    """Number of frames of a clip."""
    n_cond_frames: Count
    """Number of frames at the start of a clip that a sample is conditioned on."""
    n_clips: AtLeast2
    """Number of real clips of a trial."""
    samples_per_clip: Positive = 1
    """Number of samples for each clip."""
    n_trials: Positive
    """Number of trials."""
    frame_size: PixelsOr0 = 0
    """Height and width of the clips before the feature network resizes them; 0 for any size."""
    split: str = "test"
    """Split that the real clips are taken from."""
    action_conditioned: bool = False
    """Whether samples are conditioned on the actions of the clip they continue."""
    network: str
    """What the feature network of the published results computes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_cond_frames >= self.n_frames:
            raise UserError(
                f"n_cond_frames = {self.n_cond_frames} must be less than n_frames = {self.n_frames}; choose fewer"
            )

    def with_changes(self, **changes: Any) -> Protocol:
        """Change fields of the protocol; its new name lists the changes.

        Args:
            changes: New values by field; None keeps the old one.
        """
        known = {field.name for field in fields(self)}
        assert changes.keys() <= known
        differ = {k: v for k, v in changes.items() if v is not None and v != getattr(self, k)}
        changed = ", ".join(f"{k} = {v}" for k, v in differ.items())
        return replace(self, **differ, name=f"{self.name} but {changed}") if differ else self

    def check(self, clips: np.ndarray, what: str) -> None:
        """Check clips (n, t, h, w, 3).

        Args:
            clips: The clips.
            what: Name of the clips, for the message.

        Raises:
            UserError: If their type, number, length or size is not that of a trial.
        """
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
            raise UserError(f"{what} must be uint8 clips (n, t, h, w, 3), not {clips.dtype} {clips.shape}")
        if len(clips) != self.n_clips:
            raise UserError(
                f"protocol {self.name} compares {self.n_clips} clips at a time, but {what} are {len(clips)}"
            )
        if clips.shape[1] != self.n_frames:
            raise UserError(
                f"protocol {self.name} compares clips of {self.n_frames} frames, but {what} have {clips.shape[1]}; give"
                f" such clips, or change the protocol with --n-frames {clips.shape[1]}"
            )
        if self.frame_size and clips.shape[2:4] != (self.frame_size, self.frame_size):
            h, w = clips.shape[2:4]
            raise UserError(
                f"protocol {self.name} compares clips of {self.frame_size} x {self.frame_size}, but {what} have "
                f"{h} x {w};"
                f" give such clips, or change the protocol with --frame-size {h if h == w else 0}"
            )

    def to_json(self) -> dict[str, Any]:
        """The protocol as JSON."""
        return asdict(self)


PAPER = Protocol(
    name="paper", metric="frechet", n_cond_frames=1, n_clips=256, n_trials=10, frame_size=64, network=I3D_LOGITS
)
POOLED = Protocol(
    name="pooled",
    metric="frechet",
    n_cond_frames=1,
    n_clips=256,
    samples_per_clip=100,
    n_trials=1,
    frame_size=64,
    network=I3D_LOGITS,
)
LARGE = Protocol(name="large", metric="frechet", n_cond_frames=0, n_clips=2048, n_trials=1, network=I3D_LOGITS)
TGAN2 = Protocol(name="tgan2", metric="inception", n_cond_frames=0, n_clips=2048, n_trials=10, network=C3D_LOGITS)
PROTOCOLS: dict[str, Protocol] = {p.name: p for p in (PAPER, POOLED, LARGE, TGAN2)}


@dataclass(frozen=True)
class Trials:
    """The results of several trials of a protocol."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the trials."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation over the trials; None for a single one."""
        return float(np.std(self.values)) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")

    def to_json(self) -> dict[str, Any]:
        """Mean, standard deviation and single results as JSON."""
        return {"mean": self.mean, "sd": self.std, "trials": list(self.values)}
