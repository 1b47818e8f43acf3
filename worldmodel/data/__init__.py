"""Training data: stores of trajectories and of codes, clips read from them, and the recorded environment."""
