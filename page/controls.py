"""The page of app.py: its controls, what they do, and its looks.

Gradio is optional, so it is imported only when a page is built.
"""

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from page import visitors
from utils import cli

if TYPE_CHECKING:
    import gradio

SCRIPT, STYLE = (Path(__file__).with_suffix(suffix) for suffix in (".js", ".css"))
TITLE = "Enlarge a picture"
INTRODUCTION = (
    "Pictures stay on the computer that serves this page, and are removed from it after an hour."
)
NO_PICTURE = "PNG, JPEG, WebP, TIFF, GIF and other formats, up to {:g} million pixels"
NO_RESULT = "The result will be shown here."
HINT = "Drag the line, or press the arrow keys on it. Zoom with the mouse wheel, two fingers, or + and −."
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}  # of downloads
TEXTURE = 1.0  # where the slider from faithful (0) to detailed (1) starts
PRIVATE = {"api_visibility": "private"}  # options of events: no documented addresses,
AT_ONCE = {
    "queue": False,
    "show_progress": "hidden",
    **PRIVATE,
}  # and without waiting for other visitors

# --- Gradio -------------------------------------------------------------------------------------------------------


def import_gradio(folder: Path) -> ModuleType:
    """Import Gradio with its statistics, downloads and caches turned off; `folder` holds what is uploaded and made.

    Raises:
        UserError: the package is missing.
    """
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
    }
    try:
        import gradio
    except ImportError as error:
        raise cli.UserError(
            f"package {error.name or 'gradio'} is missing; pip install gradio"
        ) from error
    return gradio


def looks(gr: ModuleType) -> dict[str, Any]:
    """Return the options of `serve` for how a page looks: the fonts of the user's system, so that none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    names = ("body_text_color_subdued", "block_info_text_color")  # too pale in Gradio's own theme
    readable = {name: "*neutral_600" for name in names} | {
        f"{name}_dark": "*neutral_300" for name in names
    }
    script = f"<script>{SCRIPT.read_text('utf-8')}</script>"
    return {
        "theme": gr.themes.Base(**fonts).set(**readable),
        "css": STYLE.read_text("utf-8"),
        "head": script,
    }


# --- controls -----------------------------------------------------------------------------------------------------


def build_page(gr: ModuleType, enlarger, stops: visitors.Stops) -> "gradio.Blocks":
    """Return the page: its controls and what they do."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>", elem_id="heading")
        state = functools.partial(gr.State, time_to_live=visitors.KEPT_SECONDS)
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                inputs = input_controls(gr, enlarger)
            with gr.Column(scale=3, min_width=300):
                outputs = output_controls(gr)
        connect(
            gr,
            enlarger,
            stops,
            SimpleNamespace(page=page, source=state(), result=state(), **inputs, **outputs),
        )
    return page.queue(
        max_size=32, default_concurrency_limit=4, api_open=False
    )  # else a call could pass the queue by


def input_controls(gr: ModuleType, enlarger) -> dict[str, "gradio.components.Component"]:
    """Add the left half of the page: the picture and how to enlarge it."""
    picture = gr.Image(
        label="Picture", sources=["upload"], type="filepath", buttons=[], height=260, elem_id="picture",
        placeholder="Drop or paste a picture\nor click to choose one",
    )  # fmt: skip
    about = gr.HTML(no_picture(enlarger), elem_id="about")
    examples = gr.Dataset(
        label="Or take an example", components=["image"], samples=[[path] for path in enlarger.examples()],
        type="index", layout="gallery", elem_id="examples",
    )  # fmt: skip
    choices = [(purpose.label, index) for index, purpose in enumerate(enlarger.purposes)]
    purpose = gr.Radio(choices, value=0, label="What the picture needs", elem_id="purpose")
    texture = gr.Slider(
        0, 1, TEXTURE, step=0.05, label="Faithful – detailed", visible=enlarger.purposes[0].texture_path is not None,
        info="0 is faithful and a little soft; 1 has the most detail, but invents it", elem_id="texture",
    )  # fmt: skip
    with gr.Row():
        go = gr.Button("Enlarge", variant="primary", interactive=False, elem_id="go", min_width=100)
        cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=100)
    return dict(
        picture=picture,
        about=about,
        examples=examples,
        purpose=purpose,
        texture=texture,
        go=go,
        cancel=cancel,
    )


def no_picture(enlarger) -> str:
    """Return what is said while there is no picture: what can be added."""
    return visitors.message(NO_PICTURE.format(enlarger.args.max_pixels / 1e6))


def output_controls(gr: ModuleType) -> dict[str, "gradio.components.Component"]:
    """Add the right half of the page: the result and its download."""
    note = gr.HTML(visitors.message(NO_RESULT), elem_id="note")
    comparison = gr.ImageSlider(
        label="Bicubic (left) and enlarged (right)", type="filepath", interactive=False, max_height=640,
        buttons=["fullscreen"], elem_id="comparison",
    )  # fmt: skip
    gr.HTML(f"<p>{HINT}</p>", elem_id="hint")
    with gr.Row(equal_height=True):
        kind = gr.Radio(
            list(FORMATS), value="PNG", label="File format", elem_id="kind", min_width=300
        )
        download = gr.DownloadButton(
            "Download", interactive=False, elem_id="download", min_width=200
        )
    return dict(note=note, comparison=comparison, kind=kind, download=download)


