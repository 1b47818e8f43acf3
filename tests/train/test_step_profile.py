"""Profiles: operations are grouped by name, and shares are those of the time."""

from __future__ import annotations

import torch

from train.step_profile import REST, group_of, time_shares


def test_operations_are_grouped_by_name() -> None:
    groups = {
        "aten::convolution_backward": "convolutions",
        "aten::mkldnn_convolution": "convolutions",
        "aten::addmm": "matrix products",
        "aten::baddbmm": "matrix products",
        "aten::_scaled_dot_product_flash_attention": "attention",
        "aten::native_layer_norm": "normalization",
        "aten::_fused_adam_": "the optimizer",
        "aten::copy_": "copies and casts",
        "aten::_log_softmax_backward_data": "the loss",
        "aten::_softmax": "attention",
        "aten::scatter_": REST,
        "aten::normal_": REST,
        "aten::silu": REST,
    }
    assert {name: group_of(name) for name in groups} == groups


def test_shares_are_those_of_the_time() -> None:
    x = torch.randn(600, 600)
    shares = time_shares(lambda: x @ x @ x + 1, "cpu")
    assert abs(sum(shares.values()) - 1) < 1e-9 and next(iter(shares)) == "matrix products"
    assert shares[REST] < shares["matrix products"]
