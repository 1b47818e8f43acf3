"""Feature networks, which turn clips into the features that distances and scores are computed from.

This package has no weights for them. Users give a file and the sha256 that its publisher states. A file with another
hash is refused, and the hash is part of every result. Kinds:

    i3d          state dict of I3D with Kinetics-400 logits (i3d.py has the names); .safetensors, or .pt of tensors
    torchscript  the same network as a TorchScript file. It is called with (b, 3, t, 224, 224) in [-1, 1] and, as far as
                 its `forward` has arguments of these names, rescale=False, resize=False, return_features=True; it
                 returns (b, 400). A script is a program: only the hash shows that it is the one you trust
    c3d          state dict of C3D with UCF-101 logits and its mean (c3d.py)
    random_conv  no file: a small network with random weights of a fixed seed, to test a pipeline. Its results cannot be
                 compared with published ones, and never get the name of a published metric

The toolkit cannot tell whether a file with 400 logits was trained on Kinetics-400; the user has to make sure.

Dimensions: n b clips, t h w time and space, d features.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from worldmodel.metrics.c3d import C3D, FRAMES, SIZE, cut_mean
from worldmodel.metrics.i3d import I3D
from worldmodel.models.convolution import conv3d
from worldmodel.utils.errors import UserError, one_line

Kind = Literal["i3d", "torchscript", "c3d", "random_conv"]
I3D_LOGITS, C3D_LOGITS, RANDOM = "I3D Kinetics-400 logits", "C3D UCF-101 logits", "random features"
SEED = 0
"""Seed of the weights of random_conv."""
TO_224 = "bilinear to 224 x 224, corners not aligned, not antialiased; [-1, 1]"


@dataclass(frozen=True, kw_only=True)
class Features:
    """A feature network with its preprocessing and origin."""

    kind: Kind
    network: str
    """What it computes; results of different networks cannot be compared."""
    sha256: str
    """Hash of the file, or of random_conv's weights."""
    input_size: int
    """Height and width of the network's input; 0 for those of the clips."""
    preprocessing: str
    """Description of `prepare`."""
    prepare: Callable[[Tensor], Tensor]
    """Turns uint8 clips (b, t, h, w, 3) into the network's input."""
    model: Callable[[Tensor], Tensor]
    """The network."""
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, clips: np.ndarray, batch: int = 8) -> np.ndarray:
        """Compute features.

        Args:
            clips: uint8 (n, t, h, w, 3).
            batch: Clips that are processed at a time.

        Returns:
            (n, d) float32.

        Raises:
            UserError: If the network cannot take the clips.
        """
        self.check(clips)
        parts = []
        # without TF32, which would round a GPU's features to ten bits
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for at in range(0, len(clips), batch):
                part = torch.from_numpy(np.ascontiguousarray(clips[at : at + batch])).to(self.device)
                parts.append(self.model(self.prepare(part)).float().cpu().numpy())
        return np.concatenate(parts)

    def check(self, clips: np.ndarray) -> None:
        """Check that the network can take the clips; `UserError` if not."""
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or not len(clips):
            raise UserError(f"features need uint8 clips (n, t, h, w, 3), not {clips.dtype} {clips.shape}")
        frames = clips.shape[1]
        if self.kind == "c3d" and frames != FRAMES:
            raise UserError(f"C3D takes clips of {FRAMES} frames, not {frames}; use clips of {FRAMES} frames")
        if self.is_i3d and frames < 9:
            raise UserError(f"I3D takes clips of at least 9 frames, not {frames}; use longer clips")

    @property
    def is_i3d(self) -> bool:
        """Whether Fréchet distances of these features are FVD."""
        return self.network.startswith(I3D_LOGITS)

    def to_json(self) -> dict[str, Any]:
        """The network, its hash and preprocessing as JSON."""
        names = ("kind", "network", "sha256", "input_size", "preprocessing")
        return {name: getattr(self, name) for name in names}


def load_features(
    kind: Kind, weights: Path | None = None, sha256: str = "", device: str = "cpu", epsilon: float = 1e-5
) -> Features:
    """Load a feature network.

    Args:
        kind: Which network.
        weights: File of its weights; None for random_conv.
        sha256: Hash of the file, as stated by its publisher.
        device: "cpu" or "cuda".
        epsilon: Epsilon of I3D's batch norm, which the file does not contain.

    Raises:
        UserError: If the file is missing, has another hash, or does not fit the network.
    """
    if kind == "random_conv":
        if weights:
            raise UserError(f"random_conv has random weights; leave out {weights}, or choose another kind of features")
        return _random(device)
    if weights is None:
        raise UserError(f"{kind} features need weights: give their file and its sha256, or use random_conv")
    data, found = read_checked(weights, sha256)
    if kind == "torchscript":
        return _torchscript(weights, data, found, device)
    if kind == "i3d":
        model = load_state(I3D(epsilon=epsilon), read_state(weights, data), weights).to(device)
        other = "" if epsilon == 1e-5 else f", batch norm epsilon {epsilon:g}"  # not that of the paper's code
        return Features(
            kind=kind, network=I3D_LOGITS + other, sha256=found, input_size=224, preprocessing=TO_224,
            prepare=to_224, model=model, device=device,
        )  # fmt: skip
    state = read_state(weights, data)
    if "mean" in state:
        state["mean"] = cut_mean(state["mean"])
    return Features(
        kind=kind, network=C3D_LOGITS, sha256=found, input_size=SIZE,
        preprocessing=f"blue green red; bilinear to {SIZE} x {SIZE}, corners aligned; 0 to 255 minus the mean",
        prepare=channels_first, model=load_state(C3D(), state, weights).to(device), device=device,
    )  # fmt: skip


