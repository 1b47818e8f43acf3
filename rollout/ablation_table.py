"""The paper's ablation table next to our results: as Markdown, as a plot, and as JSON.

Our metrics only have the paper's names if they use the paper's feature network; the heading names the data. In the plot
the paper's values and ours have separate axes.

Agreement of the two orders is counted in pairs of rows. A pair does not count if its difference is within the standard
deviations, in the paper's column or in ours. Our standard deviation is over trials and training seeds; a deterministic
metric with a single seed has none. Rows with a collapsed VQ-VAE are shown and marked, but not counted. Their samples
and reconstructions are all the same image, so they are close to each other, and this would look like agreement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from worldmodel.metrics.features import I3D_LOGITS
from worldmodel.metrics.protocol import PAPER, Trials
from worldmodel.metrics.published import Metric
from worldmodel.training.ablations import OrderAgreement, Table, order_agreement, published_table
from worldmodel.utils.files import write_atomic, write_json

TITLES: dict[Table, tuple[str, str]] = {
    3: ("attention in the VQ-VAE, at matched parameters", "VQ-VAE"),
    4: ("layers of the prior", "prior"),
    5: ("latent sizes", "latent size"),
    6: ("codes of a codebook", "codebook"),
    7: ("codebooks", "latent size x codebooks"),
}
"""What is ablated, and the heading of the first column."""
COUNTERPART: dict[Metric, str] = {
    "NMSE": "NMSE",
    "R-FVD": "reconstructions_real",
    "FVD": "samples_real",
    "FVD*": "samples_reconstructions",
    "bits/dim": "bits/code",
}
"""The paper's metric -> ours."""
ARROWS = {
    "NMSE": "↓", "PSNR": "↑", "perplexity": "", "reconstructions_real": "↓", "samples_real": "↓",
    "samples_reconstructions": "↓", "bits/code": "↓", "bits/frame": "↓",
}  # fmt: skip
"""Our columns, and whether higher or lower is better."""
Results = dict[str, list[dict[str, Any]]]
"""For each row, in the paper's order, the results of `evaluate` per seed; empty if the row is not done."""


def figure_name(figure: str, network: str) -> str:
    """The heading of one of our columns."""
    if "_" not in figure:
        return figure
    short = next(metric for metric, ours in COUNTERPART.items() if ours == figure)
    return short if network.startswith(I3D_LOGITS) else f"d({figure.replace('_', ', ')})"


def our_figures(results: Results) -> dict[str, dict[str, Trials]]:
    """The metrics of each finished row, over all seeds and trials."""
    table: dict[str, dict[str, Trials]] = {}
    for setting, found in results.items():
        if found:
            figures = [*(f for f in ARROWS if f in found[0]["figures"]), "mean picture"]
            table[setting] = {f: Trials(tuple(v for one in found for v in one["figures"][f])) for f in figures}
    return table


def collapsed(figures: dict[str, Trials]) -> bool:
    """Whether a row's reconstructions are no closer to the clips than their mean frame."""
    return figures["NMSE"].mean >= figures["mean picture"].mean


def order_agreements(table: Table, found: dict[str, dict[str, Trials]]) -> dict[Metric, OrderAgreement]:
    """The agreement for each column of the paper, over the finished rows that have not collapsed."""
    theirs = published_table(table)
    sound = {row: figures for row, figures in found.items() if not collapsed(figures)}
    return {
        metric: order_agreement(
            [theirs[row][metric] for row in sound], [f[COUNTERPART[metric]] for f in sound.values()]
        )
        for metric in next(iter(theirs.values()))
    }


def render(table: Table, results: Results, seeds: int, stem: Path) -> str:
    """Write <stem>.md, .json and .png; at least one row must be done. Returns the Markdown text."""
    found = our_figures(results)
    first = next(one for of_row in results.values() for one in of_row)
    order = order_agreements(table, found)
    text = markdown(table, results, found, order, first)
    write_atomic(stem.with_suffix(".md"), (text + "\n").encode())
    write_json(
        stem.with_suffix(".json"),
        {
            "table": table,
            "seeds": seeds,
            "paper": {"data": "bair", "protocol": PAPER.to_json()},
            "data": first["data"],
            "protocol": first["protocol"],
            "features": first["features"],
            "agreement": {metric: vars(a) for metric, a in order.items()},
            "rows": [
                {
                    "setting": row,
                    "paper": {m: {"value": f.value, "spread": f.std} for m, f in theirs.items()},
                    "collapsed": row in found and collapsed(found[row]),
                    "ours": {f: t.to_json() for f, t in found.get(row, {}).items()},
                    "runs": results[row],
                }
                for row, theirs in published_table(table).items()
            ],
        },
    )
    plot(table, found, first, stem.with_suffix(".png"))
    return text


