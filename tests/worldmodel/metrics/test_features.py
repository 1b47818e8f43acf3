"""Feature networks: what is refused, how clips are prepared, and the two architectures against other computations."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from worldmodel.metrics import c3d
from worldmodel.metrics.c3d import C3D
from worldmodel.metrics.features import C3D_LOGITS, I3D_LOGITS, RANDOM, load_features, load_state, read_state, to_224
from worldmodel.metrics.frechet import frechet_distance
from worldmodel.metrics.i3d import I3D, same
from worldmodel.utils.errors import UserError


def films(n: int, t: int = 16, size: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, t, size, size, 3), dtype=np.uint8)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seeded(model: nn.Module) -> dict[str, Tensor]:
    """Weights that depend on nothing but the names and shapes of a model's tensors."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in sorted(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            state[name] = 1 + 0.5 * noise.abs()
        elif value.ndim == 5:
            state[name] = noise * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = 0.2 * noise + (1 if name.endswith("bn.weight") else 0)
    return state


class Plain(nn.Module):
    """Says what it was given: the mean, least and greatest value of clips, and their size."""

    def forward(self, x: Tensor) -> Tensor:
        size = torch.full((len(x),), float(x.shape[-1]))
        return torch.stack([x.mean((1, 2, 3, 4)), x.amin((1, 2, 3, 4)), x.amax((1, 2, 3, 4)), size], dim=1)


class Usual(nn.Module):
    """The usual arguments; 400 features, which say what they were."""

    def forward(
        self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:  # fmt: skip
        told = float(rescale) + 2 * float(resize) + 4 * float(return_features)
        return x.mean((1, 2, 3, 4))[:, None].expand(-1, 400) * 0 + told


def script(model: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(model), str(path))
    return path


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = script(Plain(), tmp_path / "net.pt")
    with pytest.raises(UserError, match=f"has sha256 {digest(path)} instead of {'0' * 64}, so it is another file"):
        load_features("torchscript", path, "0" * 64)
    with pytest.raises(UserError, match=f"has sha256 {digest(path)}; compare"):
        load_features("torchscript", path)
    with pytest.raises(UserError, match="does not exist"):
        load_features("torchscript", tmp_path / "none.pt", "0" * 64)
    with pytest.raises(UserError, match="need weights"):
        load_features("i3d")
    with pytest.raises(UserError, match="random weights"):
        load_features("random_conv", path)
    assert load_features("torchscript", path, digest(path).upper()).sha256 == digest(path)


def test_torchscript_is_called_as_told(tmp_path: Path) -> None:
    path = script(Plain(), tmp_path / "plain.pt")
    features = load_features("torchscript", path, digest(path))
    clips = np.zeros((3, 16, 32, 32, 3), np.uint8)
    clips[1], clips[2, :, :16] = 255, 255
    expected = [[-1, -1, -1, 224], [1, 1, 1, 224], [0, -1, 1, 224]]
    assert features(clips) == pytest.approx(np.array(expected), abs=1e-6)
    assert features(clips, batch=2) == pytest.approx(features(clips), abs=1e-6)
    assert features.network == "4 TorchScript features"
    assert not features.is_i3d
    path = script(Usual(), tmp_path / "usual.pt")
    features = load_features("torchscript", path, digest(path))
    assert (features(clips) == 4).all(), "only return_features is on"
    assert features.network == I3D_LOGITS
    assert features.to_json() == {
        "kind": "torchscript",
        "network": I3D_LOGITS,
        "sha256": digest(path),
        "input_size": 224,
        "preprocessing": "bilinear to 224 x 224, corners not aligned, not antialiased; [-1, 1]",
    }


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


def test_a_script_that_returns_something_else_than_a_tensor_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Pair()).save(str(tmp_path / "pair.pt"))
    with pytest.raises(UserError, match=r"does not take clips \(1, 3, 16, 224, 224\)"):
        load_features("torchscript", tmp_path / "pair.pt", digest(tmp_path / "pair.pt"))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"not a network")
    with pytest.raises(UserError, match="is not a TorchScript file"):
        load_features("torchscript", torn, digest(torn))
    with pytest.raises(UserError, match="is not a state dict"):
        load_features("i3d", torn, digest(torn))
    unsafe = tmp_path / "unsafe.pt"
    torch.save({"a": Path("x")}, unsafe)  # needs a pickled class
    with pytest.raises(UserError, match="is not a state dict"):
        load_features("i3d", unsafe, digest(unsafe))
    other = tmp_path / "other.safetensors"
    save_file({"Conv3d_1a_7x7.bn.bias": torch.zeros(3)}, other)
    with pytest.raises(
        UserError, match=r"does not fit I3D as i3d.py defines it: Conv3d_1a_7x7.bn.bias is \(3,\) there and \(64,\)"
    ):
        load_features("i3d", other, digest(other))
    with pytest.raises(UserError, match=r"does not fit C3D as c3d.py defines it: Conv3d_1a_7x7.bn.bias"):
        load_features("c3d", other, digest(other))


