"""The model card of a world model on a hub: a README.md that says what it dreams, and how to open it."""

from __future__ import annotations

from envs.recorded_env import recorded_id
from worldmodel.data.env_spec import EnvSpec
from worldmodel.utils.checkpoint import Checkpoint

CARD = """---
library_name: worldmodel
tags: [world-model, reinforcement-learning, video-prediction, gymnasium]
---

# {title}

A world model of {env.name}: it dreams the frames, rewards and ends of episodes that follow from actions.

```python
import gymnasium
import worldmodel.envs

env = gymnasium.make("VideoGPTDream-v0", model="hf://{repo}")
frame, info = env.reset(seed=0)
```

| | |
|---|---|
| environment | {engine} |
| frames | {frames}, {env.fps:g} a second |
| actions | {env.action} |
| variables | {variables} |
| starting contexts | {n_contexts} |

| part | size | training steps | digest |
|---|---|---|---|
{parts}
"""


def model_card(repo: str, env: EnvSpec, n_contexts: int, parts: dict[str, Checkpoint]) -> str:
    """The text of README.md.

    Args:
        repo: Repository, as owner/name.
        env: Environment that is dreamed.
        n_contexts: Number of starting contexts.
        parts: The models of the run by name.
    """
    return CARD.format(
        repo=repo,
        title=repo.partition("/")[2],
        env=env,
        engine=recorded_id(env) or "recordings, without an engine",
        frames="x".join(map(str, env.frame_shape)),
        variables=", ".join(env.variables) or "none",
        n_contexts=n_contexts,
        parts="\n".join(row(name, part) for name, part in parts.items()),
    )


def row(name: str, part: Checkpoint) -> str:
    """A line of the table of models."""
    size = sum(tensor.nbytes for tensor in part.weights.values())
    return f"| {name} | {size / 1e6:.2f} MB | {part.steps('step'):,} | `{part.digest}` |"
