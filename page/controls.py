"""The page of app.py: its controls, what they do, and its looks.

Gradio reads its settings when it is imported: call `server.prepare_gradio` before importing this.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import gradio as gr

from page import visitors
from page.enlarger import FORMATS, Enlarger, Result, parse_output_size
from utils import cli
from utils.output_size import OutputSize

FOLDER = Path(__file__).parent
TITLE = "Enlarge a picture"
INTRODUCTION = (
    "Pictures stay on the computer that serves this page, which deletes them after an hour."
)
HINT = (
    "Drag the divider, or select it and press the arrow keys. "
    "Zoom with the mouse wheel, two fingers, or + and −."
)
# Sizes of the result that can be chosen: the generator's scale, half of it, or what a field says
FULL, HALF, OTHER = range(3)
TEXTURE = 1.0  # where the slider from faithful (0) to detailed (1) starts

# Options of events: without documented addresses; AT_ONCE also without waiting for other visitors
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}

Update = dict[str, Any]  # a change of a control


def looks() -> dict[str, Any]:
    """Return Gradio's options for the looks of the page: no font is fetched, and text is darker."""
    theme = gr.themes.Base(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    theme.set(  # these are too pale in Gradio's own theme
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )
    script = (FOLDER / "page.js").read_text("utf-8")
    return {
        "theme": theme,
        "css": (FOLDER / "page.css").read_text("utf-8"),
        "head": f"<script>{script}</script>",
    }


class Page:
    """The controls of the page and what they do.

    Gradio calls the methods named `on_...`: with the values of controls, and with a `gr.Request`
    where an argument is annotated so. They return new values or updates of controls. Which
    controls these are stands where the method is connected.
    """

    def __init__(self, enlarger: Enlarger, sessions: visitors.Sessions):
        self.enlarger = enlarger
        self.sessions = sessions

    # --- controls -------------------------------------------------------------------------------

    def build(self) -> gr.Blocks:
        """Return the page."""
        with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
            gr.HTML(f"<h1>{TITLE}</h1><p>{INTRODUCTION}</p>", elem_id="heading")
            self.source = gr.State(time_to_live=visitors.KEPT_SECONDS)  # path of the picture
            self.result = gr.State(time_to_live=visitors.KEPT_SECONDS)
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=300):
                    self.add_inputs()
                with gr.Column(scale=3, min_width=300):
                    self.add_outputs()
            self.connect_picture()
            self.connect_work(page)
            self.connect_download()
        # With an open API, calls could bypass the queue
        return page.queue(max_size=32, default_concurrency_limit=4, api_open=False)

    def add_inputs(self) -> None:
        """Add the left half of the page: the picture and how to enlarge it."""
        purposes = self.enlarger.purposes
        self.picture = gr.Image(
            label="Picture",
            sources=["upload"],
            type="filepath",
            buttons=[],
            height=260,
            elem_id="picture",
            placeholder="Drop or paste a picture\nor click to choose one",
        )
        self.about = gr.HTML(self.no_picture(), elem_id="about")
        self.examples = gr.Dataset(
            label="Or try an example",
            components=["image"],
            samples=[[path] for path in self.enlarger.examples()],
            type="index",
            layout="gallery",
            elem_id="examples",
        )
        self.purpose = gr.Radio(
            [(purpose.label, index) for index, purpose in enumerate(purposes)],
            value=0,
            label="What the picture needs",
            elem_id="purpose",
        )
        self.texture = gr.Slider(
            0,
            1,
            TEXTURE,
            step=0.05,
            label="Faithful – detailed",
            info="0 is faithful and a little soft; 1 has the most detail, some of it invented",
            visible=purposes[0].texture_path is not None,
            elem_id="texture",
        )
        self.size = gr.Radio(self.sizes(0), value=FULL, label="Size of the result", elem_id="size")
        self.other_size = gr.Textbox(
            label="Other size",
            info="a scale such as 1.5, or width and height in pixels: 1920x1080, 1920x or x1080",
            visible=False,
            elem_id="other-size",
        )
        with gr.Row():
            self.go = gr.Button(
                "Enlarge", variant="primary", interactive=False, elem_id="go", min_width=100
            )
            self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=100)

    def add_outputs(self) -> None:
        """Add the right half of the page: the result and its download."""
        self.note = gr.HTML(visitors.message("The result will appear here."), elem_id="note")
        self.comparison = gr.ImageSlider(
            label="Bicubic (left) and enlarged (right)",
            type="filepath",
            interactive=False,
            max_height=640,
            buttons=["fullscreen"],
            elem_id="comparison",
        )
        gr.HTML(f"<p>{HINT}</p>", elem_id="hint")
        with gr.Row(equal_height=True):
            self.file_format = gr.Radio(
                list(FORMATS), value="PNG", label="File format", elem_id="kind", min_width=300
            )
            self.download = gr.DownloadButton(
                "Download", interactive=False, elem_id="download", min_width=200
            )
        self.losses = gr.HTML(elem_id="losses")  # what the file format cannot hold

    def no_picture(self) -> str:
        """Return what is shown while there is no picture: what can be added."""
        limit = f"up to {self.enlarger.max_pixels / 1e6:g} million pixels"
        return visitors.message(f"PNG, JPEG, WebP, TIFF, GIF and other formats, {limit}")

    def sizes(self, purpose_index: int) -> list[tuple[str, int]]:
        """Return the choices of a size for a purpose."""
        scale = self.enlarger.scales[self.enlarger.purposes[purpose_index]]
        return [(f"×{scale}", FULL), (f"×{scale / 2:g}", HALF), ("other", OTHER)]

    def buttons(self, path: Path | None, session: str) -> tuple[Update, Update]:
        """Return updates of Enlarge, which needs a picture and no work, and Cancel."""
        busy = self.sessions.busy(session)
        return (
            gr.update(interactive=path is not None and not busy),
            gr.update(interactive=busy),
        )

    # --- the picture ----------------------------------------------------------------------------

    def connect_picture(self) -> None:
        """Take pictures, and show what can be chosen for them."""
        known = [self.source, self.go, self.cancel, self.about]
        taken: dict[str, Any] = {
            "outputs": [self.picture, *known],
            "show_progress": "minimal",
            "show_progress_on": self.picture,
            **PRIVATE,
        }
        self.picture.upload(self.on_upload, self.picture, preprocess=False, **taken)
        self.examples.click(self.on_example, self.examples, **taken)
        self.picture.clear(self.on_remove, None, known, **AT_ONCE)
        self.purpose.change(self.on_purpose, self.purpose, [self.texture, self.size], **AT_ONCE)
        self.size.change(self.on_size, self.size, self.other_size, **AT_ONCE)

    def on_upload(self, file: dict[str, Any], request: gr.Request) -> tuple[Any, ...]:
        """Take an uploaded picture."""
        # It is in the temporary folder, or Gradio would have refused it
        return self.take(Path(file["path"]), session_of(request))

    def on_example(self, index: int, request: gr.Request) -> tuple[Any, ...]:
        """Take an example."""
        return self.take(self.enlarger.example_file(index), session_of(request))

    def take(self, path: Path, session: str) -> tuple[Any, ...]:
        """Show a picture and what is known about it, or why it cannot be enlarged."""
        try:
            copy, text = self.enlarger.preview(path)
        except Exception as error:
            alert = visitors.message(visitors.explain(error), alert=True)
            return None, None, *self.buttons(None, session), alert
        return copy, path, *self.buttons(path, session), visitors.message(text)

    def on_remove(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the picture."""
        return None, *self.buttons(None, session_of(request)), self.no_picture()

    def on_purpose(self, index: int) -> tuple[Update, Update]:
        """Show the slider if the purpose blends two generators, and the scales of its generator."""
        blends = self.enlarger.purposes[index].texture_path is not None
        return gr.update(visible=blends), gr.update(choices=self.sizes(index))

    def on_size(self, choice: int) -> Update:
        """Show the field for another size if it is chosen."""
        return gr.update(visible=choice == OTHER)

    # --- the work -------------------------------------------------------------------------------

    def connect_work(self, page: gr.Blocks) -> None:
        """Enlarge, one picture at a time, until it is done, cancelled or left."""
        buttons = [self.go, self.cancel]
        run = self.go.click(self.on_start, self.source, [*buttons, self.note], **AT_ONCE).then(
            self.on_enlarge,
            [
                self.purpose,
                self.texture,
                self.size,
                self.other_size,
                self.file_format,
                self.result,
            ],
            [self.result, self.comparison, self.download, self.losses, self.note],
            show_progress_on=self.comparison,
            scroll_to_output=True,
            concurrency_limit=1,
            **PRIVATE,
        )
        run.then(self.on_end, self.source, buttons, **AT_ONCE)
        self.cancel.click(
            self.on_cancel, self.source, [*buttons, self.note], cancels=run, **AT_ONCE
        )
        page.unload(self.on_leave)

    def on_start(self, path: Path | None, request: gr.Request) -> tuple[Any, ...]:
        """Start the work before it waits in the queue, so that it can be cancelled there."""
        session = session_of(request)
        self.sessions.start(session, path)
        return *self.buttons(path, session), visitors.message("Working …")

    def on_enlarge(
        self,
        purpose_index: int,
        texture: float,
        size: int,
        other_size: str,
        file_format: str,
        old: Result | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by this default
    ) -> tuple[Any, ...]:
        """Enlarge the picture that was there when the work started."""
        unchanged = [gr.skip()] * 4
        work = self.sessions.work(session_of(request))
        began = time.monotonic()

        def on_tile(done: int, total: int) -> None:
            work.check()
            left = (time.monotonic() - began) / done * (total - done)
            progress((done, total), desc=f"Enlarging, about {left:.0f} s left", unit="tiles")

        try:
            work.check()
            if work.path is None:
                raise cli.UserError("The picture is no longer on the server; add it again.")
            purpose = self.enlarger.purposes[purpose_index]
            wanted = self.output_size(purpose_index, size, other_size)
            result = self.enlarger.enlarge(work.path, purpose, texture, wanted, on_tile)
        except visitors.Cancelled:
            return *unchanged, visitors.message("Cancelled.")
        except Exception as error:
            return *unchanged, visitors.message(visitors.explain(error), alert=True)
        finally:
            work.end()
        if old:
            shutil.rmtree(old.folder, ignore_errors=True)
        try:
            download, losses = self.save(result, file_format)
            text = visitors.message(result.text)
        except Exception as error:  # the result stays, for another format
            download, losses = gr.update(interactive=False), ""
            text = visitors.message(visitors.explain(error), alert=True)
        return result, result.before_and_after, download, losses, text

    def output_size(self, purpose_index: int, choice: int, other: str) -> OutputSize:
        """Return the size that is chosen.

        Raises:
            UserError: the field for another size holds none.
        """
        if choice == OTHER:
            return parse_output_size(other)
        scale = self.enlarger.scales[self.enlarger.purposes[purpose_index]]
        return OutputSize(outscale=scale / 2 if choice == HALF else None)

    def on_end(self, path: Path | None, request: gr.Request) -> tuple[Update, Update]:
        """Enable the buttons that fit the picture that is there now."""
        return self.buttons(path, session_of(request))

    def on_cancel(self, path: Path | None, request: gr.Request) -> tuple[Any, ...]:
        """Cancel the work, in the queue or at the next tile."""
        session = session_of(request)
        self.sessions.stop(session)
        return *self.buttons(path, session), visitors.message("Cancelled.")

    def on_leave(self, request: gr.Request) -> None:
        """Cancel the work of a visitor who has closed the page."""
        self.sessions.forget(session_of(request))

    # --- the download ---------------------------------------------------------------------------

    def connect_download(self) -> None:
        """Offer the result in the chosen format."""
        self.file_format.change(
            self.on_format,
            [self.result, self.file_format],
            [self.download, self.losses, self.note],
            show_progress_on=self.download,
            **PRIVATE,
        )

    def on_format(self, result: Result | None, file_format: str) -> tuple[Any, ...]:
        """Save the result, if there is one, in another format."""
        if result is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            return *self.save(result, file_format), gr.skip()
        except Exception as error:
            alert = visitors.message(visitors.explain(error), alert=True)
            return gr.update(interactive=False), "", alert

    def save(self, result: Result, file_format: str) -> tuple[Update, str]:
        """Save a result; return the update of the button that downloads it, and what is lost."""
        file, losses = self.enlarger.save(result, file_format)
        megabytes = file.stat().st_size / 1e6
        label = f"Download {file_format} ({megabytes:.1f} MB)"
        download = gr.update(value=file, label=label, interactive=True)
        return download, visitors.message("; ".join(losses))


def session_of(request: gr.Request) -> str:
    """Return Gradio's name for a visitor's session."""
    return request.session_hash or ""
