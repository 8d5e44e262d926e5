import asyncio
import io
import json
import os
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import corpus
import numpy as np
import pytest
from conftest import ROOT, run, the_error
from PIL import Image, ImageCms

import app
from model import Generator
from page import enlarger, server, visitors
from utils import cli, generator_file
from utils.weights import Weights

TILE = 8


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    generator_file.save(folder / "mine.pth", Generator(4, 1))
    return folder / "mine.pth"


def new_enlarger(folder: Path, weights: Path) -> enlarger.Enlarger:
    folder.mkdir()
    purposes = [enlarger.Purpose("mine", weights)]
    return enlarger.Enlarger(purposes, folder, "cpu", "torch", "fp32", TILE, max_pixels=5000)


@pytest.fixture
def mine(tmp_path, weights):
    return new_enlarger(tmp_path / "served", weights)


def enlarge(mine, path, on_tile=None, size="4") -> enlarger.Result:
    on_tile = on_tile or (lambda done, total: None)
    return mine.enlarge(path, mine.purposes[0], 0.5, enlarger.parse_output_size(size), on_tile)


def test_a_network_for_x1_keeps_the_size_and_says_so(tmp_path):
    generator_file.save(tmp_path / "x1.pth", Generator(1, 1))
    page = new_enlarger(tmp_path / "served", tmp_path / "x1.pth")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "a.png")
    result = enlarge(page, tmp_path / "a.png", size="1")
    assert result.name == "a_x1"
    assert result.text.startswith("20 × 30 pixels, as wide and high as before.")


@pytest.mark.parametrize("text", ["20×30", "20 x 30", "x30", "20X"])
def test_a_size_may_be_written_in_several_ways(mine, tmp_path, text):
    Image.new("RGB", (10, 15), "red").save(tmp_path / "a.png")
    assert enlarge(mine, tmp_path / "a.png", size=text).picture.rgb.shape == (30, 20, 3)


def test_every_purpose_has_its_files_and_a_label_of_its_own():
    for purpose in app.PURPOSES:
        assert purpose.path.exists()
        assert purpose.texture_path is None or purpose.texture_path.exists()
    assert any(purpose.texture_path for purpose in app.PURPOSES)
    assert len({purpose.label for purpose in app.PURPOSES}) == len(app.PURPOSES)


def test_generator_files_appear_by_their_names_without_folders():
    paths = [Path("a/x.pth"), Path("b/y.safetensors"), Path("c/x.pth")]
    assert app.names_of(paths) == dict(zip(["x", "y", "x (2)"], paths, strict=True))


@pytest.mark.parametrize("kind", enlarger.FORMATS)
def test_pictures_of_every_mode_are_saved_as_test_image_does(
    mine, tmp_path, astronaut, weights, kind
):
    rgb = Image.fromarray(astronaut[:12, :20])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    described = corpus.described_options("jpg", orientation=6, width=20)
    rgb.save(tmp_path / "described.jpg", icc_profile=profile, **described)
    rgb.convert("L").save(tmp_path / "gray.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.tif")
    rgb.quantize(8).save(tmp_path / "palette.gif")
    Image.fromarray(np.full((5, 6), 40_000, np.uint16)).save(tmp_path / "16 bit.png")
    clear = rgb.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(rgb.size))
    clear.save(tmp_path / "alpha.webp")
    sources = [path for path in sorted(tmp_path.iterdir()) if path.is_file()]
    assert len(sources) == 6
    if kind != "PNG":
        sources = [tmp_path / "described.jpg", tmp_path / "alpha.webp"]
    options = ["--weights", weights, "--device", "cpu", "--precision", "fp32", "--tile", TILE]
    for source in sources:
        target = tmp_path / "expected" / f"{source.stem}_x4{enlarger.FORMATS[kind]}"
        done = run("test_image.py", source, "--out", target, *options)
        result = enlarge(mine, source)
        file, losses = mine.save(result, kind)
        assert file.name == target.name and file.read_bytes() == target.read_bytes(), source
        before, after = (Image.open(path) for path in result.before_and_after)
        assert before.size == after.size == Image.open(file).size
        assert before.info.get("icc_profile") == after.info.get("icc_profile")
        copy, about = mine.preview(source)
        assert copy.is_file()
        told = [line.partition(": ")[2] for line in done.stderr.splitlines()]
        assert told == [*about.split("; ")[1:], *losses]
        clear_jpeg = (kind, source.name) == ("JPEG", "alpha.webp")
        assert losses == ["JPEG cannot hold its transparency; it is on white"] * clear_jpeg