def test_bilinear_resizing_by_hand() -> None:
    """From 2 to 224 columns: pixel i lies at (i + 0.5) / 112 - 0.5, held at the edges."""
    clips = torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)
    clips[..., 1, :] = 255
    at = ((torch.arange(224) + 0.5) / 112 - 0.5).clamp(0, 1)
    assert torch.allclose(to_224(clips)[0, 0, 0, 7], 2 * at - 1, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "sides"),
    [
        (224, 7, 2, (2, 3)),
        (9, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (14, 2, 2, (0, 0)),
        (5, 3, 1, (1, 1)),
    ],
)
def test_same_padding(size: int, kernel: int, stride: int, sides: tuple[int, int]) -> None:
    assert same(size, kernel, stride) == sides


def test_i3d_gives_what_the_papers_own_code_gives(tmp_path: Path) -> None:
    """Logits that the I3D of the paper's published code gave for the same weights and clip, once."""
    model = I3D()
    assert sum(p.numel() for p in model.parameters()) == 12_697_264
    state, path = seeded(model), tmp_path / "i3d.safetensors"
    save_file(state, path)
    features = load_features("i3d", path, digest(path))
    assert (features.network, features.input_size, features.is_i3d) == (I3D_LOGITS, 224, True)
    clip = torch.rand(1, 3, 18, 224, 224, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        logits = features.model(clip)[0]
    assert logits[:4].tolist() == pytest.approx([0.410917, -0.822942, 0.856291, -0.997459], abs=2e-4)
    assert (logits.sum().item(), logits.norm().item()) == pytest.approx((2.03542, 13.78733), abs=2e-3)


def test_i3d_from_a_pickle_of_tensors(tmp_path: Path) -> None:
    """As `torch.save` writes it, with batch norm's counters, and under a key; the epsilon is part of the network."""
    state, path = I3D().state_dict(), tmp_path / "i3d.pt"
    torch.save({"state_dict": state}, path)
    features = load_features("i3d", path, digest(path), epsilon=1e-3)
    assert features.network == f"{I3D_LOGITS}, batch norm epsilon 0.001"
    assert features.is_i3d
    assert isinstance(features.model, I3D)
    assert features.model.Conv3d_1a_7x7.bn is not None
    assert features.model.Conv3d_1a_7x7.bn.eps == 1e-3
    assert all(torch.equal(v, state[k]) for k, v in features.model.state_dict().items())
    with pytest.raises(UserError, match="at least 9 frames, not 8"):
        features(films(1, 8))


SMALL = dict.fromkeys(c3d.WIDTHS, 4)


def test_c3d_against_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another way through: gathered pixels for the resizing, padded maxima for the pools."""
    monkeypatch.setattr(c3d, "WIDTHS", SMALL)
    model = C3D(classes=5, width=8)
    state = {
        k: torch.randn(v.shape, generator=torch.Generator().manual_seed(i))
        for i, (k, v) in enumerate(model.state_dict().items())
    }
    state = {k: v * 20 if k == "mean" else v * 0.2 for k, v in state.items()}
    load_state(model, state, Path("c3d.pt"))
    clip = torch.from_numpy(films(2, size=8)).movedim(-1, 1).float()
    at = torch.linspace(0, 7, 112)  # corners on corners
    low, part = at.long().clamp(max=6), at - at.long().clamp(max=6)
    wide = clip[..., low] * (1 - part) + clip[..., low + 1] * part
    tall = wide[..., low, :] * (1 - part)[:, None] + wide[..., low + 1, :] * part[:, None]
    x = tall[:, [2, 1, 0]] - state["mean"]
    assert torch.allclose(model.prepare(clip), x, atol=1e-3)
    for name in ("1a", "2a", "3a", "3b", "4a", "4b", "5a", "5b"):
        x = F.conv3d(x, state[f"conv{name}.weight"], state[f"conv{name}.bias"], padding=1).relu()
        if name in ("1a", "2a", "3b", "4b", "5b"):
            x = F.pad(x, [0, x.shape[-1] % 2, 0, x.shape[-2] % 2])
            x = torch.maximum(x[..., ::2], x[..., 1::2])
            x = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
            x = x if name == "1a" else torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    assert x.shape == (2, 4, 1, 4, 4)
    for name in ("fc6", "fc7"):
        x = (x.flatten(1) @ state[f"{name}.weight"].T + state[f"{name}.bias"]).relu()
    logits = x @ state["fc8.weight"].T + state["fc8.bias"]
    assert torch.allclose(model(clip), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


def test_c3d_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c3d, "WIDTHS", SMALL)
    state = {k: v.bfloat16() for k, v in C3D().state_dict().items()}
    mean = torch.arange(128.0)[:, None] + torch.arange(171.0) / 256
    state["mean"] = mean.expand(3, 16, 128, 171).contiguous()
    path = tmp_path / "c3d.safetensors"
    save_file(state, path)
    features = load_features("c3d", path, digest(path))
    assert isinstance(features.model, C3D)
    assert torch.equal(features.model.mean[0, 0], mean[8:120, 8:120])
    assert (features.network, features.input_size) == (C3D_LOGITS, 112)
    assert features(films(1)).shape == (1, 101)
    with pytest.raises(UserError, match="16 frames, not 8"):
        features(films(1, 8))
    del state["mean"]
    save_file(state, path)
    with pytest.raises(UserError, match="mean is missing there"):
        load_features("c3d", path, digest(path))


def test_random_features_are_the_same_everywhere_and_see_differences() -> None:
    features, again = load_features("random_conv"), load_features("random_conv")
    assert features.sha256 == again.sha256
    assert (features.network, features.is_i3d) == (RANDOM, False)
    torch.manual_seed(1)
    clips = films(24)
    assert np.array_equal(features(clips), again(clips))
    assert features(clips, batch=5) == pytest.approx(features(clips), abs=1e-6)
    assert features(clips).shape == (24, 128)
    assert features(clips).dtype == np.float32
    pale = clips // 2 + 60
    other = frechet_distance(features(clips), features(films(24, seed=1)))
    assert frechet_distance(features(clips), features(pale)) > 3 * other > 0


def test_what_is_no_clip() -> None:
    features = load_features("random_conv")
    for clips in (films(2)[0], films(2).astype(np.float32), films(2)[..., :1], films(2)[:0]):
        with pytest.raises(UserError, match="features need uint8 clips"):
            features(clips)


def test_states_are_read_without_running_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path(tmp_path / "ran").write_text, ("",)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="is not a state dict"):
        read_state(tmp_path / "evil.pt", (tmp_path / "evil.pt").read_bytes())
    assert not (tmp_path / "ran").exists()
