"""Writes the files of a LeRobot dataset of version 3: rows of many episodes as parquet, their frames as MP4 or PNG."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from collect.action_tables import import_parquet
from worldmodel.data.env_spec import EnvSpec

CAMERA = "observation.images.camera"
"""The feature of the frames."""
FILE_NAME = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH, VIDEO_PATH = f"data/{FILE_NAME}.parquet", f"videos/{{video_key}}/{FILE_NAME}.mp4"
FILES_IN_CHUNK, DATA_MB, VIDEO_MB = 1000, 100, 200
"""LeRobot's usual sizes."""
ENCODER = {"crf": "18", "g": "2"}
"""Quality, and a key frame at every second frame, so that any frame is decoded fast."""


class Files:
    """A parquet file and a video that are being written, unless the frames are in the parquet file."""

    def __init__(self, folder: Path, number: int, env_spec: EnvSpec, video: bool) -> None:
        self.names = {"chunk_index": number // FILES_IN_CHUNK, "file_index": number % FILES_IN_CHUNK}
        self.data, self.env_spec = folder / DATA_PATH.format(**self.names), env_spec
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.table_writer: Any = None
        self.container: Any = None
        self.n_frames = self.data_bytes = self.video_bytes = 0
        if video:
            path = folder / VIDEO_PATH.format(video_key=CAMERA, **self.names)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.container = av.open(str(path), "w")
            rate = Fraction(env_spec.fps).limit_denominator(1001)
            self.stream = self.container.add_stream("libx264", rate=rate, options=ENCODER)
            self.stream.height, self.stream.width = env_spec.frame_shape[:2]
            self.stream.pix_fmt = pixel_format(env_spec)

    def write(self, columns: dict[str, np.ndarray], frames: np.ndarray) -> None:
        """Write an episode."""
        import pyarrow as pa

        arrays = {key: arrow_array(values) for key, values in columns.items()}
        if self.container:
            for pixels in frames:
                self._mux(self.stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        else:
            pictures = [{"bytes": png(pixels), "path": None} for pixels in frames]
            arrays[CAMERA] = pa.array(pictures, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table(arrays)
        if self.table_writer is None:
            self.table_writer = import_parquet().ParquetWriter(self.data, table.schema)
        self.table_writer.write_table(table)
        self.n_frames += len(frames)
        self.data_bytes += table.nbytes

    def _mux(self, packets: list[av.Packet]) -> None:
        self.video_bytes += sum(packet.size for packet in packets)
        self.container.mux(packets)

    @property
    def full(self) -> bool:
        """Whether the next episode should go into the next files."""
        return self.data_bytes > DATA_MB << 20 or self.video_bytes > VIDEO_MB << 20

    def close(self) -> None:
        if self.container:
            self._mux(self.stream.encode())
            self.container.close()
        if self.table_writer:
            self.table_writer.close()


def pixel_format(env_spec: EnvSpec) -> str:
    """yuv420p, which every player decodes but which needs even sizes, or else yuv444p."""
    return "yuv444p" if env_spec.frame_shape[0] % 2 or env_spec.frame_shape[1] % 2 else "yuv420p"


def arrow_array(values: np.ndarray) -> Any:
    """A column: numbers, or lists of one length. A list of one number is written as the number, as LeRobot does."""
    import pyarrow as pa

    if values.ndim == 1 or values.shape[1] == 1:
        return pa.array(values.reshape(len(values)))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Statistics:
    """Minimum, maximum, mean and standard deviation of the rows of a feature."""

    def __init__(self, width: int) -> None:
        self.n, self.total, self.squares = 0, np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Add rows (n, width)."""
        rows = rows.astype(np.float64)
        self.n += len(rows)
        self.total, self.squares = self.total + rows.sum(0), self.squares + (rows**2).sum(0)
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))

    def to_json(self, shape: tuple[int, ...], scale: float = 1.0) -> dict[str, Any]:
        """The statistics in LeRobot's format, divided by a scale."""
        mean = self.total / self.n
        std = np.sqrt(np.maximum(self.squares / self.n - mean**2, 0))
        found = {"min": self.low, "max": self.high, "mean": mean, "std": std}
        return {key: (value / scale).reshape(shape).tolist() for key, value in found.items()} | {"count": [self.n]}
