"""The prior: an exact factorisation, the same from its cache, blind to the future."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.prior_dataset import condition_scale
from worldmodel.models.image_encoder import ImageEncoder
from worldmodel.models.kv_cache import KVCache
from worldmodel.models.prior import Prior, PriorConfig
from worldmodel.models.resnet import ResNet
from worldmodel.utils.errors import UserError

KINDS = [
    ("stream", "diagonal", 1, "frame"),
    ("stream", "raster", 1, "frame"),
    ("stream", "diagonal", 2, "frame"),
    ("stream", "diagonal", 1, "none"),
    ("paper", "raster", 1, "clip"),
    ("paper", "raster", 2, "frame"),
    ("paper", "diagonal", 3, "none"),
    ("stream", "diagonal", 1, "frame", 2),
    ("stream", "raster", 2, "frame", 2),
    ("stream", "block", 1, "frame", 1, {"latent_shape": (6, 4, 4), "n_kv_heads": 1}),
    ("stream", "block", 2, "frame", 1, {"latent_shape": (6, 4, 4)}),
    ("paper", "diagonal", 1, "clip", 1, {"n_heads": 4, "n_kv_heads": 2}),
    ("paper", "raster", 1, "clip", 1, {"local_window": 5}),
    ("paper", "raster", 2, "none", 1, {"local_window": 3}),
    ("stream", "diagonal", 1, "frame", 1, {"local_window": 2, "window": 4}),
    ("stream", "raster", 1, "none", 1, {"local_window": 7, "n_heads": 4, "n_kv_heads": 2}),
]
"""Mode, order, codebooks, condition, and the patch where it is not 1."""


def build(
    mode: str, order: str, books: int, condition: str, patch: int = 1, more: dict | None = None, **changes: object
) -> Prior:
    """A float64 prior with random weights everywhere, the head and the conditional norms included."""
    torch.manual_seed(0)
    settings: dict = {
        "latent_shape": (6, 4 if patch == 2 else 3, 4),
        "n_codebooks": books,
        "n_codes": 11,
        "embedding_dim": 5,
        "mode": mode,
        "decoding_order": order,
        "patch_size": patch,
        "window": 3,
        "conditioning": condition,
        "condition_dim": 0 if condition == "none" else 7,
        "d_model": 32,
        "n_heads": 2,
        "n_layers": 2,
        "d_ff": 64,
    }
    config = PriorConfig(**(settings | (more or {}) | changes))
    prior = Prior(config, torch.randn(books, config.n_codes, 5)).double().eval()
    for name, parameter in prior.named_parameters():
        if "affine" in name or "head" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return prior


def clip(prior: Prior, frames: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor | None]:
    c = prior.config
    codes = torch.randint(c.n_codes, (batch, frames, *c.latent_shape[1:], c.n_codebooks))
    shapes = {"none": None, "frame": (batch, frames, 7), "clip": (batch, 7)}
    shape = shapes[c.conditioning]
    return codes, None if shape is None else torch.randn(shape, dtype=torch.float64)


def at(prior: Prior, condition: torch.Tensor | None, t: int | slice) -> torch.Tensor | None:
    return condition[:, t] if condition is not None and prior.config.conditioning == "frame" else condition


def step_frame(
    prior: Prior,
    cache: KVCache,
    codes: torch.Tensor,
    condition: torch.Tensor | None,
    images: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (b, n, k) of a frame whose codes (b, h, w, g) are then taken as drawn."""
    truth = prior.group_codes(codes[:, None])[:, 0]
    vectors = prior.code_vectors(truth[:, None])[:, 0]
    logits = torch.zeros(*truth.shape, prior.config.n_codes, dtype=torch.float64)
    context = prior.begin_frame(cache, condition, images)
    for positions in prior.order.passes:
        features = prior.forward_pass(cache, positions, context)
        logits[:, positions] = prior.head(features, vectors[:, positions]).detach().double()
        cache.codes[:, positions] = truth[:, positions]
    prior.finish_frame(cache)
    return prior.ungroup_codes(logits[:, None])[:, 0].flatten(1, 3)


