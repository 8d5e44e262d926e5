"""Keep finished parts of a video on disk, so that an interrupted run can continue."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import cli, files
from video.encoding import Packet

if TYPE_CHECKING:  # test_video.py parses its command line without PyTorch
    import torch

RESULT = "sr"  # the track whose file is written and moved last
FRAMES = 32  # per segment: the most that an interruption costs


def folder_of(out: Path) -> Path:
    """Return the hidden folder beside an output file that holds its segments."""
    return out.with_name(f".{out.name}.unfinished")


def is_joined(out: Path) -> bool:
    """Return whether an interrupted run had only to move its finished files into place."""
    return (folder_of(out) / RESULT).exists()


@contextmanager
def kept_segments(
    out: Path, settings: dict[str, Any], overwrite: bool = False
) -> Iterator[Segments]:
    """Lock the folder of an output file's segments and yield them; remove the folder if empty.

    Args:
        out: output path.
        settings: everything that the frames depend on, as plain data.
        overwrite: discard segments that were made with other settings.

    Raises:
        UserError: another process is using the folder, or its segments have other settings.
        OSError: it cannot be written.
    """
    folder = files.make_folder(folder_of(out))
    with files.lock(folder / "lock"):
        files.remove_leftovers(folder)
        segments = Segments(folder)
        record = folder / "settings.json"
        try:
            before = json.loads(record.read_text()) if record.exists() else {}
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed and not segments.empty:
                named = " and ".join(changed)
                if not overwrite:
                    raise cli.UserError(
                        f"{folder}: holds an unfinished run with a different {named}; "
                        "finish it with its own command, or discard it with --overwrite"
                    )
                print(
                    f"starting over: the unfinished run was started with a different {named}",
                    file=sys.stderr,
                )
                segments.remove_from(0)
                (folder / RESULT).unlink(missing_ok=True)
            files.write_text(record, json.dumps(settings))
            yield segments
        finally:
            if segments.empty:
                shutil.rmtree(folder, ignore_errors=sys.platform == "win32")  # the lock is open
    if sys.platform == "win32" and Segments(folder).empty:
        shutil.rmtree(folder, ignore_errors=True)


class Segments:
    """Files of `FRAMES` frames each, encoded for one or more tracks, with their measurements."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def joined(self) -> bool:
        """Whether the segments have been joined, but not all results moved into place."""
        return (self.folder / RESULT).exists()

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self.paths() and not self.joined

    def paths(self) -> list[Path]:
        """Return the files in order."""
        return sorted(self.folder.glob("segment_*.pth"))

    def frames(self, total: int) -> int:
        """Return how many of a clip's `total` frames are kept."""
        if self.joined:
            return total
        return min(len(self.paths()) * FRAMES, total)

    def _path(self, number: int) -> Path:
        return self.folder / f"segment_{number:08d}.pth"

    def save(self, number: int, tracks: dict[str, list[Packet]], measured: list[float]) -> None:
        """Write a segment, whole or not at all.

        Args:
            number: of the segment, from 0.
            tracks: packets by track name.
            measured: numbers that `check` returns.
        """
        packed = {name: _pack(packets) for name, packets in tracks.items()}
        files.save_tensors(self._path(number), {"tracks": packed, "measured": measured})

    def check(self) -> list[list[float]]:
        """Return what was measured on each segment up to the first damaged or missing one.

        The segments from there on are removed.
        """
        measured: list[list[float]] = []
        path = self._path(0)
        while path.exists():
            try:
                measured.append(files.load_tensors(path)["measured"])
            except cli.UserError as error:
                print(f"{error}; its frames will be enlarged again", file=sys.stderr)
                break
            path = self._path(len(measured))
        self.remove_from(len(measured))
        return measured

    def remove_from(self, number: int) -> None:
        """Remove segment `number` and all that follow."""
        for path in self.paths():
            if path >= self._path(number):
                path.unlink()

    def packets(self, name: str) -> Iterator[Packet]:
        """Yield all packets of a track, with one segment in memory at a time."""
        for path in self.paths():
            yield from _unpack(files.load_tensors(path)["tracks"][name])


def _pack(packets: list[Packet]) -> dict[str, torch.Tensor]:
    import torch

    data = bytearray(b"".join(packet.data for packet in packets))
    return {
        "data": torch.frombuffer(data, dtype=torch.uint8),
        "sizes": torch.tensor([len(packet.data) for packet in packets]),
        "frames": torch.tensor([packet.frame for packet in packets]),
        "keys": torch.tensor([packet.key for packet in packets]),
    }


def _unpack(packed: dict[str, torch.Tensor]) -> Iterator[Packet]:
    data = packed["data"].numpy().tobytes()
    columns = [packed[name].tolist() for name in ("sizes", "frames", "keys")]
    start = 0
    for size, frame, key in zip(*columns, strict=True):
        yield Packet(frame, key, data[start : start + size])
        start += size
