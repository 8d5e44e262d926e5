"""Coverage-guided fuzzing by atheris: python tests/fuzz.py {pictures,archives} FOLDER [options of libFuzzer].

FOLDER, made if need be, is the workplace, and keeps the inputs that reach new code. An input that ends in anything but a
good result or a ValueError of one line that names the file stops the fuzzer, which writes it to a file and tells where.
"""

import shutil
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["PIL", "zipfile"]):
    import PIL.Image

    PIL.Image.init()  # imports every format
    import zipfile  # noqa: F401 - what prepare_data then finds imported

import archives
import corpus

import prepare_data
from utils import images

WORKPLACE = Path(sys.argv[2], "place", "inner")


def read_a_picture(path: Path) -> None:
    """Decode a file as every script of the repository does."""
    images.read_size(path, max_pixels=100_000)
    images.read_picture(path, max_pixels=100_000)


def unpack_an_archive(path: Path) -> None:
    """Unpack a file as prepare_data.py does, and see that nothing lies one or two folders above."""
    try:
        prepare_data.unpack(path, WORKPLACE / "out")
    finally:
        shutil.rmtree(WORKPLACE / "out", ignore_errors=True)
        assert [other.name for place in (WORKPLACE, WORKPLACE.parent) for other in place.iterdir()] == [path.name, "inner"]


TARGETS = {
    "pictures": (read_a_picture, [content for _, content in corpus.originals()]),
    "archives": (unpack_an_archive, [content for content in archives.hostile().values() if len(content) < 20_000]),
}


def main() -> None:
    """Fuzz one target until libFuzzer's options say that it is enough."""
    target, seeds = TARGETS[sys.argv[1]]
    folder = Path(sys.argv[2], "corpus")
    for place in (folder, WORKPLACE):
        place.mkdir(parents=True)
    for index, content in enumerate(seeds):
        (folder / f"seed_{index:03d}").write_bytes(content)

    def try_one(data: bytes) -> None:
        path = WORKPLACE / "input"
        path.write_bytes(data)
        try:
            target(path)
        except (ValueError, OSError) as error:
            if str(path) not in str(error) or "\n" in str(error):
                raise

    atheris.Setup([sys.argv[0], *sys.argv[3:], str(folder)], try_one)
    atheris.Fuzz()  # which ends the process


if __name__ == "__main__":
    main()