def test_pixels_are_counted_before_they_are_decoded(mine, tmp_path):
    data = io.BytesIO()
    Image.new("L", (100, 51)).save(data, "PNG")
    cut_short = data.getvalue()[:60]  # which decoding would find out
    (tmp_path / "large.png").write_bytes(cut_short)
    reason = r"has 100 × 51 pixels \(0.0 million\); this page takes up to 0.005 million"
    with pytest.raises(cli.UserError, match=f"^large.png: {reason}"):
        mine.read(tmp_path / "large.png")
    Image.new("L", (100, 50)).save(tmp_path / "fits.png")
    assert mine.read(tmp_path / "fits.png").rgb.shape == (50, 100, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"text", "not an image"),
        (b"", "the file is empty"),
        (b"\x89PNG\r\n\x1a\n1234", "not an image"),
    ],
)
def test_what_is_no_picture_is_named_without_its_folder(mine, tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(cli.UserError) as raised:
        mine.preview(path)
    assert visitors.explain(raised.value).startswith(f"a.png: {reason}")
    assert str(tmp_path) not in str(raised.value)
    path.unlink()
    with pytest.raises(cli.UserError, match=r"^a.png is no longer on the server"):
        enlarge(mine, path)


def test_a_format_that_cannot_hold_the_result_is_named_without_its_folder(mine, tmp_path):
    Image.new("L", (4100, 1)).save(tmp_path / "wide.png")
    result = enlarge(mine, tmp_path / "wide.png")
    reason = "WEBP holds at most 16383 pixels per side"
    with pytest.raises(cli.UserError, match=f"^wide_x4.webp: {reason}"):
        mine.save(result, "WebP")
    assert mine.save(result, "PNG")[0].exists()


def test_a_result_too_long_to_be_shown_is_refused_before_it_is_made(mine, tmp_path):
    Image.new("L", (1, 5000)).save(tmp_path / "long.png")
    assert enlarge(mine, tmp_path / "long.png").picture.rgb.shape == (20_000, 4, 3)
    mine.max_pixels = 20_000
    Image.new("L", (1, 16_400)).save(tmp_path / "longer.png")
    reason = "the result would have 4 × 65600 pixels; .* up to 65,500 per side"
    with pytest.raises(cli.UserError, match=f"^longer.png: {reason}"):
        enlarge(mine, tmp_path / "longer.png", lambda done, total: pytest.fail("was enlarged"))


@pytest.mark.parametrize(
    ("text", "options", "name"),
    [
        ("2", ["--outscale", 2], "a_x2.png"),
        ("1.5", ["--outscale", 1.5], "a_x1.5.png"),
        ("50x", ["--size", "50x"], "a_50x.png"),
        (" 60 × 36 ", ["--size", "60x36"], "a_60x36.png"),
    ],
)
def test_another_size_gives_the_result_of_test_image(
    mine, tmp_path, astronaut, weights, text, options, name
):
    path = tmp_path / "a.png"
    Image.fromarray(astronaut[:12, :20]).save(path)
    fixed = ["--weights", weights, "--device", "cpu", "--precision", "fp32", "--tile", TILE]
    run("test_image.py", path, *fixed, *options)
    result = enlarge(mine, path, size=text)
    file, _losses = mine.save(result, "PNG")
    assert file.name == name and file.read_bytes() == (tmp_path / name).read_bytes()
    shown = [Image.open(path) for path in result.before_and_after]
    assert [image.size for image in shown] == [result.picture.rgb.shape[1::-1]] * 2
    width = result.picture.rgb.shape[1]
    assert f"{width / 20:.3g} times as wide and high as before" in result.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Other size: '' is not a number from 0.01 to 64"),
        ("65", "Other size: '65' is not a number from 0.01 to 64"),
        ("×3", "Other size: x3 would be 3 pixels high; write 3 for 3 times as wide and high"),
        ("2x", "Other size: 2x would be 2 pixels wide; write 2 for 2 times as wide and high"),
        ("0x9", "Other size: '0x9' is not WIDTHxHEIGHT in pixels, such as 1920x1080"),
        ("50x50", "a.png: a size of 50x50 would distort 20x12 pixels; 50x or x50 keeps"),
        ("x300", "a.png: the result would have 500 × 300 pixels; this page shows up to 65,500"),
    ],
)
def test_a_size_that_cannot_be_is_told(mine, tmp_path, text, reason):
    Image.new("L", (20, 12)).save(tmp_path / "a.png")
    with pytest.raises(cli.UserError, match=f"^{re.escape(reason)}"):
        enlarge(mine, tmp_path / "a.png", lambda *_: pytest.fail("was enlarged"), size=text)


