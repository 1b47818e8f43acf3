"""What every room needs: checkpoints, hardware, pictures and the error that users read."""
