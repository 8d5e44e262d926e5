"""Files written whole or not at all, tensors loaded without executing code, checksums, locks, free-space checks."""

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from utils import cli

# PyTorch is imported where it is needed: plot_statistics.py uses this module without it.

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".srgan-", ".tmp"


@contextlib.contextmanager
def write_atomic(path: str | Path, backup: str | Path | None = None) -> Iterator[IO[bytes]]:
    """Yield a temporary binary file that replaces `path` when the block succeeds and is removed when it fails.

    It is in the same folder and is flushed to disk before it is renamed; the folder is flushed afterwards. With
    `backup`, the replaced file is kept under that name.

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
        with open(
            temporary, "w+b"
        ) as file:  # opened by name, so that helper processes can open it too
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
        if (
            isinstance(error, OSError)
            and error.errno is not None
            and error.filename in (None, temporary)
        ):
            raise cannot_be_written(path, error) from error
        raise


def cannot_be_written(path: str | Path, error: OSError) -> OSError:
    """Return an error that says which file or folder cannot be written, and why."""
    return OSError(error.errno, f"cannot be written ({error.strerror})", str(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def put_in_place(source: str | Path, target: str | Path) -> None:
    """Rename a file or folder whose content is already on disk; flush the new name too, if the system allows it."""
    os.replace(source, target)
    with contextlib.suppress(PermissionError, IsADirectoryError):
        descriptor = os.open(Path(target).parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; undecodable bytes of file names appear as backslash escapes."""
    with write_atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def keep_as(path: str | Path, backup: str | Path) -> None:
    """Keep the file at `path`, if there is one, under the name `backup` too; at any moment, one of the two is intact."""
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
    """Remove temporary files and folders that a killed process left behind; the caller must lock out other writers."""
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
    """Raise OSError (ENOSPC) with `advice` if `folder`'s disk has less than `needed_bytes` plus 64 MiB free."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + 64 * 2**20:
        text = f"needs {needed_bytes / 1e9:.2f} GB of disk space, but {free / 1e9:.2f} GB are free; {advice}"
        raise OSError(errno.ENOSPC, text, str(folder))


@contextlib.contextmanager
def lock(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; the system releases it when the process ends, however it ends.

    Raises:
        UserError: another process holds it and `wait` is False.
        OSError: the file system does not support locks.
    """
    file = open(path, "a+b")  # noqa: SIM115 - stays open as long as the lock is held
    try:
        try:
            _lock_file(file, wait)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
                raise OSError(
                    error.errno, f"cannot be locked ({error.strerror})", str(path)
                ) from error
            raise cli.UserError(
                f"{path}: another process is using this folder; wait for it, or choose another folder"
            ) from error
        yield
    finally:
        file.close()


def _lock_file(file: IO[bytes], wait: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        while True:
            try:
                return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            except OSError as error:
                if not wait or error.errno != errno.EDEADLK:  # LK_LOCK gives up after ten seconds
                    raise
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
    import torch

    check_finite(value)
    with write_atomic(path, backup) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            raise (
                error.__context__ or error
            ) from None  # the cause (full disk, signal, dead worker), not the zip writer's


def check_finite(value: Any, name: str = "") -> None:
    """Raise RunError naming the first floating-point tensor in nested data that has a NaN or an infinity."""
    import torch

    if isinstance(value, dict):
        for key, inner in value.items():
            check_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_finite(inner, f"{name}[{index}]")
    elif (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not torch.isfinite(value).all()
    ):
        raise cli.RunError(f"{name} has values that are not finite")


def load_tensors(path: str | Path) -> Any:
    """Read nested plain data and tensors onto the CPU, without executing any code in the file.

    A `.safetensors` file gives {"state_dict": tensors, **its metadata}. The checksums of a PyTorch file are verified first,
    since `torch.load` does not notice a flipped bit.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file does not hold tensors, is damaged, would execute code, or needs more memory than its size.
    """
    path = Path(path)
    with open(path, "rb") as file:
        magic, size = file.read(4), file.seek(0, os.SEEK_END)
    if not size:
        raise cli.UserError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        loaded = _load_safetensors(path)
    else:
        if magic == b"PK\x03\x04":  # else PyTorch's format before 1.6
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
                damaged = "its parts are compressed or overlap, which PyTorch's never do"
            elif name := archive.testzip():
                damaged = f"checksum of {name!r} is wrong"
            else:
                return
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, OSError) as error:
        if (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):  # a seek to a place that does not exist
            raise
        damaged = cli.describe(error)
    raise cli.UserError(f"{path}: damaged ({damaged})")


def _torch_load(path: Path) -> Any:
    import torch

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if (
            content.find(b"bytearray") >= 0
        ):  # PyTorch's unpickler would make it as large as the file asks
            raise cli.UserError(
                f"{path}: refused, it holds a bytearray, which files of weights never do"
            )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        if cli.is_out_of_memory(error) or (
            isinstance(error, OSError) and error.errno != errno.EINVAL
        ):
            raise
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "it is not a file of tensors, or would run code when loaded"
        else:
            reason = "it is cut short or not a file of tensors"
        raise cli.UserError(f"{path}: refused, {reason}") from error


def _check_memory(path: Path, loaded: Any, size: int) -> None:
    """Refuse tensors, such as expanded ones, that would take more memory than the file's size once they are copied."""
    import torch

    needed: dict[int, int] = {}  # by storage, so that tied weights count once
    seen, waiting = set(), [loaded]
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
            if (
                value.layout != torch.strided
                or value.device.type != "cpu"
                or value.is_quantized
                or value.is_nested
            ):
                raise cli.UserError(
                    f"{path}: refused, it holds tensors that are sparse, quantized or without values"
                )
            storage = value.untyped_storage().data_ptr()
            needed[storage] = max(needed.get(storage, 0), value.numel() * value.element_size())
    if sum(needed.values()) > size:
        raise cli.UserError(
            f"{path}: refused, {size:,} bytes cannot hold its {sum(needed.values()):,} bytes of tensors"
        )


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return {"state_dict": tensors, **(file.metadata() or {})}
    except SafetensorError as error:
        raise cli.UserError(f"{path}: not a safetensors file, or damaged ({error})") from error
