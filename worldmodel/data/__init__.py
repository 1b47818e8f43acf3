"""What models learn from: stores of trajectories and of codes, clips of them, and what environment they are from."""
