"""Drawing ahead, against drawing code by code and against the distribution itself."""

from __future__ import annotations

import pytest
import torch

from worldmodel.generation import predictive_sampling
from worldmodel.generation.generate import generate
from worldmodel.generation.sampling import SamplingConfig
from worldmodel.models.prior import Prior, PriorConfig


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each pass."""
    made: list[int] = []
    features = predictive_sampling.chunk_features
    monkeypatch.setattr(predictive_sampling, "chunk_features", lambda *given: made.append(1) or features(*given))
    return made


def raster(**settings: object) -> Prior:
    """A small prior of random weights, whose codes do depend on each other, in float64."""
    torch.manual_seed(0)
    config = PriorConfig(
        **{
            "latent_shape": (4, 4, 4),
            "n_codes": 7,
            "embedding_dim": 4,
            "mode": "paper",
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 2,
            "d_ff": 32,
            "dropout": 0,
            "pos_emb_init_std": 1,
        }
        | settings
    )
    prior = Prior(config, torch.randn(config.n_codebooks, 7, 4)).double().eval()
    for parameter in prior.head.out.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


def begun(prior: Prior, lanes: int = 3) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Two frames to go on from, their condition and the features of conditioning frames, where there are any."""
    c, generator = prior.config, torch.Generator().manual_seed(1)
    codes = torch.randint(0, c.n_codes, (lanes, 2, *c.latent_shape[1:], c.n_codebooks), generator=generator)
    condition = torch.randn(lanes, 4, 3, generator=generator).double() if c.conditioning == "frame" else None
    frames = torch.randint(0, 256, (lanes, 1, *c.cond_frame_shape), generator=generator, dtype=torch.uint8)
    return codes, condition, prior.encode_cond_frames(frames) if c.n_cond_frames else None


@torch.no_grad()
def one_by_one(prior: Prior, sampling: SamplingConfig) -> torch.Tensor:
    """Each code by the whole clip's logits, with no cache and nothing ahead: what drawing ahead must come to."""
    codes, condition, features = begun(prior)
    generator = torch.Generator().manual_seed(2)
    for t in (2, 3):
        codes = torch.cat([codes, torch.zeros_like(codes[:, :1])], dim=1)
        noise = predictive_sampling.gumbel_noise(
            (len(codes), prior.config.codes_per_frame, prior.config.n_codes), generator
        )
        for at in range(prior.config.codes_per_frame):
            told = None if condition is None else condition[:, : t + 1]
            logits = prior.forward_clip(codes, told, features)[0][:, t].flatten(1, 2)[:, at]
            grouped = prior.group_codes(codes)
            grouped[:, t].view(len(codes), -1)[:, at] = sampling.gumbel_max(logits, noise[:, at])
            codes = prior.ungroup_codes(grouped)
    return codes


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patch_size": 2},
        {"n_codebooks": 2},
        {"n_codebooks": 2, "patch_size": 2},
        {"local_window": 3},
        {"n_cond_frames": 1, "cond_frame_shape": (16, 16, 3), "resnet_depth": 18, "cond_dim": 16},
        {"mode": "stream", "window": 2, "conditioning": "frame", "condition_dim": 3},
        {"mode": "stream", "window": 3, "n_kv_heads": 1, "local_window": 5},
    ],
    ids=str,
)
def test_runs_of_any_length_come_to_what_code_by_code_does(settings: dict[str, object], passes: list[int]) -> None:
    prior, sampling = raster(**settings), SamplingConfig(temperature=0.8, top_k=5)
    codes, condition, features = begun(prior)
    expected = one_by_one(prior, sampling)
    assert len(expected[:, 2:].unique()) >= 3
    for run in (2, 5, 99):
        passes.clear()
        generator = torch.Generator().manual_seed(2)
        assert torch.equal(generate(prior, codes, 4, generator, condition, features, sampling, run), expected)
        assert 2 < len(passes) <= 2 * len(prior.order)


def test_in_bfloat16_nearly_all_codes_are_the_same() -> None:
    """A single code that comes out another changes those after it, so the first frame tells."""
    prior = raster(latent_shape=(4, 8, 8)).float()
    given = begun(prior, 16)[0]
    exact, rounded = (
        generate(model, given, 3, torch.Generator().manual_seed(2), chunk_size=5)[:, 2]
        for model in (prior, raster(latent_shape=(4, 8, 8)).bfloat16())
    )
    assert (exact == rounded).float().mean() > 0.9


def test_codes_that_follow_from_the_frame_before_cost_few_passes(passes: list[int]) -> None:
    """A head that hardly listens: nearly every guess but those of the first run is right."""
    prior = raster(latent_shape=(4, 8, 8))
    for parameter in prior.head.out.parameters():
        torch.nn.init.normal_(parameter, std=1e-3)
    generate(prior, begun(prior)[0], 4, torch.Generator().manual_seed(2), chunk_size=16)
    assert len(passes) <= 2 * (64 // 16 + 8)


def test_a_race_is_won_as_often_as_is_likely() -> None:
    logits, generator = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().expand(100_000, 4), torch.Generator().manual_seed(0)
    noise = predictive_sampling.gumbel_noise((100_000, 4), generator)
    for sampling, expected in (
        (SamplingConfig(), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(temperature=0), [0, 1, 0, 0]),
        (SamplingConfig(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (SamplingConfig(top_k=2), [0, 4 / 7, 0, 3 / 7]),
    ):
        share = torch.bincount(sampling.gumbel_max(logits, noise), minlength=4) / 100_000
        assert share.tolist() == pytest.approx(expected, abs=0.006)


def test_a_lane_is_the_same_in_any_batch(passes: list[int]) -> None:
    """The numbers of a lane are its own, and it waits for nobody's codes."""
    prior, noise = raster(), predictive_sampling.gumbel_noise((4, 16, 7), torch.Generator().manual_seed(0))
    together = predictive_sampling.predictive_sample(
        prior, prior.empty_cache(4), prior.begin_frame(prior.empty_cache(4)), noise, SamplingConfig(), 5
    )
    for lane, one in zip(together, noise, strict=True):
        alone = predictive_sampling.predictive_sample(
            prior, prior.empty_cache(1), prior.begin_frame(prior.empty_cache(1)), one[None], SamplingConfig(), 5
        )
        assert torch.equal(alone[0], lane)
