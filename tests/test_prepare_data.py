import hashlib
import io
import re
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import run, the_error
from PIL import Image

import prepare_data
from prepare_data import Archive


def zipped(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def picture(size: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 50).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def server():
    """A server of one file that can be told to resume or not, to break off, or to answer otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            owner.requests.append(self.headers.get("Range"))
            if owner.status != 200:
                self.send_error(owner.status)
                return
            start = re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if owner.resumes else None
            body = owner.body[int(start[1]) :] if start else owner.body
            self.send_response(206 if start else 200)
            self.end_headers()
            self.wfile.write(body[: owner.breaks.pop(0)] if owner.breaks else body)

        def log_message(self, *_args):
            pass

    owner = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    owner.body, owner.breaks, owner.requests, owner.status, owner.resumes = b"", [], [], 200, True
    owner.url = f"http://127.0.0.1:{owner.server_port}/"
    threading.Thread(target=owner.serve_forever, daemon=True).start()
    yield owner
    owner.shutdown()
    owner.server_close()


def archive_of(data: bytes) -> Archive:
    return Archive(len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_goes_on_where_it_broke_off(server, tmp_path, resumes):
    server.body, server.breaks, server.resumes = bytes(range(256)) * 400, [30_000, 20_000 if resumes else 50_000], resumes
    path = tmp_path / "a.zip"
    prepare_data.download(server.url + "a.zip", path, archive_of(server.body), pause_seconds=0)
    assert path.read_bytes() == server.body
    assert server.requests == [None, "bytes=30000-", "bytes=50000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_a_download_that_never_ends_well_is_no_file_and_can_go_on_later(server, tmp_path):
    server.body, server.breaks = b"x" * 1000, [100] * 3
    with pytest.raises(ValueError, match=r"stopped after 3 tries.*run this again"):
        prepare_data.download(server.url, tmp_path / "a.zip", archive_of(server.body), tries=3, pause_seconds=0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip.part"]
    prepare_data.download(server.url, tmp_path / "a.zip", archive_of(server.body))
    assert server.requests[-1] == "bytes=300-" and (tmp_path / "a.zip").read_bytes() == server.body


@pytest.mark.parametrize("served", [b"<html>sorry</html>", b"y" * 1000, b"x" * 1001])
def test_what_is_not_the_archive_is_never_taken_for_it(server, tmp_path, served):
    server.body = served
    with pytest.raises(ValueError):
        prepare_data.download(server.url, tmp_path / "a.zip", archive_of(b"x" * 1000), tries=1)
    assert not (tmp_path / "a.zip").exists()


def test_a_missing_archive_is_said_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(ValueError, match="answers 404"):
        prepare_data.download(server.url, tmp_path / "a.zip", archive_of(b"x"))
    assert len(server.requests) == 1


def test_div2k_is_downloaded_checked_and_unpacked_once(server, tmp_path, monkeypatch, capsys):
    server.body = zipped({"DIV2K_valid_HR/0801.png": picture(), "DIV2K_valid_HR/0802.png": picture()})
    monkeypatch.setitem(prepare_data.DIV2K, "valid_HR", archive_of(server.body))
    for _ in range(2):
        prepare_data.prepare_div2k(tmp_path, "valid_HR", server.url)
    assert sorted(p.name for p in (tmp_path / "DIV2K_valid_HR" / "DIV2K_valid_HR").iterdir()) == ["0801.png", "0802.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["DIV2K_valid_HR"] and len(server.requests) == 1
    assert "2 images" in capsys.readouterr().out


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../a.png", "outside"),
        ("/tmp/a.png", "outside"),
        ("x\\..\\..\\a.png", "outside"),
        ("C:/a.png", "outside"),
        (link("l"), "link"),
    ],
)
def test_archives_that_lead_outside_are_refused_whole(tmp_path, name, reason):
    (tmp_path / "a.zip").write_bytes(zipped({"good.png": b"1"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(name, "/etc/passwd")
    with pytest.raises(ValueError, match=reason):
        prepare_data.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_bombs_and_damaged_archives_are_refused(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"\0" * 50_000_000)
    with pytest.raises(ValueError, match="far more than images do"):
        prepare_data.unpack(path, tmp_path / "out")
    whole = bytearray(zipped({"a.png": picture()}))
    whole[200] ^= 1
    for data in (bytes(whole), bytes(whole[:300]), b"<html>"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole zip"):
            prepare_data.unpack(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


def test_the_command_line_lays_out_the_demo(tmp_path):
    run("prepare_data.py", "demo", "--data", tmp_path / "data")
    demo = tmp_path / "data" / "demo"
    assert len(list((demo / "train").iterdir())) >= 6 and len(list((demo / "valid").iterdir())) == 2


def test_the_command_line_tells_of_a_server_without_the_archive(server, tmp_path):
    server.status = 403
    assert "403" in the_error(run("prepare_data.py", "div2k", "--data", tmp_path, "--url", server.url, status=None))
