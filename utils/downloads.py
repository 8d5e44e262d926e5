"""Download and unpack large archives.

Downloads resume where they stopped and are checked. An unpacked folder is whole or absent, and
nothing is written outside it.
"""

import http.client
import os
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli, files

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass(frozen=True)
class Archive:
    """A zip archive: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def download(
    url: str, path: Path, archive: Archive, tries: int = 5, pause_seconds: float = 2
) -> None:
    """Download to `path`, which appears only once its hash is verified.

    A try resumes from `path`.part if an earlier one stopped.

    Raises:
        UserError: every one of the `tries` failed, the URL is not valid, or the size or the SHA-256
            is wrong.
        OSError: the disk is full or cannot be written.
    """
    part = path.with_name(path.name + ".part")
    for attempt in range(1, tries + 1):
        try:
            _fetch(url, part, archive.size)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise cli.UserError(
                    f"{url}: the server answers {error.code} {error.reason}; "
                    "name another mirror with --url"
                ) from error
            problem: Exception = error
        except (OSError, EOFError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename:  # of the disk, not the network
                raise
            problem = error
        if attempt == tries:
            raise cli.UserError(
                f"{url}: stopped after {tries} tries ({problem}); "
                "run the same command again to resume"
            ) from problem
        done = part.stat().st_size if part.exists() else 0
        print(f"{url}: {problem}; trying again from {done:,} bytes")
        time.sleep(pause_seconds * attempt)
    try:
        check_archive(part, archive, f"the file from {url} has been deleted")
    except cli.UserError:
        part.unlink()
        raise
    files.put_in_place(part, path)


def check_archive(path: Path, archive: Archive, advice: str) -> None:
    """Raise UserError, with the advice, if a file is not the archive."""
    found = Archive(path.stat().st_size, files.sha256(path))
    if found != archive:
        raise cli.UserError(
            f"{path}: not the archive ({found.size:,} bytes with SHA-256 {found.sha256[:12]}…, "
            f"expected {archive.size:,} with {archive.sha256[:12]}…); {advice}"
        )


def _fetch(url: str, part: Path, size: int) -> None:
    """Append the missing bytes to `part`; raise EOFError if the connection ends early."""
    done = part.stat().st_size if part.exists() else 0
    if done >= size:
        return

    # Ask for what is missing
    headers = {"Range": f"bytes={done}-"} if done else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=30)
    except (ValueError, http.client.InvalidURL) as error:
        raise cli.UserError(
            f"{url}: not a valid address ({error}); give the URL of the archives' folder with --url"
        ) from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise cli.UserError(
                f"{url}: the server sent a web page instead of the archive; open it in a browser, "
                "or name a mirror with --url"
            )
        if done and response.status != 206:  # the server cannot resume
            done = 0

        # Append it
        mode = "ab" if done else "wb"
        bar: tqdm[bytes] = cli.progress_bar(
            total=size, initial=done, desc=part.stem, unit="B", unit_scale=True
        )
        with bar, open(part, mode) as file:
            while chunk := response.read(2**20):
                done += len(chunk)
                if done > size:
                    raise cli.UserError(f"{url}: sent more than the archive's {size:,} bytes")
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise files.cannot_be_written(part, error) from error
                bar.update(len(chunk))
            os.fsync(file.fileno())
    if done < size:
        raise EOFError(f"the connection ended after {done:,} of {size:,} bytes")


def unpack(zip_path: Path, folder: Path) -> None:
    """Unpack a verified archive to `folder`, which appears only once it is complete.

    Raises:
        UserError: a member is a link or a device, or its name leads outside the folder.
        OSError: the disk is full or cannot be written.
    """
    with zipfile.ZipFile(zip_path) as archive, _temporary_folder(folder.parent) as temporary:
        members = archive.infolist()
        _check_members(zip_path, members)
        try:
            for member in cli.progress_bar(members, desc=f"unpacking {zip_path.name}", unit="file"):
                archive.extract(member, temporary)
        except OSError as error:
            raise files.cannot_be_written(folder, error) from error
        if hasattr(os, "sync"):
            os.sync()
        files.put_in_place(temporary, folder)
        os.mkdir(temporary)  # the context manager expects to remove it
    folder.chmod(0o755)


def _temporary_folder(place: Path) -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(
        dir=place, prefix=files.TEMPORARY_PREFIX, suffix=files.TEMPORARY_SUFFIX
    )


def _check_members(zip_path: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        parts = Path(member.filename.replace("\\", "/")).parts
        if not parts or ".." in parts or Path(member.filename).is_absolute() or ":" in parts[0]:
            raise cli.UserError(
                f"{zip_path}: contains {member.filename!r}, which leads outside the target; "
                "nothing was unpacked"
            )
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise cli.UserError(
                f"{zip_path}: contains {member.filename!r}, a link or a device; nothing was "
                "unpacked"
            )
