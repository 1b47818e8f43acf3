"""The starting contexts of dreams: a few latent frames of real episodes, and their file in a run folder.

Dimensions: b contexts, t latent frames, h w g codes, c condition, v variables, p pictures of a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from worldmodel.utils import tensor_file
from worldmodel.utils.compatibility import check_vqvae
from worldmodel.utils.errors import UserError
from worldmodel.utils.files import write_atomic

CONTEXTS_FILE = "contexts.safetensors"
"""File in a run folder with the contexts that its dreams start from."""


@dataclass(frozen=True)
class Context:
    """Where dreams start: latent frames of real episodes."""

    codes: Tensor
    """(b, t, h, w, g) codes of the latent frames."""
    condition: Tensor
    """(b, t, c) encoded actions that led into each latent frame."""
    variables: Tensor
    """(b, t, v) game variables at each latent frame."""
    state: Tensor | None = None
    """(b, p, H, W, channels) uint8 state of a recurrent VQ-VAE before the first latent frame, else None."""

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Tensor | slice) -> Context:
        return Context(**{name: tensor[index] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without those that are None."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def is_episode_start(self, action_dim: int) -> Tensor:
        """Which contexts begin at the start of an episode, (b,) bool: no action led into their first frame.

        With a recurrent VQ-VAE they begin one frame later, unless they are a single frame. Then every picture of their
        state is the episode's first frame.

        Args:
            action_dim: Length of one encoded action, `ActionSpec.encoded_dim`.
        """
        if self.state is not None:
            return (self.state == self.state[:, :1]).flatten(1).all(-1)
        return (self.condition[:, 0, :action_dim] == 0).all(-1)

    def save(self, path: Path, vqvae_digest: str) -> None:
        """Write the contexts to a file.

        Args:
            path: Where to write, `CONTEXTS_FILE` in a run folder.
            vqvae_digest: `codes_digest` of the VQ-VAE that encoded them.

        Raises:
            UserError: If a value is not finite.
        """
        try:
            data = tensor_file.pack(self.tensors() | {"codes": self.codes.int()}, {"vqvae": vqvae_digest})
        except UserError as error:
            raise UserError(f"the contexts for {path}: {error}; record them again") from None
        write_atomic(path, data)

    @staticmethod
    def load(run: Path) -> Context:
        """Read the contexts of a run folder.

        Raises:
            UserError: If the file is missing, damaged, or encoded with another VQ-VAE than the one in the folder.
        """
        path = run / CONTEXTS_FILE
        if not path.exists():
            raise UserError(f"{path} does not exist; train/tokens.py writes the contexts that dreams start from")
        tensors, info = tensor_file.read(path, "run train/tokens.py again")
        if set(tensors) - {"state"} != {"codes", "condition", "variables"} or tensors["variables"].ndim != 3:
            raise UserError(f"{path} was written by another version; run train/tokens.py again")
        check_vqvae(str(path), info.get("vqvae"), run / "vqvae")
        return Context(**tensors | {"codes": tensors["codes"].long()})

    def to(self, device: torch.device) -> Context:
        return Context(**{name: tensor.to(device) for name, tensor in self.tensors().items()})
