"""Damaged stores and caches: what is read is what was written, or one sentence says that it cannot be.

An attempt copies a small store with filled caches, damages the copy, and uses it in one of five ways. What comes back
is compared, value by value, with what was written. A file that is an old one of its name, or of another store, is found
by who decodes a whole array, so such damage is tried with caches and memory only, as worldmodel/data/commit_mark.py
says.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign.harness import Tally, Verdict, attempts, judge_call, judge_command
from worldmodel.data.clips import CacheMode, read_windows
from worldmodel.data.commit_mark import json_digest
from worldmodel.data.env_spec import ActionSpec, EnvSpec
from worldmodel.data.store import Store
from worldmodel.data.writer import StoreWriter

WORLD = EnvSpec(
    name="damaged",
    frame_shape=(20, 20, 3),  # of 1,200 bytes, so that they have shards
    action=ActionSpec(kind="Discrete", nvec=(3,)),
    variables=("X",),
    classes=("a", "b"),
)
SETTINGS = {"epsilon": 0.2, "seed": 3, "hold": [1, 2], "nested": {"policy": "random"}}
LENGTHS, LATER = (500, 40, 560, 100), 30
"""Rows of the episodes of the store, and of one that is appended."""
LIMIT = 60
"""Seconds of an attempt."""
FULL = """
import resource, sys
from worldmodel.data.clips import read_windows
from worldmodel.utils.errors import UserError
from worldmodel.data.store import Store
store = Store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    read_windows(store, "frames", __import__("numpy").array([0]), 9, "disk")
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
WAYS = ("flip", "cut", "longer", "zeros", "empty", "gone", "folder", "loop", "noise")
Damage = Callable[[np.random.Generator, Path, Path], str]
"""Harms the copy of a store, given the folder of what else there is; says what it did."""


class Hang(BaseException):
    """An attempt took too long."""


