import contextlib
import errno
import http.client
import re
import shutil
import socket
import subprocess
import zipfile
from pathlib import Path

import archives
import numpy as np
import pytest
from archives import archive_of, picture, zipped
from conftest import ROOT, run, the_error
from PIL import Image

import prepare_data
from degradations import DEGRADATIONS
from utils import cli, downloads, images


@pytest.fixture
def server():
    with archives.server() as server:
        yield server


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_resumes_where_it_broke_off(server, tmp_path, resumes):
    server.body, server.breaks, server.resumes = (
        bytes(range(256)) * 400,
        [30_000, 20_000 if resumes else 50_000],
        resumes,
    )
    path = tmp_path / "a.zip"
    downloads.download(server.url + "a.zip", path, archive_of(server.body), pause_seconds=0)
    assert path.read_bytes() == server.body
    assert server.requests == [None, "bytes=30000-", "bytes=50000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_failed_download_leaves_no_archive_and_can_be_resumed(server, tmp_path):
    server.body, server.breaks = b"x" * 1000, [100] * 3
    with pytest.raises(ValueError, match=r"stopped after 3 tries.*again to resume"):
        downloads.download(
            server.url, tmp_path / "a.zip", archive_of(server.body), tries=3, pause_seconds=0
        )
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip.part"]
    downloads.download(server.url, tmp_path / "a.zip", archive_of(server.body))
    assert server.requests[-1] == "bytes=300-" and (tmp_path / "a.zip").read_bytes() == server.body


@pytest.mark.parametrize("served", [b"sorry", b"y" * 1000, b"x" * 1001])
def test_other_content_is_never_accepted_as_the_archive(server, tmp_path, served):
    server.body = served
    with pytest.raises(ValueError, match=server.url):
        downloads.download(server.url, tmp_path / "a.zip", archive_of(b"x" * 1000), tries=1)
    assert not (tmp_path / "a.zip").exists()
    server.body = b"x" * 1000
    with contextlib.suppress(ValueError):  # what the first try left is found wrong, and removed
        downloads.download(server.url, tmp_path / "a.zip", archive_of(server.body), tries=1)
    downloads.download(server.url, tmp_path / "a.zip", archive_of(server.body), tries=1)
    assert (tmp_path / "a.zip").read_bytes() == server.body


def test_a_web_page_is_named_and_not_kept(server, tmp_path):
    server.body, server.kind = b"<html>log in first</html>", "text/html; charset=utf-8"
    with pytest.raises(ValueError, match="the server sent a web page instead of the archive"):
        downloads.download(server.url, tmp_path / "a.zip", archive_of(b"x" * 1000))
    assert len(server.requests) == 1 and not list(tmp_path.iterdir())


def test_server_errors_are_retried_and_a_missing_archive_is_not(server, tmp_path):
    server.body, server.statuses = b"x" * 1000, [503, 500]
    downloads.download(server.url, tmp_path / "a.zip", archive_of(server.body), pause_seconds=0)
    assert (tmp_path / "a.zip").read_bytes() == server.body and len(server.requests) == 3
    server.statuses = [404]
    with pytest.raises(ValueError, match="answers 404"):
        downloads.download(server.url, tmp_path / "b.zip", archive_of(b"x"))
    assert len(server.requests) == 4


def test_invalid_urls_and_broken_responses_give_no_traceback(server, tmp_path, monkeypatch):
    for url in (
        "http://127.0.0.1:9/my folder",
        "my_mirror/",
        "http://[::1/",
        "http://host:port/",
        f"http://{'a' * 70}.org/",
    ):
        with pytest.raises(cli.UserError, match=re.escape(f"{url}: not a valid address")):
            downloads.download(url, tmp_path / "a.zip", archive_of(b"x"))
    server.body = b"x" * 1000
    answers = [http.client.IncompleteRead(b""), http.client.BadStatusLine("?")]

    def fetch(*arguments):
        if answers:
            raise answers.pop()
        return real(*arguments)

    real = downloads._fetch
    monkeypatch.setattr(downloads, "_fetch", fetch)
    downloads.download(server.url, tmp_path / "a.zip", archive_of(server.body), pause_seconds=0)
    assert (tmp_path / "a.zip").read_bytes() == server.body


def test_an_existing_zip_is_checked_and_kept_if_it_is_another_file(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare_data.DIV2K, "valid_HR", archive_of(b"the real one"))
    other = zipped({"0801.png": picture()})
    (tmp_path / "DIV2K_valid_HR.zip").write_bytes(other)
    with pytest.raises(ValueError, match=r"DIV2K_valid_HR\.zip: not the archive .*; delete"):
        prepare_data.prepare_div2k(tmp_path, "valid_HR", "http://127.0.0.1:9/")
    assert (tmp_path / "DIV2K_valid_HR.zip").read_bytes() == other and len(
        list(tmp_path.iterdir())
    ) == 1


def test_div2k_is_downloaded_checked_and_unpacked_once(server, tmp_path, monkeypatch, capsys):
    server.body = zipped(
        {"DIV2K_valid_HR/0801.png": picture(), "DIV2K_valid_HR/0802.png": picture()}
    )
    monkeypatch.setitem(prepare_data.DIV2K, "valid_HR", archive_of(server.body))
    for _ in range(2):
        prepare_data.prepare_div2k(tmp_path, "valid_HR", server.url)
    assert sorted(p.name for p in (tmp_path / "DIV2K_valid_HR" / "DIV2K_valid_HR").iterdir()) == [
        "0801.png",
        "0802.png",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["DIV2K_valid_HR"] and len(server.requests) == 1
    assert "2 images" in capsys.readouterr().out


@pytest.mark.parametrize("what", archives.hostile())
def test_hostile_archives_are_refused_whole(tmp_path, what):
    path = tmp_path / "place" / "a.zip"
    path.parent.mkdir()
    path.write_bytes(archives.hostile()[what])
    with pytest.raises(ValueError, match=str(path)) as error:
        downloads.unpack(path, path.parent / "out")
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["place"] and [
        p.name for p in path.parent.iterdir()
    ] == ["a.zip"]
    assert not Path("/tmp/srgan-escaped.png").exists()


def test_a_disk_that_fills_while_unpacking_leaves_nothing_and_is_one_line(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "a.zip").write_bytes(zipped({"x/0801.png": picture()}))
    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match="No space left") as caught:
        downloads.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out") and [
        path.name for path in tmp_path.iterdir()
    ] == ["a.zip"]


