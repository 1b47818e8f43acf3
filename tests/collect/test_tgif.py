"""The list, the split files and the GIFs, written here: Pillow writes GIFs whose frames are only what changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collect import tgif, video_reader
from configs import parse
from worldmodel.data.store import Store
from worldmodel.utils.errors import UserError

HOST = "https://38.media.tumblr.com/9f6c25cc350f12aa74a7dc386a5c4985/"
BACK, SPOT = (200, 40, 40), (20, 60, 220)


pytestmark = pytest.mark.usefixtures("here")


def spotted(column: int) -> np.ndarray:
    """16x24 with a spot; its central square begins at column 4."""
    picture = np.full((16, 24, 3), BACK, np.uint8)
    picture[4:8, 4 + column : 8 + column] = SPOT
    return picture


def write_gif(path: Path, columns: list[int], durations: list[int]) -> None:
    images = [Image.fromarray(spotted(column)) for column in columns]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, disposal=1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six GIFs in the list: the third is gone, the fourth is a page that says so, the first has two sentences."""
    folder = tmp_path / "tgif"
    (folder / "gifs").mkdir(parents=True)
    told = [("a", "a man is glaring."), ("b", "a cat\u2019s paw"), ("c", "gone"), ("d", "a web page"), ("e", "the end")]
    rows = [f"{HOST}tumblr_{name}_500.gif\t{text}\n" for name, text in [*told, ("a", "someone stares"), ("f", "f")]]
    (folder / "tgif-v1.0.tsv").write_text("".join(rows), encoding="utf-8")
    write_gif(folder / "gifs" / "tumblr_a_500.gif", [0, 4, 8, 12], [100, 100, 200, 100])
    write_gif(folder / "gifs" / "tumblr_b_500.gif", [12, 8, 4, 0, 12, 8], [50] * 6)
    (folder / "gifs" / "tumblr_d_500.gif").write_text("<html>404</html>")
    write_gif(folder / "gifs" / "tumblr_e_500.gif", [4, 8, 0], [1000, 40, 110])
    write_gif(folder / "gifs" / "tumblr_f_500.gif", [4, 8], [100, 100])  # too short
    write_gif(folder / "gifs" / "other.gif", [4, 8, 0, 4], [100] * 4)  # not in the list
    return folder


def args(source: Path, *flags: str) -> tgif.Args:
    out = source.parent / "data.zarr"
    fixed = ["--source", str(source), "--out", str(out), "--num-workers", "1", "--size", "16", "--min-frames", "3"]
    return parse(tgif.Args, "collect", [*fixed, *flags])


def columns(frames: np.ndarray) -> list[int]:
    """Where the spot is; all else is checked to be the background."""
    found = []
    for frame in frames:
        distance = np.abs(frame.astype(int) - SPOT).sum(-1)
        column = int(distance[5].argmin()) // 4 * 4
        np.testing.assert_allclose(frame.astype(int), spotted(column)[:, 4:20], atol=3)
        found.append(column)
    return found


