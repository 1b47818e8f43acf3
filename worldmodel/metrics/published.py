"""The results of the paper's Tables 1 to 7, as printed, each with its protocol.

`protocol` is None where the paper does not state it: results of other methods are from their own papers, and losses
need no such protocol. A result without protocol is never compared with ours. R-FVD is printed without a standard
deviation, because the paper's code measures it in a single trial of the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldmodel.metrics.protocol import PAPER, TGAN2, Protocol

Metric = Literal["FVD", "R-FVD", "FVD*", "IS", "NMSE", "bits/dim"]
OURS = "VideoGPT"


@dataclass(frozen=True)
class Figure:
    """One result of a table."""

    table: int
    data: Literal["bair", "ucf101"]
    setting: str
    """The method, or the setting that an ablation varies."""
    metric: Metric
    value: float
    std: float | None = None
    protocol: Protocol | None = None
    is_main: bool = False
    """Whether it is a result of the paper's main model."""

    def __str__(self) -> str:
        std = "" if self.std is None else f" ± {self.std:g}"
        return f"{self.value:g}{std} (paper, Table {self.table}, {self.setting})"


def _fvd(table: int, setting: str, metric: Metric, value: float, std: float | None, is_main: bool = False) -> Figure:
    return Figure(table, "bair", setting, metric, value, std, PAPER, is_main)


_TABLE_1 = (("SV2P", 262.5, None), ("LVT", 125.8, None), ("SAVP", 116.4, None), ("DVD-GAN-FP", 109.8, None),
            ("TrIVD-GAN-FP", 103.3, None), ("Video Transformer", 94, 2))  # fmt: skip
_TABLE_2 = (("VGAN", 8.31, 0.09), ("TGAN", 11.85, 0.07), ("MoCoGAN", 12.42, 0.03), ("Progressive VGAN", 14.56, 0.05),
            ("TGAN-F", 22.91, 0.19), ("TGANv2", 28.87, 0.67), ("DVD-GAN", 32.97, 1.7))  # fmt: skip
_TABLE_3 = (("no attention", 0.0041, 15.3, False), ("with attention", 0.0033, 14.9, True))
"""NMSE, R-FVD."""
_TABLE_4 = ((2, 2.84, 120.4, 6.0), (4, 2.52, 110.0, 2.4), (8, 2.39, 103.3, 2.2), (16, 2.05, 103.6, 2.0))
"""Layers, bits/dim, FVD."""
_TABLE_5 = (
    ("4 x 16 x 16", 82.1, (135.4, 3.7), (81.8, 2.3)),
    ("16 x 8 x 8", 108.1, (166.9, 3.1), (81.6, 2.2)),
    ("8 x 16 x 16", 49.9, (124.7, 2.7), (90.2, 2.4)),
    ("1 x 64 x 64", 41.6, (126.7, 3.1), (98.1, 3.6)),
    ("4 x 32 x 32", 28.3, (104.6, 2.7), (90.6, 2.7)),
    ("16 x 16 x 16", 32.8, (113.4, 2.5), (94.9, 1.7)),
    ("2 x 64 x 64", 22.4, (124.3, 1.4), (104.4, 2.5)),
    ("8 x 32 x 32", 14.9, (103.6, 2.0), (94.6, 1.5)),
    ("4 x 64 x 64", 15.7, (109.4, 2.1), (102.3, 2.8)),
    ("16 x 32 x 32", 10.1, (118.4, 3.2), (113.8, 3.3)),
)
"""Latent size, R-FVD, FVD, FVD*."""
_TABLES_6_7 = (
    (6, "256 codes", 18.2, (103.8, 3.7), 1.55),
    (6, "1024 codes", 14.9, (103.6, 2.0), 2.05),
    (6, "4096 codes", 11.3, (103.9, 5.1), 2.60),
    (7, "8 x 32 x 32 x 1", 14.9, (103.6, 2.0), 2.05),
    (7, "16 x 16 x 16 x 2", 17.2, (106.3, 1.7), 2.41),
    (7, "8 x 16 x 16 x 4", 17.7, (131.4, 2.9), 2.68),
    (7, "4 x 16 x 16 x 8", 23.1, (135.7, 3.3), 2.97),
)
"""Table, setting, R-FVD, FVD, bits/dim."""

FIGURES: tuple[Figure, ...] = (
    *(Figure(1, "bair", method, "FVD", value, spread) for method, value, spread in _TABLE_1),
    _fvd(1, OURS, "FVD", 103.3, None, is_main=True),
    *(Figure(2, "ucf101", method, "IS", value, spread) for method, value, spread in _TABLE_2),
    Figure(2, "ucf101", OURS, "IS", 24.69, 0.30, TGAN2, is_main=True),
    *(Figure(3, "bair", setting, "NMSE", nmse, is_main=main) for setting, nmse, _, main in _TABLE_3),
    *(_fvd(3, setting, "R-FVD", value, None, main) for setting, _, value, main in _TABLE_3),
    *(Figure(4, "bair", f"{layers} layers", "bits/dim", bits) for layers, bits, *_ in _TABLE_4),
    *(_fvd(4, f"{layers} layers", "FVD", value, spread) for layers, _, value, spread in _TABLE_4),
    *(_fvd(5, size, "R-FVD", value, None) for size, value, *_ in _TABLE_5),
    *(_fvd(5, size, "FVD", *fvd) for size, _, fvd, _ in _TABLE_5),
    *(_fvd(5, size, "FVD*", *star, is_main=size == "8 x 32 x 32") for size, _, _, star in _TABLE_5),
    *(_fvd(table, setting, "R-FVD", value, None) for table, setting, value, *_ in _TABLES_6_7),
    *(_fvd(table, setting, "FVD", *fvd) for table, setting, _, fvd, _ in _TABLES_6_7),
    *(Figure(table, "bair", setting, "bits/dim", bits) for table, setting, _, _, bits in _TABLES_6_7),
)

NAMES = {"bair": "bair", "bairpushing": "bair", "bairrobotpushing": "bair", "ucf101": "ucf101"}
"""Names of data sets, letters and digits only, and their names here."""


def matching_figure(metric: str, protocol: Protocol, network: str, data: str) -> Figure | None:
    """The published result of the main model that a result of ours may be compared with.

    Args:
        metric: Name of the metric.
        protocol: Protocol of our result.
        network: `Features.network` of our result.
        data: Name of the data set.

    Returns:
        The result for the same metric, data, protocol and feature network; None if there is none.
    """
    known = NAMES.get("".join(c for c in data.lower() if c.isalnum()))
    for figure in FIGURES:
        same = (figure.metric, figure.data, figure.protocol) == (metric, known, protocol)
        if figure.is_main and same and network == protocol.network:
            return figure
    return None