def episode(i: int, rows: int, flavour: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([i, rows, flavour])
    return {
        "frames": rng.integers(0, 256, (rows, *WORLD.frame_shape), dtype=np.uint8),
        "action": rng.integers(0, 3, rows),
        "reward": rng.normal(size=rows).astype(np.float32),
        "terminated": np.arange(rows) == rows - 2,
        "nothing": np.zeros((rows, 0), np.float32),
    }


def fill(path: Path, lengths: tuple[int, ...], first: int = 0, flavour: int = 0) -> None:
    with StoreWriter(path, WORLD, SETTINGS, split_seed=5) as writer:
        for i, rows in enumerate(lengths, first):
            writer.append(episode(i, rows, flavour), progress={"episode": i})


def prepare(folder: Path) -> None:
    """The store, the same before its last episode, the same with one more, and other recordings of the same sizes."""
    fill(folder / "older", LENGTHS[:-1])
    shutil.copytree(folder / "older", folder / "store")
    fill(folder / "store", LENGTHS[-1:], len(LENGTHS) - 1)
    shutil.copytree(folder / "store", folder / "newer")
    fill(folder / "newer", (LATER,), len(LENGTHS))
    fill(folder / "other", LENGTHS, flavour=1)
    for name in ("older", "store", "newer", "other"):
        for array in ("frames", "action"):
            read_windows(Store(folder / name), array, np.array([0]), 1, "disk")


def files(store: Path, under: str = "") -> list[Path]:
    return sorted(path for path in (store / under).rglob("*") if path.is_file())


def pick(rng: np.random.Generator, paths: list[Path]) -> Path:
    return paths[rng.integers(len(paths))]


def flip(rng: np.random.Generator, path: Path) -> str:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    at, bit = int(rng.integers(len(content) or 1)), int(rng.integers(8))
    if content:
        content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {at}"


def harm(rng: np.random.Generator, path: Path) -> str:
    """Damage a file in one of the ways that disks, copies and kills do."""
    content, way = path.read_bytes(), str(rng.choice(WAYS))
    at = int(rng.integers(len(content) + 1))
    if way == "flip":
        return flip(rng, path)
    path.unlink()
    if way == "folder":
        path.mkdir()
    elif way == "loop":
        path.symlink_to(path)
    elif way != "gone":
        zeros = min(4096, len(content) - at)
        made = {
            "cut": content[:at],
            "longer": content + bytes(at % 99 + 1),
            "zeros": content[:at] + bytes(zeros) + content[at + zeros :],
            "empty": b"",
            "noise": content[:at] + rng.bytes(len(content) - at),
        }
        path.write_bytes(made[way])
    return f"{way} at {at}"


def root(rng: np.random.Generator, store: Path, folder: Path) -> str:
    return flip(rng, store / "zarr.json")


def metadata(rng: np.random.Generator, store: Path, folder: Path) -> str:
    path = pick(rng, [p for p in files(store) if p.name == "zarr.json"])
    return f"{path.relative_to(store)}: {flip(rng, path)}"


def chunk(rng: np.random.Generator, store: Path, folder: Path) -> str:
    path = pick(rng, [p for p in files(store) if p.name.startswith("c.")])
    return f"{path.relative_to(store)}: {harm(rng, path)}"


def cache(rng: np.random.Generator, store: Path, folder: Path) -> str:
    path = pick(rng, files(store, "cache"))
    return f"{path.relative_to(store)}: {harm(rng, path)}"


def header(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """The first bytes of a cache, which say what it is."""
    path = pick(rng, [p for p in files(store, "cache") if p.suffix == ".npy"])
    content = bytearray(path.read_bytes())
    at, bit = int(rng.integers(128)), int(rng.integers(8))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.relative_to(store)}: bit {bit} of byte {at}"


def anything(rng: np.random.Generator, store: Path, folder: Path) -> str:
    path = pick(rng, files(store))
    return f"{path.relative_to(store)}: {harm(rng, path)}"


def extra(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """Files that do not belong there."""
    names = ["x.part", "zarr.json.part", "data/x.part", "data/frames/c.0.0.0.0.abc.part", "data/frames/c.7.0.0.0"]
    names += ["data/y/zarr.json", "data/action/c.5", "meta/z", "cache/frames-9.npy", "cache/frames-1200.npy.part", "w"]
    path = store / str(rng.choice(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rng.bytes(int(rng.integers(300))))
    return str(path.relative_to(store))


def mark(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """One value of the mark is gone, of another type, or new; half of the marks have a checksum that fits again."""
    document = json.loads((store / "zarr.json").read_text())
    attributes, seal = document["attributes"], bool(rng.integers(2))
    text = alter(rng, attributes)
    if seal:
        attributes["checksum"] = json_digest({k: v for k, v in attributes.items() if k != "checksum"})
    (store / "zarr.json").write_text(json.dumps(document))
    return f"{text}, {'sealed' if seal else 'as it was'}"


def array(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """One value of an array's metadata is gone, of another type, or new."""
    path = pick(rng, [p for p in files(store) if p.name == "zarr.json" and p.parent != store])
    document = json.loads(path.read_text())
    text = alter(rng, document)
    path.write_text(json.dumps(document))
    return f"{path.relative_to(store)}: {text}"


def alter(rng: np.random.Generator, tree: dict[str, Any]) -> str:
    """Change something somewhere in a tree of JSON."""
    place: Any = tree
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[rng.integers(len(keys))] if keys else "new"
        inside = place[key] if keys else None
        if not isinstance(inside, dict | list) or not inside or rng.random() < 0.3:
            break
        place = inside
    junk: list[Any] = [None, True, -1, 0, 7, 10**30, 2.5, float("nan"), "", "x", [], [1, "a"], {}, {"a": 1}]
    new = junk[rng.integers(len(junk))]
    if isinstance(place, dict) and rng.random() < 0.3:
        key, place = ("newer", place) if rng.random() < 0.5 else (key, place)
        if key in place:
            del place[key]
            return f"no {key}"
    if isinstance(place, list) and not keys:
        place.append(new)
    else:
        place[key] = new
    return f"{key} = {new!r}"


def stale(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """A file is that of an earlier or later commit, or of other recordings of the same sizes."""
    source = folder / str(rng.choice(["older", "newer", "other"]))
    path = pick(rng, [p for p in files(source) if p.name != "zarr.json"])
    shutil.copyfile(path, store / path.relative_to(source))
    return str(path.relative_to(folder))


def mixed(rng: np.random.Generator, store: Path, folder: Path) -> str:
    """A copy that was made while the store grew: each file is of this commit or of the next."""
    taken = [path for path in files(folder / "newer") if rng.integers(2)]
    for path in taken:
        shutil.copyfile(path, store / path.relative_to(folder / "newer"))
    return f"{len(taken)} files of the next commit"


ANYHOW: tuple[Damage, ...] = (root, metadata, chunk, cache, header, anything, extra, mark, array)
WHOLE: tuple[Damage, ...] = (stale, mixed)
USES = ("episodes", "memory", "disk", "twice", "append")


def use(store: Path, how: str) -> tuple[Store, dict[str, np.ndarray]]:
    """A store and all its values, read in one of several ways."""
    if how == "append":
        with StoreWriter(store, WORLD, SETTINGS, split_seed=5) as writer:
            writer.append(episode(writer.n_episodes, LATER), progress={"episode": writer.n_episodes})
    opened = Store(store)
    if how == "episodes":
        every = [opened.read_episode(i) for i in range(len(opened.episode_ends))]
        return opened, {name: np.concatenate([e[name] for e in every]) for name in opened.array_names}
    method: CacheMode = "disk" if how in ("disk", "twice") else "memory"
    for _ in range(2 if how == "twice" else 1):  # the second finds the cache that the first has mended
        opened = Store(store)
        read = {
            name: read_windows(opened, name, np.array([0]), opened.n_rows, method)[0] for name in opened.array_names
        }
    return opened, read


def right(store: Store, read: dict[str, np.ndarray]) -> bool:
    """Whether they are what was written, up to a commit that there was."""
    known = np.cumsum([*LENGTHS, LATER])
    rows = store.n_rows
    if (store.env_spec, store.settings, store.split_seed) != (WORLD, SETTINGS, 5) or rows not in known[-3:]:
        return False
    every = [episode(i, n) for i, n in enumerate((*LENGTHS, LATER)[: np.searchsorted(known, rows) + 1])]
    wanted = {name: np.concatenate([e[name] for e in every]) for name in every[0]}
    same = [np.array_equal(read[name], wanted[name]) and read[name].dtype == wanted[name].dtype for name in read]
    return all(same) and read.keys() == wanted.keys()


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """`Hang` after some seconds."""

    def ring(*_: object) -> None:
        raise Hang

    usual = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)


def attempt(folder: Path, seed: int, number: int) -> tuple[Verdict, str, str]:
    """Its verdict, what was done, and what came of it."""
    rng = np.random.default_rng([seed, number])
    store = folder / "copy"
    shutil.copytree(folder / "store", store)
    try:
        if number % 40 == 39:
            return full(rng, store)
        damage = (*ANYHOW, *WHOLE)[number % (len(ANYHOW) + len(WHOLE))]
        how = str(rng.choice(USES[1:4] if damage in WHOLE else USES))
        text = f"{damage.__name__}, {damage(rng, store, folder)}; {how}"
        forged = text.startswith("mark") and "sealed" in text  # a mark that fits says what is right
        with limit(LIMIT):
            verdict, detail = judge_call(lambda: use(store, how), lambda read: forged or right(*read))
        return verdict, text, detail
    except Hang:
        return "hang", text, f"no end within {LIMIT} s"
    finally:
        shutil.rmtree(store)


def full(rng: np.random.Generator, store: Path) -> tuple[Verdict, str, str]:
    """No room for a cache, in a process of its own, since it might be killed."""
    shutil.rmtree(store / "cache")
    size = int(rng.integers(sum(LENGTHS) * 1200))
    verdict, detail = judge_command(["-c", FULL, str(store), str(size)], LIMIT, lambda: False)
    return verdict, f"full, after {size} bytes", detail


def run(seconds: float, seed: int) -> Tally:
    """Attempts until the time is up."""
    tally = Tally("stores")
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for number in attempts(seconds, 22):
            verdict, text, detail = attempt(Path(name), seed, number)
            tally.add(verdict, f"seed {seed}, number {number}: {text}", detail)
    return tally


if __name__ == "__main__":
    print("\n".join(run(float(sys.argv[1]), int(sys.argv[2])).faults))
