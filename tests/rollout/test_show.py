"""The page that shows episodes, through its own requests and in a browser."""

from __future__ import annotations

import base64
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rollout.episode_viewer import FRAMES, EpisodeViewer, code_picture
from rollout.show import Args, make_viewer, serve
from tests.rollout.browser import CHROMIUM, Browser
from tests.tiny import tiny_vqvae
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.metrics.frames import psnr
from worldmodel.models.loading import load_vqvae
from worldmodel.models.vqvae import VQVAE
from worldmodel.utils.errors import UserError


@contextmanager
def served(args: Args) -> Iterator[int]:
    """The port of a page."""
    with serve(args) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def ask(recurrent_run: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Sends a command to the page of a run."""
    with served(Args(path=str(recurrent_run), port=0)) as port:

        def ask(path: str, **told: Any) -> dict[str, Any]:
            body = json.dumps(told).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/{path}", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())

        ask.port = port  # type: ignore[attr-defined]
        yield ask


def picture(url: str) -> np.ndarray:
    return np.array(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_a_run_has_curves_frames_and_what_its_vqvae_makes_of_them(
    ask: Callable[..., dict[str, Any]], recurrent_run: Path
) -> None:
    store, vqvae = Store(recurrent_run / "data.zarr"), load_vqvae(recurrent_run / "vqvae").eval()
    about = ask("store")
    assert about["name"] == "toy" and about["rebuilt"] and about["fps"] == 5
    assert about["lengths"] == [31] * len(store.episode_ends)
    assert about["splits"] == store.episode_splits().tolist()
    rows = store.read_episode(3)
    curves = ask("episode", episode=3)["curves"]
    assert (curves["action"], curves["reward"]) == (rows["action"].tolist(), [1.0] * 30 + [0.0])
    assert (curves["COLUMN"], len(curves)) == (rows["variables"][:, 0].tolist(), 3)
    found = ask("frames", episode=3, first=0)
    assert np.array_equal([picture(url) for url in found["frames"]], rows["frames"])
    led = store.env_spec.action.encode_led(rows["action"][:-1])
    with torch.inference_mode():
        codes, pictures = vqvae.reconstruct(torch.from_numpy(rows["frames"])[None], {}, torch.from_numpy(led)[None])
    assert np.array_equal([picture(url) for url in found["reconstructions"]], pictures[0])
    assert np.array_equal(picture(found["codes"][4]), code_picture(codes[0, 4].numpy()))
    assert found["psnr"][4] == pytest.approx(psnr(pictures[0, 4].numpy(), rows["frames"][4]), abs=0.01)
    assert ask("frames", episode=3, first=20)["reconstructions"] == found["reconstructions"][20:]


@pytest.mark.parametrize(
    ("path", "info", "sentence"),
    [
        ("episode", {"episode": 60}, "has no episode 60; its episodes are 0 to 59"),
        ("episode", {"episode": -1}, "has no episode -1"),
        ("frames", {"episode": 0, "first": 31}, "episode 0 has frames 0 to 30, not 31"),
        ("frames", {"episode": 0, "first": -1}, "episode 0 has frames 0 to 30, not -1"),
        ("frames", {"episode": 0, "first": [0]}, "first must be a whole number"),
    ],
)
def test_what_there_is_not_is_one_sentence(
    path: str, info: dict[str, Any], sentence: str, ask: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(path, **info)
    assert error.value.code == 400
    assert sentence in json.loads(error.value.read())["error"]


def videos(path: Path, n: int, size: int = 16) -> np.ndarray:
    """A store of one video of n frames, without actions and rewards, with a class; its frames."""
    frames = np.random.default_rng(0).integers(256, size=(n, size, size, 3), dtype=np.uint8)
    with StoreWriter(path, EnvSpec(name="films", frame_shape=(size, size, 3), classes=("cat", "dog")), {}) as writer:
        writer.append({"frames": frames, "label": np.ones(n, np.int64)})
    return frames


def test_a_store_of_videos_has_frames_and_a_class(tmp_path: Path) -> None:
    frames = videos(tmp_path / "data.zarr", FRAMES + 3)
    viewer = make_viewer(Args(path=str(tmp_path / "data.zarr")))
    assert not viewer.answer("store")["rebuilt"]
    assert viewer.answer("episode", episode=0) == {"curves": {}, "ended": "cut", "class": "dog"}
    parts = [viewer.answer("frames", episode=0, first=first) for first in (0, FRAMES)]
    assert [len(part["frames"]) for part in parts] == [FRAMES, 3] and "psnr" not in parts[0]
    assert np.array_equal([picture(url) for part in parts for url in part["frames"]], frames)


@pytest.mark.parametrize("mode", ["paper", "stream"])
def test_a_stride_in_time_leaves_the_frames_that_do_not_fill_it(mode: str, tmp_path: Path) -> None:
    """In the paper's mode clips are encoded each on its own."""
    frames = videos(tmp_path / "data.zarr", 39)
    vqvae = VQVAE(tiny_vqvae(mode=mode, n_frames=8, stride=(2, 4, 4))).eval()
    viewer = EpisodeViewer(Store(tmp_path / "data.zarr"), vqvae)
    parts = [viewer.answer("frames", episode=0, first=first) for first in (0, FRAMES)]
    found = [picture(url) for part in parts for url in part["reconstructions"]]
    n = 32 if mode == "paper" else 38
    with torch.inference_mode():
        clips = torch.from_numpy(frames[:n]).unflatten(0, (4, 8) if mode == "paper" else (1, n))
        wanted = vqvae.reconstruct(clips)[1].flatten(0, 1).numpy()
    assert np.array_equal(found, wanted)
    assert [len(part["codes"]) for part in parts] == [32, n - 32]


def test_every_code_has_a_color_of_its_own_and_codebooks_are_side_by_side() -> None:
    colors = code_picture(np.arange(64).reshape(8, 8, 1)).reshape(64, 3)
    assert len(np.unique(colors, axis=0)) == 64
    two = code_picture(np.arange(8).reshape(2, 2, 2))
    assert two.shape == (2, 4, 3)
    assert np.array_equal(two[:, 2:], code_picture(np.arange(8).reshape(2, 2, 2)[..., 1:]))


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path, recurrent_run: Path) -> None:
    videos(tmp_path / "other.zarr", 4, size=8)
    other = tmp_path / "other.zarr"
    for args, sentence in (
        ({"path": "nothing"}, "nothing"),
        ({"path": other, "data": "x"}, "has no VQ-VAE, so it is not a run to show --data with; give --path x"),
        ({"path": recurrent_run, "data": other}, r"has frames of shape \(8, 8, 3\), but the VQ-VAE takes"),
    ):
        with pytest.raises(UserError, match=sentence):
            make_viewer(Args(**{name: str(value) for name, value in args.items()}))  # type: ignore[arg-type]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in; the requests it makes are tested")
