"""The keys and values of past frames, with which a prior predicts a frame pass by pass.

The cache is a ring buffer of latent frames, allocated once. It has `window` slots, window - 1 of them for past frames.
The keys and values of the current frame are written behind the past frames as its codes are predicted. What a pass may
attend to is therefore always one contiguous slice from the start: all past frames, then the current frame so far. While
there is room, a finished frame stays where it is; later it overwrites the oldest slot. The order of the slots does not
matter to attention, since the time is in the keys. Early frames read little: over a clip half as much as with the whole
buffer.

Dimensions: b batch (lane), n positions of a frame with m codes each, f positions of the first pass of a frame, d
channels of a head, w window in frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass
class KVCache:
    """The prior's state of a batch of lanes: past frames, and the current frame so far."""

    kv: list[Tensor]
    """For each layer the keys and values (b, key heads, 2, w*n, d): past frames, then the current one."""
    valid: Tensor
    """(b, w-1) bool: whether a slot has a frame of this lane."""
    last_vectors: Tensor
    """(b, f, m*embedding_dim) vectors of the codes of the previous frame's last pass."""
    codes: Tensor
    """(b, n, m) codes of the current frame so far."""
    time: int = 0
    """Time index of the current frame, the same for all lanes."""
    n_cached: int = 0
    """Number of positions of the current frame that are already cached."""

    @property
    def positions_per_frame(self) -> int:
        """n, the number of positions of a frame."""
        return self.codes.shape[1]

    @property
    def n_used_slots(self) -> int:
        """How many of the w - 1 slots for past frames are in use in some lane; the others are empty in all lanes."""
        return min(self.time, self.valid.shape[1])

    def write(self, layer: int, kv: Tensor) -> Tensor:
        """Append the keys and values of a pass over p positions.

        Args:
            layer: Index of the layer.
            kv: (b, key heads, 2, p, d).

        Returns:
            All keys and values that the pass may attend to, (b, key heads, 2, keys, d).
        """
        # the current frame lies right behind the used slots, so what may be attended to is one slice, without copying
        start, p = self.n_used_slots * self.positions_per_frame + self.n_cached, kv.shape[3]
        self.kv[layer].narrow(3, start, p).copy_(kv)
        return self.kv[layer].narrow(3, 0, start + p)

    def is_full(self) -> bool:
        """Whether every slot for past frames is in use in every lane; then shapes are the same at every step."""
        return self.time >= self.valid.shape[1] and bool(self.valid.all())

    def past_mask(self) -> Tensor | None:
        """Which keys of past frames are valid, (b, keys) bool; None, which is faster, if all are in every lane."""
        valid = self.valid[:, : self.n_used_slots]
        return None if bool(valid.all()) else valid.repeat_interleave(self.positions_per_frame, 1)

    def finish_frame(self, last_vectors: Tensor) -> None:
        """Make the current frame a past one, and start the next.

        Args:
            last_vectors: Vectors of the codes of its last pass, (b, f, m*embedding_dim).
        """
        slots, n = self.valid.shape[1], self.positions_per_frame
        if slots:
            at = self.time % slots
            # While there are free slots, the current frame already lies in its own. When the buffer is full, it lies
            # behind the last slot and takes the place of the oldest frame. Slots are then no longer in order of time,
            # which attention does not notice: every key was rotated by the time of its own frame.
            if self.time >= slots:
                for pair in self.kv:
                    pair[:, :, :, at * n : (at + 1) * n] = pair[:, :, :, slots * n :]
            self.valid[:, at] = True
        self.last_vectors, self.time, self.n_cached = last_vectors, self.time + 1, 0

    def set_lanes(self, lanes: Tensor, other: KVCache) -> None:
        """Overwrite some lanes with those of another cache, whose `time` must be the same."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[lanes] = theirs

    def select_lanes(self, lanes: Tensor) -> KVCache:
        """A copy of some of the lanes, which may repeat."""
        return self._copy(lambda tensor: tensor[lanes])

    def clone(self) -> KVCache:
        """A copy that shares no memory with this one."""
        return self._copy(Tensor.clone)

    def _copy(self, copy: Callable[[Tensor], Tensor]) -> KVCache:
        *kv, valid, last_vectors, codes = map(copy, self.tensors())
        return replace(self, kv=kv, valid=valid, last_vectors=last_vectors, codes=codes)

    def tensors(self) -> list[Tensor]:
        """All tensors, in a fixed order."""
        return [*self.kv, self.valid, self.last_vectors, self.codes]
