"""C3D (Tran et al., 2015) for UCF-101: the classifier of TGAN2's inception score, which the paper reports (Table 2).

Only the architecture is here. A state dict that fits has the names of the published network,

    conv1a, conv2a, conv3a, conv3b, conv4a, conv4b, conv5a, conv5b    (out, in, 3, 3, 3) and a bias
    fc6, fc7, fc8                                                     8192 -> 4096 -> 4096 -> 101
    mean            (3, 16, h, w), blue green red, 0 to 255: subtracted from the clips, as in the network's training

each as `<name>.weight` and `<name>.bias`, except `mean`. TGAN2 publishes the first two groups in
`conv3d_deepnetA_ucf.npz`, as `conv1a/W` and `conv1a/b`, and the mean in `mean2.npz`. To convert them:

    w, m = np.load("conv3d_deepnetA_ucf.npz"), np.load("mean2.npz")
    d = {k.replace("/W", ".weight").replace("/b", ".bias"): torch.from_numpy(w[k]) for k in w.files}
    safetensors.torch.save_file(d | {"mean": torch.from_numpy(m["mean"])}, "c3d.safetensors")

A mean larger than 112 x 112 is cut to rows and columns 8 to 119, as in TGAN2. Pooling rounds sizes up, as in Caffe, so
7 x 7 becomes 4 x 4.

Dimensions: b clips, c channels, t h w time and space, k classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAMES, SIZE, CUT = 16, 112, 8
WIDTHS = {"1a": 64, "2a": 128, "3a": 256, "3b": 256, "4a": 512, "4b": 512, "5a": 512, "5b": 512}
POOLED = ("1a", "2a", "3b", "4b", "5b")
"""Convolutions that a max pool follows; the first pool does not pool over time."""


class C3D(nn.Module):
    """Clips (b, 3, 16, h, w), red green blue from 0 to 255 -> logits (b, k)."""

    mean: Tensor

    def __init__(self, classes: int = 101, width: int = 4096) -> None:
        super().__init__()
        channels = 3
        for name, out in WIDTHS.items():
            self.add_module(f"conv{name}", nn.Conv3d(channels, out, 3, padding=1))
            channels = out
        self.fc6, self.fc7 = nn.Linear(channels * 4 * 4, width), nn.Linear(width, width)
        self.fc8 = nn.Linear(width, classes)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIZE, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        for name in WIDTHS:
            x = F.relu(self.get_submodule(f"conv{name}")(x))
            if name in POOLED:
                x = F.max_pool3d(x, (1, 2, 2) if name == "1a" else 2, ceil_mode=True)
        return self.fc8(F.relu(self.fc7(F.relu(self.fc6(x.flatten(1))))))

    def prepare(self, x: Tensor) -> Tensor:
        """Blue first, resized to 112 x 112 (bilinear, with aligned corners), minus the mean."""
        b, c, t, h, w = x.shape
        frames = x.flip(1).transpose(1, 2).reshape(b * t, c, h, w)
        frames = F.interpolate(frames, (SIZE, SIZE), mode="bilinear", align_corners=True)
        return frames.reshape(b, t, c, SIZE, SIZE).transpose(1, 2) - self.mean


def cut_mean(mean: Tensor) -> Tensor:
    """The part (3, 16, 112, 112) of a published mean that TGAN2 subtracts."""
    return mean if tuple(mean.shape[2:]) == (SIZE, SIZE) else mean[:, :, CUT : CUT + SIZE, CUT : CUT + SIZE]
