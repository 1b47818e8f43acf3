"""Where the objects of a store are: in a folder of this machine, or in a bucket, which is any URL that fsspec supports.

    folder   an object is written to a temporary file and renamed; the folder is locked while a process writes
    bucket   an object is put as a whole; there are no renames and no locks that end with their process

Both replace an object as a whole, and that is all that a store needs: its commit record is put last. Objects are
requested by name, and nothing is ever listed, so it does not matter how a bucket lists what it has. fsspec's
configuration (its files and environment variables) says how to reach a bucket. Only timeouts are set here, unless the
configuration sets them. With them, a bucket that does not answer raises an error instead of hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
from filelock import FileLock, Timeout
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.abc.store import Store as Storage
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, StorePath

from worldmodel.utils.errors import UserError, is_url, one_line
from worldmodel.utils.files import write_atomic

S3 = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 10, "retries": {"total_max_attempts": 2}},
    "max_concurrency": 1,  # an object is one request; otherwise s3fs first asks for its size
}
S3_RETRIES = 2
"""Options of s3fs, and how often it repeats a request that botocore has given up. A bucket that cannot be reached is
an error after 10 seconds, and one that stops answering after 80."""
LONGEST = 300.0
"""Seconds after which a request is given up, whatever the file system itself would wait."""
CHECK_BUCKET = "check the endpoint, the keys and their rights, or give another URL"


class DurableStore(LocalStore):
    """A folder in which every object is written atomically, which Zarr itself does not guarantee."""

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(write_atomic, self.root / key, value.to_bytes())


class Bucket(FsspecStore):
    """A bucket. An error while reading it does not mean that the store is damaged, so it has a message of its own."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            async with asyncio.timeout(LONGEST):
                return await super().get(key, prototype, byte_range)
        except Exception as error:  # each file system has its own errors
            place = self.fs.unstrip_protocol(f"{self.path}/{key}")
            raise UserError(f"{place} cannot be read ({one_line(error)}); {CHECK_BUCKET}") from None

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        async with asyncio.timeout(LONGEST):
            await super().set(key, value, byte_range)

    async def exists(self, key: str) -> bool:
        """Ask for the object by its name; fsspec may list a folder."""
        return await self.get(key, default_buffer_prototype(), RangeByteRequest(0, 1)) is not None

    async def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            async with asyncio.timeout(LONGEST):
                await self.fs._rm_file(f"{self.path}/{key}")

    def why_missing(self, key: str) -> str:
        """The bucket's own error for a missing object, because the bucket itself may be missing."""
        try:
            sync(self.fs._cat_file(f"{self.path}/{key}"))
        except FileNotFoundError as error:
            return f" ({one_line(error).rstrip('.')})"
        return ""


def local_folder(address: str | Path) -> Path | None:
    """The folder of a store, also of a file:// URL; None if the store is in a bucket."""
    if not is_url(address):
        return Path(address)
    scheme, slashes, path = str(address).partition("://")
    return Path(path) if slashes and scheme in ("file", "local") else None


def open_storage(address: str, write: bool = False) -> Storage:
    """Open the place of a store; nothing is read or written yet.

    Raises:
        UserError: If `Path` has collapsed the two slashes of a URL, or fsspec cannot open URLs of this kind.
    """
    folder = local_folder(address)
    if folder is not None:
        return DurableStore(folder) if write else LocalStore(folder, read_only=True)
    scheme, slashes, _ = address.partition("://")
    if not slashes:
        raise UserError(f"{address} is a URL that was shortened by Path; give it as a string")
    try:
        if scheme not in ("s3", "s3a"):
            return Bucket.from_url(address, read_only=not write)
        bucket = Bucket.from_url(address, S3 | fsspec.config.conf.get(scheme, {}), read_only=not write)
        bucket.fs.retries = S3_RETRIES
        return bucket
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None) or "the package that it names"
        missing = "'worldmodel[s3]'" if missing == "s3fs" else missing
        raise UserError(f"{address} cannot be opened ({one_line(error)}); pip install {missing}") from None
    except Exception as error:  # each file system has its own errors
        raise UserError(f"{address} cannot be opened ({one_line(error)}); give another URL") from None


def read_object(storage: Storage, name: str) -> bytes | None:
    """The content of an object; None if there is no such object."""
    try:
        found = sync(StorePath(storage, name).get())
    except FileNotFoundError:  # the folder does not exist
        return None
    return None if found is None else found.to_bytes()


def write_object(storage: Storage, name: str, data: bytes) -> None:
    """Write an object as a whole."""
    sync(storage.set(name, default_buffer_prototype().buffer.from_bytes(data)))


def write_beside(address: str, name: str, data: bytes) -> None:
    """Write a file next to the arrays of a store; `UserError` if it cannot be written."""
    with writing_errors(address):
        write_object(open_storage(address, write=True), name, data)


def sync_folders(storage: Storage, names: Iterable[str]) -> None:
    """Wait until the names of the files in some folders are on the disk; a bucket and Windows cannot."""
    if isinstance(storage, DurableStore) and hasattr(os, "O_DIRECTORY"):
        for name in names:
            handle = os.open(storage.root / name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextlib.contextmanager
def writing_errors(address: str) -> Iterator[None]:
    """Raise the errors of writing as `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system has its own errors
        cure = "fix that, or use another folder" if local_folder(address) else CHECK_BUCKET
        raise UserError(f"{address} cannot be written ({one_line(error)}); {cure}") from None


@contextlib.contextmanager
def one_writer(address: str) -> Iterator[None]:
    """Lock a folder until the block or this process ends, however it ends, and delete what killed writers left there.

    A bucket cannot be locked like this. There the writer notices the commits of other writers.

    Raises:
        UserError: If the folder holds files but no store, cannot be written, or another process is writing to it.
    """
    path = local_folder(address)
    if path is None:
        yield
        return
    if path.is_file() or (path.is_dir() and not (path / "zarr.json").exists() and _has_other_files(path)):
        raise UserError(f"{path} holds something other than a store; use another folder")
    lock, holder = FileLock(path / "writer.lock", thread_local=False), path / "writer.pid"
    with writing_errors(address):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            process = holder.read_text(errors="replace").strip() if holder.is_file() else ""
            raise UserError(f"{path} is being written by process {process or '?'}; wait for it, or stop it") from None
    try:
        with writing_errors(address):
            holder.write_text(str(os.getpid()))
            for pattern in ("*.part", "data/**/*.part", "meta/**/*.part"):
                for leftover in path.glob(pattern):
                    leftover.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _has_other_files(path: Path) -> bool:
    """Whether a folder without a commit record has files that a writer killed at its start would not leave."""
    ours = ("writer.lock", "writer.pid")
    return any(p.name not in ours and not ("zarr.json" in p.name and p.suffix == ".part") for p in path.iterdir())