# --- what they do -------------------------------------------------------------------------------------------------


def connect(gr: ModuleType, enlarger, stops: visitors.Stops, on: SimpleNamespace) -> None:
    """Say what happens when the controls `on` the page are used."""

    def buttons(path: Path | None, session: str):
        """Enlarge can be pressed with a picture and without work, Cancel with work."""
        busy = stops.busy(session)
        return gr.update(interactive=path is not None and not busy), gr.update(interactive=busy)

    connect_picture(gr, enlarger, buttons, on)
    connect_work(gr, enlarger, stops, buttons, on)
    connect_download(gr, enlarger, on)


def connect_picture(gr: ModuleType, enlarger, buttons: Callable, on: SimpleNamespace) -> None:
    """Take pictures, and show what can be chosen for them."""

    def take(path, session):
        try:
            copy, text = enlarger.preview(path)
        except Exception as error:
            return (
                None,
                None,
                *buttons(None, session),
                visitors.message(visitors.explained(error), alert=True),
            )
        return copy, path, *buttons(path, session), visitors.message(text)

    def upload(file, request: gr.Request):
        return take(
            Path(file["path"]), request.session_hash
        )  # in the temporary folder, or Gradio would have refused it

    def take_example(index, request: gr.Request):
        return take(enlarger.example_file(index), request.session_hash)

    def remove(request: gr.Request):
        return None, *buttons(None, request.session_hash), no_picture(enlarger)

    def blends(index):
        return gr.update(visible=enlarger.purposes[index].texture_path is not None)

    known = [on.source, on.go, on.cancel, on.about]
    taken = {
        "outputs": [on.picture, *known],
        "show_progress": "minimal",
        "show_progress_on": on.picture,
        **PRIVATE,
    }
    on.picture.upload(upload, on.picture, preprocess=False, **taken)
    on.examples.click(take_example, on.examples, **taken)
    on.picture.clear(remove, None, known, **AT_ONCE)
    on.purpose.change(blends, on.purpose, on.texture, **AT_ONCE)


def connect_work(
    gr: ModuleType, enlarger, stops: visitors.Stops, buttons: Callable, on: SimpleNamespace
) -> None:
    """Enlarge the picture, one for each visitor at a time, until it is done, cancelled or left."""

    def start(path, request: gr.Request):
        stops.start(request.session_hash, path)
        return *buttons(path, request.session_hash), visitors.message("Working …")

    def enlarge(index, texture, kind, old, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        unchanged = (gr.skip(), gr.skip(), gr.skip())
        work, begin = stops.work(request.session_hash), time.monotonic()

        def on_tile(done, total):
            work.check()
            left = (time.monotonic() - begin) / done * (total - done)
            progress((done, total), desc=f"Enlarging, about {left:.0f} s left", unit="tiles")

        try:
            work.check()
            if work.path is None:
                raise cli.UserError("The picture is no longer on the server; add it again.")
            result = enlarger.enlarge(work.path, enlarger.purposes[index], texture, on_tile)
            file = downloadable(gr, enlarger, result, kind)
        except visitors.Cancelled:
            return *unchanged, visitors.message("Cancelled.")
        except Exception as error:
            return *unchanged, visitors.message(visitors.explained(error), alert=True)
        finally:
            work.end()
        if old:
            shutil.rmtree(old.folder, ignore_errors=True)
        return result, result.before_and_after, file, visitors.message(result.text)

    def end(path, request: gr.Request):
        return buttons(path, request.session_hash)

    def cancel(path, request: gr.Request):
        stops.stop(request.session_hash)
        return *buttons(path, request.session_hash), visitors.message("Cancelled.")

    def leave(request: gr.Request):
        stops.forget(request.session_hash)

    both, noted = [on.go, on.cancel], [on.go, on.cancel, on.note]
    run = on.go.click(start, on.source, noted, **AT_ONCE).then(
        enlarge, [on.purpose, on.texture, on.kind, on.result], [on.result, on.comparison, on.download, on.note],
        show_progress_on=on.comparison, scroll_to_output=True, concurrency_limit=1, **PRIVATE,
    )  # fmt: skip
    run.then(end, on.source, both, **AT_ONCE)
    on.cancel.click(cancel, on.source, noted, cancels=run, **AT_ONCE)
    on.page.unload(leave)


def connect_download(gr: ModuleType, enlarger, on: SimpleNamespace) -> None:
    """Offer the result in the chosen format."""

    def save(result, kind):
        try:
            return (downloadable(gr, enlarger, result, kind) if result else gr.skip()), gr.skip()
        except Exception as error:
            return gr.update(interactive=False), visitors.message(
                visitors.explained(error), alert=True
            )

    on.kind.change(
        save, [on.result, on.kind], [on.download, on.note], show_progress_on=on.download, **PRIVATE
    )


def downloadable(gr: ModuleType, enlarger, result, kind: str):
    """Save a result and return the button that downloads it."""
    file = enlarger.save(result, kind)
    return gr.update(
        value=file, label=f"Download {kind} ({file.stat().st_size / 1e6:.1f} MB)", interactive=True
    )
