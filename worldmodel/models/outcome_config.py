"""What an outcome model is built from."""

from __future__ import annotations

from dataclasses import dataclass

from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import AboveZero, Channels, Count, Pixels, Settings


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig(Settings):
    """Sizes of an outcome model, and the statistics of what it predicts."""

    latent_size: tuple[Pixels, Pixels] = (8, 8)
    """Rows and columns of a frame's codes."""
    n_codebooks: Channels = 1
    """Number of codebooks of the VQ-VAE."""
    n_codes: Channels = 1024
    """Number of codes of a codebook."""
    embedding_dim: Channels = 256
    """Dimension of a code vector."""
    condition_dim: Count = 0
    """Length of the encoded actions of a latent frame."""
    condition_scale: tuple[AboveZero, ...] = ()
    """Divisor of each number of the condition; empty for one-hot conditions, which are not scaled."""
    n_variables: Count = 0
    """Number of game variables."""
    variable_mean: tuple[float, ...] = ()
    """Mean of each variable in the training data."""
    variable_std: tuple[AboveZero, ...] = ()
    """Standard deviation of each variable in the training data."""
    variable_changes: tuple[tuple[float, ...], ...] = ()
    """Possible changes of each variable within a latent frame, ascending; equally many for each."""
    change_weights: tuple[tuple[float, ...], ...] = ()
    """Weight in the loss of each of these changes; empty for equal weights."""
    variable_low: tuple[float, ...] = ()
    """Smallest recorded value of each variable, a bound of sampled values; empty for none."""
    variable_high: tuple[float, ...] = ()
    """Largest recorded value of each variable, a bound of sampled values; empty for none."""
    reward_rms: AboveZero = 1.0
    """Root mean square of the recorded reward (not centered), the unit of the predicted reward."""
    hidden_dim: Channels = 256
    """Width of the GRU."""
    predict_from_past: bool = False
    """Predict termination and changes of variables before their frame, for engines that do not render them."""
    frame_shape: tuple[Pixels, Pixels, Channels] = (64, 64, 3)
    """Height, width and channels of a frame."""
    image_channels: Count = 0
    """Channels of the features of the reconstruction that a small CNN adds to the codes of each place; 0 for none."""
    n_stacked_frames: Count = 0
    """Number of last latent frames that convolutions take as input; 0 for a linear layer over the newest one."""

    @property
    def place_dim(self) -> int:
        """Length of the vector of each place of a frame."""
        return self.n_codebooks * self.embedding_dim + self.image_channels

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("variable_mean", "variable_std", "variable_changes"):
            if len(getattr(self, name)) != self.n_variables:
                raise UserError(f"{name} must have a value for each of {self.n_variables} variables")
        for name in ("variable_low", "variable_high"):
            if getattr(self, name) and len(getattr(self, name)) != self.n_variables:
                raise UserError(f"{name} must have a value for each of {self.n_variables} variables, or none")
        if self.condition_scale and len(self.condition_scale) != self.condition_dim:
            raise UserError(
                f"a condition of {self.condition_dim} numbers needs as many scales, not {len(self.condition_scale)}"
            )
        if self.change_weights and list(map(len, self.change_weights)) != list(map(len, self.variable_changes)):
            raise UserError("change_weights must have a weight for each of variable_changes, or be empty")
        if len(set(map(len, self.variable_changes))) > 1 or () in self.variable_changes:
            raise UserError("variable_changes must have equally many changes for each variable, and at least one")
