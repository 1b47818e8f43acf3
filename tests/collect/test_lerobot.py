"""LeRobot datasets: of version 2 and 3, made here as the format says, and stores written and read again."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from collect import lerobot, lerobot_export, lerobot_files, lerobot_writing
from collect.files import with_labels
from tests.collect.films import grey, levels, write
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.opening import write_manifest
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter
from worldmodel.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("here")
TOP, SIDE = "observation.images.top", "observation.images.side"
N = 11
LENGTHS = [4 + i % 3 for i in range(N)]


def feature(dtype: str, *shape: int, names: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def info(version: str, cameras: dict[str, str], **paths: Any) -> dict[str, Any]:
    return {
        "codebase_version": version,
        "fps": 10,
        "chunks_size": 1000,
        **paths,
        "features": {
            "observation.state": feature("float32", 2, names={"motors": ["shoulder", "wrist"]}),
            "action": feature("float32", 2),
            "next.reward": feature("float32", 1),
            "next.done": feature("bool", 1),
            "episode_index": feature("int64", 1),
            **{key: feature(dtype, 16, 24, 3) for key, dtype in cameras.items()},
        },
    }


def table(i: int, n: int) -> dict[str, Any]:
    return {
        "observation.state": [[float(i), float(t)] for t in range(n)],
        "action": [[i / 10, -float(t)] for t in range(n)],
        "next.reward": [float(t == n - 1) for t in range(n)],
        "next.done": [t == n - 1 for t in range(n)],
        "episode_index": [i] * n,
    }


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        pq.write_table(pa.table(content) if isinstance(content, dict) else pa.Table.from_pylist(content), path)


def film(i: int, n: int, first: int = 0) -> list[np.ndarray]:
    """Episode i at time t is grey 10 * (i + t), plus 100 for another camera."""
    return [grey(10 * (i + t + first), 16, 24) for t in range(n)]


def version_2(root: Path, version: str = "v2.1") -> Path:
    """A file and two videos for each episode."""
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    save(root / "meta/info.json", json.dumps(info(version, {TOP: "video", SIDE: "video"}, **paths)))
    episodes = [{"episode_index": i, "tasks": ["lift"], "length": n} for i, n in enumerate(LENGTHS)]
    save(root / "meta/episodes.jsonl", "".join(json.dumps(row) + "\n" for row in episodes))
    for i, n in enumerate(LENGTHS):
        save(root / f"data/chunk-000/episode_{i:06d}.parquet", table(i, n))
        for key, first in ((TOP, 0), (SIDE, 5)):
            write(root / f"videos/chunk-000/{key}/episode_{i:06d}.mp4", film(i, n, first), rate=10)
    return root


def version_3(root: Path) -> Path:
    """Episodes 0 to 6 in the first files, the others in the second ones; a video and pictures inside of parquet."""
    paths = {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    save(root / "meta/info.json", json.dumps(info("v3.0", {TOP: "video", SIDE: "image"}, **paths)))
    rows = []
    for file, members in enumerate((range(7), range(7, N))):
        frames: list[np.ndarray] = []
        columns: dict[str, list[Any]] = {}
        for i in members:
            where = {"data/chunk_index": 0, "data/file_index": file, f"videos/{TOP}/chunk_index": 0}
            times = {f"videos/{TOP}/file_index": file, f"videos/{TOP}/from_timestamp": len(frames) / 10}
            rows.append({"episode_index": i, "length": LENGTHS[i], "tasks": ["lift"]} | where | times)
            pictures = [{"bytes": lerobot_writing.png(p), "path": None} for p in film(i, LENGTHS[i], 5)]
            for key, values in (table(i, LENGTHS[i]) | {SIDE: pictures}).items():
                columns[key] = columns.get(key, []) + values
            frames += film(i, LENGTHS[i])
        save(root / f"data/chunk-000/file-{file:03d}.parquet", columns)
        write(root / f"videos/{TOP}/chunk-000/file-{file:03d}.mp4", frames, rate=10, codec="libx264")
    save(root / "meta/episodes/chunk-000/file-000.parquet", rows)
    return root


def read(tmp_path: Path, source: Path, out: str = "out.zarr", **how: Any) -> Store:
    lerobot.main(lerobot.Args(source=source, out=tmp_path / out, num_workers=1, **{"size": 16} | how))
    return Store(tmp_path / out)


@pytest.mark.parametrize("make", [version_2, version_3])
def test_both_versions_hold_the_same(tmp_path: Path, make: Any) -> None:
    store = read(tmp_path, make(tmp_path / "arm"), camera=("top", SIDE))
    assert store.env_spec == EnvSpec(
        name="arm",
        frame_shape=(16, 32, 3),
        action=ActionSpec(kind="Box", low=(0, -5), high=(1, 0)),
        variables=("shoulder", "wrist"),
        fps=10,
    )
    assert len(store.episode_ends) == N and "split" not in store.array_names
    for i in (0, 3, 8, 10):
        rows, n = store.read_episode(i), LENGTHS[i]
        assert levels(rows["frames"][:, :, :16]) == [i + t for t in range(n)]
        assert levels(rows["frames"][:, :, 16:]) == [i + t + 5 for t in range(n)]
        np.testing.assert_allclose(rows["action"], [[i / 10, -t] for t in range(n - 1)] + [[0, 0]], rtol=1e-6)
        assert rows["variables"].tolist() == [[i, t] for t in range(n)]
        assert rows["reward"].tolist() == [0] * (n - 2) + [1, 0] and rows["terminated"][-2]


def test_version_2_0_and_one_camera_of_two(tmp_path: Path) -> None:
    source = version_2(tmp_path / "arm", "v2.0")
    with pytest.raises(UserError, match=f"has the cameras {TOP}, {SIDE}; choose with --camera"):
        read(tmp_path, source)
    store = read(tmp_path, source, camera=("side",), size=0, state=("next.reward",), low=(-9,), high=(9,))
    assert store.env_spec.frame_shape == (16, 24, 3)
    assert store.env_spec.variables == ("next.reward",)
    assert store.env_spec.action == ActionSpec(kind="Box", low=(-9, -9), high=(9, 9))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"camera": ("front",)}, f"has no camera front, only {TOP}, {SIDE}; choose with --camera"),
        (
            {"camera": ("top",), "action": "act"},
            "has no numeric feature act, only observation.state, .*; choose with --action",
        ),
        ({"camera": ("top",), "state": ("x",)}, "has no numeric feature x, only .*; choose with --state"),
    ],
)
def test_a_feature_that_is_not_there(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path, version_2(tmp_path / "arm"), **how)


def test_metadata_that_is_missing_other_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a LeRobot dataset: it has no meta/info.json"):
        read(tmp_path, tmp_path)
    path = version_3(tmp_path / "arm") / "meta/info.json"
    good = json.loads(path.read_text())
    for content, why in (
        ("text", "cannot be read .JSONDecodeError"),
        ("[1]", "cannot be read"),
        (json.dumps(good | {"codebase_version": "v1.6"}), "is a LeRobot dataset of version v1.6, not 2 or 3; convert"),
        (json.dumps(good | {"features": {"a": 1}}), "cannot be read"),
        (json.dumps(good | {"fps": None}), "cannot be read"),
        (json.dumps({k: v for k, v in good.items() if k != "data_path"}), "cannot be read .KeyError"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=why):
            read(tmp_path, tmp_path / "arm")


def test_damaged_episodes_are_named_and_the_others_kept(tmp_path: Path) -> None:
    root = version_2(tmp_path / "arm")
    video, data = root / f"videos/chunk-000/{TOP}", root / "data/chunk-000"
    (video / "episode_000000.mp4").write_bytes(b"text")
    (video / "episode_000001.mp4").unlink()
    write(video / "episode_000002.mp4", film(2, LENGTHS[2] - 1), rate=10)
    (data / "episode_000003.parquet").write_bytes(b"PAR1")
    save(data / "episode_000004.parquet", table(4, LENGTHS[4] - 1))
    save(data / "episode_000005.parquet", {k: v for k, v in table(5, LENGTHS[5]).items() if k != "action"})
    assert len(read(tmp_path, root, camera=("top",)).episode_ends) == 5
    why = (tmp_path / "out.zarr/skipped.txt").read_text().splitlines()
    assert [f"episode {i}: " in line for i, line in enumerate(why)] == [True] * 6
    assert "has only 5 of its 6 frames" in why[2] and "has only 4 of its 5 rows" in why[4]


def recorded(
    path: Path, action: ActionSpec, variables: int, fps: float = 8.75, size: tuple[int, int] = (12, 10)
) -> Store:
    """Gentle pictures, which a codec keeps nearly; numbers that only float32 holds."""
    rng = np.random.default_rng(1)
    names = tuple(f"v{i}" for i in range(variables))
    shape = (*size, 3)
    spec = EnvSpec(
        name="toy", env_id="Toy-v0", frame_shape=shape, action=action, variables=names, classes=("a", "b"), fps=fps
    )
    with StoreWriter(path, spec, {}) as writer:
        for i in range(5):
            n = 20 + i
            if action.kind == "Box":
                actions = rng.uniform(action.low, action.high, (n, len(action.low))).astype(np.float32)
            else:
                actions = rng.integers(action.nvec, size=(n, len(action.nvec))).reshape(n, *action.shape)
            actions[-1] = 0
            ramp = np.linspace(0, 100, size[1])[None, None, :, None] + 20 * i + np.arange(n)[:, None, None, None]
            ended = np.arange(n) == n - 2
            episode = {
                "frames": np.broadcast_to(ramp, (n, *shape)).astype(np.uint8),
                "action": actions,
                "reward": np.append(rng.normal(size=n - 1), 0).astype(np.float32),
                "terminated": ended & (i % 2 == 0),
                "truncated": ended & (i in (1, 3, 4)),
                "variables": rng.normal(size=(n, variables)).astype(np.float32),
            }
            writer.append(with_labels(episode, label=i % 2, split=i % 3))
    return Store(path)


KINDS = {
    "Discrete": ActionSpec(kind="Discrete", nvec=(5,)),
    "MultiDiscrete": ActionSpec(kind="MultiDiscrete", nvec=(2, 5)),
    "Box": ActionSpec(kind="Box", low=(-1.0, 0.5), high=(1.0, 3.0)),
    "Box of one": ActionSpec(kind="Box", low=(-1.0,), high=(1.0,)),
}


def export(store: Store, folder: Path, pictures: Any = "mp4") -> Path:
    lerobot.main(lerobot.Args(export=store.path, dataset=folder, pictures=pictures))
    return folder


@pytest.mark.parametrize(("kind", "variables"), [("Discrete", 0), ("MultiDiscrete", 1), ("Box", 2), ("Box of one", 3)])
@pytest.mark.parametrize("pictures", ["mp4", "png"])
def test_a_store_comes_back(
    tmp_path: Path, kind: str, variables: int, pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several files; the numbers bit by bit, the frames too as PNG."""
    monkeypatch.setattr(lerobot_writing, "DATA_MB" if pictures == "png" else "VIDEO_MB", 0)
    store = recorded(tmp_path / "data.zarr", KINDS[kind], variables)
    back = read(tmp_path, export(store, tmp_path / "toy", pictures), size=0)
    assert (back.env_spec, back.array_names) == (store.env_spec, store.array_names)
    np.testing.assert_array_equal(back.episode_ends, store.episode_ends)
    for name in store.array_names:
        ours, theirs = store.read(name, 0, store.n_rows), back.read(name, 0, store.n_rows)
        assert ours.dtype == theirs.dtype
        if name == "frames" and pictures == "mp4":
            error = np.abs(ours.astype(int) - theirs).mean()
            assert error < 2, error
        else:
            np.testing.assert_array_equal(ours, theirs)