@pytest.mark.parametrize("given", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k)))
def test_cached_logits_equal_full_ones_before_and_after_the_ring_wraps(kind: tuple, given: int) -> None:
    prior = build(*kind)
    frames = 6 if prior.config.mode == "paper" else 11  # the ring of a stream holds 2
    codes, condition = clip(prior, frames)
    full = prior(codes, condition).detach().flatten(2, 4)
    cache = prior.prefill(codes[:, :given], at(prior, condition, slice(given))) if given else prior.empty_cache(2)
    for t in range(given, frames):
        logits = step_frame(prior, cache, codes[:, t], at(prior, condition, t))
        torch.testing.assert_close(logits, full[:, t], rtol=1e-10, atol=1e-10)


def test_a_cache_that_starts_late_is_the_same() -> None:
    """Lanes join a batch at its time: only differences of time may matter."""
    prior = build(*KINDS[0])
    codes, condition = clip(prior, 6)
    assert condition is not None
    caches = [prior.prefill(codes[:, :4], condition[:, :4], start) for start in (0, 1000, 123_457)]
    first, *rest = [step_frame(prior, c, codes[:, 4], condition[:, 4]) for c in caches]
    for other in rest:
        torch.testing.assert_close(first, other, rtol=1e-8, atol=1e-8)


def test_lanes_may_have_contexts_of_different_lengths() -> None:
    prior = build(*KINDS[0])
    codes, condition = clip(prior, 8, batch=1)
    assert condition is not None
    long = prior.prefill(codes[:, :6], condition[:, :6])
    short = prior.prefill(codes[:, 5:6], condition[:, 5:6], start=5)
    both = prior.prefill(codes[:, :6].repeat(2, 1, 1, 1, 1), condition[:, :6].repeat(2, 1, 1))
    both.set_lanes(torch.tensor([1]), short)
    for t in (6, 7):
        alone = [step_frame(prior, c, codes[:, t], condition[:, t]) for c in (long, short)]
        together = step_frame(prior, both, codes[:, t].repeat(2, 1, 1, 1), condition[:, t].repeat(2, 1))
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)
        assert not torch.allclose(alone[0], alone[1]), "the context matters"


@pytest.mark.parametrize(("order", "patch"), [("raster", 1), ("diagonal", 1), ("block", 1), ("diagonal", 2)])
def test_probabilities_of_all_frames_sum_to_one(order: str, patch: int) -> None:
    """An independent check of the factorisation: add up every possible 2x2 frame of 3 codes."""
    prior = build("stream", order, 1, "none", patch, latent_shape=(2, 2, 2), n_codes=3)
    first = torch.tensor([0, 2, 1, 1]).view(1, 1, 2, 2, 1)
    every = torch.tensor(list(product(range(3), repeat=4))).view(-1, 1, 2, 2, 1)
    codes = torch.cat([first.expand(len(every), -1, -1, -1, -1), every], dim=1)
    with torch.no_grad():
        likelihood = -4 * prior.loss(codes)  # nats of each frame
    assert likelihood[:, 1].std() > 0.1
    torch.testing.assert_close(likelihood[:, 1].double().exp().sum().item(), 1.0, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] == "stream"], ids=lambda k: "-".join(map(str, k)))
def test_a_stream_has_no_gradient_from_later_codes_or_later_actions(kind: tuple) -> None:
    prior = build(*kind)
    codes, condition = clip(prior, 6, batch=1)
    n = len(prior.order)
    codes = torch.arange(codes.numel()).view(codes.shape)  # each its own entry of the codebook, to tell gradients by
    book = torch.randn(prior.config.n_codebooks, codes.numel(), 5, dtype=torch.float64).requires_grad_()
    prior.codebook = book
    place = prior.group_codes(codes)[0]
    if condition is not None:
        condition.requires_grad_()
    logits = prior.forward_clip(codes, condition)[0]
    sources = [book] if condition is None else [book, condition]
    for t, i, k in product((1, 3), range(n), range(prior.config.codes_per_position)):
        gradients = torch.autograd.grad(logits[:, t, i, k].sum(), sources, retain_graph=True)
        strength = gradients[0].abs().sum((0, 2))[place]  # (t, n, m)
        told = prior.order.pass_index[:, None].repeat(1, prior.config.codes_per_position) < prior.order.pass_index[i]
        told[i, :k] = True  # within a patch, the codes before it
        assert strength[t + 1 :].sum() == 0
        assert strength[t, ~told].sum() == 0, "neither its own pass nor a later one"
        if not prior.config.local_window:
            assert (strength[t, told] > 0).all(), "but every earlier one"
            assert (strength[t - 1] > 0).all()
        if condition is not None:
            assert gradients[1][:, t + 1 :].abs().sum() == 0
            assert gradients[1][:, t].abs().max() > 0


