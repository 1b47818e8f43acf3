"""The baseline of an outcome model: its best prediction without looking.

It predicts the same reward, probability of an end and distribution of changes for every frame. They are the means of
the rows that it is judged on, so no constant does better there.

Dimensions: b sequences, t latent frames, v variables, k changes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.models.reward_done import OutcomeModel, OutcomePrediction, previous_variables
from worldmodel.training.verdicts import judge_outcomes


def best_constant(model: OutcomeModel, rows: dict[str, Tensor]) -> OutcomePrediction:
    """The constant prediction for rows: "reward", "done" and "mask" (b, t), "variables" (b, t, v)."""
    mask, ends, shares = rows["mask"], rows["done"].float(), model.variable_changes
    if model.config.n_variables:
        change = model.change_index(rows["variables"], previous_variables(rows["variables"]))[mask]
        shares = F.one_hot(change, shares.shape[-1]).float().mean(0)  # (v, k)
    return OutcomePrediction(
        rows["reward"][mask].mean().expand(*mask.shape, 2),
        torch.logit(ends[mask].mean()).clamp(-100, 100).expand_as(ends),
        shares.clamp(min=1e-30).log().expand(*mask.shape, *shares.shape),
    )


@torch.no_grad()
def outcome_verdicts(model: OutcomeModel, rows: dict[str, Tensor], episode: np.ndarray) -> list[str]:
    """Compare a model with `best_constant`, kind by kind.

    Args:
        model: The outcome model.
        rows: What `best_constant` takes, "codes", "condition", and "images" if the model takes them.
        episode: Episode of each sequence (b,).
    """
    previous, mask = previous_variables(rows["variables"]), rows["mask"]
    predictions = (
        model(rows["codes"], rows["condition"], previous, images=rows.get("images"))[0],
        best_constant(model, rows),
    )
    ours, constant = (
        {
            name: ((error * mask).sum(1) / mask.sum(1)).cpu().numpy()
            for name, error in model.errors(out, rows["reward"], rows["done"], rows["variables"], previous).items()
        }
        for out in predictions
    )
    return judge_outcomes(ours, constant, episode)