def test_a_generator_file_that_has_gone_is_not_named_to_visitors(tmp_path, weights, capsys):
    moved = Path(shutil.copy(weights, tmp_path / "moved.pth"))
    mine = new_enlarger(tmp_path / "served", moved)
    moved.unlink()
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert enlarge(mine, tmp_path / "a.png").picture.rgb.shape == (16, 16, 3)  # it is in memory
    mine.engine.cache_clear()
    with pytest.raises(cli.RunError) as raised:
        enlarge(mine, tmp_path / "a.png")
    words = visitors.explain(raised.value)
    assert "its file is gone" in words and "moved" not in words
    assert "moved.pth" in capsys.readouterr().err


def test_purposes_whose_files_are_missing_are_left_out(tmp_path, monkeypatch, weights):
    there = enlarger.Purpose("there", weights)
    gone = enlarger.Purpose("gone", weights, tmp_path / "gone.pth")
    monkeypatch.setattr(app, "PURPOSES", (gone, there))
    assert app.available_purposes([]) == [there]
    monkeypatch.setattr(app, "PURPOSES", (gone,))
    assert app.available_purposes([weights]) == [enlarger.Purpose("mine", weights)]
    with pytest.raises(cli.UserError, match="no generator file is here; name one with --weights"):
        app.available_purposes([])


def test_cancelling_takes_effect_after_the_current_tile(mine, tmp_path, monkeypatch):
    Image.new("RGB", (4 * TILE, 3 * TILE)).save(tmp_path / "a.png")
    passes = []
    forward = Generator.forward
    monkeypatch.setattr(
        Generator, "forward", lambda self, lr: passes.append(1) or forward(self, lr)
    )
    sessions = visitors.Sessions()
    sessions.start("mine", tmp_path / "a.png")
    sessions.start("another's", None)
    work = sessions.work("mine")

    def on_tile(done, total):
        assert total == 12
        if done == 5:
            sessions.stop("mine")
        work.check()

    with pytest.raises(visitors.Cancelled):
        enlarge(mine, tmp_path / "a.png", on_tile)
    assert len(passes) == 5
    sessions.work("another's").check()  # goes on


