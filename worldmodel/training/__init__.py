"""The training loop and its TensorBoard log, the stages of training a world model, and the paper's ablations."""