def test_joined_stores_are_exported_as_one(tmp_path: Path) -> None:
    write_manifest(str(tmp_path / "all"), ["0", "1"])
    parts = [recorded(tmp_path / "all" / str(i), KINDS["Discrete"], 1) for i in range(2)]
    lerobot.main(lerobot.Args(export=str(tmp_path / "all"), dataset=tmp_path / "toy", pictures="png"))
    back = read(tmp_path, tmp_path / "toy", size=0)
    assert len(back.episode_ends) == 2 * len(parts[0].episode_ends)
    np.testing.assert_array_equal(back.read_episode(6)["frames"], parts[1].read_episode(1)["frames"])


def test_a_dataset_is_what_the_format_says(tmp_path: Path) -> None:
    store = recorded(tmp_path / "data.zarr", KINDS["Box"], 2, fps=10, size=(16, 16))
    root = export(store, tmp_path / "toy")
    said = json.loads((root / "meta/info.json").read_text())
    assert (said["codebase_version"], said["total_episodes"], said["total_frames"]) == ("v3.0", 5, store.n_rows)
    assert (said["fps"], said["splits"], said["features"]["action"]["shape"]) == (10, {"train": "0:5"}, [2])
    episodes = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["length"] for row in episodes] == [20, 21, 22, 23, 24]
    key = f"videos/{lerobot_writing.CAMERA}"
    assert [row[f"{key}/from_timestamp"] for row in episodes] == [0, 2.0, 4.1, 6.3, 8.6]
    data = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert data["index"].to_pylist() == list(range(store.n_rows))
    assert data["action"].type == pa.list_(pa.float32(), 2)
    tasks = pq.read_schema(root / "meta/tasks.parquet").metadata[b"pandas"]
    assert json.loads(tasks)["index_columns"] == ["task"]
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = store.read("action", 0, store.n_rows)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0), rtol=1e-5)
    assert np.shape(stats[lerobot_writing.CAMERA]["max"]) == (3, 1, 1)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreWriter(tmp_path / "film.zarr", EnvSpec(name="film"), {}) as writer:
        writer.append({"frames": np.zeros((3, 64, 64, 3), np.uint8)})
    with pytest.raises(UserError, match="has no array action, which LeRobot needs"):
        export(Store(tmp_path / "film.zarr"), tmp_path / "toy")
    store = recorded(tmp_path / "data.zarr", KINDS["Box"], 2)
    with pytest.raises(UserError, match="no dataset was given; name the folder"):
        lerobot.main(lerobot.Args(export=store.path))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(lerobot_export, "write_metadata", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(store, tmp_path / "toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "film.zarr"]
    export(store, tmp_path / "toy")
    with pytest.raises(UserError, match="toy already exists; delete it, or name another folder"):
        export(store, tmp_path / "toy")
    (tmp_path / "toy" / lerobot_export.OWN_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"meta/worldmodel.json.* is damaged .*; delete it"):
        read(tmp_path, tmp_path / "toy")


def test_pictures_in_files_of_their_own(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(grey(70, 4, 4)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    dataset = lerobot_files.Dataset(tmp_path, 10, {}, ())
    assert lerobot_files.picture(dataset, {"bytes": None, "path": "a.png"})[0, 0, 0] == 70


def test_without_pyarrow_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pyarrow is not installed; run pip install 'worldmodel\[parquet\]'"):
        read(tmp_path, tmp_path)
