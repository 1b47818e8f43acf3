"""Read the Tumblr GIF data set (TGIF): a published list of addresses and sentences, and GIFs that users download.

    <source>/tgif-v1.0.tsv                 an address, a tab and a sentence per line
    <source>/gifs/<name>.gif               named as the last part of the address
    <source>/splits/{train,val,test}.txt   addresses of the published split (optional)

    python collect/tgif.py --source tgif --out runs/tgif/data.zarr

Frame durations differ within and between GIFs, so GIFs are resampled to ten frames per second. Then the model gets one
frame rate, and motion has its real speed. `--fps 0` uses each frame once instead.

A GIF with several sentences is still one episode. `<store>/sentences.jsonl` has one line per episode, in order: its
number, the GIF and its sentences. Many GIFs are no longer online. Those that are listed but missing are counted in the
output, and named in `skipped.txt` after those that could not be read.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as a file: import from the project's root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collect.files import Filled, read_text, write_skipped
from collect.video_reader import Clip, VideoArgs, fill_store_with_videos, fps_of
from configs import command
from configs.written import Written, recorded
from worldmodel.data.storage import write_beside
from worldmodel.utils.errors import UserError
from worldmodel.utils.settings import Address, NotNegative

LIST_FILE, SENTENCES_FILE = "tgif-v1.0.tsv", "sentences.jsonl"
SPLIT_FILES = ("train.txt", "val.txt", "test.txt")
"""Files of the splits, in the order of the store's splits."""
ABSENT = "it is in the list, but not in the folder"


@dataclass(frozen=True, kw_only=True)
class Args(VideoArgs):
    """Make a store of the Tumblr GIFs."""

    source: Path = Path()
    """Folder with tgif-v1.0.tsv in it."""
    gifs: Path = Path("gifs")
    """Folder of the GIFs, relative to the source or absolute."""
    out: Address = Address("runs/tgif/data.zarr")
    """Store to write; an unfinished one resumes."""
    fps: NotNegative = 10.0
    """Frames per second to resample GIFs to; 0 uses each frame once."""


def name_of(address: str) -> str:
    return address.strip().rpartition("/")[2]


def read_sentences(path: Path) -> dict[str, list[str]]:
    """GIF name -> its sentences, in the order of the list."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder that contains {LIST_FILE}")
    sentences: dict[str, list[str]] = defaultdict(list)
    for number, line in enumerate(read_text(path).split("\n"), 1):
        address, tab, sentence = line.strip("\r").partition("\t")
        if tab and name_of(address):
            sentences[name_of(address)].append(sentence.strip())
        elif line.strip():
            raise UserError(f"{path}, line {number} is not an address, a tab and a sentence; download it again")
    return sentences


def read_splits(folder: Path) -> dict[str, int]:
    """GIF name -> its published split; empty without the files."""
    if not folder.is_dir():
        return {}
    splits: dict[str, int] = {}
    for split, name in enumerate(SPLIT_FILES):
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} has no {name}; download it, or remove the folder for a random split")
        for gif in listed(path):
            if splits.setdefault(gif, split) != split:
                raise UserError(f"{path}: {gif} is in {SPLIT_FILES[splits[gif]]} too; download both again")
    return splits


def listed(path: Path) -> list[str]:
    """The GIFs of a split. Invalid lines are refused, because their GIFs would end up in the training split."""
    names = [name_of(line) for line in read_text(path).splitlines() if line.strip()]
    wrong = next((name for name in names if not name.lower().endswith(".gif")), None)
    if wrong is not None or not names:
        raise UserError(
            f"{path} lists {repr(wrong[:40]) if wrong else 'no GIFs'}, not addresses of GIFs; download it again"
        )
    return names


def find_clips(args: Args, names: list[str]) -> list[Clip]:
    """The GIFs that exist. Those in no split are for training."""
    folder = args.source / args.gifs
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    splits = read_splits(args.source / "splits")
    values = {name: {"split": splits.get(name, 0)} if splits else {} for name in names}
    clips = [Clip(folder / name, name, values[name]) for name in names if name in there]
    if splits and (loose := sum(clip.name not in splits for clip in clips)):
        print(f"{loose:,} of {len(clips):,} GIFs are in none of {', '.join(SPLIT_FILES)}: they are for training")
    if not clips:
        raise UserError(f"{folder} has none of the {len(names)} GIFs of {LIST_FILE}; give their folder with --gifs")
    return clips


def main(args: Args) -> Written:
    sentences = read_sentences(args.source / LIST_FILE)
    clips = find_clips(args, list(sentences))
    there = {clip.name for clip in clips}
    absent = [name for name in sentences if name not in there]
    if absent:
        print(f"{len(absent):,} of the {len(sentences):,} GIFs of {LIST_FILE} are not in {args.gifs}")
    filled = fill_store_with_videos(args, "tgif", args.fps or fps_of(clips), clips, noted=True)
    write_side_files(args.out, filled, sentences, absent)
    return recorded(args.out)


def write_side_files(out: str, filled: Filled[Clip], sentences: dict[str, list[str]], absent: list[str]) -> None:
    """Write the sentences of the episodes, and the missing GIFs."""
    missing = [*filled.skipped, *(f"{name}: {ABSENT}" for name in absent)]
    if missing:
        write_skipped(out, missing)
    told = [{"episode": i, "gif": clip.name, "sentences": sentences[clip.name]} for i, clip in enumerate(filled.items)]
    write_beside(out, SENTENCES_FILE, "".join(json.dumps(line) + "\n" for line in told).encode())


if __name__ == "__main__":
    command(main, "collect")
