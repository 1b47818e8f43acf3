"""The paper's table of an ablation with our column beside it: as Markdown, as a plot, and all of it as JSON.

No figure of ours has a name of the paper's unless it was taken by its feature network, and even then it is of the data
that its head says. In the plot both have axes of their own, one above the other.

Whether both columns order the rows alike is counted in pairs of rows. A pair that is closer together than its spreads
are wide, in the paper's column or in ours, counts for nothing. Our spread is the standard deviation over the trials and
seeds of training; what is not sampled has none for a single seed. Rows whose VQ-VAE has collapsed are shown, marked and
left out of the count: samples and reconstructions that are all the same picture are as near to each other as can be,
which would pass for agreement.
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
from worldmodel.utils.checkpoint import write_atomic, write_json

TITLES: dict[Table, tuple[str, str]] = {
    3: ("attention in the VQ-VAE, at matched parameters", "VQ-VAE"),
    4: ("layers of the prior", "prior"),
    5: ("latent sizes", "latent size"),
    6: ("codes of a codebook", "codebook"),
    7: ("codebooks", "latent size x books"),
}
"""What is ablated, and the head of the first column."""
COUNTERPART: dict[Metric, str] = {
    "NMSE": "NMSE",
    "R-FVD": "reconstructions_real",
    "FVD": "samples_real",
    "FVD*": "samples_reconstructions",
    "bits/dim": "bits/code",
}
"""Our figure that tells what the paper's does."""
ARROWS = {
    "NMSE": "↓", "PSNR": "↑", "perplexity": "", "reconstructions_real": "↓", "samples_real": "↓",
    "samples_reconstructions": "↓", "bits/code": "↓", "bits/frame": "↓",
}  # fmt: skip
"""Our columns, and where better is."""
Results = dict[str, list[dict[str, Any]]]
"""Of each row, in the paper's order, what `evaluate` wrote for each seed; nothing where it is not done."""


def figure_name(figure: str, network: str) -> str:
    """What one of our figures is called."""
    if "_" not in figure:
        return figure
    short = next(metric for metric, ours in COUNTERPART.items() if ours == figure)
    return short if network.startswith(I3D_LOGITS) else f"d({figure.replace('_', ', ')})"


def our_figures(results: Results) -> dict[str, dict[str, Trials]]:
    """Of each row that is done its figures, of all seeds and trials."""
    table: dict[str, dict[str, Trials]] = {}
    for setting, found in results.items():
        if found:
            figures = [*(f for f in ARROWS if f in found[0]["figures"]), "mean picture"]
            table[setting] = {f: Trials(tuple(v for one in found for v in one["figures"][f])) for f in figures}
    return table


def collapsed(figures: dict[str, Trials]) -> bool:
    """Are a row's reconstructions no nearer to the clips than the mean picture of these?"""
    return figures["NMSE"].mean >= figures["mean picture"].mean


def order_agreements(table: Table, found: dict[str, dict[str, Trials]]) -> dict[Metric, OrderAgreement]:
    """For each column of the paper's, over the rows that are done and have not collapsed."""
    theirs = published_table(table)
    sound = {row: figures for row, figures in found.items() if not collapsed(figures)}
    return {
        metric: order_agreement(
            [theirs[row][metric] for row in sound], [f[COUNTERPART[metric]] for f in sound.values()]
        )
        for metric in next(iter(theirs.values()))
    }


def render(table: Table, results: Results, seeds: int, stem: Path) -> str:
    """Write <stem>.md, .json and .png of at least one row that is done; returns the text."""
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
        + ("" if network.startswith(I3D_LOGITS) else f" d is the Frechet distance of {network}, which is no FVD."),
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
            "Models of one seed: how far figures vary between seeds is not known, nor part of any spread.",
        ]
    if any(map(collapsed, found.values())):
        lines += ["", "Collapsed: no nearer to the clips than their mean picture; left out of the count of pairs."]
    return "\n".join(lines)


def table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def format_published(value: float, spread: float | None) -> str:
    return f"{value:g}" + (f" ± {spread:g}" if spread is not None else "")


def format_parameters(parameters: dict[str, int]) -> str:
    """Millions of the VQ-VAE and, where there is one, of the prior."""
    return " + ".join(f"{n / 1e6:.2f}" for n in parameters.values())


def format_trials(trials: Trials) -> str:
    """Three digits that mean something."""
    digits = max(0, 2 - math.floor(math.log10(abs(trials.mean) or 1)))
    spread = f" ± {trials.std:.{digits}f}" if trials.std is not None else ""
    return f"{trials.mean:.{digits}f}{spread}"


def plot(table: Table, found: dict[str, dict[str, Trials]], first: dict[str, Any], path: Path) -> None:
    """A column of two panels for each of the paper's figures: the paper's above, ours below, each on its own axis.

    Rows that have collapsed are hollow.
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
