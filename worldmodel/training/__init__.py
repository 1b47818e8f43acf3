"""The training loop, its TensorBoard log, and the rows of the paper's ablations."""
