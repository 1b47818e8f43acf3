"""Damaged and crafted inputs of the collectors.

An attempt of the first sort writes a small data set of one kind, whole, spoils one of its files (bits, ends, middles,
names, other content), and collects it. What the other files hold must be in the store bit for bit, whatever became
of the spoilt one: skipped by name, or read. What is read of it is wrong where the file can tell: it has checksums and
something else came of it, or it is counted and a tenth is missing.

An attempt of the second sort writes an input that is whole but odd, and compares what is read with what was worked
out by other means. Readers can die or hang, so attempts are made in other processes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import json
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np

from collect.pool import WorkerPool
from tests.campaign.harness import Tally, Verdict, attempts, judge_call
from tests.campaign.input_crafts import CRAFTS
from tests.campaign.input_edits import EDITS
from tests.campaign.input_files import KINDS, Kind
from tests.collect.here import Here
from worldmodel.data.store import Store
from worldmodel.data.writer import Episode

LIMIT = 90.0
"""Seconds that an attempt may take on a machine that is busy."""
MEMORY = 8 << 30
"""Bytes that a process may take: what claims to be huge should not take the machine."""
Result = tuple[str, Verdict, str]
"""What was tried, what came of it, and details."""
Folder = dict[str, bytes]
Damage = Callable[[np.random.Generator, bytes], bytes]


def bits(rng: np.random.Generator, data: bytes) -> bytes:
    """A few bits, half of the time in what stands first."""
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.5 else min(len(out), 200)
    for at in rng.integers(0, reach, rng.integers(1, 4)):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def hole(rng: np.random.Generator, data: bytes) -> bytes:
    start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
    return data[:start] + bytes(stop - start) + data[stop:]


def repeated(rng: np.random.Generator, data: bytes) -> bytes:
    start, stop = np.sort(rng.integers(0, len(data) + 1, 2))
    return data[:stop] + data[start:]


def noise_in_it(rng: np.random.Generator, data: bytes) -> bytes:
    at = int(rng.integers(len(data) + 1))
    return data[:at] + rng.bytes(int(rng.integers(1, 20))) + data[at:]


DAMAGES: dict[str, Damage] = {
    "bits": bits,
    "torn": lambda rng, data: data[: int(rng.integers(len(data)))],
    "hole": hole,
    "repeated": repeated,
    "noise in it": noise_in_it,
    "empty": lambda rng, data: b"",
    "zeros": lambda rng, data: bytes(len(data)),
    "a page": lambda rng, data: b"<html>404 Not Found</html>\n",
    "noise": lambda rng, data: rng.bytes(len(data)),
    "old text": lambda rng, data: "é\x00ü\n".encode("latin-1") + data,
    "lines of Windows": lambda rng, data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"),
}


RUINS = ("empty", "zeros", "a page", "noise")
"""What leaves nothing of a list."""
OTHERS = ("another file", "edit")
"""What no checksum tells."""


@functools.cache
def whole(name: str) -> tuple[Folder, list[Episode]]:
    """A data set of a kind, and its episodes."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as work:
        folder, out = Path(work, "in"), Path(work, "out")
        folder.mkdir()
        with quiet():
            kind.make(folder)
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        with quiet():
            kind.collect(folder, out)
        return files, episodes(out)


def episodes(out: Path) -> list[Episode]:
    store = Store(out)
    return [store.read_episode(i) for i in range(len(store.episode_ends))]


