"""Small data sets as each collector reads them, whole; the campaign damages copies of them."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import h5py
import numpy as np
from PIL import Image

from collect import bair, hdf5, lerobot, minari, moving_mnist, rlds, robonet, tgif, ucf101, video
from collect.files import ReaderArgs, with_labels
from collect.tfrecord import masked_crc
from tests.collect.films import block, gif, grey, write
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.writer import Episode, StoreWriter

SIZE, STEPS = 8, 6


@dataclass(frozen=True)
class Kind:
    """A data set, and how it is collected."""

    make: Callable[[Path], None]
    """Writes it, whole, into an empty folder."""
    collect: Callable[[Path, Path], None]
    """Makes a store of what is in a folder."""
    items: tuple[str, ...]
    """The files of episodes within the folder, in the store's order; a collection goes on where one is broken."""
    lists: tuple[str, ...] = ()
    """Files without which there is no collection."""
    shared: tuple[str, ...] = ()
    """Those of the lists that hold several episodes: a collection goes on unless none is left."""
    checked: bool = False
    """Whether the files have checksums: what is read of a damaged one must be what it was."""
    counted: bool = False
    """Whether the files tell how long they are: half of one must be skipped."""


def greys(n: int, first: int = 0) -> list[np.ndarray]:
    return [grey(min(10 * (first + i), 250), 24, 40) for i in range(n)]


def given(kind: type[ReaderArgs], folder: Path, out: Path, **more: Any) -> Any:
    return kind(source=folder, out=out, num_workers=1, **more)


def make_videos(folder: Path) -> None:
    write(folder / "a.avi", greys(10))
    write(folder / "b.mp4", greys(10, 3), codec="libx264", options={"movflags": "faststart"})
    write(folder / "c.mkv", greys(10, 6), codec="libx264")
    write(folder / "d.webm", greys(10, 9), codec="libvpx-vp9", rate=10)


def collect_videos(folder: Path, out: Path) -> None:
    video.main(given(video.Args, folder, out, size=SIZE, min_frames=2))


def collect_resampled(folder: Path, out: Path) -> None:
    video.main(given(video.Args, folder, out, size=SIZE, min_frames=2, fps=10))


def make_gifs(folder: Path) -> None:
    """Of each colour two, and their sentences."""
    (folder / "gifs").mkdir()
    (folder / "splits").mkdir()
    for i in range(6):
        frames = [{"pixels": block(i % 5, 6, 8)}, *({"pixels": block(7, 2, 2), "at": (i, x)} for x in range(3))]
        (folder / "gifs" / f"tumblr_{i}.gif").write_bytes(gif(frames))
    rows = [f"https://38.media.tumblr.com/{i}/tumblr_{i}.gif\tsentence {i}\n" for i in (0, 1, 2, 3, 4, 5, 0)]
    (folder / "tgif-v1.0.tsv").write_text("".join(rows))
    for name, listed in (("train", (0, 1, 4, 5)), ("val", (2,)), ("test", (3,))):
        (folder / "splits" / f"{name}.txt").write_text("".join(rows[i].partition("\t")[0] + "\n" for i in listed))


def collect_gifs(folder: Path, out: Path) -> None:
    tgif.main(given(tgif.Args, folder, out, size=SIZE, min_frames=2))


UCF = [f"{name}/v_{name}_g{group:02}_c01.avi" for name in ("Archery", "YoYo") for group in (8, 9, 1)]


def make_ucf(folder: Path) -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n2 YoYo\n")
    train = [name for name in UCF if "g01" not in name]
    (lists / "trainlist01.txt").write_text("".join(f"{name} {1 + ('YoYo' in name)}\n" for name in train))
    (lists / "testlist01.txt").write_text("".join(f"{name}\n" for name in UCF if "g01" in name))
    for i, name in enumerate(UCF):
        write(folder / "UCF-101" / name, [grey(40 * i, 24, 32)] * 4)


def collect_ucf(folder: Path, out: Path) -> None:
    ucf101.main(given(ucf101.Args, folder, out, size=SIZE, min_frames=2))


def varint(n: int) -> bytes:
    return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])


def message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2]) + varint(len(data)) + data


def record(rng: np.random.Generator) -> bytes:
    """An episode of BAIR's."""
    features = {}
    for t in range(bair.STEPS):
        features[f"{t}/image_aux1/encoded"] = message(1, message(1, rng.bytes(64 * 64 * 3)))
        for name, n in (("action", 4), ("endeffector_pos", 3)):
            features[f"{t}/{name}"] = message(2, message(1, rng.uniform(-1, 1, n).astype("<f4").tobytes()))
    return framed(features)


def framed(features: dict[str, bytes]) -> bytes:
    """A record of an Example."""
    entries = b"".join(message(1, message(1, name.encode()) + message(2, f)) for name, f in features.items())
    data = message(1, entries)
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


