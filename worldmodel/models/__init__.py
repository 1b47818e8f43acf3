"""The networks: VQ-VAE, prior, and the model of reward, end and game variables, with the layers they are made of."""