def equal(a: Episode, b: Episode) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def spoil(name: str, rng: np.random.Generator, work: Path) -> tuple[str, str, str]:
    """Write a data set with a spoilt file; returns that file, the damage, and the file's name now."""
    kind, (files, _) = KINDS[name], whole(name)
    victim = str(rng.choice([*kind.items, *kind.lists]))
    edit = EDITS.get(Path(victim).suffix)
    damage = "edit" if edit and rng.random() < 0.4 else str(rng.choice([*DAMAGES, "another file", "another name"]))
    content, now = files[victim], victim
    if damage == "another file":
        other = str(rng.choice([n for n in KINDS if n != name]))
        content = whole(other)[0][str(rng.choice(list(whole(other)[0])))]
    elif damage == "another name":
        now = str(Path(victim).with_name(os.fsdecode(b"\xff\n" + Path(victim).name.encode())))
    elif damage != "edit":
        content = DAMAGES[damage](rng, content)
    for path, data in (files | {victim: content}).items():
        place = work / "in" / (now if path == victim else path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    if edit and damage == "edit":
        edit(rng, work / "in" / victim)
    return victim, damage, now


def damaged(name: str, rng: np.random.Generator, work: Path) -> Result:
    victim, damage, now = spoil(name, rng, work)
    kind, out = KINDS[name], work / "out"

    def collect() -> str:
        with quiet():
            kind.collect(work / "in", out)
        return wrong(name, victim, damage, now, work)

    verdict, detail = judge_call(collect, lambda why: not why)
    unreadable = "could be read" in detail or "cannot be opened" in detail
    if verdict == "sentence" and (victim in kind.items or (victim in kind.shared and not unreadable)):
        verdict = "traceback"  # it has ended the work for what others hold
    if verdict == "right" and (out / "skipped.txt").exists():
        verdict = "sentence"
    return f"{name}: {victim}: {damage}", verdict, detail


def wrong(name: str, victim: str, damage: str, now: str, work: Path) -> str:
    """What is wrong with a store that was made with a spoilt file."""
    kind, truth, found = KINDS[name], whole(name)[1], episodes(work / "out")
    if any(not np.isfinite(array).all() for episode in found for array in episode.values()):
        return "a number is not finite"
    if name == "tgif" and not sentences_are_right(work, victim, found):
        return "a sentence is of another episode"
    if not kind.items:
        return wrong_array(kind, damage, found, truth)
    if victim in kind.lists:
        if damage in RUINS:
            return "a list was believed that is none"
        return "" if all(known(name, e, work, truth) for e in found) else "an episode is not what its list says"
    place = kind.items.index(victim)
    rest = truth[:place] + truth[place + 1 :]
    if damage == "another name":
        return "" if all(any(equal(a, b) for b in found) for a in rest) else "an episode is gone"
    gone = skipped(work, victim)
    kept = found if gone else found[:place] + found[place + 1 :]
    if len(kept) != len(rest) or not all(map(equal, kept, rest)):
        return f"{len(kept)} episodes of whole files are not what they were"
    return "" if gone else wrong_episode(kind, damage, found[place], truth[place])


def wrong_array(kind: Kind, damage: str, found: list[Episode], truth: list[Episode]) -> str:
    """Of a data set that is one file."""
    same = len(found) == len(truth) and all(map(equal, found, truth))
    tells = kind.checked or (kind.counted and damage == "torn")
    return f"{len(found)} episodes are not what they were" if tells and damage not in OTHERS and not same else ""


def wrong_episode(kind: Kind, damage: str, found: Episode, truth: Episode) -> str:
    """Of a spoilt file, which was read."""
    if kind.checked and damage not in OTHERS and not equal(found, truth):
        return "its checksums must have told"
    torn = kind.counted and damage == "torn" and len(found["frames"]) < 0.9 * len(truth["frames"])
    return f"{len(found['frames'])} of {len(truth['frames'])} frames are no whole file" if torn else ""


def known(name: str, episode: Episode, work: Path, truth: list[Episode]) -> bool:
    """Whether an episode is one of a whole file, and of its class."""
    classes = Store(work / "out").env_spec.classes
    for place, other in enumerate(truth):
        if np.array_equal(episode["frames"], other["frames"]):
            return not classes or classes[episode["label"][0]] == KINDS[name].items[place].split("/")[1]
    return False


def skipped(work: Path, victim: str) -> bool:
    path = work / "out" / "skipped.txt"
    told = [line.partition(": ")[0] for line in path.read_text().splitlines()] if path.exists() else []
    return any(str(work / "in" / victim).endswith(name) for name in told)


def sentences_are_right(work: Path, victim: str, found: list[Episode]) -> bool:
    """Each line is of the episode that it names; a spoilt GIF may be another picture."""
    files, truth = whole("tgif")
    frames = {Path(name).name: e["frames"] for name, e in zip(KINDS["tgif"].items, truth, strict=True)}
    rows = [json.loads(line) for line in (work / "out" / "sentences.jsonl").read_text().splitlines()]
    right = [row["episode"] for row in rows] == list(range(len(found)))
    for row, episode in zip(rows, found, strict=False):
        name = row["gif"]
        right &= Path(victim).name == name or np.array_equal(episode["frames"], frames[name])
        right &= victim == "tgif-v1.0.tsv" or all(
            f"{name}\t{text}".encode() in files["tgif-v1.0.tsv"] for text in row["sentences"]
        )
    return right


def crafted(name: str, rng: np.random.Generator, work: Path) -> Result:
    what, read, right = CRAFTS[name](rng, work)

    def quietly() -> np.ndarray:
        with quiet():
            return read()

    return f"{name}: {what}", *judge_call(quietly, right)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Standard output and error as they are for most, where not all can be printed."""
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")),
        contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")),
    ):
        yield


def attempt(seed: int, number: int) -> Result:
    """One attempt, in this process."""
    rng = np.random.default_rng([seed, number])
    with tempfile.TemporaryDirectory() as work, mock.patch("collect.files.WorkerPool", Here):
        if rng.random() < 0.3:
            return crafted(str(rng.choice(list(CRAFTS))), rng, Path(work))
        return damaged(str(rng.choice(list(KINDS))), rng, Path(work))


@contextlib.contextmanager
def attempting(seed: int, hangs: Path) -> Iterator[Callable[[int], Result]]:
    """What each process does with the number of an attempt; one that hangs ends, and leaves a file."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")

    def one(number: int) -> Result:
        with open(hangs / str(number), "w") as file:
            faulthandler.dump_traceback_later(LIMIT, exit=True, file=file)
            result = attempt(seed, number)
            faulthandler.cancel_dump_traceback_later()
        return result

    yield one


def died(hangs: Path, number: int, why: str) -> Result:
    """A reader that ends its process is skipped by name, as `collect.files` has it; its tests hold that."""
    if text := (hangs / str(number)).read_text():
        return "?", "hang", text
    return "?", "sentence" if why == "killed" else "traceback", why


def run(seconds: float, seed: int) -> Tally:
    tally = Tally("inputs")
    with (
        tempfile.TemporaryDirectory() as hangs,
        WorkerPool(functools.partial(attempting, seed, Path(hangs)), 2, lambda said: None) as pool,
    ):
        results = pool.map(attempts(seconds, 20), functools.partial(died, Path(hangs)))
        for number, (what, verdict, detail) in enumerate(results):
            tally.add(verdict, f"seed {seed}, attempt {number}: {what}", detail)
    return tally
