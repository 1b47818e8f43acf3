"""Protocols: everything beside the model that a figure of Tables 1 to 7 depends on.

A Fréchet distance of 256 clips is not one of 2,048, and 100 samples of a clip are not one: figures of different
protocols may be tens of points apart for the same model. So a figure carries its protocol, and stands beside a
published one only if theirs are equal in every field.

    paper   Tables 1 and 3 to 7: 256 clips of 16 frames, and a sample of each that continues its first frame; mean
            and standard deviation of ten trials
    pooled  what later papers report on BAIR: 100 samples of each of 256 clips together, against those clips
    large   2,048 unconditional samples against 2,048 clips, once
    tgan2   Table 2's inception score: 2,048 unconditional samples, ten times

The frames that are given count among the 16, and samples show them as the model decodes them, not copied. Spreads
are standard deviations over the trials themselves (ten, not nine), as the paper's code and TGAN2's have them. Two
things differ from the paper's code: what is decoded is rounded to uint8, not cut, and R-FVD is the mean of all trials,
not a single one.
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
    """How a figure is taken."""

    name: str
    metric: Literal["frechet", "inception"]
    n_frames: Positive = 16
    """Frames of a clip."""
    n_cond_frames: Count
    """Of these, the first ones that a sample is given."""
    n_clips: AtLeast2
    """Real clips of a trial."""
    samples_per_clip: Positive = 1
    """Samples of each clip."""
    n_trials: Positive
    frame_size: PixelsOr0 = 0
    """Height and width of the clips before the feature network's own resizing; 0 where any will do."""
    split: str = "test"
    """Where the real clips are from."""
    action_conditioned: bool = False
    """Do samples know the actions of the clip they continue?"""
    network: str
    """What the network of its published figures computes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_cond_frames >= self.n_frames:
            raise UserError(f"of clips of {self.n_frames} frames {self.n_cond_frames} cannot be given; give fewer")

    def with_changes(self, **changes: Any) -> Protocol:
        """With other values for those that are not None; the name then says which."""
        known = {field.name for field in fields(self)}
        assert changes.keys() <= known
        differ = {k: v for k, v in changes.items() if v is not None and v != getattr(self, k)}
        changed = ", ".join(f"{k} = {v}" for k, v in differ.items())
        return replace(self, **differ, name=f"{self.name} but {changed}") if differ else self

    def check(self, clips: np.ndarray, what: str) -> None:
        """`UserError` for clips (n, t, h, w, 3) of another number, length or size than those of a trial."""
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3:
            raise UserError(f"{what} are uint8 clips (n, t, h, w, 3), not {clips.dtype} {clips.shape}")
        if len(clips) != self.n_clips:
            raise UserError(
                f"protocol {self.name} compares {self.n_clips} clips at a time, but {what} are {len(clips)}"
            )
        if clips.shape[1] != self.n_frames:
            raise UserError(
                f"protocol {self.name} compares clips of {self.n_frames} frames, but {what} have {clips.shape[1]}; give"
                f" such clips, or alter it with --n-frames {clips.shape[1]}"
            )
        if self.frame_size and clips.shape[2:4] != (self.frame_size, self.frame_size):
            h, w = clips.shape[2:4]
            raise UserError(
                f"protocol {self.name} compares clips of {self.frame_size} x {self.frame_size}, but {what} have "
                f"{h} x {w};"
                f" give such clips, or alter it with --frame-size {h if h == w else 0}"
            )

    def to_json(self) -> dict[str, Any]:
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
    """A figure of several trials."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Standard deviation over the trials; None of a single one."""
        return float(np.std(self.values)) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if self.std is not None else "")

    def to_json(self) -> dict[str, Any]:
        return {"mean": self.mean, "sd": self.std, "trials": list(self.values)}