def markdown(
    table: Table,
    results: Results,
    found: dict[str, dict[str, Trials]],
    order: dict[Metric, OrderAgreement],
    first: dict[str, Any],
) -> str:
    """The table as text."""
    theirs, network, p = published_table(table), first["features"]["network"], first["protocol"]
    metrics, figures = list(next(iter(theirs.values()))), [f for f in ARROWS if f in first["figures"]]
    seeds = sorted({one["seed"] for of_row in results.values() for one in of_row})
    drawn = (
        f", samples given {p['n_cond_frames']} frames and {'the' if p['action_conditioned'] else 'no'} actions, "
        f"{p['n_trials']} trials"
    )
    drawn = drawn if "samples_real" in figures else ""
    head = [TITLES[table][1], *(f"paper: {m} ↓" for m in metrics), "ours: latents", "parameters, M"]
    head += [f"{figure_name(f, network)} {ARROWS[f]}".rstrip() for f in figures]
    lines = [
        f"Table {table}: {TITLES[table][0]}.",
        "",
        f"Paper: BAIR; {PAPER.network}, {PAPER.n_clips} clips of {PAPER.n_frames} frames, {PAPER.n_trials} "
        "trials. Ours:"
        f" {first['data']}; {p['n_clips']} clips of {p['n_frames']} frames{drawn}; models of seed"
        f" {', '.join(map(str, seeds))}."
        + ("" if network.startswith(I3D_LOGITS) else f" d is the Frechet distance of {network}, which is not FVD."),
        "",
        table_line(head),
        table_line(["---"] * len(head)),
    ]
    for row, of_paper in theirs.items():
        cells = [
            row + (" (collapsed)" if row in found and collapsed(found[row]) else ""),
            *(format_published(f.value, f.std) for f in of_paper.values()),
        ]
        if row in found:
            cells += [" x ".join(map(str, results[row][0]["latent"])), format_parameters(results[row][0]["parameters"])]
            cells += [format_trials(found[row][f]) for f in figures]
        lines.append(table_line([*cells, *["not yet"] * (len(head) - len(cells))]))
    lines += ["", "Order of the rows, ours beside the paper's:", ""]
    lines += [f"* {figure_name(COUNTERPART[m], network)} beside {m}: {a}" for m, a in order.items()]
    if len(seeds) == 1:
        lines += [
            "",
            "Models of one seed: the spreads do not include the variation between seeds.",
        ]
    if any(map(collapsed, found.values())):
        lines += ["", "Collapsed: no closer to the clips than their mean frame; left out of the count of pairs."]
    return "\n".join(lines)


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_published(value: float, spread: float | None) -> str:
    return f"{value:g}" + (f" ± {spread:g}" if spread is not None else "")


def format_parameters(parameters: dict[str, int]) -> str:
    """Parameters of the VQ-VAE and, if any, of the prior, in millions."""
    return " + ".join(f"{n / 1e6:.2f}" for n in parameters.values())


def format_trials(trials: Trials) -> str:
    """Mean and standard deviation with three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(abs(trials.mean) or 1)))
    spread = f" ± {trials.std:.{digits}f}" if trials.std is not None else ""
    return f"{trials.mean:.{digits}f}{spread}"


def plot(table: Table, found: dict[str, dict[str, Trials]], first: dict[str, Any], path: Path) -> None:
    """Plot two panels for each of the paper's metrics: the paper's values above, ours below, on separate axes.

    Collapsed rows have hollow markers.
    """
    theirs, network = published_table(table), first["features"]["network"]
    metrics, places = list(next(iter(theirs.values()))), range(len(theirs))
    figure, axes = plt.subplots(
        2, len(metrics), figsize=(1.2 + 3.6 * len(metrics), 5.6), sharex=True, squeeze=False, layout="constrained"
    )
    for (above, below), metric in zip(axes.T, metrics, strict=True):
        column, mine = [f[metric] for f in theirs.values()], COUNTERPART[metric]
        bars = [f.std or 0 for f in column]
        above.errorbar(places, [f.value for f in column], bars, fmt="o", color="0.35", capsize=3)
        above.set_title(f"paper, BAIR: {metric}", fontsize=9)
        for k, row in enumerate(theirs):
            if row in found:
                t, fill = found[row][mine], "none" if collapsed(found[row]) else "C0"
                below.errorbar(k, t.mean, t.std or 0, fmt="s", color="C0", markerfacecolor=fill, capsize=3)
        below.set_title(f"ours, {first['data']}:\n{figure_name(mine, network)}", fontsize=9)
        below.set_xticks(list(places), list(theirs), rotation=45, ha="right", fontsize=8)
    axes[0, 0].set_xlim(-0.5, len(theirs) - 0.5)
    told = "; hollow: collapsed" if any(map(collapsed, found.values())) else ""
    figure.suptitle(f"Table {table}: {TITLES[table][0]} (lower is better{told})", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
