"""The baseline of an outcome model: the best prediction that ignores its inputs.

It predicts one reward for rows that terminate and one for all others, the same probability of a termination, and the
same distribution of changes. They are the means of the rows that it is judged on. A sequence's first row is left out,
since nothing is known of what led into it.

Dimensions: b sequences, t latent frames, n rows that count, v variables, k changes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.models.reward_done import OutcomeModel, OutcomePrediction, previous_variables
from worldmodel.training.verdicts import judge_outcomes


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


@torch.no_grad()
def outcome_verdicts(model: OutcomeModel, rows: dict[str, Tensor], episode: np.ndarray) -> list[str]:
    """Compare a model with `best_constant`.

    Args:
        model: The outcome model, in eval mode.
        rows: As in `best_constant`; also "mask" (b, t), and the inputs "codes", "condition", and "images" if it takes
            them.
        episode: Episode of each sequence (b,).
    """
    counts, previous = rows["mask"].clone(), previous_variables(rows["variables"])
    counts[:, 0] = False
    if not counts.any():
        return []
    ours, constant = (
        model.errors(out, rows["reward"], rows["done"], rows["variables"], previous)
        for out in (
            model(rows["codes"], rows["condition"], previous, images=rows.get("images"))[0],
            best_constant(model, rows, counts),
        )
    )
    rows_of = lambda errors: {name: error[counts].cpu().numpy() for name, error in errors.items()}  # noqa: E731
    return judge_outcomes(rows_of(ours), rows_of(constant), np.repeat(episode, counts.sum(1).cpu().numpy()))
