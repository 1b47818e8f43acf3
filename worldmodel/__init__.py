"""VideoGPT as a world model: data, models, generation, training and metrics, without environments or scripts.

    utils       checkpoints, hardware, images and videos, errors
    models      VQ-VAE, prior, and the outcome model of reward, termination and game variables
    data        stores of trajectories and codes, and clips read from them
    metrics     FVD, inception score, PSNR, SSIM, calibration
    generation  sampling from the prior, and the dream that an agent steps with actions
    training    the training loop, and the stages of training a world model

Each package imports only from packages above it in this list. Nothing here imports from `envs`, `collect`, `train`,
`rollout` or `configs`; they import from here.
"""

__version__ = "0.1.0"