def test_each_visitors_work_ends_on_its_own():
    sessions = visitors.Sessions()
    works = []
    for visitor in ("a", "b", "c", "d"):
        sessions.start(visitor, Path(visitor))
        works.append(sessions.work(visitor))

    def ended() -> list[int]:
        found = []
        for index, work in enumerate(works):
            try:
                work.check()
            except visitors.Cancelled:
                found.append(index)
        return found

    sessions.stop("nobody")
    assert ended() == []
    sessions.stop("a")
    sessions.forget("b")
    sessions.start("c", Path("another"))  # another picture
    assert ended() == [0, 1, 2]
    sessions.work("c").check()
    assert works[2].path == Path("c") and sessions.work("c").path == Path("another")
    sessions.work("b").check()  # somebody new
    assert sessions.busy("c") and not sessions.busy("a") and not sessions.busy("nobody")
    works[2].end()  # that of the picture before
    assert sessions.busy("c")
    sessions.work("c").end()
    assert not sessions.busy("c")
    sessions.stop_all()
    assert ended() == [0, 1, 2, 3]


def test_errors_that_are_not_the_users_are_told_in_general_words(capsys, tmp_path):
    full_disk = OSError(28, "No space left on device", str(tmp_path / "x.png"))
    for error, words in (
        (full_disk, "Something went wrong on the server"),
        (MemoryError(), "too little memory"),
        (cli.RunError("values that are not finite"), "gone or damaged"),
    ):
        explanation = visitors.explain(error)
        assert words in explanation and str(tmp_path) not in explanation
        assert type(error).__name__ in capsys.readouterr().err


def test_a_file_name_is_no_html():
    assert visitors.message("<b>.png", alert=True) == '<p role="alert">&lt;b&gt;.png</p>'


# --- the server ---------------------------------------------------------------------------------


def test_a_missing_gradio_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(cli.UserError, match="package gradio is missing; pip install gradio"):
        app.main(app.get_args_parser().parse_args(["--port", "0", "--backend", "torch"]))


def test_wrong_options_are_one_line(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"nothing")
    done = run("app.py", "--port", 0, "--weights", tmp_path / "w.pth", status=None)
    assert "w.pth: refused" in the_error(done)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = the_error(run("app.py", "--port", port, status=None))
    assert f"127.0.0.1:{port}: " in error and "choose another --port or --host" in error


@pytest.mark.parametrize(
    ("host", "url", "warned"),
    [
        ("127.0.0.1", "http://127.0.0.1:80 ", False),
        ("::1", "http://[::1]:80 ", False),
        ("0.0.0.0", "http://127.0.0.1:80 ", True),
        ("192.168.1.2", "http://192.168.1.2:80 ", True),
    ],
)
def test_a_page_that_others_can_reach_is_called_so(host, url, warned):
    text = server.invitation(host, 80)
    assert url in text and ("no password" in text) == warned


def test_the_folder_ends_with_the_server_and_with_a_later_one(tmp_path, monkeypatch):
    monkeypatch.setattr(visitors.tempfile, "gettempdir", lambda: str(tmp_path))
    with visitors.temporary_folder() as first:
        assert first.stat().st_mode & 0o077 == 0
        killed = tmp_path / "srgan-page-killed"
        shutil.copytree(first, killed)
        with visitors.temporary_folder() as second:
            assert first.exists() and second.exists() and not killed.exists()
    assert not list(tmp_path.iterdir())


def test_files_are_removed_when_they_are_old(tmp_path):
    hour_ago = time.time() - 3601
    example = f"{visitors.PERMANENT}/c.jpg"
    old = ["old/a.png", "old/deep/b.png", "mixed/old.png", example, ".lock"]
    for name in [*old, "mixed/new.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if name in old:
            os.utime(path, (hour_ago, hour_ago))
    visitors.remove_old(tmp_path, 3600)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"mixed/new.png", example, ".lock"}
    for path in tmp_path.rglob("*"):
        os.utime(path, (hour_ago, hour_ago))
    visitors.remove_old(tmp_path, 3600)
    visitors.remove_old(tmp_path, -1)
    assert {path.name for path in tmp_path.iterdir()} == {visitors.PERMANENT, ".lock"}


HEAD = b'<head><meta property="og:image"\n content="https://example.org/x.png" />\n'


