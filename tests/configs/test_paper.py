"""The paper's own settings (Tables 8 and 9): sizes and numbers of parameters, worked out by hand; one shrunken step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from configs import overlay, read_preset
from train import prior as train_prior
from train import vqvae as train_vqvae
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig
from worldmodel.training.prior_stage import configure

LATENT = {
    "moving_mnist": (4, 16, 16),
    "bair": (8, 32, 32),
    "robonet": (8, 32, 32),
    "paper_health_gathering_supreme": (8, 32, 32),
    "paper_battle2": (8, 32, 32),
    "ucf101": (4, 32, 32),
    "ucf101_128": (4, 32, 32),
    "tgif": (4, 32, 32),
}
ACTIONS = {"bair": 4, "robonet": 4, "paper_health_gathering_supreme": 4, "paper_battle2": 21}
"""Numbers of an encoded action."""
CONDITION = {"bair": 64, "robonet": 64, "paper_health_gathering_supreme": 60, "paper_battle2": 315}
"""Table 9's conditional sizes."""
TABLE_8 = {  # hidden, residual, layers, attention, codes, dim, steps
    "moving_mnist": (240, 128, 2, False, 512, 64, 20_000),
    **dict.fromkeys([name for name in LATENT if name != "moving_mnist"], (240, 128, 4, True, 1024, 256, 100_000)),
}
ROBOT, DOOM = (4, 16, 512, 2048, 34, 0.2, 150_000), (4, 16, 512, 2048, 0, 0.2, 150_000)
TABLE_9 = {  # heads, layers, width, feed-forward, depth of the ResNet, dropout, steps
    "moving_mnist": (4, 8, 192, 384, 18, 0.1, 80_000),
    "bair": ROBOT,
    "robonet": ROBOT,
    "paper_health_gathering_supreme": DOOM,
    "paper_battle2": DOOM,
    "ucf101": (8, 20, 1024, 4096, 0, 0.2, 200_000),
    "ucf101_128": (8, 20, 1024, 4096, 0, 0.2, 200_000),
    "tgif": (8, 20, 1024, 4096, 0, 0.2, 600_000),
}


def settings(name: str) -> tuple[train_vqvae.Args, train_prior.Args]:
    preset = read_preset(name)
    return overlay(train_vqvae.Args(), preset["vqvae"], name), overlay(train_prior.Args(), preset["prior"], name)


def build(name: str) -> tuple[VQVAE, Prior]:
    """Both models without their weights."""
    v, p = settings(name)
    with torch.device("meta"):
        vqvae = VQVAE(VQVAEConfig(**vars(v.model)))
        return vqvae, Prior(configure(p, vqvae, ACTIONS.get(name, 0)))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", LATENT)
def test_settings_are_those_of_tables_8_and_9(name: str) -> None:
    v, p = settings(name)
    m, fit = v.model, v.trainer
    assert (
        m.hidden_channels,
        m.residual_channels,
        m.n_res_blocks,
        m.attention,
        m.n_codes,
        m.embedding_dim,
        fit.steps,
    ) == TABLE_8[name]
    assert (m.kernel_size, m.commitment_weight, fit.batch_size, fit.learning_rate, fit.lr_schedule) == (
        3,
        0.25,
        32,
        7e-4,
        "constant",
    )
    g = p.model
    assert (
        g.n_heads,
        g.n_layers,
        g.d_model,
        g.d_ff,
        g.resnet_depth * bool(g.n_cond_frames),
        g.dropout,
        p.trainer.steps,
    ) == TABLE_9[name]
    assert (p.trainer.batch_size, p.trainer.learning_rate, g.decoding_order, g.patch_size, g.code_noise) == (
        32,
        3e-4,
        "raster",
        1,
        0,
    )
    assert (m.norm, p.trainer.lr_schedule, g.local_window, g.cond_dim) == ("layer", "cosine", 128, 512)


@pytest.mark.parametrize("name", LATENT)
def test_latents_and_conditions_have_the_papers_sizes(name: str) -> None:
    vqvae, prior = build(name)
    assert vqvae.config.latent_shape == prior.config.latent_shape == LATENT[name]
    assert vqvae.config.n_frames == 16
    assert vqvae.config.frame_size == ((128, 128) if name == "ucf101_128" else (64, 64))
    assert prior.config.condition_dim == CONDITION.get(name, 0)
    assert prior.config.n_cond_frames == (1 if name in ("moving_mnist", "bair", "robonet") else 0)
    assert (prior.config.n_codes, prior.config.embedding_dim) == (vqvae.config.n_codes, vqvae.config.embedding_dim)


