"""VideoGPT as a world model: data, models, generation, training and metrics, without environments or scripts.

    utils       checkpoints, hardware, pictures, errors
    models      VQ-VAE, prior, reward and end
    data        stores of trajectories and codes, clips of them
    metrics     FVD, inception score, PSNR, SSIM, calibration
    generation  sampling, and the dream that is stepped by actions
    training    the training loop, and the stages of a world model that it trains

Each room imports only from rooms above it in this list. Nothing here imports from `envs`, `collect`, `train`, `rollout`
or `configs`; they import from here.
"""

__version__ = "0.1.0"