def test_the_page_in_a_browser(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    with Browser(f"http://127.0.0.1:{ask.port}/", tmp_path / "profile") as page:  # type: ignore[attr-defined]
        page.wait("Boolean(films[30])")
        assert page.value("document.querySelector('#name').innerText") == "toy"
        assert page.value("document.querySelectorAll('#episodes option').length") == 60
        assert page.value("document.querySelector('#frame').naturalWidth") == 16
        page.wait("document.querySelector('#reconstruction').naturalWidth == 16")
        assert page.value("document.querySelectorAll('#curves svg').length") == 3
        page.value("seek(30)")
        assert page.value("document.querySelector('#at').innerText") == "frame 30 of 30"
        page.value("$('episodes').value = 5; $('episodes').onchange({target: $('episodes')})")
        page.wait("episode == 5 && Boolean(films[30])")
        page.value("playing || $('play').click()")
        page.wait("at > 2")
        page.value("playing && $('play').click()")
        page.key("ArrowLeft", down=True)
        assert page.value("films[at].frame == document.querySelector('#frame').src")
        values = ask("episode", episode=5)["curves"]["COLUMN"]
        assert float(page.value("document.querySelectorAll('.value')[3].innerText")) == values[page.value("at")]
        page.value(
            "{ const svg = document.querySelector('#curves svg'), b = svg.getBoundingClientRect();"
            "svg.dispatchEvent(new MouseEvent('click', {clientX: b.left + b.width / 3, clientY: b.top + 5})) }"
        )
        assert page.value("at") == 10, "a third of the way through 31 frames"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here to open the page in; the requests it makes are tested")
def test_a_store_in_a_browser(tmp_path: Path) -> None:
    """It has no VQ-VAE, so there is nothing beside its frames."""
    videos(tmp_path / "data.zarr", 12)
    with (
        served(Args(path=str(tmp_path / "data.zarr"), port=0)) as port,
        Browser(f"http://127.0.0.1:{port}/", tmp_path / "profile") as page,
    ):
        page.wait("Boolean(films[11])")
        assert page.value("document.querySelector('#name').innerText") == "films"
        page.value("seek(11)")
        assert page.value("document.querySelector('#at').innerText") == "frame 11 of 11"
        assert page.value("document.querySelector('#frame').naturalWidth") == 16
        assert page.value("document.querySelector('#reconstruction').offsetParent === null"), "it is hidden"
