import contextlib
import errno
import io
import multiprocessing
import os
import stat
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT

from utils import cli, files


class WouldRun:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_write_replaces_the_older_file(tmp_path):
    path = tmp_path / "a"
    files.write_text(path, "one")
    files.write_text(path, "two")
    assert path.read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_failed_write_leaves_the_older_file_and_names_it(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    path.write_text("old")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call != "write":
        monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left") as caught:
        with files.write_atomic(path) as file:
            if call == "write":
                full()
            file.write(b"new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with files.write_atomic(tmp_path / "a"):
            raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="cannot be written") as caught:
        files.write_text(tmp_path / "no" / "a", "")
    assert caught.value.filename == str(tmp_path / "no" / "a")


def test_tensors_survive_the_disk(tmp_path):
    value = {"a": torch.arange(3.0), "b": [1, "x", None, {"c": torch.ones(2, dtype=torch.int64)}]}
    files.save_tensors(tmp_path / "t.pth", value)
    loaded = files.load_tensors(tmp_path / "t.pth")
    assert torch.equal(loaded["a"], value["a"])
    assert loaded["b"][:3] == [1, "x", None]
    assert torch.equal(loaded["b"][3]["c"], torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "cause",
    [
        SystemExit(130),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("DataLoader worker (pid 1) was killed"),
    ],
    ids=["signal", "full disk", "dead worker"],
)
def test_the_zip_writer_does_not_hide_why_writing_tensors_failed(tmp_path, monkeypatch, cause):
    class Broken(io.FileIO):
        left = 0

        def write(self, data):
            if Broken.left == 0:
                raise type(cause)(*cause.args)
            Broken.left -= 1
            return super().write(data)

    monkeypatch.setattr(files, "open", lambda path, mode: Broken(path, mode), raising=False)
    for writes in range(100):
        Broken.left = writes
        try:
            files.save_tensors(tmp_path / "t.pth", {"a": torch.zeros(3), "b": torch.ones(100)})
            break
        except (SystemExit, OSError, RuntimeError) as error:
            assert type(error) is type(cause)
            assert str(cause.args[-1]) in str(error)
            assert os.listdir(tmp_path) == []
    assert 10 < writes < 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_saved(tmp_path, bad):
    value = {"networks": {"w": [torch.ones(1), torch.tensor([0, bad])]}}
    with pytest.raises(cli.RunError, match=r"networks\.w\[1\]"):
        files.save_tensors(tmp_path / "t.pth", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("old_format", [False, True])
def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path, old_format):
    value = {"a": WouldRun(tmp_path / "ran")}
    torch.save(value, tmp_path / "t.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match="would run code"):
        files.load_tensors(tmp_path / "t.pth")
    assert not (tmp_path / "ran").exists()


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "t.pth"
    files.save_tensors(path, {"a": torch.arange(1000.0)})
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        data = next(info for info in archive.infolist() if info.filename.endswith("data/0"))
    first_member = whole.index(b"PK\x01\x02")  # in the list of members
    flipped = bytearray(whole)
    flipped[data.header_offset + 1500] ^= 4
    encrypted = bytearray(whole)
    encrypted[first_member + 8] ^= 1  # its flag
    shifted = bytearray(whole)
    shifted[whole.rindex(b"PK\x06\x06") + 50] ^= 1  # where the list of members begins
    disks = bytearray(whole)
    disks[whole.rindex(b"PK\x06\x07") + 4] ^= 1  # on which disk the list of members is
    unnamed = bytearray(whole)
    unnamed[first_member + 9] |= 8  # a name in UTF-8 ...
    unnamed[first_member + 46] = 0xFF  # ... that is not
    for broken, reason in (
        (bytes(flipped), "checksum"),
        (bytes(encrypted), "damaged"),
        (bytes(shifted), "damaged"),
        (bytes(disks), "damaged"),
        (bytes(unnamed), "damaged"),
        (whole[: len(whole) // 2], "damaged"),
        (b"", "empty"),
        (b"x" * 99, "refused"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=reason):
            files.load_tensors(path)


def test_safetensors_are_read_and_their_damage_noticed(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "t.safetensors"
    save_file({"a": torch.arange(4.0)}, path, {"format": "x"})
    loaded = files.load_tensors(path)
    assert loaded["format"] == "x"
    assert torch.equal(loaded["state_dict"]["a"], torch.arange(4.0))
    path.write_bytes((10**15).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="safetensors"):
        files.load_tensors(path)


def test_tensors_that_would_take_more_memory_than_the_file_has_bytes_are_refused(tmp_path):
    path = tmp_path / "t.pth"
    shared = torch.rand(100)
    hostile = {
        "expanded": torch.ones(1).expand(10**10),
        "each a little": {str(index): torch.rand(3, 1).expand(3, 10**4) for index in range(10)},
        "overlapping windows": [[shared.as_strided((51, 50), (1, 1))]],
        "no values": torch.empty(10**9, device="meta"),
        "sparse": torch.zeros(10, 10).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.rand(5), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
    }
    reason = r"t\.pth: refused, .*(bytes of tensors|without values|file of tensors)"
    for old_format in (False, True):
        for what, value in hostile.items():
            torch.save({"a": value}, path, _use_new_zipfile_serialization=not old_format)
            with pytest.raises(cli.UserError, match=reason):
                files.load_tensors(path)
                pytest.fail(what)


@pytest.mark.parametrize("old_format", [False, True])
def test_tied_weights_and_parts_of_one_tensor_are_loaded(tmp_path, old_format):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = torch.nn.Embedding(1000, 64)
            self.decoder = torch.nn.Linear(64, 1000)
            self.decoder.weight = self.encoder.weight

    state = dict(Tied().state_dict())
    state |= {
        "transposed": state["encoder.weight"].T,
        "first": state["encoder.weight"][:900],
        "empty": torch.zeros(0, 3),
    }
    torch.save(state, tmp_path / "t.pth", _use_new_zipfile_serialization=not old_format)
    loaded = files.load_tensors(tmp_path / "t.pth")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_nested_data_that_holds_itself_is_loaded(tmp_path):
    round_and_round: list = []
    round_and_round.append(round_and_round)
    deep: list = []
    for _ in range(60):
        deep = [deep, deep]  # 2^60 paths
    torch.save({"round": round_and_round, "deep": deep}, tmp_path / "t.pth")
    assert files.load_tensors(tmp_path / "t.pth").keys() == {"round", "deep"}


class Zeros:
    def __reduce__(self):
        return (bytearray, (10**12,))


@pytest.mark.parametrize("old_format", [False, True])
def test_plain_data_that_would_fill_the_memory_are_refused(tmp_path, old_format):
    torch.save({"a": Zeros()}, tmp_path / "t.pth", _use_new_zipfile_serialization=not old_format)
    with pytest.raises(cli.UserError, match=r"t\.pth: refused, it contains a bytearray"):
        files.load_tensors(tmp_path / "t.pth")


def test_parts_that_overlap_are_refused(tmp_path):
    """A hundred members of one archive lie in the same place, as in an uncompressed zip bomb."""
    path = tmp_path / "t.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", bytes(10_000))
        for index in range(100):
            member = zipfile.ZipInfo(f"data/{index}")
            member.file_size = member.compress_size = 10_000
            member.header_offset, member.CRC = 0, archive.getinfo("data").CRC
            archive.filelist.append(member)
    with pytest.raises(cli.UserError, match=r"t\.pth: damaged \(.*overlap"):
        files.load_tensors(path)


def test_running_out_of_memory_is_not_reported_as_damage(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(1)}, tmp_path / "t.pth")
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(type(error)) as caught:
            files.load_tensors(tmp_path / "t.pth")
        assert caught.value is error


def test_a_folder_and_a_missing_file_are_system_errors_that_name_it(tmp_path):
    for name in ("folder.pth", "folder.safetensors", "none.pth", "none.safetensors"):
        if name.startswith("folder"):
            (tmp_path / name).mkdir()
        with pytest.raises(OSError, match=name):
            files.load_tensors(tmp_path / name)


@pytest.mark.parametrize("wait", [True, False])
def test_on_windows_a_lock_is_waited_for_as_long_as_it_is_held(tmp_path, monkeypatch, wait):
    """A stand-in for msvcrt, whose LK_LOCK fails after ten tries, a second apart."""
    calls = []

    def locking(_descriptor, mode, _bytes):
        calls.append(mode)
        if len(calls) < 4:
            raise OSError(errno.EDEADLK if mode == 1 else errno.EACCES, "Resource deadlock avoided")

    monkeypatch.setattr(sys, "platform", "win32")
    msvcrt = types.SimpleNamespace(locking=locking, LK_LOCK=1, LK_NBLCK=2)
    monkeypatch.setitem(sys.modules, "msvcrt", msvcrt)
    if wait:
        with files.lock(tmp_path / "lock", wait=True):
            assert calls == [1] * 4
    else:
        with pytest.raises(cli.UserError, match="another process"):
            with files.lock(tmp_path / "lock"):
                pytest.fail("the lock is held by another process")
        assert calls == [2]


def test_a_second_lock_is_refused_until_the_first_process_is_dead(tmp_path):
    code = (
        "import sys, time\n"
        "from utils import files\n"
        "with files.lock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, tmp_path / "lock"]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="another process"):
        with files.lock(tmp_path / "lock"):
            pytest.fail("the lock is held by another process")
    holder.kill()
    holder.wait()
    with files.lock(tmp_path / "lock"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is forked on Windows")
def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    fork = multiprocessing.get_context("fork")
    started = fork.Event()

    def work() -> None:
        started.set()
        time.sleep(60)

    with files.lock(tmp_path / "lock"):
        worker = fork.Process(target=work)
        worker.start()
        started.wait(60)
    with files.lock(tmp_path / "lock"):
        assert worker.is_alive()
    worker.kill()
    worker.join()


def test_a_file_system_without_locks_is_named_as_such(tmp_path, monkeypatch):
    no_locks = OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(files, "_lock_file", Mock(side_effect=no_locks))
    with pytest.raises(OSError, match="cannot be locked") as error:
        with files.lock(tmp_path / "lock"):
            pytest.fail("the file is not locked")
    assert error.value.filename == str(tmp_path / "lock")


def test_the_older_file_becomes_the_backup_only_when_the_new_one_is_whole(tmp_path):
    last = tmp_path / "last"
    previous = tmp_path / "previous"
    for text in ("1", "2"):
        with files.write_atomic(last, backup=previous) as file:
            file.write(text.encode())
    with pytest.raises(OSError, match="full"):
        with files.write_atomic(last, backup=previous):
            raise OSError(errno.ENOSPC, "full")
    assert (last.read_text(), previous.read_text()) == ("2", "1")
    files.keep_as(last, previous)
    files.keep_as(last, previous)  # one file by two names already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "previous"]


def test_leftovers_are_removed_where_they_lie_and_nowhere_else(tmp_path):
    (tmp_path / ".srgan-1.tmp").touch()
    (tmp_path / ".srgan-2.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "other run").mkdir()
    (tmp_path / "other run" / ".srgan-3.tmp").touch()
    files.remove_leftovers(tmp_path, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["other run"]
    assert list((tmp_path / "other run").iterdir())


def test_free_space_is_checked_with_advice(tmp_path):
    files.check_free_space(tmp_path, 1, "")
    with pytest.raises(OSError, match=r"needs 1000000\.00 GB.*try another disk"):
        files.check_free_space(tmp_path, 10**15, "try another disk")


@pytest.mark.parametrize("links", [True, False])
def test_keep_as_gives_a_second_name(tmp_path, monkeypatch, links):
    if not links:
        no_links = OSError(errno.EPERM, "no hard links here")
        monkeypatch.setattr(os, "link", Mock(side_effect=no_links))
    files.keep_as(tmp_path / "a", tmp_path / "b")  # nothing to keep
    for text in ("one", "two"):
        (tmp_path / "a").unlink(missing_ok=True)
        (tmp_path / "a").write_text(text)
        files.keep_as(tmp_path / "a", tmp_path / "b")
        assert (tmp_path / "b").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_backup_that_fails_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "last.pth").write_bytes(b"new")
    (tmp_path / "previous.pth").write_bytes(b"old")
    broken = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(os, "replace", Mock(side_effect=broken))
    with pytest.raises(OSError, match=r"Input/output error.*previous\.pth"):
        files.keep_as(tmp_path / "last.pth", tmp_path / "previous.pth")
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"last.pth": b"new", "previous.pth": b"old"}


def test_a_name_in_a_damaged_file_does_not_break_the_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("two\nlines", b"content")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(content.replace(b"content", b"c0ntent"))
    with pytest.raises(cli.UserError, match=r"checksum of 'two\\nlines' is wrong") as refused:
        files.load_tensors(tmp_path / "a.pth")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_error_but_a_failing_disk_is(
    tmp_path, monkeypatch, number
):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)
    expected = contextlib.nullcontext() if number == errno.EINVAL else pytest.raises(OSError)
    with expected:
        files.write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