TFRECORDS = ("train/traj_0_to_0.tfrecords", "train/traj_1_to_1.tfrecords", "test/traj_0_to_0.tfrecords")


def make_bair(folder: Path) -> None:
    for i, name in enumerate(TFRECORDS):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(record(np.random.default_rng(i)))


def collect_bair(folder: Path, out: Path) -> None:
    bair.main(given(bair.Args, folder, out))


def jpg(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return np.frombuffer(buffer.getvalue(), np.uint8)


def make_robonet(folder: Path) -> None:
    for i, name in enumerate("abc"):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["env/state"] = np.random.default_rng(i).normal(size=(STEPS, 5))
            file["policy/actions"] = np.random.default_rng(i + 9).uniform(-1, 1, (STEPS - 1, 4)).astype(np.float32)
            if name == "a":
                film = write(folder / "film.mp4", greys(STEPS, 5), codec="libx264", options={"movflags": "faststart"})
                file["env/cam0_video/frames"] = np.frombuffer(film.read_bytes(), np.uint8)
                film.unlink()
                continue
            for t, pixels in enumerate(greys(STEPS, 5 * i)):
                file[f"env/cam0_video/frame{t}"] = jpg(pixels)


def collect_robonet(folder: Path, out: Path) -> None:
    robonet.main(given(robonet.Args, folder, out, size=SIZE))


def moving(save: Callable[..., None], name: str, axes: tuple[int, int] = (0, 0), **more: Any) -> Kind:
    """Moving MNIST in a file of a kind; `axes` are exchanged."""

    def make(folder: Path) -> None:
        videos = np.random.default_rng(0).integers(0, 256, (60, 20, 6, 6), np.uint8).swapaxes(*axes)
        save(folder / name, videos)

    def collect(folder: Path, out: Path) -> None:
        moving_mnist.main(given(moving_mnist.Args, folder / name, out, channels=1))

    return Kind(make, collect, (), (name,), **more)


def save_frames(path: Path, videos: np.ndarray) -> None:
    begin = 20 * np.arange(len(videos))
    clips = np.stack([np.stack([begin + s, np.full(len(videos), 10)], -1) for s in (0, 10)])
    np.savez(path, clips=clips, input_raw_data=(videos.reshape(-1, 1, 6, 6) / 255).astype(np.float32))


def make_minari(folder: Path) -> None:
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    ended = np.arange(STEPS) == STEPS - 1
    episodes = [
        EpisodeBuffer(
            observations=np.full((STEPS + 1, SIZE, SIZE, 3), 40 * i, np.uint8),
            actions=np.arange(STEPS) % 3,
            rewards=np.arange(STEPS) / 2,
            terminations=ended,
            truncations=ended & False,
        )
        for i in range(3)
    ]
    spaces = {"observation_space": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}
    with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create_dataset_from_buffers(
            "toys/sets-v0", episodes, action_space=gym.spaces.Discrete(3), jpeg_encoding=False, **spaces
        )


def toy_episode(i: int) -> Episode:
    rng = np.random.default_rng(i)
    widths = {"reward": (), "variables": (2,), "action": (4,)}
    numbers = {name: rng.uniform(-1, 1, (STEPS, *width)).astype(np.float32) for name, width in widths.items()}
    flags = {name: np.arange(STEPS) == STEPS - 2 for name in ("terminated", "truncated")}
    return with_labels({"frames": np.full((STEPS, SIZE, SIZE, 3), 40 * i, np.uint8)} | flags | numbers, label=i)


def make_exported(folder: Path) -> None:
    """What a store of our own becomes."""
    action = ActionSpec(kind="Box", low=(-1.0,) * 4, high=(1.0,) * 4)
    env_spec = EnvSpec(name="toy", frame_shape=(SIZE, SIZE, 3), action=action, variables=("x", "y"))
    with StoreWriter(folder / "data.zarr", env_spec, {}) as writer:
        for i in range(3):
            writer.append(toy_episode(i))
    with mock.patch.dict(os.environ, MINARI_DATASETS_PATH=str(folder)):
        minari.main(minari.Args(export=str(folder / "data.zarr"), dataset="toys/sets-v0"))
    shutil.rmtree(folder / "data.zarr")


def collect_minari(folder: Path, out: Path) -> None:
    minari.open_dataset.cache_clear()
    minari.main(minari.Args(dataset=str(folder / "toys/sets-v0"), out=out, num_workers=1))


def make_hdf5(folder: Path) -> None:
    for i, name in enumerate("abc"):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            file["camera"] = np.full((STEPS, SIZE, SIZE, 3), 40 * i, np.uint8)
            file["actions"] = np.random.default_rng(i).uniform(-1, 1, (STEPS, 2)).astype(np.float32)


def collect_hdf5(folder: Path, out: Path) -> None:
    hdf5.main(given(hdf5.Args, folder, out, size=SIZE, frames=("camera",)))


def make_tables(folder: Path) -> None:
    for i, name in enumerate("abc"):
        write(folder / f"{name}.avi", greys(STEPS, i))
        numbers = np.random.default_rng(i).uniform(-1, 1, (STEPS, 2))
        (folder / f"{name}.csv").write_text("steer,gas\n" + "".join(f"{a},{b}\n" for a, b in numbers))


def collect_tables(folder: Path, out: Path) -> None:
    video.main(given(video.Args, folder, out, size=SIZE, min_frames=2, actions_table="csv"))


def make_lerobot(folder: Path) -> None:
    """What a store of our own becomes, with a state and without our own file."""
    action = ActionSpec(kind="Box", low=(-1.0,) * 4, high=(1.0,) * 4)
    env_spec = EnvSpec(name="toy", frame_shape=(SIZE, SIZE, 3), action=action, variables=("x", "y"))
    with StoreWriter(folder / "data.zarr", env_spec, {}) as writer:
        for i in range(3):
            writer.append(toy_episode(i))
    lerobot.main(lerobot.Args(export=str(folder / "data.zarr"), dataset=folder / "toy"))
    (folder / "toy/meta/worldmodel.json").unlink()
    shutil.rmtree(folder / "data.zarr")


def collect_lerobot(folder: Path, out: Path) -> None:
    lerobot.main(given(lerobot.Args, folder / "toy", out, size=SIZE))


def make_rlds(folder: Path) -> None:
    for i, name in enumerate("abc"):
        pictures = b"".join(message(1, jpg(pixels).tobytes()) for pixels in greys(STEPS, i))
        actions = np.random.default_rng(i).uniform(-1, 1, 2 * STEPS).astype("<f4").tobytes()
        values = {"steps/observation/image": message(1, pictures), "steps/action": message(2, message(1, actions))}
        (folder / f"{name}.tfrecord").write_bytes(framed(values))


def collect_rlds(folder: Path, out: Path) -> None:
    rlds.main(given(rlds.Args, folder, out, size=SIZE))


LEROBOT = (
    *("toy/data/chunk-000/file-000.parquet", "toy/videos/observation.images.camera/chunk-000/file-000.mp4"),
    *("toy/meta/info.json", "toy/meta/episodes/chunk-000/file-000.parquet"),
)
MINARI = ("toys/sets-v0/data/main_data.hdf5", "toys/sets-v0/data/metadata.json")
VIDEOS = ("a.avi", "b.mp4", "c.mkv", "d.webm")
KINDS = {
    "video": Kind(make_videos, collect_videos, VIDEOS, counted=True),
    "video, resampled": Kind(make_videos, collect_resampled, VIDEOS),
    "tgif": Kind(
        make_gifs,
        collect_gifs,
        tuple(f"gifs/tumblr_{i}.gif" for i in range(6)),
        ("tgif-v1.0.tsv", "splits/train.txt", "splits/val.txt", "splits/test.txt"),
        counted=True,
    ),
    "ucf101": Kind(
        make_ucf,
        collect_ucf,
        tuple(f"UCF-101/{name}" for name in (*(n for n in UCF if "g01" not in n), *(n for n in UCF if "g01" in n))),
        tuple(f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")),
        counted=True,
    ),
    "bair": Kind(make_bair, collect_bair, TFRECORDS, checked=True, counted=True),
    "robonet": Kind(make_robonet, collect_robonet, ("a.hdf5", "b.hdf5", "c.hdf5"), counted=True),
    "npy": moving(np.save, "a.npy", counted=True),
    "npy, videos first": moving(np.save, "a.npy", (0, 1), counted=True),
    "npz": moving(np.savez_compressed, "a.npz", checked=True, counted=True),
    "npz of frames": moving(save_frames, "a.npz", checked=True, counted=True),
    "hdf5": Kind(make_hdf5, collect_hdf5, ("a.hdf5", "b.hdf5", "c.hdf5")),
    "tables": Kind(make_tables, collect_tables, (), ("a.csv", "b.csv", "c.csv"), ("a.csv", "b.csv", "c.csv")),
    "lerobot": Kind(make_lerobot, collect_lerobot, (), LEROBOT, LEROBOT[:2]),
    "rlds": Kind(make_rlds, collect_rlds, ("a.tfrecord", "b.tfrecord", "c.tfrecord"), checked=True),
    "minari": Kind(make_minari, collect_minari, (), MINARI, MINARI[:1]),
    "minari, exported": Kind(make_exported, collect_minari, (), MINARI, MINARI[:1]),
}
