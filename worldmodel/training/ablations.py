"""The rows of the paper's ablations (Tables 3 to 7) for a base model of any size, and the agreement of two columns.

    3  attention in the VQ-VAE or not, at matched parameters
    4  layers of the prior
    5  latent sizes
    6  codes of a codebook
    7  codebooks, at a constant number of codes per clip

A row is the base model with one setting changed, so some rows of different tables are the same model. The paper leaves
two things open, which are decided here:

* Matched parameters. "We increase the number of convolutional residual blocks" (section 4.7), but the paper does not
  say to how many. Here it is the number with the closest parameter count, the same in encoder and decoder.
* Latent sizes of a small base. The paper's are for clips of 16 x 64 x 64 and a base stride of (2, 2, 2). For another
  base stride, the strides of all rows are scaled by the same factors: at (2, 8, 8) the row 8 x 32 x 32 has latents of
  8 x 8 x 8. Rows with equally many latents in the paper still have equally many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

import torch

from worldmodel.metrics.protocol import Trials
from worldmodel.metrics.published import FIGURES, Figure, Metric
from worldmodel.models.prior_config import PriorSettings
from worldmodel.models.vqvae import VQVAE
from worldmodel.models.vqvae_config import VQVAEConfig, VQVAESettings, layer_strides
from worldmodel.utils.errors import UserError

Table = Literal[3, 4, 5, 6, 7]
TABLES: tuple[Table, ...] = get_args(Table)
CLIP_SHAPE, BASE_STRIDE = (16, 64, 64), (2, 2, 2)
"""Shape of the paper's clips, and stride of its main model."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    setting: str
    """Name of the row, as in `published.FIGURES`."""
    vqvae: VQVAESettings
    """Settings of its VQ-VAE."""
    prior: PriorSettings | None
    """Settings of its prior; None for tables without priors."""

    @property
    def folder_name(self) -> str:
        """The setting as the name of a folder."""
        return self.setting.replace(" x ", "x").replace(" ", "_")


def published_table(table: Table) -> dict[str, dict[Metric, Figure]]:
    """The paper's table: its rows in order, and the metrics of each."""
    columns: dict[str, dict[Metric, Figure]] = {}
    for figure in FIGURES:
        if figure.table == table:
            columns.setdefault(figure.setting, {})[figure.metric] = figure
    return columns


def table_rows(table: Table, vqvae: VQVAESettings, prior: PriorSettings) -> list[Row]:
    """The rows of a table, in the paper's order.

    Args:
        table: Number of the table.
        vqvae: Settings of the base VQ-VAE.
        prior: Settings of the base prior.

    Raises:
        UserError: If the base has no attention (Table 3), or a stride that a row cannot scale (Tables 5 and 7).
    """
    made = []
    for setting in published_table(table):
        first = setting.split()[0]
        if table == 3:
            attention = first == "with"
            if not vqvae.attention:
                raise UserError("the base model of Table 3 needs axial attention; set attention to true")
            made.append(Row(setting, vqvae if attention else without_attention(vqvae), None))
        elif table == 4:
            made.append(Row(setting, vqvae, replace(prior, n_layers=int(first))))
        elif table == 6:
            made.append(Row(setting, replace(vqvae, n_codes=int(first)), prior))
        else:
            t, h, w, *rest = map(int, setting.split(" x "))
            made.append(
                Row(setting, replace(with_latent_shape(vqvae, (t, h, w)), n_codebooks=rest[0] if rest else 1), prior)
            )
    return made


def count_parameters(config: VQVAESettings) -> int:
    """Number of parameters of a VQ-VAE; no memory is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in VQVAE(VQVAEConfig(**vars(config))).parameters())


def without_attention(config: VQVAESettings) -> VQVAESettings:
    """Remove attention, and add residual blocks until the number of parameters is closest to the original (Table 3)."""
    plain = replace(config, attention=False)
    fewest, one_more = count_parameters(plain), count_parameters(replace(plain, n_res_blocks=config.n_res_blocks + 1))
    more = round((count_parameters(config) - fewest) / (one_more - fewest))
    return replace(plain, n_res_blocks=config.n_res_blocks + more)


def with_latent_shape(config: VQVAESettings, latent_shape: tuple[int, int, int]) -> VQVAESettings:
    """Change the stride to that of a row of the paper, scaled by the base's stride over the paper's.

    `downsample_channels` are cut, or extended with `hidden_channels`, so that each resolution has as many channels as
    in the base.

    Args:
        config: Settings of the base.
        latent_shape: The paper's latent size (T, H, W).

    Raises:
        UserError: If the stride would not be an integer.
    """
    stride = []
    for n, size, base, own in zip(CLIP_SHAPE, latent_shape, BASE_STRIDE, config.stride, strict=True):
        step = n // size * own
        if step % base:
            raise UserError(
                f"a base stride of {config.stride} cannot be scaled to the row {latent_shape}; choose even strides"
            )
        stride.append(step // base)
    t, h, w = stride
    depth = len(layer_strides((t, h, w)))
    widths = (
        (*config.downsample_channels, *[config.hidden_channels] * depth)[: depth - 1]
        if config.downsample_channels
        else ()
    )
    return replace(config, stride=(t, h, w), downsample_channels=widths)


@dataclass(frozen=True)
class OrderAgreement:
    """Whether two columns order the rows alike, as numbers of pairs of rows."""

    same: int
    """Pairs in the same order in both columns."""
    opposite: int
    """Pairs in opposite order."""
    undecided: int
    """Pairs that differ by no more than the sum of their standard deviations, in one column or both."""

    def __str__(self) -> str:
        text = f"{self.same} of {self.same + self.opposite} pairs of rows in the paper's order"
        return text + (f", {self.undecided} within their standard deviations" if self.undecided else "")


def order_agreement(published: Sequence[Figure], ours: Sequence[Trials]) -> OrderAgreement:
    """Compare the order of the same rows in two columns; an unknown standard deviation counts as zero."""
    signs = []
    for i, j in combinations(range(len(published)), 2):
        theirs = _sign(published[i].value, published[j].value, (published[i].std or 0) + (published[j].std or 0))
        signs.append(theirs * _sign(ours[i].mean, ours[j].mean, (ours[i].std or 0) + (ours[j].std or 0)))
    return OrderAgreement(signs.count(1), signs.count(-1), signs.count(0))


def _sign(a: float, b: float, spread: float) -> int:
    return 0 if abs(a - b) <= spread else 1 if a > b else -1
