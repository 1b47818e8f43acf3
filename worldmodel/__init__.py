"""VideoGPT as a world model: models, maths and data, with no environment and no command line.

The rooms, in the order in which data walks through them:

    world      what was recorded: frame shape, action space, game variables, clock
    store      trajectories in Zarr
    codebook   vector quantisation              vqvae      video <-> codes
    order      the order of a frame's codes     prior      GPT over codes
    outcome    reward, end, game variables      dream      all three, stepped
    fit        the one training loop            checkpoint weights and config on disk
    progress   means, throughput, stopping      pictures   frames as GIF and PNG

Nothing here imports from `envs`, `collect`, `train`, `rollout` or `configs`; they import from here.
"""

__version__ = "0.1.0"
