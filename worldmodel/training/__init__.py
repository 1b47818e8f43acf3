"""The training loop and its TensorBoard log, the stages of a world model, and the rows of the paper's ablations."""
