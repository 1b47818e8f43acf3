"""The rows of the paper's ablations (Tables 3 to 7) for a base model of any size, and whether two columns agree.

    3  attention in the VQ-VAE or not, at matched parameters
    4  layers of the prior
    5  latent sizes
    6  codes of a codebook
    7  codebooks, at a constant number of codes a clip

A row is the base with one thing changed, so rows of several tables are the same models: the paper's main model is one
row of each of its tables. Two things are left open by the paper, and decided here:

* Matched parameters. "We increase the number of convolutional residual blocks" (section 4.7): to which number it does
  not say. Here to that whose count of parameters is nearest, the same for encoder and decoder.
* Latent sizes of a small base. The paper's are of clips of 16 x 64 x 64 at a base of stride (2, 2, 2). With another
  base stride every row's stride is multiplied alike: at (2, 8, 8) the row 8 x 32 x 32 has latents of 8 x 8 x 8, and
  rows that have as many latents in the paper still do.
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
from worldmodel.models.vqvae import VQVAE, VQVAEConfig, VQVAESettings, layer_strides
from worldmodel.utils.errors import UserError

Table = Literal[3, 4, 5, 6, 7]
TABLES: tuple[Table, ...] = get_args(Table)
CLIP_SHAPE, BASE_STRIDE = (16, 64, 64), (2, 2, 2)
"""Of the paper's clips and of its main model."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    setting: str
    """As in `published.FIGURES`."""
    vqvae: VQVAESettings
    prior: PriorSettings | None
    """None where the table needs none."""

    @property
    def folder_name(self) -> str:
        """The setting as the name of a folder."""
        return self.setting.replace(" x ", "x").replace(" ", "_")


def published_table(table: Table) -> dict[str, dict[Metric, Figure]]:
    """The paper's table: settings in its order, and the figures of each."""
    columns: dict[str, dict[Metric, Figure]] = {}
    for figure in FIGURES:
        if figure.table == table:
            columns.setdefault(figure.setting, {})[figure.metric] = figure
    return columns


def table_rows(table: Table, vqvae: VQVAESettings, prior: PriorSettings) -> list[Row]:
    """The rows of a table, in the paper's order, for a base VQ-VAE and prior."""
    made = []
    for setting in published_table(table):
        first = setting.split()[0]
        if table == 3:
            attention = first == "with"
            if not vqvae.attention:
                raise UserError("the base of Table 3 has axial attention, which its other row lacks; set it to true")
            made.append(Row(setting, vqvae if attention else without_attention(vqvae), None))
        elif table == 4:
            made.append(Row(setting, vqvae, replace(prior, n_layers=int(first))))
        elif table == 6:
            made.append(Row(setting, replace(vqvae, n_codes=int(first)), prior))
        else:
            t, h, w, *books = map(int, setting.split(" x "))
            made.append(
                Row(setting, replace(with_latent_shape(vqvae, (t, h, w)), n_codebooks=books[0] if books else 1), prior)
            )
    return made


def count_parameters(config: VQVAESettings) -> int:
    """How many parameters a VQ-VAE has; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in VQVAE(VQVAEConfig(**vars(config))).parameters())


def without_attention(config: VQVAESettings) -> VQVAESettings:
    """No attention, and so many residual blocks that the number of parameters is nearest to what it was."""
    plain = replace(config, attention=False)
    fewest, one_more = count_parameters(plain), count_parameters(replace(plain, n_res_blocks=config.n_res_blocks + 1))
    more = round((count_parameters(config) - fewest) / (one_more - fewest))
    return replace(plain, n_res_blocks=config.n_res_blocks + more)


def with_latent_shape(config: VQVAESettings, latent_shape: tuple[int, int, int]) -> VQVAESettings:
    """With the stride that gives the paper's latent size, times what the base's stride is of the paper's.

    `downsample_channels` are cut, or go on with `hidden_channels`, so that as many channels are at each resolution as
    in the base.
    """
    stride = []
    for n, size, base, own in zip(CLIP_SHAPE, latent_shape, BASE_STRIDE, config.stride, strict=True):
        step = n // size * own
        if step % base:
            raise UserError(f"a base stride of {config.stride} has no row of {latent_shape}; choose even strides")
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
    """Do two columns order the rows alike? Numbers of pairs of rows."""

    same: int
    opposite: int
    undecided: int
    """In one column or both they are no further apart than their spreads together."""

    def __str__(self) -> str:
        text = f"{self.same} of {self.same + self.opposite} pairs of rows in the paper's order"
        return text + (f", {self.undecided} within the spreads" if self.undecided else "")


def order_agreement(published: Sequence[Figure], ours: Sequence[Trials]) -> OrderAgreement:
    """Of the same rows in both columns. A spread that is not known counts as none."""
    signs = []
    for i, j in combinations(range(len(published)), 2):
        theirs = _sign(published[i].value, published[j].value, (published[i].std or 0) + (published[j].std or 0))
        signs.append(theirs * _sign(ours[i].mean, ours[j].mean, (ours[i].std or 0) + (ours[j].std or 0)))
    return OrderAgreement(signs.count(1), signs.count(-1), signs.count(0))


def _sign(a: float, b: float, spread: float) -> int:
    return 0 if abs(a - b) <= spread else 1 if a > b else -1
