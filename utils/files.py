"""Files written whole or not at all, locks, checksums, and tensors read without executing code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils import cli

if TYPE_CHECKING:
    import torch

# PyTorch, which takes a second to import, is imported by the functions that need it:
# plot_statistics.py uses this module without it.

# The formats of the project's own files
GENERATOR_FORMAT = "srgan-generator-1"
CHECKPOINT_FORMAT = "srgan-checkpoint-1"
DISCRIMINATOR_FORMAT = "srgan-discriminator-1"

TEMPORARY_PREFIX = ".srgan-"
TEMPORARY_SUFFIX = ".tmp"

# --- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def write_atomic(path: str | Path, backup: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` when the block succeeds.

    It is a temporary file in the same folder. It is flushed to disk before it is renamed, and the
    folder afterwards; when the block fails, it is removed.

    Args:
        path: the file to write.
        backup: keep the replaced file under this name.

    Raises:
        OSError: no such folder, no permission, no space; the file at `path` is then untouched.
    """
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=TEMPORARY_PREFIX, suffix=TEMPORARY_SUFFIX
        )
    except OSError as error:
        raise cannot_be_written(path, error) from error
    os.close(handle)
    try:
        # Opened by name, so that helper processes can open it too
        with open(temporary, "w+b") as file:
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
        if not isinstance(error, OSError) or error.errno is None:
            raise
        if error.filename not in (None, temporary):  # about another file
            raise
        raise cannot_be_written(path, error) from error


