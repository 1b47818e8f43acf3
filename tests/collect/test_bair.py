"""BAIR's TFRecords, written here byte by byte: no framing, checksum or protocol buffer shares code with the reader."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from collect import bair
from collect.files import BrokenFile
from collect.tfrecord import example, masked_crc
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address

ROOT = Path(__file__).resolve().parents[2]


def crc32c(data: bytes) -> int:
    """By a table made from the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


TABLE = [_entry(byte) for byte in range(256)]


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def number(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def message(field: int, data: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(data)) + data


def packed(values: Iterable[float]) -> bytes:
    return message(2, message(1, b"".join(struct.pack("<f", v) for v in values)))


def unpacked(values: Iterable[float]) -> bytes:
    return message(2, b"".join(number(1 << 3 | 5) + struct.pack("<f", v) for v in values))


def raw(data: bytes) -> bytes:
    return message(1, message(1, data))


Features = dict[str, bytes]


def features(seed: int, floats: Callable[[Iterable[float]], bytes] = packed) -> Features:
    """An episode: the first pixels tell seed, time and camera, the last one the order of channels."""
    out = {}
    for t in range(30):
        for c, camera in enumerate(("main", "aux1")):
            picture = np.zeros((64, 64, 3), np.uint8)
            picture[0, :4] = [[seed, t, c]] * 4
            picture[63, 63] = (200, 100, 50)
            out[f"{t}/image_{camera}/encoded"] = raw(picture.tobytes())
        out[f"{t}/action"] = floats([seed / 8, t / 16, -t / 16, 0.25])
        out[f"{t}/endeffector_pos"] = floats([seed / 4, t / 4, 0.5])
    return out


def serialized(values: Features) -> bytes:
    entries = [message(1, message(1, name.encode()) + message(2, v)) for name, v in values.items()]
    return message(1, b"".join(entries))


CACHE: dict[tuple[int, bool], bytes] = {}


def written(seed: int, whole: bool = True) -> bytes:
    """A record; checksums of a megabyte take a moment, so each is made once."""
    if (seed, whole) not in CACHE:
        CACHE[seed, whole] = record(serialized(features(seed, packed if whole else unpacked)))
    return CACHE[seed, whole]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two files for training, of two records and one, and one for testing."""
    folder = tmp_path / "softmotion30_44k"
    for name, seeds in {"train/traj_0_to_1": (1, 2), "train/traj_10_to_10": (3,), "test/traj_0_to_0": (4,)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.tfrecords").write_bytes(b"".join(written(s) for s in seeds))
    return folder


def args(source: Path, **changes: object) -> bair.Args:
    return bair.Args(source=source, out=source.parent / "data.zarr", num_workers=1, **changes)  # type: ignore[arg-type]


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert struct.pack("<I", masked_crc(b"123456789")) == masked(b"123456789")


def test_what_is_read_by_two_processes(
    source: Path, tmp_path: Path, forked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bair.main(bair.Args(source=source, valid=0, num_workers=2, out=Address(tmp_path / "data.zarr")))
    said = capsys.readouterr().out
    assert "4 episodes, 120 frames\n" in said
    assert "actions range from [0.125, 0.0, -1.75, 0.25] to [0.5, 1.75, 0.0, 0.25]" in said
    store = Store(tmp_path / "data.zarr")
    assert store.array_names == ("action", "frames", "reward", "split", "terminated", "truncated", "variables")
    assert store.env_spec.variables == ("x", "y", "z")
    assert [store.episode_indices(split).tolist() for split in ("train", "test")] == [[0, 1, 2], [3]]
    for i in range(4):
        episode = store.read_episode(i)
        frames = episode["frames"]
        assert frames[:, 0, 0].tolist() == [[i + 1, t, 1] for t in range(30)]
        assert frames[:, 63, 63].tolist() == [[200, 100, 50]] * 30
        assert frames[:, 1:63].max() == 0
        taken = [[(i + 1) / 8, t / 16, -t / 16, 0.25] for t in range(29)]
        assert episode["action"].tolist() == [*taken, [0, 0, 0, 0]]  # the last action led nowhere we know
        assert episode["variables"].tolist() == [[(i + 1) / 4, t / 4, 0.5] for t in range(30)]
        assert episode["truncated"].tolist() == [False] * 28 + [True, False]
        assert not episode["terminated"].any() and not episode["reward"].any()


def test_the_other_camera_and_both(source: Path, here: None) -> None:
    bair.main(args(source, view="main", both_views=True))
    store = Store(source.parent / "data.zarr")
    assert store.read("frames", 0, 1)[0, 0, 0].tolist() == [1, 0, 0]
    assert store.read("frames_aux1", 0, 1)[0, 0, 0].tolist() == [1, 0, 1]


def test_validation_episodes_are_drawn_by_the_seed_for_each_file_alone(source: Path) -> None:
    path = source / "train/traj_0_to_1.tfrecords"
    path.write_bytes(written(1) * 40)

    def drawn(seed: int, index: int = 0) -> list[int]:
        return [int(e["split"][0]) for e in bair.read_file(args(source, valid=0.5, seed=seed), (path, index, False))]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(0)), tuple(drawn(1)), tuple(drawn(0, index=1))}) == 3
    assert set(drawn(0)) == {0, 1}
    assert {int(e["split"][0]) for e in bair.read_file(args(source, valid=0.5), (path, 0, True))} == {2}


def test_numbers_may_be_packed_or_not_negative_or_not(source: Path) -> None:
    path = source / "train/traj_0_to_1.tfrecords"
    path.write_bytes(written(1, whole=False))
    (one,) = bair.read_file(args(source), (path, 0, False))
    assert one["action"][3].tolist() == [0.125, 3 / 16, -3 / 16, 0.25]
    integers = message(3, message(1, number(300) + number(2**64 - 5)))
    loose = message(3, number(1 << 3) + number(300) + number(1 << 3) + number(2**64 - 5))
    found = example(serialized({"packed": integers, "loose": loose, "none": b""}))
    assert np.asarray(found["packed"]).tolist() == np.asarray(found["loose"]).tolist() == [300, -5]
    assert found["none"] == []


def flipped(data: bytes, at: int) -> bytes:
    out = bytearray(data)
    out[at] ^= 4
    return bytes(out)


def without(name: str) -> bytes:
    return record(serialized({k: v for k, v in features(1).items() if k != name}))


def with_value(name: str, value: bytes) -> bytes:
    return record(serialized(features(1) | {name: value}))


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "a picture's bit": (lambda: flipped(written(1), 5000), r"record 0 does not match its checksum; download it again"),
    "a length's bit": (lambda: flipped(written(1), 2), r"the length of record 0 does not match its checksum"),
    "a checksum's bit": (lambda: flipped(written(1), 9), r"the length of record 0 does not match"),
    "the second record": (lambda: written(1) + flipped(written(2), -1), r"record 1 does not match its checksum"),
    "cut in the data": (lambda: written(1) + written(2)[:-1], r"record 1 is cut short"),
    "cut in the head": (lambda: written(1) + written(2)[:7], r"record 1 is cut short"),
    "empty": (lambda: b"", r"it is empty"),
    "no picture": (lambda: without("7/image_aux1/encoded"), r"record 0 has no 7/image_aux1/encoded"),
    "no action": (lambda: without("29/action"), r"record 0 has no 29/action"),
    "a short action": (lambda: with_value("3/action", packed([1, 2])), r"3/action has 2 values .* \(4,\)"),
    "a small picture": (lambda: with_value("3/image_aux1/encoded", raw(b"abc")), r"3/image_aux1/encoded has 3 values"),
    "a wild action": (lambda: with_value("3/action", packed([0, 11, 0, 0])), r"action 11.0 is outside .* bounds"),
    "not a number": (lambda: with_value("3/endeffector_pos", packed([np.nan] * 3)), r"3/endeffector_pos is not finite"),
    "no Example": (lambda: record(b"\x0a\xff\x01"), r"record 0 is not an Example"),
    "an endless integer": (lambda: record(b"\xff" * 20), r"record 0 is not an Example"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(source: Path, case: str) -> None:
    make, why = BROKEN[case]
    path = source / "train/traj_0_to_1.tfrecords"
    path.write_bytes(make())
    with pytest.raises(BrokenFile, match=rf"^{re.escape(str(path))}: .*{why}"):
        bair.read_file(args(source), (path, 0, False))


def test_a_broken_file_is_skipped_and_counted_and_the_others_are_kept(
    source: Path, here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = source / "train/traj_0_to_1.tfrecords"
    path.write_bytes(flipped(path.read_bytes(), 5000))
    bair.main(args(source))
    assert "2 episodes, 60 frames; 1 of 3 files were skipped" in capsys.readouterr().out
    store = Store(source.parent / "data.zarr")
    assert [store.read_episode(i)["frames"][0, 0, 0, 0] for i in range(2)] == [3, 4]
    assert str(path) in (source.parent / "data.zarr/skipped.txt").read_text()


def test_settings_that_make_no_sense(source: Path) -> None:
    with pytest.raises(UserError, match="low must be below high"):
        args(source, low=(0.0, 0.0, 0.0, 20.0))
    with pytest.raises(UserError, match="valid must be a fraction"):
        args(source, valid=1.0)
    with pytest.raises(UserError, match="does not exist"):
        bair.main(args(source / "nothing"))
    with pytest.raises(UserError, match="has no files of this kind"):
        bair.main(args(source / "train"))
