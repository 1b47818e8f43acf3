"""Figures of merit: `frames` compares pictures, `percentile_interval` says how sure a mean is."""