def test_clip_conditioning_tells_every_code_the_future_actions() -> None:
    prior = build("paper", "raster", 1, "clip")
    codes, condition = clip(prior, 6)
    assert condition is not None
    other = prior(codes, condition + torch.eye(7)[-1])
    assert (other - prior(codes, condition)).abs()[:, 0].max() > 1e-3


def test_numbers_of_a_condition_are_divided_by_their_scale() -> None:
    """Whole and cached, against a prior that is given the quotients."""
    plain = build("stream", "raster", 1, "frame")
    scaled = Prior(replace(plain.config, condition_scale=(0.25,) * 7)).double().eval()
    scaled.load_state_dict(plain.state_dict())
    codes, condition = clip(plain, 2)
    assert condition is not None
    torch.testing.assert_close(scaled(codes, condition), plain(codes, 4 * condition))
    assert not torch.allclose(scaled(codes, condition), plain(codes, condition))
    cached = step_frame(scaled, scaled.empty_cache(2), codes[:, 0], condition[:, 0])
    torch.testing.assert_close(cached, step_frame(plain, plain.empty_cache(2), codes[:, 0], 4 * condition[:, 0]))
    with pytest.raises(UserError, match="needs as many scales, not 1"):
        replace(plain.config, condition_scale=(1.0,))


def test_the_scale_is_how_far_numbers_spread_and_one_hot_ones_have_none() -> None:
    box = EnvSpec(name="x", frame_shape=(8, 8, 3), action=ActionSpec(kind="Box", low=(-1.0, 0.0), high=(1.0, 4.0)))
    conditions = np.array([[[0.1, 2.0, 1.0]], [[-0.1, 2.0, 0.0]]], np.float32)
    assert condition_scale(box, conditions, n_classes=1) == pytest.approx((0.1, 1, 1)), (
        "what is always the same is not divided"
    )
    keys = EnvSpec(name="x", frame_shape=(8, 8, 3), action=ActionSpec(kind="Discrete", nvec=(3,)))
    assert condition_scale(keys, conditions) == ()


def test_the_window_is_what_a_layer_reaches() -> None:
    """One layer with a window of 3 sees two frames back, and no further."""
    prior = build(*KINDS[0], n_layers=1)
    codes, condition = clip(prior, 6, batch=1)
    before = prior(codes, condition)
    for t in range(5):
        changed = codes.clone()
        changed[:, t] = (changed[:, t] + 1) % 11
        moved = (prior(changed, condition) - before).abs().amax((0, 2, 3, 4, 5)) > 0
        reach = min(6, t + 4)  # the first position of frame t + 1 carries the last code of frame t
        assert moved.tolist() == [False] * t + [True] * (reach - t) + [False] * (6 - reach)


def test_parameters_of_the_papers_prior_by_hand() -> None:
    with torch.device("meta"):
        prior = Prior(PriorConfig(latent_shape=(8, 32, 32), conditioning="clip", condition_dim=60))
    d, ff, layers, codes, dim = 512, 2048, 16, 1024, 256
    norm = 2 * d * 60 + 2 * d
    block = 2 * norm + 3 * d * d + (d * d + d) + (d * ff + ff) + (ff * d + d)
    axes = 8 * 171 + 32 * 171 + 32 * 170
    expected = layers * block + norm + dim * d + d + axes + d * codes + codes
    assert sum(p.numel() for p in prior.parameters()) == expected


