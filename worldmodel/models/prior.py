"""GPT over the codes of a video (section 3, Table 9).

As in the official code: pre-norm blocks of self-attention and feed-forward, dropout after each, the codebook's vectors
as input, a learned start token, and an output head that starts at zero. One model with two configs:

* `mode="paper"`: learned absolute position embeddings in time and space, attention over the whole clip, raster order,
  and one condition for the clip (all its actions, concatenated: 15 transitions x 4 = 60 for HGS, Table 9). It ends
  after one clip, and every code depends on future actions.
* `mode="stream"`: one condition for each latent frame (the actions that led into it), attention over the last `window`
  frames with relative time, anti-diagonal order. It generates without end, and nothing depends on the future. This is
  what a simulator needs.

Three additions to the paper, for speed and for long dreams:

* `patch_size`: a square patch of codes is one position of the transformer, and a small head predicts the codes of the
  patch one after the other, each conditioned on those before it. With 2 x 2 patches the transformer does a quarter of
  the work, in training and in dreams, and the likelihood stays exact.
* `code_noise`: in training some of the input codes, never the targets, are replaced by random ones, so that the model
  learns to continue from its own errors. A little is enough: with up to a fifth of the codes random, a dream of Take
  Cover treated its fireballs as errors and removed them.
* `image_input`: the codes of a recurrent VQ-VAE describe what changes, not what is there. The last reconstruction shows
  what is there. Its features are added to the inputs of the positions that they belong to. With `image_noise` the model
  learns to continue from imperfect pictures, like those of a long dream (GameNGen, Valevski et al. 2024).

Dimensions: b batch, t latent frames, h w g rows, columns and codebooks, n positions of a frame with m codes each, k
code values, c condition. Codes are (b, t, h, w, g), or (b, t, n, m) by position; positions count in raster order.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.models.clip_prior import ClipPrior
from worldmodel.models.kv_cache import KVCache
from worldmodel.models.prior_config import Conditioning, PriorConfig
from worldmodel.models.transformer import Block, StepContext

__all__ = ["Conditioning", "Prior", "PriorConfig"]


class Prior(ClipPrior):
    """p(codes | condition), of whole clips, or frame by frame and pass by pass with a cache."""

    def empty_cache(self, batch: int) -> KVCache:
        """An empty cache, for the first frame of a video.

        For a bfloat16 model in raster order on a CPU it is in float32. There, products of a single row in bfloat16 cost
        more than reading twice the memory.

        Args:
            batch: Number of lanes.
        """
        c, like = self.config, self.start_token
        exact = c.decoding_order == "raster" and like.device.type == "cpu" and like.dtype == torch.bfloat16
        size = (batch, c.n_kv_heads or c.n_heads, 2, c.attention_frames * len(self.order), c.d_model // c.n_heads)
        pairs = [like.new_zeros(size, dtype=torch.float32 if exact else None) for _ in range(c.n_layers)]
        valid = torch.zeros(batch, c.attention_frames - 1, dtype=torch.bool, device=like.device)
        codes = torch.zeros(batch, len(self.order), c.codes_per_position, dtype=torch.long, device=like.device)
        last = like.new_zeros(batch, len(self.order.last_pass), c.codes_per_position * c.embedding_dim)
        return KVCache(pairs, valid, last, codes)

    def prefill(
        self, codes: Tensor, condition: Tensor | None = None, start: int = 0, features: Tensor | None = None
    ) -> KVCache:
        """Fill a new cache with the frames of a context.

        Args:
            codes: Context (b, t, h, w, g), t >= 1.
            condition: As in `forward`.
            start: Time index of the first frame of the context.
            features: As in `forward`.

        Raises:
            UserError: If an input does not fit the config.
        """
        b, t = codes.shape[:2]
        cache, n = self.empty_cache(b), len(self.order)
        slots = cache.valid.shape[1]
        memory = self.forward_clip(codes, condition, features, start)[1]
        for frame in range(max(0, t - slots), t):  # older frames are beyond the attention span
            # within a slot, keys are in the order in which a step writes them: pass by pass, not row by row
            at, source = (start + frame) % slots, frame * n + self.sequence
            for ring, pair in zip(cache.kv, memory, strict=True):
                ring[:, :, :, at * n : (at + 1) * n] = pair[:, :, :, source]
            cache.valid[:, at] = True
        vectors = self.code_vectors(self.group_codes(codes[:, -1:]), self.passes()[-1])
        cache.last_vectors, cache.time = vectors[:, 0].flatten(2), start + t
        return cache

    def begin_frame(
        self, cache: KVCache, condition: Tensor | None = None, features: Tensor | None = None
    ) -> StepContext:
        """Start the next frame: compute what its passes share.

        Args:
            cache: Cache of the past frames.
            condition: Condition of the frame, or of the clip (b, c).
            features: As in `forward`.
        """
        context = self.step_context(cache.time, 1, None if condition is None else condition[:, None], features)
        return context._replace(past_mask=cache.past_mask())

    def passes(self) -> tuple[Tensor, ...]:
        """The positions of each pass, in order, on the device of the model."""
        return self.sequence.split([len(positions) for positions in self.order.passes])

    def forward_pass(self, cache: KVCache, positions: Tensor, context: StepContext) -> Tensor:
        """Run one pass over some positions of the current frame.

        Args:
            cache: Must hold the codes of all earlier passes in `cache.codes`; receives the keys and values of this one.
            positions: One element of `passes`; the passes are run in order.
            context: From `begin_frame`.

        Returns:
            Features (b, positions, width) for `head`.
        """
        if cache.n_cached:
            x = self.embed_inputs(cache.codes[:, None], None, positions)
        else:
            x = self.input_projections[0](cache.last_vectors)[:, None] if cache.time else self.start_token
        x = x + context.position_embeddings[..., positions, :].expand(len(cache.codes), -1, -1, -1)
        mask, now = context.past_mask, cache.n_cached + len(positions)
        if mask is not None:
            mask = F.pad(mask, (0, now), value=True)[:, None, None]
        if self.config.local_window:
            near = self.sparse_mask(cache, positions, now)
            mask = near if mask is None else mask & near
        for index, (layer, block) in enumerate(zip(context.blocks, self.blocks, strict=True)):
            assert isinstance(block, Block)
            x = block.forward_pass(x, layer, context.rotary, partial(cache.write, index), mask)
        cache.n_cached = now
        return self.final_norm(x, context.final_modulation)[:, 0]

    def finish_frame(self, cache: KVCache) -> None:
        """Finish the current frame, whose codes are all in `cache.codes`; its keys and values become past."""
        cache.finish_frame(self.code_vectors(cache.codes[:, None], self.passes()[-1])[:, 0].flatten(2))

    def sparse_mask(self, cache: KVCache, positions: Tensor, n_now: int) -> Tensor:
        """Mask (positions, keys) of sparse attention over the cached frames and `n_now` positions of the current one.

        The past frames are stored in ring order, so each slot's row of `reachable` depends on the frame's age.
        """
        slots = self.config.attention_frames - 1
        used = torch.arange(cache.n_used_slots, device=positions.device)
        back = (used - cache.time) % max(slots, 1)  # 0 for the oldest frame that a full buffer holds
        rows = self.reachable[positions]
        return torch.cat([rows[..., back, :].flatten(-2), rows[..., slots, :n_now]], dim=-1)