def cannot_be_written(path: str | Path, error: OSError) -> OSError:
    """Return an error that says which file or folder cannot be written, and why."""
    return OSError(error.errno, f"cannot be written ({error.strerror})", str(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def put_in_place(source: str | Path, target: str | Path) -> None:
    """Rename a file or folder whose content is on disk; flush the new name, if the system can."""
    os.replace(source, target)
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            # Some file systems, such as network ones, cannot flush a folder
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; undecodable bytes of file names become escapes."""
    with write_atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def keep_as(path: str | Path, backup: str | Path) -> None:
    """Keep the file at `path`, if there is one, under the name `backup` too.

    At any moment, one of the two is intact.
    """
    path = Path(path)
    backup = Path(backup)
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
    """Remove what a killed process left in folders; the caller must lock out other writers."""
    for folder in folders:
        for leftover in Path(folder).glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def make_folder(folder: str | Path) -> Path:
    """Create a folder and its parents, check that files can be written there, and return it.

    Raises:
        OSError: it cannot be created or written.
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
    """Check that a folder's disk has room for `needed_bytes` and 64 MiB more.

    Raises:
        OSError: it has not (ENOSPC); the message ends with `advice`.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + 64 * 2**20:
        raise OSError(
            errno.ENOSPC,
            f"needs {needed_bytes / 1e9:.2f} GB of disk space, but {free / 1e9:.2f} GB are free; "
            f"{advice}",
            str(folder),
        )


# --- locks and checksums ------------------------------------------------------------------------

_locked: set[IO[bytes]] = set()


@contextlib.contextmanager
def lock(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the system releases it however the process ends.

    Raises:
        UserError: another process holds it and `wait` is False.
        OSError: the file system does not support locks.
    """
    with open(path, "a+b") as file:
        try:
            _lock_file(file, wait)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise cli.UserError(
                    f"{path}: another process is using this folder; wait for it, or choose another "
                    "folder"
                ) from error
            reason = f"cannot be locked ({error.strerror})"
            raise OSError(error.errno, reason, str(path)) from error
        _locked.add(file)
        try:
            yield
        finally:
            _locked.discard(file)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Make a folder and hold its lock; if nothing is written to it, remove it again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = make_folder(folder) / ".lock"
    with lock(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows keeps files that are open
                if [entry.name for entry in folder.iterdir()] == [path.name]:
                    path.unlink()
                    for empty in made:
                        empty.rmdir()


def _close_in_child() -> None:
    """Close what the parent has locked: a worker that outlives it would keep the lock."""
    for file in _locked:
        file.close()
    _locked.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(after_in_child=_close_in_child)


def _lock_file(file: IO[bytes], wait: bool) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    file.seek(0)
    mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK
    while True:
        try:
            msvcrt.locking(file.fileno(), mode, 1)
            return
        except OSError as error:
            if not wait or error.errno != errno.EDEADLK:  # LK_LOCK gives up after ten seconds
                raise


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- tensors ------------------------------------------------------------------------------------


def save_tensors(path: str | Path, value: Any, backup: str | Path | None = None) -> None:
    """Write nested plain data and tensors in PyTorch's format, whole or not at all.

    Args:
        path: the file to write.
        value: the data.
        backup: keep the replaced file under this name.

    Raises:
        RunError: a floating-point tensor is not finite; nothing is written.
        OSError: as for `write_atomic`.
    """
    import torch

    check_finite(value)
    with write_atomic(path, backup) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # The zip writer's error hides the cause: a full disk, a signal, a dead worker
            raise (error.__context__ or error) from None


def misfit(state: dict[str, Any], wanted: dict[str, torch.Tensor]) -> str:
    """Return what is wrong with a state dict; empty if its names and shapes are as `wanted`."""
    import torch

    for name, tensor in wanted.items():
        if name not in state:
            return f"{name} is missing"
        if not isinstance(state[name], torch.Tensor):
            return f"{name} is not a tensor"
        if state[name].shape != tensor.shape:
            return f"{name} has the shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
    extra = state.keys() - wanted.keys()
    return f"the network has no {min(extra)}" if extra else ""


def usable_state(
    path: str | Path, state: dict[str, Any], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return a fitting state dict in the number formats of `wanted`.

    Raises:
        UserError: a weight is not finite.
    """
    state = {name: state[name].to(tensor.dtype) for name, tensor in wanted.items()}
    try:
        check_finite(state)
    except cli.RunError as error:
        raise cli.UserError(f"{path}: {error}") from error
    return state


def check_finite(value: Any, name: str = "") -> None:
    """Check that no floating-point tensor in nested data has a NaN or an infinity.

    Raises:
        RunError: one has; the message names it.
    """
    import torch

    if isinstance(value, dict):
        for key, inner in value.items():
            check_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_finite(inner, f"{name}[{index}]")
    elif isinstance(value, torch.Tensor) and value.is_floating_point():
        finite = bool(torch.isfinite(value).all())
        if not finite:
            raise cli.RunError(f"{name} has values that are not finite")


def load_tensors(path: str | Path) -> Any:
    """Read nested plain data and tensors onto the CPU, without executing any code in the file.

    A `.safetensors` file gives {"state_dict": tensors, **its metadata}. The checksums of a PyTorch
    file are verified first, since `torch.load` does not notice a flipped bit.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file does not hold tensors, is damaged, would execute code, or needs more
            memory than its size.
    """
    path = Path(path)
    with open(path, "rb") as file:
        magic = file.read(4)
        size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise cli.UserError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        loaded = _load_safetensors(path)
    else:
        if magic == b"PK\x03\x04":  # else PyTorch's format before 1.6, which has no checksums
            _check_archive(path, size)
        loaded = _torch_load(path)
    _check_memory(path, loaded, size)
    return loaded


def _check_archive(path: Path, size: int) -> None:
    """Verify the checksums of a PyTorch file, and that it does not unpack to more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > size:
                damage = "its parts are compressed or overlap, which PyTorch's never do"
            else:
                name = archive.testzip()
                if name is None:
                    return
                damage = f"checksum of {name!r} is wrong"
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:
        if _is_system_error(error):
            raise
        damage = cli.describe(error)
    raise cli.UserError(f"{path}: damaged ({damage})")


def _is_system_error(error: BaseException) -> bool:
    """Tell whether the system failed; EINVAL means that a damaged file has a wrong offset."""
    return isinstance(error, OSError) and error.errno != errno.EINVAL


def _torch_load(path: Path) -> Any:
    import torch

    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            holds_bytearray = content.find(b"bytearray") >= 0
    if holds_bytearray:  # PyTorch's unpickler would make it as large as the file asks
        raise cli.UserError(
            f"{path}: refused, it contains a bytearray, which weight files never do"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        if cli.is_out_of_memory(error) or _is_system_error(error):
            raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it is not a file of tensors, or would run code when loaded"
        else:
            reason = "it is cut short or not a file of tensors"
        raise cli.UserError(f"{path}: refused, {reason}") from error


def _check_memory(path: Path, loaded: Any, size: int) -> None:
    """Refuse tensors that would take more memory than the file's size once they are copied.

    Expanded tensors would, for example. Sparse and quantized tensors, and tensors without values,
    are refused too.
    """
    import torch

    largest_of: dict[int, int] = {}  # bytes by storage, so that tied weights count once
    seen: set[int] = set()
    waiting = [loaded]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, torch.Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.is_quantized or value.is_nested:
                raise cli.UserError(
                    f"{path}: refused, it holds tensors that are sparse, quantized or without "
                    "values"
                )
            storage = value.untyped_storage().data_ptr()
            needed = value.numel() * value.element_size()
            largest_of[storage] = max(needed, largest_of.get(storage, 0))
    total = sum(largest_of.values())
    if total > size:
        raise cli.UserError(
            f"{path}: refused, {size:,} bytes cannot hold its {total:,} bytes of tensors"
        )


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()  # file is not a dict: it cannot be iterated over
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise cli.UserError(f"{path}: not a safetensors file, or damaged ({error})") from error
    return {"state_dict": tensors, **metadata}
