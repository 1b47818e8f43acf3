"""Gymnasium environments. Importing this package registers them; no model is loaded until one is made.

    import envs
    gymnasium.make("VizdoomFrames-v0", scenario="health_gathering_supreme")   # the engine
    gymnasium.make("BAIRPushing-v0")                                          # a robot that pushes objects
    gymnasium.make("GymFrames-v0", env_id="CartPole-v1")                      # any environment, as small frames
    gymnasium.make("VideoGPTDream-v0", model="runs/demo")                     # a dream: a trained world model

Gymnasium 1.x has no entry-point plugins, so this import is needed. `gymnasium.make("envs:VideoGPTDream-v0")` imports
and makes in one call.
"""

from typing import Any

from gymnasium.envs.registration import register

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "VizdoomFrames-v0": {"entry_point": f"{__name__}.vizdoom:VizdoomFrames"},
    "BAIRPushing-v0": {"entry_point": f"{__name__}.pushing:Pushing"},
    "GymFrames-v0": {"entry_point": f"{__name__}.gym_frames:GymFrames"},
    "VideoGPTDream-v0": {
        "entry_point": f"{__name__}.dream:DreamEnv",
        "vector_entry_point": f"{__name__}.vector:DreamVectorEnv",
    },
}
"""Gymnasium id -> arguments of its registration."""

for _id, _made in ENVIRONMENTS.items():
    register(id=_id, **_made)