def vqvae_by_hand(c: VQVAEConfig, down: list[tuple[int, int, int]]) -> int:
    """`down` are the encoder's strided filters; its decoder is counted apart."""
    h, r, d = c.hidden_channels, c.residual_channels, c.embedding_dim
    total, inputs = 0, 3
    for t, y, x in down:
        total += inputs * h * t * y * x + h
        inputs = h
    total += h * h * 27 + h  # the convolution at the latent size
    block = 2 * h + (h * r * 27 + r) + 2 * r + (r * h + h)  # norm, 3x3x3, norm, 1x1x1
    if c.attention:
        block += 2 * h + 3 * (3 * h * h + h * h + h)  # norm, and for each axis q, k, v and the output
    if c.attention:
        total += sum(n * h // 3 for n in c.latent_shape)  # positions
    total += 2 * (c.n_res_blocks * block + 2 * h)  # two stacks, each with a last norm
    return total + (h * d + d) + (d * h + h)


@pytest.mark.parametrize("name", LATENT)
def test_parameters_of_the_vqvae_by_hand(name: str) -> None:
    """Strides (2, 2, 2) are one filter of 3, (4, 4, 4) two, (4, 2, 2) one of everything and one of time alone.

    Transposed filters are 4 wide; they are done as one convolution of 2 for each of the 8 phases, with its own bias.
    In time alone there are 2 phases, and the filter is 3 wide in space.
    """
    both, time = lambda i, o: i * o * 4**3 + 8 * o, lambda i, o: i * o * 4 * 3 * 3 + 2 * o
    vqvae, _ = build(name)
    filters = {(2, 2, 2): [both], (4, 4, 4): [both, both], (4, 2, 2): [both, time]}[vqvae.config.stride]
    by_hand = vqvae_by_hand(vqvae.config, [(3, 3, 3)] * len(filters)) + filters[0](240, 3)
    assert count(vqvae) == by_hand + sum(up(240, 240) for up in filters[1:])


def prior_by_hand(c: PriorConfig) -> int:
    w, f, k = c.d_model, c.d_ff, c.n_codes
    norm = 2 * w * (c.condition_dim + 1) if c.condition_dim else 2 * w  # gain and bias: a linear layer of the condition
    block = 2 * norm + 3 * w * w + (w * w + w) + (w * f + f) + (f * w + w)
    if c.n_cond_frames:
        block += norm + w * w + c.cond_dim * 2 * w + (w * w + w)  # norm, q, k and v, output
    positions = sum(n * p for n, p in zip(c.latent_shape, (-(-w // 3), -((1 - w) // 3), w // 3), strict=True))
    return c.embedding_dim * w + w + positions + c.n_layers * block + norm + (w * k + k)


def resnet_by_hand(depth: int) -> int:
    """Stem of 64, biased; widths of 64, 128, 256, 512; projected where it changes; norms have two numbers a channel."""
    total = 3 * 64 * 27 + 64 + 2 * 64
    inputs = 64
    for width, blocks in zip((64, 128, 256, 512), {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth], strict=True):
        total += inputs * width * 27 + (2 * blocks - 1) * width * width * 27 + 2 * blocks * 2 * width
        total += (inputs * width + 2 * width) if inputs != width else 0
        inputs = width
    return total + 1 * 171 + 16 * 171 + 16 * 170  # embeddings of one frame, 16 rows and 16 columns: 512 in three parts


@pytest.mark.parametrize("name", LATENT)
def test_parameters_of_the_prior_by_hand(name: str) -> None:
    _, prior = build(name)
    c = prior.config
    assert count(prior) == prior_by_hand(c) + (resnet_by_hand(c.resnet_depth) if c.n_cond_frames else 0)


@pytest.mark.parametrize("name", LATENT)
def test_one_shrunken_step(name: str) -> None:
    """The same settings with narrow layers and small frames: gradients everywhere, and finite."""
    v, p = settings(name)
    size = (32, 32) if name == "ucf101_128" else (16, 16)
    torch.manual_seed(0)
    few = {"hidden_channels": 12, "residual_channels": 8, "n_res_blocks": 1, "n_codes": 16, "embedding_dim": 6}
    vqvae = VQVAE(VQVAEConfig(**vars(v.model) | few | {"frame_size": size}))
    frames = torch.randint(256, (2, 16, *size, 3), dtype=torch.uint8)
    loss = vqvae(frames)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(q.grad is not None and q.grad.isfinite().all() for q in vqvae.parameters())
    small = replace(
        p.model, d_model=16, n_layers=2, d_ff=32, cond_dim=16, local_window=4 if p.model.local_window else 0
    )
    config = configure(replace(p, model=small), vqvae, ACTIONS.get(name, 0))
    prior = Prior(config, vqvae.quantizer.embedding)
    condition = torch.randn(2, config.condition_dim) if config.condition_dim else None
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    codes, losses = vqvae.encode(frames), []
    for _ in range(4):
        features = prior.encode_cond_frames(frames[:, :1]) if config.n_cond_frames else None
        loss = prior.loss(codes, condition, features).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(q.grad is not None and q.grad.isfinite().all() for q in prior.parameters())
