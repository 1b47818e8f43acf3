"""The networks and their layers: VQ-VAE, prior, and the outcome model of reward, termination and game variables."""
