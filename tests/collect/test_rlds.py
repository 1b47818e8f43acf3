"""RLDS in TFRecords that the tests of BAIR write byte by byte."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collect import rlds
from tests.collect.test_bair import Features, message, number, packed, raw, record, serialized
from worldmodel.data.env_spec import ActionSpec
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("here")


def encoded(level: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (level,) * 3).save(file, kind)
    return file.getvalue()


def texts(values: Sequence[bytes]) -> bytes:
    return message(1, b"".join(message(1, value) for value in values))


def integers(values: Sequence[int]) -> bytes:
    return message(3, message(1, b"".join(number(v) for v in values)))


def episode(i: int, n: int = 5, **changes: Any) -> Features:
    made: dict[str, Any] = {
        "steps/observation/image": texts([encoded(10 * t + i) for t in range(n)]),
        "steps/observation/wrist": texts([encoded(200 + t, "PNG") for t in range(n)]),
        "steps/observation/state": packed([v for t in range(n) for v in (t, i)]),
        "steps/action": packed([v for t in range(n) for v in (i / 8, -t / 4)]),
        "steps/reward": packed([float(t == n - 1) for t in range(n)]),
        "steps/is_terminal": integers([int(t == n - 1) for t in range(n)]),
        "steps/language_instruction": texts([b"lift"] * n),
        "episode_metadata/file_path": raw(b"a"),
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def save(folder: Path, name: str, *episodes: Features) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"".join(record(serialized(e)) for e in episodes))
    return folder


def read(tmp_path: Path, source: Path, **how: Any) -> Store:
    settings = {"image": ("image",), "size": 0} | how
    rlds.main(rlds.Args(source=source, out=tmp_path / "out.zarr", num_workers=1, **settings))
    return Store(tmp_path / "out.zarr")


def test_an_episode_of_each_record(tmp_path: Path) -> None:
    source = save(tmp_path / "arm/1.0.0", "arm-train.tfrecord-00000-of-00002", *(episode(i, 4 + i) for i in range(6)))
    save(source, "arm-train.tfrecord-00001-of-00002", *(episode(i, 4 + i) for i in range(6, 12)))
    (source / "features.json").write_text("{}")
    store = read(tmp_path, source, image=("image", "steps/observation/wrist"), state=("steps/observation/state",))
    assert len(store.episode_ends) == 12 and "split" not in store.array_names
    assert store.env_spec.frame_shape == (8, 24, 3)
    assert store.env_spec.action == ActionSpec(kind="Box", low=(0, -3.5), high=(1.375, 0))
    assert store.env_spec.variables == ("steps/observation/state_0", "steps/observation/state_1")
    rows, n = store.read_episode(7), 11
    np.testing.assert_allclose(rows["frames"][:, 4, 4, 0], [10 * t + 7 for t in range(n)], atol=1)
    assert rows["frames"][:, 4, 20, 0].tolist() == [200 + t for t in range(n)]
    assert rows["action"].tolist() == [[7 / 8, -t / 4] for t in range(n - 1)] + [[0, 0]]
    assert rows["reward"].tolist() == [0] * (n - 2) + [1, 0]
    assert rows["terminated"].tolist() == [False] * (n - 2) + [True, False]
    assert rows["variables"].tolist() == [[t, 7] for t in range(n)]


def test_a_published_split_is_kept(tmp_path: Path) -> None:
    source = save(tmp_path / "arm", "arm-train.tfrecord-00000-of-00001", episode(0), episode(1))
    save(source, "arm-val.tfrecord-00000-of-00001", episode(2))
    save(source, "arm-test.tfrecord-00000-of-00001", episode(3))
    store = read(tmp_path, source)
    assert sorted(store.episode_splits()) == ["test", "train", "train", "valid"]
    assert store.read("action", store.n_rows - 2, store.n_rows - 1)[0, 0] == 2 / 8, "the file of validation is last"


@pytest.mark.parametrize(("n", "held"), [(3, [2]), (25, [9, 19]), (1, [])])
def test_a_published_split_without_validation_gets_one(
    tmp_path: Path, n: int, held: list[int], capsys: pytest.CaptureFixture
) -> None:
    source = save(tmp_path / "arm", "arm-train.tfrecord-00000-of-00001", *(episode(i) for i in range(n)))
    save(source, "arm-test.tfrecord-00000-of-00001", episode(30))
    store = read(tmp_path, source)
    first = [store.read_episode(i)["action"][0, 0] * 8 for i in range(n + 1)]
    splits = {int(number): str(split) for number, split in zip(first, store.episode_splits(), strict=True)}
    assert splits == {i: "valid" if i in held else "train" for i in range(n)} | {30: "test"}
    used = f"{len(held)} of its {n} training episodes are used for it" if held else "it needs two episodes"
    assert f"the published split has no validation; {used}\n" in capsys.readouterr().out


def test_validation_and_test_alone_are_no_published_split(tmp_path: Path) -> None:
    source = save(tmp_path / "arm", "arm-val.tfrecord-00000-of-00001", *(episode(i) for i in range(11)))
    save(source, "arm-test.tfrecord-00000-of-00001", episode(11))
    assert "split" not in read(tmp_path, source).array_names


def test_few_long_episodes_are_cut_by_time(tmp_path: Path) -> None:
    store = read(tmp_path, save(tmp_path / "arm", "a.tfrecord", episode(0, 60, **{"steps/observation/image": texts(
        [encoded(t, "PNG") for t in range(60)])})))  # fmt: skip
    assert store.episode_splits().tolist() == ["train", "valid", "test"]


def test_an_action_of_several_features_within_bounds(tmp_path: Path) -> None:
    parts = {
        "steps/action": None,
        "steps/action/move": packed([0.5] * 10),
        "steps/action/grip": packed([1.0] * 5),
        "steps/reward": None,
        "steps/is_terminal": None,
    }
    source = save(tmp_path / "arm", "a.tfrecord", episode(0, **parts))
    with pytest.raises(
        UserError, match=r"no numeric feature steps/action, only steps/action/grip.*; choose with --action"
    ):
        read(tmp_path, source)
    store = read(tmp_path, source, action=("steps/action/move", "steps/action/grip"), low=(-2,), high=(2,))
    assert store.env_spec.action == ActionSpec(kind="Box", low=(-2,) * 3, high=(2,) * 3)
    rows = store.read_episode(0)
    assert rows["action"][0].tolist() == [0.5, 0.5, 1]
    assert rows["truncated"][-2] and not rows["reward"].any()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"image": ()}, "has pictures in steps/observation/image, steps/observation/wrist; choose with --image"),
        ({"image": ("eye",)}, "has pictures in steps/observation/image, .*; choose with --image"),
        (
            {"state": ("steps/language_instruction",)},
            "has no numeric feature steps/language_instruction, only .*; choose with --state",
        ),
    ],
)
def test_a_feature_that_is_not_there(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        read(tmp_path, save(tmp_path / "arm", "a.tfrecord", episode(0)), **how)
    assert not (tmp_path / "out.zarr").exists()


def test_damaged_records_are_skipped_alone(tmp_path: Path) -> None:
    source = save(
        tmp_path / "arm",
        "a.tfrecord",
        episode(0),
        episode(1, **{"steps/action": packed([0.0] * 7)}),
        episode(2, **{"steps/observation/image": texts([b"\xff\xd8\xff"] * 5)}),
        episode(3, **{"steps/action": packed([float("nan")] * 10)}),
        episode(4, 1),
        episode(5, **{"steps/observation/wrist": texts([encoded(0)] * 3)}),
        episode(6),
        episode(7),
    )
    data = bytearray((source / "a.tfrecord").read_bytes())
    data[-20] ^= 1
    (source / "a.tfrecord").write_bytes(bytes(data))
    torn = record(serialized(episode(8)))
    (source / "b.tfrecord").write_bytes(torn + torn[:50])
    (source / "c.tfrecord").write_bytes(b"")
    assert len(read(tmp_path, source, image=("image", "wrist")).episode_ends) == 3
    why = (tmp_path / "out.zarr/skipped.txt").read_text().splitlines()
    for line, text in zip(
        why,
        (
            "record 1: steps/action has 7 numbers, which do not fit 5 steps",
            "record 2: ",
            "record 3: action nan is outside",
            "record 4: it has 1 frames",
            "record 5: its cameras have 5, 3 pictures",
            "a.tfrecord: record 7 does not match its checksum",
            "b.tfrecord: record 1 is cut short",
            "c.tfrecord: it is empty",
        ),
        strict=True,
    ):
        assert text in line, (text, line)


def test_a_folder_without_records_or_with_broken_ones_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no files of this kind"):
        read(tmp_path, tmp_path / "empty")
    (tmp_path / "empty/a.tfrecord").write_bytes(b"text that is no record")
    with pytest.raises(UserError, match=r"none of the 1 files of .* could be read"):
        read(tmp_path, tmp_path / "empty")
