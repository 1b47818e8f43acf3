"""The prior on whole clips: layers, logits and loss. `worldmodel.models.prior` explains the model and its names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from worldmodel.models.attention import Mask, rotary_embedding
from worldmodel.models.conditioning import ConditionalNorm
from worldmodel.models.decoding_order import NO_PARENT, DecodingOrder
from worldmodel.models.image_encoder import ImageEncoder
from worldmodel.models.layers import AxialPositionEmbedding
from worldmodel.models.pixels import to_float
from worldmodel.models.prior_config import PriorConfig
from worldmodel.models.resnet import ResNet
from worldmodel.models.sparse_attention import block_mask, clip_mask
from worldmodel.models.transformer import Block, Head, StepContext
from worldmodel.utils.errors import UserError


class ClipPrior(nn.Module):
    """p(codes | condition) of whole clips, for training and to fill a cache."""

    codebook: Tensor
    condition_scale: Tensor
    parents: Tensor
    sequence: Tensor
    reachable: Tensor

    def __init__(self, config: PriorConfig, codebook: Tensor | None = None) -> None:
        """Build the model.

        Args:
            config: All sizes.
            codebook: The VQ-VAE's code vectors (n_codebooks, n_codes, embedding_dim), which are not trained. Zeros by
                default, for a model that is then filled from a checkpoint.

        Raises:
            UserError: If the codebook has another shape than the config says.
        """
        super().__init__()
        self.config = config
        t = config.latent_shape[0]
        self.order = DecodingOrder(config.decoding_order, *config.grid)
        shape = (config.n_codebooks, config.n_codes, config.embedding_dim)
        if codebook is not None and tuple(codebook.shape) != shape:
            raise UserError(
                f"the prior's config needs a codebook of shape {shape}, but the VQ-VAE's has {tuple(codebook.shape)}; "
                "train the prior again"
            )
        self.register_buffer("codebook", torch.zeros(shape) if codebook is None else codebook.clone())
        self.register_buffer("condition_scale", torch.tensor(config.condition_scale or 1.0), persistent=False)
        self.register_buffer("sequence", torch.cat(self.order.passes), persistent=False)
        # what the newest frame may attend to when the ring buffer is full; a frame's keys are in the order of caching
        if config.local_window:
            last = clip_mask(self.order, config.attention_frames, config.attention_frames, config.local_window)[
                -len(self.order) :
            ]
            reachable = last.unflatten(1, (config.attention_frames, -1))[..., self.sequence]
            self.register_buffer("reachable", reachable, persistent=False)
        self.register_buffer("parents", self.order.parents, persistent=False)
        self.input_projections = nn.ModuleList(
            nn.Linear(config.codes_per_position * config.embedding_dim, config.d_model, bias=False)
            for _ in range(2 if config.decoding_order == "diagonal" else 1)
        )
        self.start_token = nn.Parameter(torch.randn(config.d_model) * 0.02)
        space = config.grid if config.grid[2] > 1 else config.grid[:2]
        self.position_embedding = AxialPositionEmbedding(
            space if config.mode == "stream" else (t, *space), config.d_model, config.pos_emb_init_std
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = ConditionalNorm(config.d_model, config.condition_dim)
        self.head = Head(config)
        if config.n_cond_frames:
            self.resnet = ResNet(
                config.resnet_depth,
                config.n_cond_frames,
                config.cond_frame_shape,
                config.cond_dim,
                config.pos_emb_init_std,
            )
        if config.image_input:
            *size, channels = config.cond_frame_shape
            self.image_encoder = ImageEncoder(
                channels, (size[0], size[1]), config.grid[:2], config.d_model, noise=config.image_noise
            )
        self._masks: dict[tuple[int, torch.device], Mask] = {}

    def encode_cond_frames(self, frames: Tensor) -> Tensor:
        """Encode conditioning frames (section 3.2).

        Args:
            frames: uint8 (b, n_cond_frames, H, W, channels).

        Returns:
            Features (b, positions, cond_dim), which the other methods take as `features`.

        Raises:
            UserError: If the frames do not fit the config.
        """
        wanted = (self.config.n_cond_frames, *self.config.cond_frame_shape)
        if not self.config.n_cond_frames or tuple(frames.shape[1:]) != wanted:
            raise UserError(f"this prior takes conditioning frames of shape {wanted}, not {tuple(frames.shape[1:])}")
        return self.resnet(to_float(frames, self.start_token.dtype))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode the reconstruction before each latent frame, for `image_input`.

        Args:
            images: uint8 (b, t, H, W, channels).

        Returns:
            Features (b, t, n, d_model), which the other methods take as `features`.

        Raises:
            UserError: If the images do not fit the config.
        """
        wanted = self.config.cond_frame_shape
        if not self.config.image_input or tuple(images.shape[2:]) != wanted:
            raise UserError(f"this prior takes images of shape {wanted}, not {tuple(images.shape[2:])}")
        features = self.image_encoder(images).flatten(2, 3)  # every codebook of a position has the same image
        return features.repeat_interleave(self.config.grid[2], dim=2)

    def forward(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Predict every code of a clip from the codes before it.

        Args:
            codes: (b, t, h, w, g).
            condition: (b, t, c) if conditioned frame by frame, (b, c) if on the clip.
            features: `encode_cond_frames` of the conditioning frames or `encode_images` of the images before each
                latent frame, if the prior takes one of them.

        Returns:
            Logits (b, t, h, w, g, k).

        Raises:
            UserError: If an input does not fit the config.
        """
        return self.ungroup_codes(self.forward_clip(codes, condition, features)[0])

    def loss(self, codes: Tensor, condition: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """Cross entropy of each latent frame (b, t), in nats per code. Divided by ln 2 it is the paper's bits/dim.

        Args:
            codes: (b, t, h, w, g).
            condition: As in `forward`.
            features: As in `forward`.
        """
        noisy_codes = self.add_code_noise(codes) if self.training and self.config.code_noise else codes
        logits, target = self.forward_clip(noisy_codes, condition, features)[0].float(), self.group_codes(codes)
        loss = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
        return loss.view(*target.shape).mean((2, 3))

    def add_code_noise(self, codes: Tensor) -> Tensor:
        """Replace a fraction of each clip's codes by random ones; the fraction is uniform from 0 to `code_noise`."""
        fraction = torch.rand(len(codes), 1, 1, 1, 1, device=codes.device) * self.config.code_noise
        random = torch.randint_like(codes, self.config.n_codes)
        return torch.where(torch.rand(codes.shape, device=codes.device) < fraction, random, codes)

    def forward_clip(
        self, codes: Tensor, condition: Tensor | None, features: Tensor | None = None, start: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Run a whole clip at once, for training and to fill a cache.

        Args:
            codes: (b, t, h, w, g).
            condition: As in `forward`.
            features: As in `forward`.
            start: Time index of the first frame.

        Returns:
            Logits (b, t, n, m, k), and the keys and values (b, key heads, 2, t*n, d) of each layer.
        """
        t = codes.shape[1]
        context = self.step_context(start, t, self.check_inputs(codes, condition), features)
        grouped = self.group_codes(codes)
        vectors = self.code_vectors(grouped)
        ends = vectors[:, :-1, self.order.last_pass].flatten(3)
        last_vectors = torch.cat([ends.new_zeros(len(codes), 1, *ends.shape[2:]), ends], dim=1)
        x = self.embed_inputs(grouped, last_vectors, torch.arange(len(self.order), device=codes.device))
        x[:, 0, self.order.first_pass] = self.start_token.to(x.dtype)
        x = x + context.position_embeddings
        mask, memory = self._clip_mask(t), []
        for layer, block in zip(context.blocks, self.blocks, strict=True):
            x, kv = block(x, layer, context.rotary, mask)
            memory.append(kv)
        return self.head(self.final_norm(x, context.final_modulation), vectors), memory

    def step_context(self, start: int, t: int, condition: Tensor | None, features: Tensor | None) -> StepContext:
        """Compute what all positions of some frames share.

        Args:
            start: Time index of the first frame.
            t: Number of frames.
            condition: (b, t or 1, c), not yet scaled.
            features: As in `forward`.

        Raises:
            UserError: If features are missing or not expected, or a paper-mode prior has no such frames.
        """
        if (features is None) == bool(self.config.n_cond_frames or self.config.image_input):
            c = self.config
            takes = "`encode_images`" if c.image_input else "`encode_cond_frames`" if c.n_cond_frames else ""
            wants = f"needs the result of {takes} as its features" if takes else "takes no features; give None"
            raise UserError(f"this prior {wants}")
        condition = None if condition is None else condition / self.condition_scale
        images, cond_features = (features, None) if self.config.image_input else (None, features)
        embeddings = self._position_embeddings(start, t)
        return StepContext(
            [block.context(condition, cond_features) for block in self.blocks],  # type: ignore[operator]
            self.final_norm.modulation(condition),
            embeddings if images is None else embeddings + images,
            self.rotary(start, t),
        )

    def rotary(self, start: int, t: int = 1) -> Tensor | None:
        """Rotary embedding (2, 1 or t*n, d) of t frames from time index `start` on; None in paper mode."""
        if self.config.mode == "paper":
            return None
        times = torch.arange(start, start + t, device=self.start_token.device)
        rotary = rotary_embedding(times, self.config.d_model // self.config.n_heads, self.start_token.dtype)
        return rotary if t == 1 else rotary.repeat_interleave(len(self.order), 1)

    def check_inputs(self, codes: Tensor, condition: Tensor | None) -> Tensor | None:
        """Check the shapes of codes and condition.

        Returns:
            The condition as (b, t or 1, c).

        Raises:
            UserError: If one of them does not fit the config.
        """
        c, (_, h, w) = self.config, self.config.latent_shape
        if tuple(codes.shape[2:]) != (h, w, c.n_codebooks):
            raise UserError(
                f"this prior takes codes of (batch, time, {h}, {w}, {c.n_codebooks}), not {tuple(codes.shape)}"
            )
        if c.mode == "paper" and codes.shape[1] > c.latent_shape[0]:
            raise UserError(
                f"a paper-mode prior ends after {c.latent_shape[0]} latent frames; use mode = stream for longer videos"
            )
        if c.conditioning == "none":
            return None
        wanted = (len(codes), c.condition_dim) if c.conditioning == "clip" else (*codes.shape[:2], c.condition_dim)
        if condition is None or tuple(condition.shape) != wanted:
            have = None if condition is None else tuple(condition.shape)
            raise UserError(
                f"this prior takes conditions of shape {wanted}, one for each {c.conditioning}, not {have}; train one "
                "for these actions"
            )
        return condition[:, None] if c.conditioning == "clip" else condition

    def code_vectors(self, codes: Tensor, positions: Tensor | None = None) -> Tensor:
        """Look up the vectors of codes (b, t, n, m), each in its codebook: (b, t, n or positions, m, embedding_dim)."""
        if self.config.n_codebooks == 1:
            return F.embedding(codes if positions is None else codes[:, :, positions], self.codebook[0])
        codebook = torch.arange(codes.shape[2] * codes.shape[3], device=codes.device).view(codes.shape[2:])
        vectors = self.codebook[codebook % self.config.n_codebooks, codes]
        return vectors if positions is None else vectors[:, :, positions]

    def group_codes(self, codes: Tensor) -> Tensor:
        """Group codes by position: (b, t, h, w, g) -> (b, t, n, m)."""
        p = self.config.patch_size
        if p == 1:
            return codes.flatten(2)[..., None]
        return rearrange(codes, "b t (h p) (w q) g -> b t (h w) (p q g)", p=p, q=p)

    def ungroup_codes(self, grouped: Tensor) -> Tensor:
        """The inverse of `group_codes`: (b, t, n, m, ...) -> (b, t, h, w, g, ...)."""
        c, p = self.config, self.config.patch_size
        h, w, _ = c.grid
        rest = grouped.shape[4:]
        if p > 1:
            grouped = rearrange(
                grouped.flatten(4) if rest else grouped[..., None],
                "b t (h w) (p q g) k -> b t (h p) (w q) g k", h=h, w=w, p=p, q=p,
            )  # fmt: skip
        return grouped.reshape(*grouped.shape[:2], *c.latent_shape[1:], c.n_codebooks, *rest)

    def embed_inputs(self, codes: Tensor, last_vectors: Tensor | None, positions: Tensor) -> Tensor:
        """Input of some positions (b, t, positions, width): the embedded codes of their parents.

        The positions of the first pass have no parents in their frame. They get `last_vectors`, the vectors of the last
        codes of the previous frame (b, t, f, m*embedding_dim); it is None if `positions` has none of them.
        """
        embedded = 0
        for slot, layer in enumerate(self.input_projections):
            parent_index = self.parents[positions, slot]
            parents = self.code_vectors(codes, parent_index.clamp(min=0)).flatten(3)
            if len(self.input_projections) > 1:  # in the other orders only the first pass has no parents
                parents = parents * (parent_index != NO_PARENT)[:, None]
            if slot == 0 and last_vectors is not None:
                parents[:, :, self.order.first_pass] = last_vectors
            embedded = embedded + layer(parents)
        return embedded  # type: ignore[return-value]

    def _position_embeddings(self, start: int, t: int) -> Tensor:
        """Position embeddings (t or 1, n, width) of frames from index `start` on."""
        embeddings = self.position_embedding()
        if self.config.mode == "stream":
            return embeddings.reshape(1, len(self.order), -1)
        if start + t > len(embeddings):
            raise UserError(
                f"a paper-mode prior ends after {len(embeddings)} latent frames; use mode = stream for longer videos"
            )
        return embeddings[start : start + t].reshape(t, len(self.order), -1)

    def _clip_mask(self, t: int) -> Mask:
        """The mask of a clip of t frames: "causal" where a kernel needs no stored mask, and for sparse attention on a
        GPU a block mask, whose empty blocks are skipped."""
        c, device = self.config, self.start_token.device
        if not c.local_window and c.decoding_order == "raster" and t <= c.attention_frames:
            return "causal"
        if (t, device) not in self._masks:
            if c.local_window and device.type == "cuda":
                self._masks[t, device] = block_mask(self.order, t, c.attention_frames, c.local_window, device)
            else:
                self._masks[t, device] = clip_mask(self.order, t, c.attention_frames, c.local_window).to(device)
        return self._masks[t, device]
