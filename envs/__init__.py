"""Gymnasium environments. Importing this package registers them; no model is loaded until one is made.

    import envs
    gymnasium.make("VizdoomFrames-v0", scenario="health_gathering_supreme")   # the engine
    gymnasium.make("BAIRPushing-v0")                                          # a robot that pushes objects
    gymnasium.make("VideoGPTDream-v0", model="runs/demo")                     # the dream of it

Gymnasium 1.x has no entry-point plugins, so this import is needed; `gymnasium.make("envs:VideoGPTDream-v0")`
does both at once.
"""

from gymnasium.envs.registration import register

register(id="VizdoomFrames-v0", entry_point=f"{__name__}.vizdoom:VizdoomFrames")
register(id="BAIRPushing-v0", entry_point=f"{__name__}.pushing:Pushing")
register(
    id="VideoGPTDream-v0",
    entry_point=f"{__name__}.dream:DreamEnv",
    vector_entry_point=f"{__name__}.vector:DreamVectorEnv",
)