def test_the_command_line_lays_out_the_demo(tmp_path):
    run("prepare_data.py", "demo", "--data", tmp_path / "data")
    demo = tmp_path / "data" / "demo"
    assert len(list((demo / "train").iterdir())) >= 6 and len(list((demo / "valid").iterdir())) == 2


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("timeout")), reason="needs both")
@pytest.mark.parametrize(
    ("download", "source"),
    [
        ("echo imagenet", "imagenet"),
        ("echo 'no network' >&2; exit 2", "random"),
        ("exec sleep 60", "random"),
    ],
)
def test_the_demo_trains_without_weights_that_cannot_be_downloaded_quickly(
    tmp_path, download, source
):
    """With a stand-in for Python that only records how it is called."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        f'if [ "$*" = "prepare_data.py perceptual" ]; then {download}; fi\n'
    )
    python.chmod(0o755)
    words = ["make", "--old-file=.venv/installed", "demo", f"BIN={tmp_path}", "DOWNLOAD_SECONDS=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    (training,) = [call for call in calls if call.startswith("train.py ")]
    assert training.endswith(f" --perceptual-weights {source}") and training in done.stdout
    assert ("within 1 seconds: using untrained features" in done.stderr) == (source == "random")


def test_copies_at_several_sizes(photos, tmp_path):
    (photos[0] / "deep").mkdir()
    (photos[0] / "image_0.png").rename(photos[0] / "deep" / "a.png")
    run("prepare_data.py", "smaller", photos[0], "--out", tmp_path / "sizes", "--factors", 1, 0.5)
    names = ["deep_a", "image_1", "image_2", "image_3"]
    assert sorted(path.name for path in (tmp_path / "sizes").iterdir()) == sorted(
        f"{name}_{size}.png" for name in names for size in (100, 50)
    )
    original = images.read_picture(photos[0] / "image_1.png").rgb
    assert np.array_equal(images.read_picture(tmp_path / "sizes" / "image_1_100.png").rgb, original)
    half = images.read_picture(tmp_path / "sizes" / "image_1_50.png").rgb
    assert np.array_equal(
        half, np.asarray(Image.fromarray(original).resize((51, 38), Image.Resampling.BICUBIC))
    )


def test_copies_that_cannot_be_made_are_one_line(photos, tmp_path):
    (photos[0] / "bad.png").write_bytes(b"no image")
    for arguments, reason in [
        ([photos[0], "--out", tmp_path / "out"], "bad.png"),
        ([photos[1], "--out", photos[1] / "out"], "lies in"),
        ([tmp_path / "none", "--out", tmp_path / "out"], "no such folder"),
        ([photos[1], "--out", tmp_path / "out", "--factors", 2], "not above 0 and at most 1"),
    ]:
        assert reason in the_error(run("prepare_data.py", "smaller", *arguments, status=None))


def test_the_command_line_reports_a_server_without_the_archive(server, tmp_path):
    server.statuses = [403]
    command = ["prepare_data.py", "div2k", "--data", tmp_path, "--url"]
    assert "403" in the_error(run(*command, server.url, status=None))
    assert "not a valid address" in the_error(run(*command, "my_mirror", status=None))


def test_no_network_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (
        f"http://127.0.0.1:{port}/a.zip",
        "http://no-such-host.invalid/a.zip",
        "gopher://x/a.zip",
    ):
        with pytest.raises(
            cli.UserError, match=re.escape(f"{url}: stopped after 2 tries") + r"[^\n]*$"
        ):
            downloads.download(url, tmp_path / "a.zip", archive_of(b"x"), tries=2, pause_seconds=0)


def test_drawings_hold_flat_pure_colours_and_the_first_ones_stay(tmp_path):
    for folder, count in ("few", 2), ("more", 3):
        assert run("prepare_data.py", "drawings", "--out", tmp_path / folder, "--count", count)
    names = [f"drawing_00{number}.png" for number in range(3)]
    assert [path.name for path in sorted((tmp_path / "more").iterdir())] == names
    for name in names[:2]:
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "more" / name).read_bytes()
    pixels = np.stack([np.asarray(Image.open(tmp_path / "more" / name)) for name in names])
    assert pixels.shape == (3, 640, 640, 3)
    flat = (pixels[:, :, 1:] == pixels[:, :, :-1]).all(-1)
    assert flat.mean() > 0.9
    pure = np.isin(pixels, (0, 255))
    assert 0.3 < pure.mean() < 0.8
    assert len(np.unique(pixels[0].reshape(-1, 3), axis=0)) > 20  # edges are smooth


def test_a_sheet_reads_no_more_images_than_it_shows(photos, tmp_path, monkeypatch):
    read = images.read_picture
    names = []
    monkeypatch.setattr(images, "read_picture", lambda path: names.append(path) or read(path))
    degradation = DEGRADATIONS["photo-2"]
    prepare_data.draw_sheet(photos[0], tmp_path / "s.png", degradation, 0, 4, rows=2, side=8)
    assert len(names) == 2
