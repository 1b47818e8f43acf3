"""The codebook against hand calculation."""

from __future__ import annotations

import torch

from worldmodel.models.quantizer import Quantizer, codebook_usage


def test_first_training_batch_initialises_with_its_own_features() -> None:
    torch.manual_seed(0)
    book, features = Quantizer(n_codes=4, embedding_dim=2), torch.randn(64, 2)
    with torch.no_grad():
        book._initialize(features[None])
    rows = {tuple(row) for row in features.tolist()}
    assert bool(book.initialized)
    assert all(tuple(code) in rows for code in book.embedding[0].tolist())
    assert len({tuple(code) for code in book.embedding[0].tolist()}) == 4, "drawn without replacement"


def test_too_few_features_are_repeated_with_little_noise() -> None:
    torch.manual_seed(0)
    book, features = Quantizer(n_codes=10, embedding_dim=2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    book.train()(features)
    nearest = torch.cdist(book.embedding[0], features).min(1).values
    assert 0 < nearest.max() < 0.1
    assert len(torch.unique(book.embedding[0], dim=0)) == 10


def test_codes_follow_the_exponential_averages() -> None:
    book = Quantizer(n_codes=2, embedding_dim=1, decay=0.9)
    book.embedding.copy_(torch.tensor([[[0.0], [10.0]]]))
    book.ema_sum.copy_(torch.tensor([[[0.0], [100.0]]]))
    book.ema_count.copy_(torch.tensor([[10.0, 10.0]]))
    book.initialized.fill_(True)
    features = torch.tensor([[1.0], [2.0], [3.0], [11.0]])
    out = book.train()(features)
    # The codes were chosen before they moved: three features for 0, one for 10.
    assert out.codes[:, 0].tolist() == [0, 0, 0, 1]
    # counts 0.9*10 + 0.1*3 = 9.3 and 0.9*10 + 0.1*1 = 9.1; sums 0.1*6 = 0.6 and 0.9*100 + 0.1*11 = 91.1
    torch.testing.assert_close(book.ema_count, torch.tensor([[9.3, 9.1]]))
    torch.testing.assert_close(book.embedding[0, :, 0], torch.tensor([0.6 / 9.3, 91.1 / 9.1]))
    # Commitment and output use the codes after the move, as the features will meet them.
    expected = torch.tensor([0.6 / 9.3] * 3 + [91.1 / 9.1])[:, None]
    torch.testing.assert_close(out.quantized, expected)
    torch.testing.assert_close(out.commitment_loss, (features - expected).square().mean())


def test_unused_codes_restart_at_a_feature_of_the_batch() -> None:
    torch.manual_seed(0)
    book = Quantizer(n_codes=2, embedding_dim=1)
    book.embedding.copy_(torch.tensor([[[0.0], [99.0]]]))
    book.ema_count.copy_(torch.tensor([[50.0, 0.5]]))
    book.initialized.fill_(True)
    book.train()(torch.tensor([[0.25]]).repeat(8, 1))
    assert book.embedding[0, 1].item() == 0.25


def test_gradient_passes_straight_through_and_evaluation_changes_nothing() -> None:
    book = Quantizer(n_codes=8, embedding_dim=3)
    before = {k: v.clone() for k, v in book.state_dict().items()}
    features = torch.randn(5, 3, requires_grad=True)
    out = book.eval()(features)
    (out.quantized * torch.arange(3.0)).sum().backward()
    assert torch.equal(features.grad, torch.arange(3.0).expand(5, 3))  # type: ignore[arg-type]
    assert all(torch.equal(before[k], v) for k, v in book.state_dict().items())


def test_several_books_quantise_their_own_slices() -> None:
    torch.manual_seed(0)
    both, features = Quantizer(n_codes=6, embedding_dim=2, n_codebooks=3).eval(), torch.randn(7, 6)
    codes = both(features).codes
    for g in range(3):
        alone = torch.cdist(features[:, 2 * g : 2 * g + 2], both.embedding[g]).argmin(1)
        assert torch.equal(codes[:, g], alone)
    assert torch.equal(both.embed(codes)[:, 2:4], both.embedding[1][codes[:, 1]])


def test_bits_of_codes_by_how_often_training_used_them() -> None:
    """A code that was not used has a thousandth of a fair share."""
    books = Quantizer(4, 2, n_codebooks=2)
    books.ema_count.copy_(torch.tensor([[4.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    bits = books.bits_by_frequency(torch.tensor([[[0, 0], [2, 1], [3, 2]]]))
    assert bits.shape == (1, 3, 2)
    expected = torch.tensor([[[1.0, 2.0], [2.0, 2.0], [12.0, 2.0]]])
    torch.testing.assert_close(bits, expected, atol=0.04, rtol=0)


def test_usage_by_hand() -> None:
    figures = codebook_usage(torch.tensor([[0], [0], [1], [1]]), 4)
    assert figures["codes_used"] == 0.5
    torch.testing.assert_close(figures["perplexity"], torch.tensor(2.0))


def test_codes_are_chosen_in_full_precision_under_autocast() -> None:
    """A stage that trains in bfloat16 must choose the codes that encoding will choose."""
    torch.manual_seed(0)
    book, features = Quantizer(n_codes=512, embedding_dim=64).eval(), torch.randn(256, 64)
    with torch.autocast("cpu", torch.bfloat16):
        codes = book(features).codes
    assert torch.equal(codes[:, 0], torch.cdist(features, book.embedding[0]).argmin(1))


def test_hysteresis_keeps_a_code_until_another_is_nearer_by_its_share_of_the_spread() -> None:
    book = Quantizer(n_codes=3, embedding_dim=1, n_codebooks=2)
    book.embedding.copy_(torch.tensor([[[0.0], [1.0], [9.0]], [[0.0], [2.0], [9.0]]]))
    book.ema_count.copy_(torch.tensor([[6.0, 6.0, 0.0], [3.0, 1.0, 0.0]]))
    torch.testing.assert_close(
        book.code_variance(), torch.tensor([0.25, 0.75])
    )  # 2 * 1/2 * 0.5^2; 3/4 * 0.5^2 + 1/4 * 1.5^2
    # 0.4 of it is 0.1 and 0.3: code 1 is left when x^2 + 0.1 < (1 - x)^2, that is below 0.45, and taken above 0.55;
    # in the second book the code at 2 is taken when (2 - x)^2 + 0.3 < x^2, that is above 1.075
    first, second = [0.4, 0.54, 0.56, 0.46, 0.44], [0.0, 1.05, 1.08, 0.99, 0.9]
    features = torch.tensor([first, second]).T[None]  # one place, five frames, two books
    assert book.quantize_with_hysteresis(features, 0.0)[0].T.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0]]
    assert book.quantize_with_hysteresis(features, 0.4)[0].T.tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0]]
    assert book.quantize_with_hysteresis(features[:, 1:2], 0.4, torch.tensor([[1, 1]]))[0].tolist() == [[1, 1]]


def test_without_hysteresis_codes_are_the_nearest() -> None:
    torch.manual_seed(0)
    book, features = Quantizer(n_codes=8, embedding_dim=4, n_codebooks=2), torch.randn(3, 5, 2, 2, 8)
    book.ema_count.fill_(1)
    assert torch.equal(book.quantize_with_hysteresis(features, 0.0), book.eval()(features).codes)
