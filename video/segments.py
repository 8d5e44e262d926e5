"""Keep the finished parts of a video that is being enlarged, so that the same command goes on after an interruption."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from utils import cli, files
from video.encoding import Packet

RESULT = "sr"  # the track whose file is written and moved last
FRAMES = 32  # in a segment: what an interruption costs at most


def folder_of(out: Path) -> Path:
    """Return the hidden folder in which the parts of an output are kept."""
    return out.with_name(f".{out.name}.unfinished")


def is_joined(out: Path) -> bool:
    """Tell whether an interrupted run had joined the segments, so that its files only have to be moved."""
    return (folder_of(out) / RESULT).exists()


@contextmanager
def kept_segments(
    out: Path, settings: dict[str, Any], overwrite: bool = False
) -> Iterator["Segments"]:
    """Yield the segments in a hidden folder beside the output, which is removed once it holds none.

    Args:
        out: output path.
        settings: plain data on which the frames depend.
        overwrite: drop segments that were made with other settings.

    Raises:
        UserError: another process is using the folder, or it holds segments of other settings.
        OSError: it cannot be written.
    """
    folder = files.make_folder(folder_of(out))
    with files.lock(folder / "lock"):
        files.remove_leftovers(folder)
        segments, record = Segments(folder), folder / "settings.json"
        try:
            before = json.loads(record.read_text()) if record.exists() else {}
            changed = [name for name in settings if before.get(name) != settings[name]]
            if changed and not segments.empty:
                if not overwrite:
                    raise cli.UserError(
                        f"{folder}: an unfinished run with another {' and '.join(changed)}; finish it with its own command, "
                        "or drop it with --overwrite"
                    )
                print(
                    f"starting over: the unfinished run had another {' and '.join(changed)}",
                    file=sys.stderr,
                )
                segments.remove_from(0)
                (folder / RESULT).unlink(missing_ok=True)
            files.write_text(record, json.dumps(settings))
            yield segments
        finally:
            if segments.empty:
                shutil.rmtree(folder)


class Segments:
    """The encoded frames of one or more tracks, and what was measured on them, in files of `FRAMES` frames each."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def joined(self) -> bool:
        """Whether the segments have been joined, but not all files moved to where they belong."""
        return (self.folder / RESULT).exists()

    @property
    def empty(self) -> bool:
        """Whether nothing is kept."""
        return not self.paths() and not self.joined

    def paths(self) -> list[Path]:
        """Return the files in order."""
        return sorted(self.folder.glob("segment_*.pth"))

    def _path(self, number: int) -> Path:
        return self.folder / f"segment_{number:08d}.pth"

    def save(self, number: int, tracks: dict[str, list[Packet]], measured: list[float]) -> None:
        """Keep a segment, whole or not at all."""
        packed = {name: _packed(packets) for name, packets in tracks.items()}
        files.save_tensors(self._path(number), {"tracks": packed, "measured": measured})

    def check(self) -> list[list[float]]:
        """Return what was measured on each intact segment; remove whatever follows a damaged or missing one."""
        measured: list[list[float]] = []
        while (path := self._path(len(measured))).exists():
            try:
                measured.append(files.load_tensors(path)["measured"])
            except cli.UserError as error:
                print(f"{error}; its frames will be enlarged again", file=sys.stderr)
                break
        self.remove_from(len(measured))
        return measured

    def remove_from(self, count: int) -> None:
        """Remove all segments but the first `count`."""
        for path in self.paths():
            if path >= self._path(count):
                path.unlink()

    def packets(self, name: str) -> Iterator[Packet]:
        """Yield all packets of a track, holding one segment in memory."""
        for path in self.paths():
            yield from _unpacked(files.load_tensors(path)["tracks"][name])


def _packed(packets: list[Packet]) -> dict[str, torch.Tensor]:
    return {
        "data": torch.frombuffer(
            bytearray(b"".join(packet.data for packet in packets)), dtype=torch.uint8
        ),
        "sizes": torch.tensor([len(packet.data) for packet in packets]),
        "frames": torch.tensor([packet.frame for packet in packets]),
        "keys": torch.tensor([packet.key for packet in packets]),
    }


def _unpacked(packed: dict[str, torch.Tensor]) -> Iterator[Packet]:
    data, place = packed["data"].numpy().tobytes(), 0
    for size, frame, key in zip(
        *(packed[name].tolist() for name in ("sizes", "frames", "keys")), strict=True
    ):
        yield Packet(frame, key, data[place : place + size])
        place += size