def test_what_is_in_the_store(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tgif.main(args(source))
    said = capsys.readouterr().out
    assert "1 of the 6 GIFs of tgif-v1.0.tsv are not in gifs" in said
    assert "3 episodes, 19 frames; 2 of 5 files were skipped" in said
    store = Store(source.parent / "data.zarr")
    assert (store.env_spec.name, store.env_spec.fps, store.env_spec.frame_shape) == ("tgif", 10.0, (16, 16, 3))
    assert store.array_names == ("frames",)
    taken = [columns(store.read_episode(i)["frames"]) for i in range(3)]
    assert taken[0] == [0, 4, 8, 8, 12]
    assert taken[1] == [8, 0, 8]  # on screen from 0.05, 0.15 and 0.25 seconds
    assert taken[2] == [4] * 10 + [0]  # the frame from 1.00 to 1.04 is never there in the middle
    store_path = Path(store.path)
    lines = (store_path / "skipped.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"tumblr_{n}_500.gif" for n in "dfc"]
    assert lines[2].endswith("it is in the list, but not in the folder")
    sentences = [json.loads(line) for line in (store_path / "sentences.jsonl").read_text().splitlines()]
    assert sentences == [
        {"episode": 0, "gif": "tumblr_a_500.gif", "sentences": ["a man is glaring.", "someone stares"]},
        {"episode": 1, "gif": "tumblr_b_500.gif", "sentences": ["a cat\u2019s paw"]},
        {"episode": 2, "gif": "tumblr_e_500.gif", "sentences": ["the end"]},
    ]
    before = {path: path.read_bytes() for path in store_path.glob("*.*")}
    tgif.main(args(source))  # complete already: nothing changes, nothing is named twice
    assert {path: path.read_bytes() for path in store_path.glob("*.*")} == before


def test_each_frame_once(source: Path) -> None:
    tgif.main(args(source, "--fps", "0"))
    store = Store(source.parent / "data.zarr")
    assert [columns(store.read_episode(i)["frames"]) for i in range(3)] == [
        [0, 4, 8, 12],
        [12, 8, 4, 0, 12, 8],
        [4, 8, 0],
    ]
    assert store.env_spec.fps == 8  # the first one's: four frames in half a second


def test_the_published_split(source: Path) -> None:
    folder = source / "splits"
    folder.mkdir()
    for name, gifs in (("train.txt", "ac"), ("val.txt", "ed"), ("test.txt", "b")):
        (folder / name).write_text("".join(f"{HOST}tumblr_{g}_500.gif\n" for g in gifs))
    tgif.main(args(source))
    store = Store(source.parent / "data.zarr")
    assert [store.episode_indices(split).tolist() for split in ("train", "valid", "test")] == [[0], [2], [1]]
    for text, told in (
        ("", "val.txt lists no GIFs, not addresses of GIFs; download it again"),
        ("<html>404</html>", "val.txt lists 'html>', not addresses of GIFs"),
        (f"{HOST}tumblr_a_500.gif", "val.txt: tumblr_a_500.gif is in train.txt too; download both again"),
    ):
        (folder / "val.txt").write_text(text)
        with pytest.raises(UserError, match=told):
            tgif.main(args(source))
    (folder / "val.txt").unlink()
    with pytest.raises(UserError, match=r"splits has no val.txt; download it"):
        tgif.main(args(source))


def test_gifs_that_no_split_names_are_told(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "splits").mkdir()
    for name, gif in (("train.txt", "c"), ("val.txt", "e"), ("test.txt", "b")):
        (source / "splits" / name).write_text(f"{HOST}tumblr_{gif}_500.gif\n")
    tgif.main(args(source))
    assert "3 of 5 GIFs are in none of train.txt, val.txt, test.txt: they are for training" in capsys.readouterr().out
    assert Store(source.parent / "data.zarr").episode_indices("train").tolist() == [0]


def test_cut_short_it_goes_on_to_the_same_store(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = args(source)
    tgif.main(whole)
    usual, cut = video_reader.decode, replace(whole, out=source.parent / "cut")

    def stops(path: Path, name: str, settings: video_reader.VideoArgs) -> np.ndarray:
        if "_e_" in name:
            raise KeyboardInterrupt
        return usual(path, name, settings)

    monkeypatch.setattr(video_reader, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        tgif.main(cut)
    assert len(Store(cut.out).episode_ends) == 2
    monkeypatch.setattr(video_reader, "decode", usual)
    tgif.main(cut)
    a, b = Store(whole.out), Store(cut.out)
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)
    np.testing.assert_array_equal(a.read("frames", 0, a.n_rows), b.read("frames", 0, b.n_rows))
    for name in ("skipped.txt", "sentences.jsonl"):
        assert Path(whole.out, name).read_bytes() == Path(cut.out, name).read_bytes()


def test_a_reader_that_dies_moves_no_sentence(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second GIF takes its process with it, and the collection is cut short behind it, before the fifth."""
    usual, interrupt = video_reader.decode, True

    def dies(path: Path, name: str, settings: video_reader.VideoArgs) -> np.ndarray:
        if "_b_" in name:
            raise SystemExit("killed")
        if "_e_" in name and interrupt:
            raise KeyboardInterrupt
        return usual(path, name, settings)

    monkeypatch.setattr(video_reader, "decode", dies)
    with pytest.raises(KeyboardInterrupt):
        tgif.main(args(source))
    interrupt = False
    tgif.main(args(source))
    store = source.parent / "data.zarr"
    sentences = [json.loads(line) for line in (store / "sentences.jsonl").read_text().splitlines()]
    assert [(row["episode"], row["gif"][7]) for row in sentences] == [(0, "a"), (1, "e")]
    assert [row["sentences"] for row in sentences] == [["a man is glaring.", "someone stares"], ["the end"]]
    assert columns(Store(store).read_episode(1)["frames"]) == [4] * 10 + [0]
    skipped = (store / "skipped.txt").read_text().splitlines()
    assert skipped[0] == "tumblr_b_500.gif: reading it ended the process (killed)"
    assert [line.partition(":")[0] for line in skipped] == [f"tumblr_{n}_500.gif" for n in "bdfc"]


def test_a_store_that_does_not_tell_its_gifs_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As stores of an earlier version did not, whose sentences may belong to other episodes."""
    usual = tgif.fill_store_with_videos
    monkeypatch.setattr(tgif, "fill_store_with_videos", lambda *given, noted: usual(*given))
    tgif.main(args(source))
    monkeypatch.undo()
    with pytest.raises(UserError, match="does not record the file of each episode; use another folder"):
        tgif.main(args(source))


def test_wrong_lists_and_folders(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"elsewhere has none of the 6 GIFs of tgif-v1.0.tsv; .*--gifs"):
        tgif.main(args(source, "--gifs", "elsewhere"))
    for path in (source / "gifs").iterdir():
        path.write_text("broken")
    with pytest.raises(UserError, match="none of the 5 files"):
        tgif.main(args(source))
    with (source / "tgif-v1.0.tsv").open("a") as file:
        file.write("no tab here\n")
    with pytest.raises(UserError, match=r"tgif-v1.0.tsv, line 8 is not an address, a tab and a sentence"):
        tgif.main(args(source))
    with pytest.raises(UserError, match=r"tgif-v1.0.tsv does not exist"):
        tgif.main(args(tmp_path))
