"""Conversion of pixels between uint8 and floats, and their weights in the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.utils.ranks import batch_mean


def to_float(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert uint8 frames to floats in [-0.5, 0.5] (section 4.1)."""
    return frames.to(dtype) / 255 - 0.5


def to_uint8(frames: Tensor) -> Tensor:
    """Convert floats in [-0.5, 0.5] to uint8 frames, rounded and clipped."""
    return ((frames.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8)


def motion_weights(frames: Tensor, motion_loss_weight: float) -> Tensor:
    """Loss weights of pixels, larger where the clips change.

    A weight is proportional to 1 + `motion_loss_weight` * (change since the previous frame / mean change of the batch).
    The first frame of a clip has the change of the second.

    Args:
        frames: Clips (b, t, h, w, c).
        motion_loss_weight: As in `VQVAESettings`.

    Returns:
        Weights (b, t, h, w, 1) of mean 1.
    """
    if frames.shape[1] == 1:
        return torch.ones_like(frames[..., :1])
    change = frames.diff(dim=1).abs().mean(-1, keepdim=True)
    change = torch.cat([change[:, :1], change], dim=1)
    mean = batch_mean(change.mean())
    return (1 + motion_loss_weight * torch.where(mean > 0, change / mean, 1.0)) / (1 + motion_loss_weight)
