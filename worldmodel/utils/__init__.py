"""What every package needs: checkpoints, hardware, images and videos, settings, and the error that users read."""