def test_positions_of_patches_are_blocks_of_codes_and_back() -> None:
    prior = build(*KINDS[7])
    codes = torch.arange(16).view(1, 1, 4, 4, 1)
    assert prior.group_codes(codes)[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert torch.equal(prior.ungroup_codes(prior.group_codes(codes)), codes)
    with pytest.raises(UserError, match="3 x 4 codes cannot be divided into patches of 2 x 2"):
        PriorConfig(latent_shape=(1, 3, 4), patch_size=2)


def test_noise_replaces_what_is_given_and_never_what_is_predicted() -> None:
    prior = build(*KINDS[7], code_noise=0.5, dropout=0.0)
    codes, condition = clip(prior, 6, batch=64)
    torch.manual_seed(1)
    given = prior.add_code_noise(codes)
    changed = (given != codes).double().flatten(1).mean(1)
    assert 0.15 < changed.mean() < 0.3, "a quarter of the codes on average, of which 1 in 11 stays by chance"
    assert changed.max() < 0.65
    assert changed.min() < 0.05
    torch.manual_seed(1)
    noisy = prior.train().loss(codes, condition)
    log = prior.eval()(given, condition).log_softmax(-1)
    expected = -log.gather(-1, codes[..., None]).mean((2, 3, 4, 5))
    torch.testing.assert_close(noisy, expected.float())
    assert not torch.allclose(prior.loss(codes, condition), noisy), "evaluation is without noise"


def test_untrained_it_knows_nothing() -> None:
    torch.manual_seed(0)
    prior = Prior(
        PriorConfig(latent_shape=(2, 2, 2), n_codes=16, embedding_dim=4, d_model=16, n_heads=2, n_layers=1, d_ff=16)
    )
    loss = prior.loss(torch.randint(16, (3, 2, 2, 2, 1)))
    torch.testing.assert_close(loss, torch.full((3, 2), 16.0).log())


def test_mistakes_are_told_in_a_sentence() -> None:
    prior = build(*KINDS[0])
    codes, condition = clip(prior, 4)
    assert condition is not None
    with pytest.raises(UserError, match=r"takes codes of \(batch, time, 3, 4, 1\)"):
        prior(codes[..., :2, :], condition)
    with pytest.raises(UserError, match=r"takes conditions of shape \(2, 4, 7\), one for each frame, not None"):
        prior(codes)
    with pytest.raises(UserError, match="codebook"):
        Prior(prior.config, torch.zeros(1, 3, 5))
    with pytest.raises(UserError, match="ends after 6 latent frames"):
        build("paper", "raster", 1, "none")(torch.zeros(1, 7, 3, 4, 1, dtype=torch.long))
    with pytest.raises(UserError, match="d_model = 30"):
        PriorConfig(d_model=30)
    with pytest.raises(UserError, match="conditioned frame by frame"):
        PriorConfig(mode="stream", conditioning="clip", condition_dim=4)


def test_cached_logits_equal_full_ones_beside_conditioning_frames() -> None:
    """Every layer looks at the frames, through features worked out once."""
    prior = build(
        "paper", "raster", 1, "clip", n_cond_frames=2, cond_frame_shape=(8, 8, 3), resnet_depth=18, cond_dim=24
    )
    codes, condition = clip(prior, 6)
    frames = torch.randint(256, (2, 2, 8, 8, 3), dtype=torch.uint8)
    features = prior.encode_cond_frames(frames)
    assert features.shape == (2, 2 * 2 * 2, 24)
    full = prior(codes, condition, features).detach().flatten(2, 4)
    cache = prior.empty_cache(2)
    for t in range(6):
        context = prior.begin_frame(cache, condition, features)
        truth = prior.group_codes(codes[:, t : t + 1])[:, 0]
        for positions in prior.order.passes:
            logits = prior.head(
                prior.forward_pass(cache, positions, context), prior.code_vectors(truth[:, None])[:, 0, positions]
            )
            torch.testing.assert_close(logits.detach()[:, :, 0], full[:, t, positions], rtol=1e-10, atol=1e-10)
            cache.codes[:, positions] = truth[:, positions]
        prior.finish_frame(cache)
    other = prior(codes, condition, prior.encode_cond_frames(255 - frames)).detach().flatten(2, 4)
    assert (other - full).abs().amax((0, 2, 3)).min() > 1e-3, "all latent frames depend on them"
    with pytest.raises(UserError, match="needs the result of `encode_cond_frames` as its features"):
        prior(codes, condition)
    with pytest.raises(UserError, match=r"conditioning frames of shape \(2, 8, 8, 3\), not"):
        prior.encode_cond_frames(frames[:, :1])
    with pytest.raises(UserError, match="use mode = paper"):
        build("stream", "raster", 1, "frame", n_cond_frames=1)


@pytest.mark.parametrize("kind", [("block", 1, 2), ("diagonal", 2, 1), ("raster", 1, 2)], ids=str)
def test_cached_logits_equal_full_ones_beside_images(kind: tuple[str, int, int]) -> None:
    """Each latent frame depends on the image before it and on earlier ones, and on no later one."""
    order, books, patch = kind
    images = torch.randint(256, (2, 6, 16, 16, 3), dtype=torch.uint8)
    prior = build("stream", order, books, "frame", patch, image_input=True, cond_frame_shape=(16, 16, 3), d_model=32)
    codes, condition = clip(prior, 6)
    assert condition is not None
    features = prior.encode_images(images)
    assert features.shape == (2, 6, len(prior.order), 32)
    full = prior(codes, condition, features).detach().flatten(2, 4)
    for given in (0, 2):
        past = features[:, :given]
        cache = prior.prefill(codes[:, :given], condition[:, :given], 0, past) if given else prior.empty_cache(2)
        for t in range(given, 6):
            logits = step_frame(prior, cache, codes[:, t], condition[:, t], features[:, t : t + 1])
            torch.testing.assert_close(logits, full[:, t], rtol=1e-10, atol=1e-10)
    changed = images.clone()
    changed[:, 3] = 255 - changed[:, 3]
    apart = (prior(codes, condition, prior.encode_images(changed)).detach().flatten(2, 4) - full).abs().amax((0, 2, 3))
    assert not apart[:3].any() and apart[3] > 1e-3
    with pytest.raises(UserError, match="needs the result of `encode_images` as its features"):
        prior(codes, condition)
    with pytest.raises(UserError, match=r"images of shape \(16, 16, 3\), not \(16, 15, 3\)"):
        prior.encode_images(images[:, :, :, 1:])
    with pytest.raises(UserError, match="image_input needs mode = stream"):
        build("paper", "raster", 1, "clip", image_input=True)


def test_images_get_noise_in_training_only() -> None:
    """Up to a standard deviation that is drawn for each clip."""
    encoder = ImageEncoder(3, (16, 16), (4, 4), 8, noise=0.2)
    seen: list[torch.Tensor] = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.full((64, 5, 16, 16, 3), 128, dtype=torch.uint8)
    encoder.eval()(images)
    encoder.train()(images)
    torch.testing.assert_close(seen[0], torch.full_like(seen[0], 128 / 255 - 0.5))
    stds = seen[1].unflatten(0, (64, 5)).std((1, 2, 3, 4))
    assert 0.0 <= stds.min() < 0.03 and 0.17 < stds.max() < 0.21
    with pytest.raises(UserError, match="image_noise needs the images of image_input"):
        build("stream", "raster", 1, "frame", image_noise=0.1)


def test_the_resnet_strides_space_by_four_and_its_depth_is_its_name() -> None:
    """18 and 34 layers: the stem, two convolutions a block, and the projection that would classify."""
    for depth in (18, 34):
        resnet = ResNet(depth, 1, (64, 64, 3), 512).to("meta")
        assert 1 + 2 * len(resnet.blocks) + 1 == depth
        assert resnet(torch.empty(1, 1, 64, 64, 3, device="meta")).shape == (1, 16 * 16, 512)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[4]], ids=["stream", "paper"])
