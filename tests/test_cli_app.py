"""app.py as its users see it: a server of its own, and pages in a headless Chromium."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
from importlib.util import find_spec

import corpus
import pytest
from conftest import ROOT, photograph, run
from PIL import Image, ImageCms

from model import Generator
from utils import cli, generator_file, images

if not find_spec("gradio"):  # to import it takes seconds
    pytest.skip("Gradio is not here: pip install gradio", allow_module_level=True)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not here: pip install playwright"
)

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
TILE = 4
PATIENCE_MS = 120_000
AT_WORK = re.compile(r"\d/2\.5k tiles")  # of 2,500
FIXED = ["--device", "cpu", "--precision", "fp32", "--tile", TILE]
PURPOSES = {"JPEG": 0, "faithful": 1, "sharper": 2, "tiny": 3}


class Server:
    """A running app.py, the folder of its files, and what it has printed."""

    def __init__(self, folder, weights):
        environment = os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
        options = ["--port", 0, "--weights", weights, "--max-pixels", 40_000, *FIXED]
        command = [sys.executable, ROOT / "app.py", *options]
        self.log = folder / "log"
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=folder,
                text=True,
            )
        line = self.process.stdout.readline()  # waits until it listens
        assert line.startswith("open http://127.0.0.1:"), line + self.log.read_text()
        self.url = re.search(r"http://\S+", line)[0]
        (self.files,) = folder.glob("srgan-page-*")

    def get(self, path: str, body: str | None = None) -> tuple[int, str]:
        """The answer to a request whose path is sent as it is, without tidying."""
        connection = http.client.HTTPConnection(urllib.parse.urlparse(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            if body:
                connection.request("POST", path, body, {"content-type": "application/json"})
            else:
                connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    generator_file.save(folder / "tiny.pth", Generator(4, 1))
    return folder / "tiny.pth"


@pytest.fixture(scope="module")
def server(tmp_path_factory, weights):
    running = Server(tmp_path_factory.mktemp("server"), weights)
    yield running
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 128 + signal.SIGTERM
    assert not running.files.exists() and running.log.read_text() == ""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, server):
    """A function that opens the page as another user.

    At the end, nothing was requested from elsewhere and no script failed.
    """
    requests = []
    errors = []
    contexts = []

    def opened(**options):
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE_MS)
        page = contexts[-1].new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.locator("#go").wait_for()
        page.locator("#examples img").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert requests and not errors
    own = (server.url, "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []


def add(page, path) -> None:
    """Choose a picture in the page, and wait until it is taken."""
    page.locator("#picture input[type=file]").set_input_files(path)
    page.locator("#about", has_text=f"{path.name}: ").wait_for()


def start(page, path, purpose: str) -> None:
    add(page, path)
    page.locator("#purpose input").nth(PURPOSES[purpose]).check()
    page.locator("#go:enabled").click()


NOTICE_WORK = """() => {
    const look = () => {
        window.worked ||= document.querySelector("#note").innerText.includes("Working");
    };
    const options = {childList: true, subtree: true, characterData: true};
    new MutationObserver(look).observe(document.body, options);
}"""


def finished(page) -> str:
    """Wait for the result of what was started and return the line about it."""
    page.locator("#note", has_text="seconds").wait_for()
    page.locator("#go:enabled").wait_for()
    return page.locator("#note").inner_text()


def downloaded(page) -> tuple[str, bytes]:
    with page.expect_download() as download:
        page.locator("#download:enabled").click()
    return download.value.suggested_filename, download.value.path().read_bytes()


def expected(path, target, *options) -> bytes:
    """What test_image.py writes."""
    run("test_image.py", path, "--out", target, *FIXED, *options)
    return target.read_bytes()


def position(divider) -> int:
    """Where the divider is, in percent from the left."""
    return int(divider.get_attribute("aria-valuenow"))


def test_a_picture_is_uploaded_enlarged_compared_and_downloaded(
    open_page, tmp_path, weights, astronaut
):
    path = tmp_path / "größe <1>.jpg"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    described = corpus.described_options("jpg", orientation=6, width=30)
    Image.fromarray(astronaut[:20, :30]).save(path, icc_profile=profile, **described)
    page = open_page(viewport={"width": 375, "height": 740})
    assert page.locator("#go").is_disabled() and page.locator("#download").is_disabled()
    page.locator("#picture input[type=file]").set_input_files(path)
    page.locator("#about", has_text="20 × 30 pixels").wait_for()
    page.locator("#purpose input").nth(PURPOSES["tiny"]).check()
    page.locator("#go:enabled").click()
    assert "80 × 120 pixels, 4 times as wide and high" in finished(page)
    assert not page.locator("#losses").inner_text()
    stem = None
    for kind, suffix in {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}.items():
        page.locator("#kind").get_by_label(kind).check()
        page.locator("#download", has_text=f"Download {kind} (").wait_for()
        name, content = downloaded(page)
        assert name.endswith(f"_x4{suffix}") and "größe" in name
        assert content == expected(path, tmp_path / f"expected{suffix}", "--weights", weights)
        assert stem in (None, name.removesuffix(suffix))
        stem = name.removesuffix(suffix)
    divider = page.locator("#comparison").get_by_role("slider")
    sizes = page.locator("#comparison img").evaluate_all(
        "all => all.map((one) => [one.naturalWidth, one.naturalHeight, one.alt])"
    )
    assert [size[:2] for size in sizes] == [[80, 120]] * 2 and all(alt for *_, alt in sizes)
    divider.scroll_into_view_if_needed()
    box = divider.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    positions = [position(divider)]
    for key in ("ArrowLeft", "Home", "End"):
        divider.press(key)
        positions.append(position(divider))
    assert 60 < positions[0] < 80 and positions[1] == positions[0] - 5 and positions[2:] == [0, 100]
    divider.press("+")
    page.wait_for_function(
        "!document.querySelector('#comparison img').style.transform.includes('scale(1)')"
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 375


def test_the_purposes_are_the_files_and_blends_of_test_image(open_page, tmp_path, astronaut):
    path = tmp_path / "a.png"
    Image.fromarray(astronaut[100:112, 200:216]).save(path)
    page = open_page(color_scheme="dark")
    assert page.locator("#texture").is_visible()
    start(page, path, "faithful")
    assert "64 × 48 pixels" in finished(page)
    faithful = expected(path, tmp_path / "faithful.png", "--weights", "srresnet_x4")
    assert downloaded(page) == ("a_x4.png", faithful)
    page.locator("#texture").wait_for(state="hidden")
    for purpose, options in (("sharper", []), ("JPEG", ["--weights", "photo_x4"])):
        page.locator("#purpose input").nth(PURPOSES[purpose]).check()
        number = page.locator("#texture input[type=number]")
        number.fill("0.5")
        number.blur()
        page.evaluate("window.worked = false")
        page.evaluate(NOTICE_WORK)  # it may be over too soon to be waited for
        page.locator("#go").click()
        page.wait_for_function("window.worked")
        finished(page)
        options = [*options, "--texture", 0.5, "--backend", "auto"]  # as on the page
        blend = expected(path, tmp_path / f"{purpose}.png", *options)
        assert downloaded(page)[1] == blend


def test_another_size_and_a_format_without_transparency(open_page, tmp_path, weights, astronaut):
    path = tmp_path / "a.png"
    picture = Image.fromarray(astronaut[:12, :20])
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(path)
    page = open_page()
    choices = page.locator("#size input")
    choices.nth(1).check()
    start(page, path, "tiny")
    assert "40 × 24 pixels, 2 times as wide" in finished(page)
    half = expected(path, tmp_path / "half.png", "--weights", weights, "--outscale", 2)
    assert downloaded(page) == ("a_x2.png", half)
    assert page.locator("#other-size").count() == 0
    choices.nth(2).check()
    page.locator("#other-size input, #other-size textarea").fill("50x50")
    page.locator("#go").click()
    alert = page.locator("#note").get_by_role("alert")
    alert.wait_for()
    reason = "a.png: a size of 50x50 would distort 20x12 pixels; 50x or x50 keeps the proportions"
    assert alert.inner_text() == reason
    page.locator("#other-size input, #other-size textarea").fill("50x")
    page.locator("#kind").get_by_label("JPEG").check()
    page.locator("#losses", has_text="JPEG cannot hold its transparency").wait_for()
    page.locator("#go:enabled").click()
    page.locator("#note", has_text="50 × 30 pixels, 2.5 times as wide").wait_for()
    wide = expected(path, tmp_path / "wide.jpg", "--weights", weights, "--size", "50x")
    assert downloaded(page) == ("a_50x.jpg", wide)
    page.locator("#kind").get_by_label("PNG").check()
    page.locator("#losses p:empty").wait_for(state="attached")


def test_what_cannot_be_enlarged_is_told(open_page, server, tmp_path):
    page = open_page()
    (tmp_path / "none.png").write_text("no picture")
    Image.new("L", (201, 200)).save(tmp_path / "large.png")
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    for name, reason in (
        ("none.png", "not an image of a known format"),
        ("large.png", "201 × 200 pixels"),
    ):
        add(page, tmp_path / name)
        alert = page.locator("#about").get_by_role("alert")
        assert reason in alert.inner_text()
        assert str(server.files) not in page.locator("body").inner_text()
        assert page.locator("#go").is_disabled()
    add(page, tmp_path / "good.png")
    page.locator("#go:enabled").wait_for()
    page.locator("#picture").get_by_label("Remove Image").click()
    page.locator("#go:disabled").wait_for()
    page.locator("#examples button").nth(1).click()
    # It has more pixels than this server takes
    page.locator("#about", has_text="coffee.png: has 600 × 400 pixels").wait_for()


DROP = """([selector, name, type]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["no picture"], name, {type}));
    const options = {dataTransfer, bubbles: true, cancelable: true};
    document.querySelector(selector).dispatchEvent(new DragEvent("drop", options));
}"""


def test_a_file_that_is_no_picture_is_told_as_test_image_tells_it(open_page, tmp_path):
    page = open_page()
    alert = page.locator("#about").get_by_role("alert")

    def reason(name) -> str:
        path = tmp_path / name
        path.write_text("no picture")
        with pytest.raises(cli.UserError) as raised:
            images.read_picture(path)
        return str(raised.value).replace(str(path), name)

    for name in ("a.heic", "b.pdf", "c"):
        told = reason(name)
        page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
        page.locator("#about", has_text=f"{name}: ").wait_for()
        assert alert.inner_text() == told
    for selector, name in (("#picture button", "d.mp4"), ("#heading", "e.mov")):
        told = reason(name)
        page.evaluate(DROP, [selector, name, "video/mp4"])
        page.locator("#about", has_text=f"{name}: ").wait_for()
        assert alert.inner_text() == told and "test_video.py" in told
    assert "nvalid file type" not in page.locator("body").inner_text()


def test_two_users_get_their_own_results_and_not_each_others(open_page, server, tmp_path, weights):
    pages = []
    for index, name in enumerate(("chelsea.png", "coffee.png")):
        path = tmp_path / name
        Image.fromarray(photograph(name)[: 16 + 8 * index, :40]).save(path)
        pages.append((open_page(), path))
    for page, path in pages:
        start(page, path, "tiny")
    for page, path in pages:
        finished(page)
        content = expected(path, tmp_path / f"{path.stem}_out.png", "--weights", weights)
        assert downloaded(page) == (f"{path.stem}_x4.png", content)
    mine, theirs = (page.locator("#comparison img").first.get_attribute("src") for page, _ in pages)
    token = theirs.split("/")[-2]
    assert token not in mine and len(token) >= 32
    path = urllib.parse.urlparse(theirs).path
    folder = path.rpartition("/")[0]
    assert server.get(path)[0] == 200
    other = token[:-1] + ("y" if token.endswith("x") else "x")
    for guess in (path.replace(token, other), folder, folder + "/"):
        assert server.get(guess)[0] in (403, 404)


def test_cancelling_and_leaving_end_the_work(open_page, tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "long.png")  # 2500 tiles
    Image.new("RGB", (8, 8)).save(tmp_path / "short.png")
    leaving, waiting, page = open_page(), open_page(), open_page()
    start(leaving, tmp_path / "long.png", "faithful")
    leaving.get_by_text(AT_WORK).wait_for()
    start(waiting, tmp_path / "long.png", "faithful")
    waiting.get_by_text("queue: 1/1").wait_for()
    waiting.locator("#cancel:enabled").click()
    waiting.locator("#note", has_text="Cancelled.").wait_for()
    leaving.close()
    start(page, tmp_path / "long.png", "faithful")
    page.get_by_text(AT_WORK).wait_for()  # sooner than the work of the other two would take
    page.locator("#cancel:enabled").click()
    page.locator("#note", has_text="Cancelled.").wait_for()
    page.locator("#go:enabled").wait_for()
    assert page.locator("#cancel").is_disabled() and page.locator("#download").is_disabled()
    start(page, tmp_path / "short.png", "tiny")
    assert "32 × 32 pixels" in finished(page)


def test_another_picture_during_the_work_waits_for_its_end(open_page, server, tmp_path, weights):
    for name, side in (("first", 60), ("second", 12)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{name}.png")
    page = open_page()
    start(page, tmp_path / "first.png", "tiny")
    add(page, tmp_path / "second.png")
    finished(page)
    assert "240 × 240 pixels" in page.locator("#note").inner_text()
    assert page.locator("#cancel").is_disabled()
    first = page.locator("#comparison img").first.get_attribute("src").split("/")[-2]
    page.locator("#go:enabled").click()
    page.locator("#note", has_text="48 × 48 pixels").wait_for()
    content = expected(tmp_path / "second.png", tmp_path / "out.png", "--weights", weights)
    assert downloaded(page) == ("second_x4.png", content)
    assert not (server.files / first).exists() and page.locator("#go").is_enabled()


def test_enlarge_needs_a_picture_when_the_work_ends(open_page, tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "long.png")
    page = open_page()
    start(page, tmp_path / "long.png", "tiny")
    page.get_by_text(AT_WORK).wait_for()
    assert page.locator("#go").is_disabled()
    page.locator("#picture").get_by_label("Remove Image").click()
    page.locator("#cancel:enabled").click()
    page.locator("#note", has_text="Cancelled.").wait_for()
    page.locator("#cancel:disabled").wait_for()
    assert page.locator("#go").is_disabled()
    add(page, tmp_path / "long.png")
    page.locator("#go:enabled").wait_for()


def test_calls_cannot_bypass_the_queue(server):
    config = json.loads(server.get("/config")[1])
    queued = [function["id"] for function in config["dependencies"] if function["queue"]]
    assert queued
    for number in queued:
        call = json.dumps({"data": [], "fn_index": number, "session_hash": "a"})
        status, _ = server.get("/gradio_api/run/predict", call)
        assert status == 404, number


def test_nothing_but_the_page_is_served(server):
    status, html = server.get("/")
    assert status == 200
    addresses = re.findall(r"https?://[^\s\"'<>\\]+", html)
    assert [url for url in addresses if not url.startswith(server.url)] == []
    places = [
        "etc/passwd",
        f"{ROOT}/app.py",
        f"{ROOT}/weights/srresnet_x4.pth",
        f"{server.files}/../log",
        "README.md",
        "app.py",
    ]
    for place in places:
        for prefix in ("/", "//", ""):
            upwards = f"{server.files}/..{prefix}..{prefix}{place}"
            for path in (f"/gradio_api/file={prefix}{place}", f"/gradio_api/file={upwards}"):
                assert server.get(path)[0] == 404, path
                assert server.get(urllib.parse.quote(path, safe="/="))[0] == 404, path
    for path in (
        "/gradio_api/info",
        "/gradio_api/vibe-edit",
        "/monitoring",
        "/docs",
        "/gradio_api/file=http://example.org/",
    ):
        assert server.get(path)[0] == 404, path


def test_calls_cannot_name_files_of_the_server_or_addresses(server):
    log = str(server.files.parent / "log")
    for path in (f"{ROOT}/README.md", "README.md", log, "http://example.org/a.png"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        call = json.dumps({"data": [file], "fn_index": 0, "session_hash": "a"})
        for address in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
            assert server.get(address, call) == (404, "no such address\n")
