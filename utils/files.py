"""Files that are whole or absent, tensors loaded without running code, checksums, locks, free-space checks."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from utils import cli

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".srgan-", ".tmp"


@contextlib.contextmanager
def write_atomic(path: str | Path, backup: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of `path` when the block ends well, and is removed when it fails.

    The temporary file lies in the same folder; it is flushed to the disk before it is renamed, and so is the folder after.
    The older file at `path` is kept as `backup`, where that is given.

    Raises:
        OSError: no such folder, no permission, no space; an older file at `path` is then untouched.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX)
    except OSError as error:
        raise cannot_be_written(path, error) from error
    os.close(handle)
    try:
        with open(temporary, "w+b") as file:  # by its name, so that helper processes can open it too
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if backup:
            keep_as(path, backup)
        put_in_place(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary):
            raise cannot_be_written(path, error) from error
        raise


def cannot_be_written(path: str | Path, error: OSError) -> OSError:
    """Return the error that says which file, or folder, cannot be written, and why."""
    return OSError(error.errno, f"cannot be written ({error.strerror})", str(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def put_in_place(source: str | Path, target: str | Path) -> None:
    """Rename a file, or a folder, whose content is on the disk already; flush the new name too, where the system allows."""
    os.replace(source, target)
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; file names that are no text appear with backslashes."""
    with write_atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def keep_as(path: str | Path, backup: str | Path) -> None:
    """Give the file at `path`, if there is one, the second name `backup`, without a moment in which neither is whole."""
    path, backup = Path(path), Path(backup)
    if not path.exists() or (backup.exists() and backup.samefile(path)):
        return
    link = backup.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}{TEMPORARY_SUFFIX}")
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links
        with open(path, "rb") as source, write_atomic(backup) as target:
            shutil.copyfileobj(source, target)
        return
    try:
        put_in_place(link, backup)
    except OSError as error:
        link.unlink(missing_ok=True)
        raise cannot_be_written(backup, error) from error


def remove_leftovers(*folders: str | Path) -> None:
    """Remove the temporary files and folders that a killed process left in folders; only under a lock that keeps others out."""
    for folder in folders:
        for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> Path:
    """Make a folder and its parents, and see that files can be written there; return it.

    Raises:
        OSError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    return folder


def check_free_space(folder: str | Path, needed_bytes: int, advice: str) -> None:
    """Raise OSError (ENOSPC) with `advice` when `folder`'s disk has less than `needed_bytes` and a little more free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + 64 * 2**20:
        text = f"needs {needed_bytes / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free: {advice}"
        raise OSError(errno.ENOSPC, text, str(folder))


@contextlib.contextmanager
def lock(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the system drops it when the process ends, however it ends.

    Raises:
        ValueError: another process holds it and `wait` is False.
    """
    file = open(path, "a+b")  # noqa: SIM115 - stays open as long as the lock is held
    try:
        try:
            _lock_file(file, wait)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise OSError(error.errno, f"cannot be locked ({error.strerror})", str(path)) from error
            raise cli.UserError(f"{path}: another process is using this folder; wait for it or name another") from error
        yield
    finally:
        file.close()


def _lock_file(file: IO[bytes], wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: str | Path, value: Any, backup: str | Path | None = None) -> None:
    """Write nested plain data and tensors in PyTorch's format, whole or not at all; keep the older file as `backup`.

    Raises:
        RunError: a floating-point tensor is not finite; nothing is written.
    """
    check_finite(value)
    with write_atomic(path, backup) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            raise error.__context__ or error from None  # what broke in (full disk, signal, dead worker), not the zip writer's


def check_finite(value: Any, name: str = "") -> None:
    """Raise RunError naming the first floating-point tensor in nested data that has a NaN or an infinity."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_finite(inner, f"{name}[{index}]")
    elif isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
        raise cli.RunError(f"{name} has values that are not finite")


def load_tensors(path: str | Path) -> Any:
    """Read nested plain data and tensors onto the CPU, without running code that a file may carry.

    A `.safetensors` file gives {"state_dict": tensors, **its metadata}. The checksums of a PyTorch file are verified first,
    since `torch.load` does not notice a flipped bit.

    Raises:
        OSError: the file cannot be opened.
        ValueError: not a file of tensors, damaged, or one that would run code.
    """
    path = Path(path)
    with open(path, "rb") as file:
        if not file.read(1):
            raise cli.UserError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if not zipfile.is_zipfile(path):
        return _torch_load(path)  # PyTorch's format before 1.6
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise cli.UserError(f"{path}: not read, its parts are compressed, as PyTorch never does")  # to any size
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek to a place that the damage invents
            raise
        raise cli.UserError(f"{path}: damaged ({cli.describe(error)})") from error
    if damaged:
        raise cli.UserError(f"{path}: damaged (checksum of {damaged} is wrong)")
    return _torch_load(path)


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a stranger's file makes the unpickler raise
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which PyTorch raises for a seek beyond the end
            raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it is no file of tensors, or would run code when loaded"
        else:
            reason = "it is cut short or no file of tensors"
        raise cli.UserError(f"{path}: not read, {reason}") from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {"state_dict": tensors, **(file.metadata() or {})}
    except SafetensorError as error:
        raise cli.UserError(f"{path}: not a safetensors file, or damaged ({error})") from error
