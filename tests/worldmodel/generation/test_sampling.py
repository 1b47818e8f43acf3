"""Sampling against the distribution it samples from."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import tiny_prior
from worldmodel.generation.sampling import FrameScore, SamplingConfig, sample_codes
from worldmodel.models.kv_cache import KVCache
from worldmodel.models.prior import Prior
from worldmodel.utils.errors import UserError

LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log().view(1, 1, 4)


def shares(sampling: SamplingConfig, n: int = 10_000) -> list[float]:
    """How often each code is drawn over evenly spread numbers: exact to 1/n."""
    noise = (torch.arange(n, dtype=torch.float64) + 0.5).view(1, n) / n
    codes = sampling.sample(LOGITS.double().expand(1, n, 4), noise)
    return (torch.bincount(codes.flatten(), minlength=4) / n).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingConfig(), [0.1, 0.4, 0.2, 0.3]),
        (SamplingConfig(temperature=0), [0, 1, 0, 0]),
        (SamplingConfig(top_k=1), [0, 1, 0, 0]),
        (SamplingConfig(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (SamplingConfig(top_p=0.3), [0, 1, 0, 0]),
        (SamplingConfig(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
    ],
)
def test_codes_are_drawn_as_often_as_they_should_be(sampling: SamplingConfig, expected: list[float]) -> None:
    assert shares(sampling) == pytest.approx(expected, abs=2e-4)


def test_nonsense_is_refused() -> None:
    nan = float("nan")
    for settings in (
        *({"temperature": -1}, {"temperature": 1e-9}, {"temperature": nan}, {"temperature": "1"}),
        *({"top_k": -1}, {"top_k": 2.5}, {"top_k": True}, {"top_p": 0}, {"top_p": 1.5}, {"top_p": nan}),
    ):
        with pytest.raises(UserError, match=f"^{next(iter(settings))} "):
            SamplingConfig(**settings)  # type: ignore[arg-type]


def small_prior(patch: int) -> Prior:
    torch.manual_seed(0)
    config = tiny_prior(latent_shape=(4, 2, 4), patch_size=patch, n_codes=7)
    prior = Prior(config, torch.randn(1, 7, 4)).double().eval()
    for parameter in prior.head.out.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return prior


@pytest.mark.parametrize("patch", [1, 2])
def test_likelihood_and_entropy_are_the_models_own(patch: int) -> None:
    prior, noise = small_prior(patch), torch.rand(5, 8, dtype=torch.float64)
    score, cache = FrameScore(noise), prior.empty_cache(5)
    frame = sample_codes(prior, cache, prior.begin_frame(cache), noise, SamplingConfig(temperature=0.7, top_k=3), score)
    log = prior(frame).log_softmax(-1).flatten(1, 4)
    expected = log.gather(-1, frame.flatten(1)[..., None]).sum((1, 2))
    torch.testing.assert_close(score.log_likelihood, expected)
    torch.testing.assert_close(score.entropy, -(log.exp() * log).sum((1, 2)))


def next_frame(prior: Prior, cache: KVCache, noise: torch.Tensor) -> torch.Tensor:
    codes = sample_codes(prior, cache, prior.begin_frame(cache), noise, SamplingConfig())
    prior.finish_frame(cache)
    return codes


@pytest.mark.parametrize("patch", [1, 2])
def test_a_lane_of_a_batch_is_the_same_lane_alone(patch: int) -> None:
    prior, noise = small_prior(patch), torch.rand(6, 4, 8, dtype=torch.float64)
    together, caches = prior.empty_cache(4), [prior.empty_cache(1) for _ in range(4)]
    for t in range(6):
        codes = next_frame(prior, together, noise[t])
        alone = [next_frame(prior, cache, noise[t, i : i + 1]) for i, cache in enumerate(caches)]
        assert torch.equal(codes, torch.cat(alone))
    assert len(torch.unique(codes.flatten(1), dim=0)) > 1
