"""Figures of merit: `frames` compares pictures, `interval` says how sure a mean is."""
