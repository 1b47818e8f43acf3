"""Writes a store as a LeRobot dataset of version 3.

The dataset is written to a temporary folder next to its destination and then moved, so it is either complete or absent.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from collect.action_tables import import_parquet
from collect.lerobot_writing import (
    CAMERA,
    DATA_MB,
    DATA_PATH,
    FILE_NAME,
    FILES_IN_CHUNK,
    VIDEO_MB,
    VIDEO_PATH,
    Files,
    Statistics,
    pixel_format,
)
from worldmodel.data.env_spec import EnvSpec
from worldmodel.data.opening import open_store
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode
from worldmodel.utils.errors import UserError
from worldmodel.utils.progress import Progress

OWN_FILE = "meta/worldmodel.json"
"""The environment spec of the store."""
DONE, TERMINATED, TRUNCATED = "next.done", "next.terminated", "next.truncated"
EXTRA = ("label", "split")
"""Arrays that become features of their own."""
NEEDED = ("frames", "action", "reward", "terminated", "truncated")


def export_store(path: str, folder: Path, pictures: str) -> Path:
    """Write a store as a dataset, completely or not at all; returns the folder."""
    store = open_store(path)
    if missing := [name for name in NEEDED if name not in store.array_names]:
        raise UserError(f"{path} has no array {missing[0]}, which LeRobot needs; export a recorded store")
    if store.env_spec.frame_shape[2] != 3:
        raise UserError(f"{path} has frames {store.env_spec.frame_shape}, not in color; export a store of RGB frames")
    if folder.exists():
        raise UserError(f"{folder} already exists; delete it, or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        write_dataset(store, partial, pictures == "mp4")
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f"data: {folder}: {len(store.episode_ends):,} episodes, {store.n_rows:,} frames")
    if left_out := sorted(set(store.array_names) - {*NEEDED, *EXTRA, "variables"}):
        print(f"not written, because LeRobot has no place for them: {', '.join(left_out)}")
    return folder


def write_dataset(store: Store, folder: Path, video: bool) -> None:
    stats: dict[str, Statistics] = {}
    places: list[dict[str, Any]] = []
    files = Files(folder, 0, store.env_spec, video)
    n_files = 1
    try:
        for i in Progress(range(len(store.episode_ends)), unit=" episodes", desc=store.env_spec.name):
            if files.full:
                files.close()
                files, n_files = Files(folder, n_files, store.env_spec, video), n_files + 1
            rows = store.read_episode(i)
            columns = make_columns(rows, i, store.episode_bounds(i)[0], store.env_spec)
            places.append(place(i, columns["index"], files, store.env_spec))
            files.write(columns, rows["frames"])
            for key, values in (*columns.items(), (CAMERA, rows["frames"])):
                table = values.reshape(-1, 3) if key == CAMERA else values.reshape(len(values), -1)
                stats.setdefault(key, Statistics(table.shape[1])).add(table)
    finally:
        files.close()
    write_metadata(store, folder, video, stats, places)


def make_columns(rows: Episode, i: int, first: int, env_spec: EnvSpec) -> dict[str, np.ndarray]:
    """The columns of an episode except its pictures; `first` is its first row in the store."""
    n = len(rows["frames"])
    state = {"observation.state": rows["variables"]} if env_spec.variables else {}
    return state | {
        "action": rows["action"],
        "next.reward": rows["reward"],
        DONE: rows["terminated"] | rows["truncated"],
        TERMINATED: rows["terminated"],
        TRUNCATED: rows["truncated"],
        **{key: rows[key] for key in EXTRA if key in rows},
        "timestamp": (np.arange(n) / env_spec.fps).astype(np.float32),
        "frame_index": np.arange(n),
        "episode_index": np.full(n, i),
        "index": np.arange(first, first + n),
        "task_index": np.zeros(n, np.int64),
    }


def place(i: int, index: np.ndarray, files: Files, env_spec: EnvSpec) -> dict[str, Any]:
    """Where an episode is, as a row of `meta/episodes`."""
    found = {
        "episode_index": i,
        "tasks": [env_spec.name],
        "length": len(index),
        "dataset_from_index": int(index[0]),
        "dataset_to_index": int(index[-1]) + 1,
        **{f"data/{key}": value for key, value in files.names.items()},
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    if files.container:
        found |= {f"videos/{CAMERA}/{key}": value for key, value in files.names.items()}
        found[f"videos/{CAMERA}/from_timestamp"] = files.n_frames / env_spec.fps
        found[f"videos/{CAMERA}/to_timestamp"] = (files.n_frames + len(index)) / env_spec.fps
    return found


def write_metadata(
    store: Store, folder: Path, video: bool, stats: dict[str, Statistics], places: list[dict[str, Any]]
) -> None:
    import pyarrow as pa

    parquet, env_spec, n = import_parquet(), store.env_spec, len(places)
    features = make_features(store, video)
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": n,
        "total_frames": store.n_rows,
        "total_tasks": 1,
        "chunks_size": FILES_IN_CHUNK,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": frame_rate(env_spec),
        "splits": {"train": f"0:{n}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if video else None,
        "features": features,
    }
    found = {key: value.to_json((-1,)) for key, value in stats.items() if key != CAMERA}
    found[CAMERA] = stats[CAMERA].to_json((3, 1, 1), 255.0)
    episodes = folder / f"meta/episodes/{FILE_NAME.format(chunk_index=0, file_index=0)}.parquet"
    episodes.parent.mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(places), episodes)
    write_tasks(env_spec.name, folder / "meta/tasks.parquet")
    for name, content in (("meta/info.json", info), ("meta/stats.json", found), (OWN_FILE, env_spec.to_json())):
        (folder / name).write_text(json.dumps(content, indent=4) + "\n")


def write_tasks(task: str, path: Path) -> None:
    """Write the only task, as a table with the task's text as pandas' index, which LeRobot requires."""
    import pyarrow as pa

    about = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_kind, "metadata": None}
        for name, kind, numpy_kind in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    index = {"index_columns": ["task"], "column_indexes": [], "columns": about, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": [0], "task": [task]}).replace_schema_metadata({"pandas": json.dumps(index)})
    import_parquet().write_table(table, path)


def make_features(store: Store, video: bool) -> dict[str, dict[str, Any]]:
    """The features as `info.json` lists them."""
    env_spec = store.env_spec
    height, width, _ = env_spec.frame_shape
    features: dict[str, dict[str, Any]] = {
        key: {"dtype": str(values.dtype), "shape": [*(values.shape[1:] or (1,))], "names": None}
        for key, values in make_columns(store.read_episode(0), 0, 0, env_spec).items()
    }
    if env_spec.variables:
        features["observation.state"]["names"] = list(env_spec.variables)
    camera = {"shape": [height, width, 3], "names": ["height", "width", "channels"]}
    about = {"height": height, "width": width, "channels": 3, "codec": "h264", "fps": frame_rate(env_spec)}
    about |= {"pix_fmt": pixel_format(env_spec), "is_depth_map": False}
    told = {"info": {f"video.{key}": value for key, value in about.items()} | {"has_audio": False}} if video else {}
    return features | {CAMERA: {"dtype": "video" if video else "image", **camera, **told}}


def frame_rate(env_spec: EnvSpec) -> float:
    """Frames per second, as an integer if it is a whole number, like LeRobot's."""
    return int(env_spec.fps) if env_spec.fps.is_integer() else env_spec.fps
