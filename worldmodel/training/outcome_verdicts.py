"""Has an outcome model learned more than a constant, and does it find rare changes?

The baseline is the best prediction that ignores the inputs. It predicts one reward for rows that terminate and one for
all others, the same probability of a termination, and the same distribution of changes. They are the means of the rows
that it is judged on. A sequence's first row is left out, since nothing is known of what led into it.

A mean hides what is rare. In Health Gathering a model once was far better than a constant and did not notice poison,
which is 0.6% of the rows, so no policy learned to avoid it. So rare changes are also judged one by one.

Dimensions: b sequences, t latent frames, n rows that count, v variables, k changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.metrics.calibration import auroc
from worldmodel.models.reward_done import OutcomeModel, OutcomePrediction, previous_variables
from worldmodel.training.verdicts import judge_outcomes

MIN_EVENTS, MAX_SHARE, DETECTED = 20, 0.05, 0.9
"""A change is judged on its own if it happens this often and in less than this share of the rows. It is detected if
its AUROC, over all rows, is at least this."""


def best_constant(model: OutcomeModel, rows: dict[str, Tensor], counts: Tensor) -> OutcomePrediction:
    """The constant prediction for all rows.

    Args:
        model: Knows the possible changes of the variables.
        rows: "reward" and "done" (b, t), "variables" (b, t, v).
        counts: Rows to take the means of, (b, t) bool.
    """
    reward, done, shares = rows["reward"][counts], rows["done"][counts], model.variable_changes
    means = [reward[there].mean() if there.any() else reward.mean() for there in (~done, done)]
    if model.config.n_variables:
        change = model.change_index(rows["variables"], previous_variables(rows["variables"]))[counts]
        shares = F.one_hot(change, shares.shape[-1]).float().mean(0)  # (v, k)
    return OutcomePrediction(
        torch.stack(means).expand(*counts.shape, 2),
        torch.logit(done.float().mean()).clamp(-100, 100).expand(counts.shape),
        shares.log().expand(*counts.shape, *shares.shape),
    )


def worst_change(probs: np.ndarray, change: np.ndarray) -> tuple[int, float, float] | None:
    """The rare change of a variable that is detected worst.

    Args:
        probs: Predicted probability of each change (n, k).
        change: The change of each row (n,).

    Returns:
        Its index, AUROC and share of the rows; None if no change is rare and yet frequent enough to judge, or if the
        variable is in motion all the time.
    """
    counts = np.bincount(change, minlength=probs.shape[1])
    if 2 * counts.max() < len(change):
        return None
    judged = np.flatnonzero((counts >= MIN_EVENTS) & (counts < MAX_SHARE * len(change)))
    found = [(int(i), auroc(probs[:, i], change == i), counts[i] / len(change)) for i in judged]
    return min(found, key=lambda row: row[1], default=None)


def detection_verdicts(
    model: OutcomeModel, change_logits: Tensor, change: Tensor, variables: Sequence[str]
) -> list[str]:
    """Name the rare changes that a model hardly detects, at most one for each variable.

    Args:
        model: The outcome model.
        change_logits: Predictions of rows (n, v, k).
        change: Indices of the changes that happened (n, v).
        variables: Names of the variables.
    """
    verdicts, probs = [], change_logits.softmax(-1).cpu().numpy()
    for v, name in enumerate(variables):
        worst = worst_change(probs[:, v], change[:, v].cpu().numpy())
        if worst and worst[1] < DETECTED:
            i, area, share = worst
            verdicts.append(
                f"{name} changes by {model.variable_changes[v, i].item():+g} in {share:.1%} of rows, which is hardly "
                f"detected (AUROC {area:.2f}); raise --n-stacked-frames, --class-balance or --trainer.steps"
            )
    return verdicts


@torch.no_grad()
def outcome_verdicts(
    model: OutcomeModel, rows: dict[str, Tensor], episode: np.ndarray, variables: Sequence[str]
) -> list[str]:
    """Compare a model with `best_constant`, and name rare changes that it hardly detects.

    Args:
        model: The outcome model, in eval mode.
        rows: As in `best_constant`; also "mask" (b, t), and the inputs "codes", "condition", and "images" if it takes
            them.
        episode: Episode of each sequence (b,).
        variables: Names of the variables.
    """
    counts, previous = rows["mask"].clone(), previous_variables(rows["variables"])
    counts[:, 0] = False
    if not counts.any():
        return []
    out = model(rows["codes"], rows["condition"], previous, images=rows.get("images"))[0]
    ours, constant = (
        model.errors(prediction, rows["reward"], rows["done"], rows["variables"], previous)
        for prediction in (out, best_constant(model, rows, counts))
    )
    rows_of = lambda errors: {name: error[counts].cpu().numpy() for name, error in errors.items()}  # noqa: E731
    verdicts = judge_outcomes(rows_of(ours), rows_of(constant), np.repeat(episode, counts.sum(1).cpu().numpy()))
    if not variables:
        return verdicts
    change = model.change_index(rows["variables"], previous)[counts]
    return verdicts + detection_verdicts(model, out.change_logits[counts], change, variables)
