"""Reads the files of a LeRobot dataset, version 2 or 3, from a folder.

`meta/info.json` has the features, the frame rate and the patterns of the files' names. Version 2 has a parquet file and
a video of each camera for each episode. Version 3 puts many episodes into one file: `meta/episodes` says which, and
from which second on in a video. Pictures may also be in the parquet files, as PNG or JPEG.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from collect.action_tables import import_parquet
from collect.files import reason
from collect.video_decoding import decode_frames, to_rgb, video_stream
from envs.images import resize_image
from worldmodel.utils.errors import UserError

PICTURES = ("video", "image")
"""Types of features that are cameras."""


@dataclass(frozen=True)
class Span:
    """Where an episode is: its data file, and of each camera the video and the second from which it starts."""

    index: int
    length: int
    data: str
    videos: dict[str, tuple[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"episode {self.index}"


@dataclass(frozen=True)
class Dataset:
    """What the metadata of a dataset says."""

    root: Path
    fps: float
    features: dict[str, dict[str, Any]]
    spans: tuple[Span, ...]

    @property
    def cameras(self) -> list[str]:
        """The names of the cameras."""
        return [key for key, feature in self.features.items() if feature["dtype"] in PICTURES]


def open_dataset(root: Path) -> Dataset:
    """Read the metadata; `UserError` if the folder has none, or of another version."""
    if not (root / "meta/info.json").is_file():
        raise UserError(f"{root} is not a LeRobot dataset: it has no meta/info.json; give the folder of one")
    parquet = import_parquet()
    try:
        info = json.loads((root / "meta/info.json").read_text())
        version = str(info["codebase_version"])
        if version.startswith("v3."):
            files = sorted((root / "meta/episodes").rglob("*.parquet"))
            rows = [row for path in files for row in episode_rows(parquet.ParquetFile(path))]
        elif version.startswith("v2."):
            lines = (root / "meta/episodes.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            raise UserError(
                f"{root} is a LeRobot dataset of version {version}, not 2 or 3; convert it with the lerobot package"
            )
        place = place_v3 if version.startswith("v3.") else place_v2
        features = {str(key): dict(feature) for key, feature in info["features"].items()}
        videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
        spans = tuple(place(info, videos, row) for row in sorted(rows, key=lambda row: row["episode_index"]))
        return Dataset(root, float(info["fps"]), features, spans)
    except UserError:
        raise
    except Exception as error:  # from JSON, from pyarrow, or for a missing value
        raise UserError(
            f"the metadata of {root} cannot be read ({type(error).__name__}: {reason(error)}); download it again"
        ) from None


def episode_rows(file: Any) -> list[dict[str, Any]]:
    """The rows of a file of `meta/episodes`, without the statistics."""
    return file.read([name for name in file.schema_arrow.names if not name.startswith(("stats/", "tasks"))]).to_pylist()


def place_v2(info: dict[str, Any], videos: list[str], row: dict[str, Any]) -> Span:
    i = int(row["episode_index"])
    names: dict[str, Any] = {"episode_chunk": i // int(info["chunks_size"]), "episode_index": i}
    found = {key: (info["video_path"].format(video_key=key, **names), 0.0) for key in videos}
    return Span(i, int(row["length"]), info["data_path"].format(**names), found)


def place_v3(info: dict[str, Any], videos: list[str], row: dict[str, Any]) -> Span:
    def names(of: str) -> dict[str, int]:
        return {key: int(row[f"{of}/{key}"]) for key in ("chunk_index", "file_index")}

    found = {}
    for key in videos:
        path = info["video_path"].format(video_key=key, **names(f"videos/{key}"))
        found[key] = path, float(row[f"videos/{key}/from_timestamp"])
    return Span(int(row["episode_index"]), int(row["length"]), info["data_path"].format(**names("data")), found)


def read_columns(dataset: Dataset, span: Span, keys: list[str]) -> dict[str, Any]:
    """Columns of an episode: numbers (n, ...), or a list of the rows of a column of pictures."""
    parquet = import_parquet()
    chosen = [("episode_index", "=", span.index)]
    table = parquet.read_table(dataset.root / span.data, columns=keys, filters=chosen, use_threads=False)
    if len(table) != span.length:
        raise UserError(f"{span.data} has only {len(table)} of its {span.length} rows")
    pictures = [key for key in keys if dataset.features[key]["dtype"] == "image"]
    return {key: table.column(key).to_pylist() if key in pictures else numbers(table.column(key)) for key in keys}


def read_everywhere(dataset: Dataset, key: str) -> Iterator[np.ndarray]:
    """A column of each data file; files that cannot be read are left out."""
    parquet = import_parquet()
    for path in dict.fromkeys(span.data for span in dataset.spans):
        try:
            table = parquet.ParquetFile(dataset.root / path).read([key])
            values = numbers(table.column(key))
        except Exception:  # the error is reported when its episodes are read
            continue
        yield values


def numbers(column: Any) -> np.ndarray:
    """A column of numbers or of lists of them."""
    values = column.to_numpy()
    return np.stack([np.asarray(row) for row in values]) if values.dtype == object else values


def read_camera(dataset: Dataset, span: Span, key: str, columns: dict[str, Any], size: int) -> np.ndarray:
    """The frames (n, size, size, 3) of a camera."""
    if key in columns:
        return np.stack([resize_image(picture(dataset, row), size) for row in columns[key]])
    path, start = span.videos[key]
    frames = []
    with av.open(str(dataset.root / path)) as container:
        stream, _ = video_stream(container)
        if start:
            container.seek(int(start / stream.time_base), stream=stream)
        for frame in decode_frames(container, stream):
            if (frame.time or 0.0) > start - 0.5 / dataset.fps:
                frames.append(resize_image(np.asarray(to_rgb(frame)), size))
            if len(frames) == span.length:
                return np.stack(frames)
    raise UserError(f"{path} has only {len(frames)} of its {span.length} frames")


def picture(dataset: Dataset, row: Any) -> np.ndarray:
    """The pixels of a picture in a parquet file, or of the file that it names."""
    data = row.get("bytes") if isinstance(row, dict) else row
    if data is None:
        data = (dataset.root / row["path"]).read_bytes()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
