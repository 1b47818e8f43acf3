"""Sampling codes from a prior: whole videos, and the dream that an agent steps with actions."""