def read_checked(path: Path, sha256: str) -> tuple[bytes, str]:
    """Read a file and check its sha256.

    Returns:
        The content, and its sha256.

    Raises:
        UserError: If the file does not exist, or has another sha256.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the file of a feature network's weights")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if not sha256:
        raise UserError(f"{path} has sha256 {found}; compare that with its publisher's, then give it")
    if sha256.lower() != found:
        raise UserError(f"{path} has sha256 {found} instead of {sha256}, so it is another file; get the right one")
    return data, found


def read_state(path: Path, data: bytes) -> dict[str, Tensor]:
    """Read a state dict from the content of a file, without running any code in it; `UserError` if it is not one."""
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds more than tensors")
        return dict(state)
    except Exception as error:  # each format raises its own errors, and torch.load also those of pickle and zip
        message = one_line(error)[:80]
        cure = "" if isinstance(error, SafetensorError) else ", or its kind is torchscript"
        raise UserError(f"{path} is not a state dict of tensors ({message}); convert it to safetensors{cure}") from None


def load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Load a state dict into a model, and freeze it; `UserError` names the first tensor that does not fit."""
    counters = {k for k in state.keys() | model.state_dict().keys() if k.endswith("num_batches_tracked")}
    expected = model.state_dict()
    for key in sorted((state.keys() | expected.keys()) - counters):
        shapes = [tuple(d[key].shape) if key in d else "missing" for d in (state, expected)]
        if shapes[0] != shapes[1]:
            name = type(model).__name__
            raise UserError(
                f"{path} does not fit {name} as {name.lower()}.py defines it: {key} is {shapes[0]} there and "
                f"{shapes[1]} here; give the weights of this network"
            )
    model.load_state_dict({k: v for k, v in state.items() if k not in counters}, strict=False)
    return model.float().eval().requires_grad_(False)


def channels_first(clips: Tensor) -> Tensor:
    """Convert uint8 (b, t, h, w, 3) to float (b, 3, t, h, w) from 0 to 255."""
    return clips.movedim(-1, 1).float()


def to_224(clips: Tensor) -> Tensor:
    """Convert and resize uint8 (b, t, h, w, 3) to float (b, 3, t, 224, 224) in [-1, 1]."""
    b, t = clips.shape[:2]
    frames = clips.flatten(0, 1).movedim(-1, 1).float()
    frames = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False)
    return frames.unflatten(0, (b, t)).transpose(1, 2) / 127.5 - 1


def _torchscript(path: Path, data: bytes, sha256: str, device: str) -> Features:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # published files have this format
            script = torch.jit.load(io.BytesIO(data), map_location=device).eval()
        known = {a.name for a in script.forward.schema.arguments}
    except RuntimeError as error:
        raise UserError(f"{path} is not a TorchScript file ({one_line(error)[:80]}); use another kind") from None
    options = {"rescale": False, "resize": False, "return_features": True}
    options = {name: value for name, value in options.items() if name in known}
    features = Features(
        kind="torchscript", network="", sha256=sha256, input_size=224, preprocessing=TO_224,
        prepare=to_224, model=lambda x: script(x, **options), device=device,
    )  # fmt: skip
    try:
        probe = features(np.zeros((1, 16, 64, 64, 3), np.uint8))
    except (RuntimeError, AttributeError) as error:  # it may return something that is not a tensor
        message = one_line(error)[-80:]
        raise UserError(f"{path} does not take clips (1, 3, 16, 224, 224) ({message}); export it for these") from None
    if probe.ndim != 2 or len(probe) != 1:
        raise UserError(
            f"{path} returns {probe.shape} for one clip instead of (1, features); export it to return those"
        )
    network = I3D_LOGITS if probe.shape[1] == 400 else f"{probe.shape[1]} TorchScript features"
    return replace(features, network=network)


class RandomConv(nn.Module):
    """Three strided 3D convolutions: (b, 3, t, h, w) -> means and deviations of the last one's channels (b, 128)."""

    def __init__(self, seed: int = SEED) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterList()
        for a, b in ((3, 16), (16, 32), (32, 64)):
            self.weights.append(torch.randn(b, a, 3, 3, 3, generator=generator) * (2 / (27 * a)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        for i, weight in enumerate(self.weights):
            x = F.relu(conv3d(x, weight, None, (2 if i else 1, 2, 2), ((1, 1), (1, 1), (1, 1))))
        x = x.flatten(2)
        return torch.cat([x.mean(2), x.std(2, correction=0)], dim=1)


def _random(device: str) -> Features:
    model = RandomConv().eval().requires_grad_(False)
    total = hashlib.sha256(b"".join(w.numpy().tobytes() for w in model.weights))
    return Features(
        kind="random_conv", network=RANDOM, sha256=total.hexdigest(), input_size=0, preprocessing="[-1, 1]",
        prepare=lambda clips: channels_first(clips) / 127.5 - 1, model=model.to(device), device=device,
    )  # fmt: skip
