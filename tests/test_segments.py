import itertools

import pytest

from utils import cli, files
from video import segments
from video.encoding import Packet


def test_segments_are_kept_until_a_damaged_one_and_the_folder_is_removed_when_empty(
    tmp_path, capsys
):
    out = tmp_path / "a.mp4"
    folder = tmp_path / ".a.mp4.unfinished"
    settings = {"crf": 18, "end": "None"}
    packets = []
    for number in range(4):
        key = Packet(2 * number, True, b"one" * number + b"!")
        other = Packet(2 * number + 1, False, bytes([number]))
        packets.append([key, other])

    # Saved
    with segments.kept_segments(out, settings) as kept:
        for number, pair in enumerate(packets):
            kept.save(number, {"sr": pair, "compare": pair[:1]}, [1.5, number, 2])
        assert list(kept.packets("sr")) == [*itertools.chain(*packets)]
        assert list(kept.packets("compare")) == [pair[0] for pair in packets]
        with pytest.raises(cli.UserError, match="another process is using"):
            with segments.kept_segments(out, settings):
                pass

    # Kept
    with segments.kept_segments(out, settings) as kept:
        assert kept.check() == [[1.5, number, 2] for number in range(4)]

    # Damaged
    damaged = folder / "segment_00000002.pth"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (folder / ".srgan-x.tmp").touch()
    with segments.kept_segments(out, settings) as kept:
        assert len(kept.check()) == 2 and len(kept.paths()) == 2
        assert not list(folder.glob(".srgan*"))
    assert "segment_00000002.pth: damaged" in capsys.readouterr().err

    # Other settings
    for changed in ({"crf": 20}, {"start": "1"}):
        with pytest.raises(cli.UserError, match=f"with a different {next(iter(changed))}"):
            with segments.kept_segments(out, settings | changed):
                pass
    with segments.kept_segments(out, settings | {"crf": 20}, overwrite=True) as kept:
        assert not kept.check()
    assert (
        "starting over: the unfinished run was started with a different crf"
        in capsys.readouterr().err
    )
    assert not folder.exists()


def test_what_is_joined_is_kept_until_it_is_moved(tmp_path, capsys):
    out = tmp_path / "a.mp4"
    folder = segments.folder_of(out)
    with segments.kept_segments(out, {"crf": 18}) as kept:
        kept.save(0, {"sr": [Packet(0, True, b"one")]}, [])
        assert not kept.joined and not segments.is_joined(out)
        (folder / segments.RESULT).write_bytes(b"joined")
        kept.remove_from(0)
    with segments.kept_segments(out, {"crf": 18}) as kept:
        assert kept.joined and segments.is_joined(out) and not kept.empty
    with pytest.raises(cli.UserError, match="with a different crf"):
        with segments.kept_segments(out, {"crf": 20}):
            pass
    with segments.kept_segments(out, {"crf": 20}, overwrite=True) as kept:
        assert kept.empty
    assert not folder.exists()


def test_a_full_disk_names_the_segment(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with segments.kept_segments(tmp_path / "a.mp4", {}) as kept:
        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match=r"segment_00000000\.pth"):
            kept.save(0, {"sr": [Packet(0, True, b"one")]}, [])
    assert not list(tmp_path.iterdir())
