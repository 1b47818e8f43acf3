"""Drawing codes from a prior: samples of videos, and the dream that is stepped by actions."""