def answer(path: str, body: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body for a request, in front of a server that answers everything."""

    async def everything(scope, receive, send):
        received = (await receive())["body"]
        html = HEAD + b"<title>a</title></head>" + received
        headers = [(b"content-length", b"%d" % len(html))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": html[:9], "more_body": True})
        await send({"type": "http.response.body", "body": html[9:]})

    parts = [body[:7], body[7:]]
    sent = []

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": []}
    asyncio.run(server.OnlyThisPage(everything, Path("/tmp/served"))(scope, receive, send))
    start, *rest = sent
    content = b"".join(message["body"] for message in rest)
    return start["status"], dict(start["headers"]), content


def test_the_page_comes_without_tags_for_other_sites_and_binds_the_browser():
    status, headers, html = answer("/")
    assert status == 200 and html == b"<head><title>a</title></head>"
    assert headers[b"content-length"] == b"%d" % len(html)
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/config", "/assets/index.js", "/gradio_api/upload", "/gradio_api/file=/tmp/served/a/b.png"],
)
def test_what_the_page_needs_is_served(path):
    assert answer(path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/monitoring",
        "/gradio_api/info",
        "/gradio_api/vibe-edit",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/file=http://example.org",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=README.md",
        f"/gradio_api/file={ROOT}/app.py",
        "/gradio_api/file=/tmp/served/../other/a",
        "/gradio_api/file=/tmp/served",
        "/gradio_api/file=/tmp/served/.lock",
        "/gradio_api/file=/tmp/served2/a",
        "/assets/../app.py",
    ],
)
def test_nothing_else_is_served(path):
    status, _, body = answer(path)
    assert status == 404 and b"served" not in body


def test_calls_that_name_other_files_or_addresses_are_refused():
    call = "/gradio_api/queue/join"
    path = "/tmp/served/a.png"
    file = {"path": path, "url": f"http://127.0.0.1/gradio_api/file={path}"}
    allowed = json.dumps({"data": [file, None]}).encode()
    status, _, received = answer(call, allowed)
    assert status == 200 and received.endswith(allowed)
    for refused in (
        json.dumps({"data": [1, {"a": [file | {"path": "http://example.org/a.png"}]}]}).encode(),
        b'{"data": [{"path": "\\u0068ttps://example.org"}]}',
        b'{"data": {"path": "/etc/passwd"}}',
        b'{"data": {"path": "/tmp/served/../a"}}',
        b'{"data": {"path": "README.md"}}',
        b'{"data": {"path": ["/tmp/served/a"]}}',
        b"no JSON",
        b"[" * 100_000,
        json.dumps({"data": "x" * 2**21}).encode(),
    ):
        assert answer(call, refused)[0] == 404


@pytest.mark.parametrize(
    ("precision", "error"), [("fp16", "fp16 is for GPUs"), ("int8", "int8 needs OpenVINO")]
)
def test_a_precision_that_cannot_work_is_refused_before_any_visitor_comes(
    tmp_path, weights, precision, error
):
    purposes = [enlarger.Purpose("mine", weights)]
    with pytest.raises(cli.UserError, match=error):
        enlarger.Enlarger(purposes, tmp_path, "cpu", "torch", precision, TILE, max_pixels=5000)


def test_in_int8_the_file_with_texture_takes_the_place_of_a_blend():
    blends = [purpose for purpose in app.available_purposes([]) if purpose.texture_path]
    assert blends
    offered = {purpose.label: purpose for purpose in app.available_purposes([], "int8")}
    assert len(offered) == len(app.PURPOSES)
    for blend in blends:
        assert offered[blend.label] == enlarger.Purpose(blend.label, blend.texture_path)


def test_only_a_slider_between_its_ends_needs_a_blend():
    first, second = Path("a.pth"), Path("b.pth")
    purpose = enlarger.Purpose("mine", first, second)
    assert purpose.weights(0) == Weights(first) and purpose.weights(1) == Weights(second)
    assert purpose.weights(0.25) == Weights(first, second, 0.25)
    assert enlarger.Purpose("mine", first).weights(0.25) == Weights(first)