def test_a_pass_reads_the_keys_that_are_there_and_no_others(kind: tuple) -> None:
    """Later ones are not masked but absent: what is read grows by a pass at a time until it is the ring."""
    prior = build(*kind)
    codes, condition = clip(prior, 6, batch=1)
    cache, n = prior.empty_cache(1), len(prior.order)
    for pair in cache.kv:
        pair.fill_(float("nan"))
    ring, pair = cache.kv[0].shape[3], torch.zeros(1, 2, 2, 1, 16, dtype=torch.float64)
    for t in range(6):
        assert cache.clone().write(0, pair).shape[3] == min(t * n, ring - n) + 1
        logits = step_frame(prior, cache, codes[:, t], at(prior, condition, t))
        assert logits.isfinite().all(), "nothing that was never written is multiplied, not even by 0"


def test_a_bfloat16_model_remembers_single_codes_in_float32() -> None:
    for kind, dtype in ((KINDS[4], torch.float32), (KINDS[0], torch.bfloat16)):
        prior = build(*kind).float()
        codes, condition = clip(prior, 2)
        assert condition is not None
        full = prior(codes, condition.float()).detach().flatten(2, 4)[:, 1]
        prior, condition = prior.bfloat16(), condition.bfloat16()
        cache = prior.prefill(codes[:, :1], at(prior, condition, slice(1)))
        assert cache.kv[0].dtype == dtype
        logits = step_frame(prior, cache, codes[:, 1], at(prior, condition, 1))
        assert (logits - full).abs().mean() < 0.03 * full.abs().mean()
