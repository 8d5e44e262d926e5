"""Coverage-guided fuzzing by atheris.

python tests/fuzz.py {pictures,weights} FOLDER [options of libFuzzer]

FOLDER, created if necessary, holds the working files and the inputs that reach new code. An input
has to give a good result, or an error of one line that names the file. Any other stops the fuzzer,
which writes it to a file and says where.
"""

import io
import sys
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["PIL", "zipfile", "torch._weights_only_unpickler"]):
    import zipfile  # noqa: F401 - what torch then finds imported

    import PIL.Image
    import torch

    PIL.Image.init()  # imports every format

import corpus

from model import Generator
from utils import files, generator_file, images

WORKPLACE = Path(sys.argv[2], "place", "inner")


def read_a_picture(path: Path) -> None:
    """Decode a file as every script of the repository does."""
    images.read_size(path, max_pixels=100_000)
    images.read_picture(path, max_pixels=100_000)


def weight_files() -> list[bytes]:
    """Return small files in PyTorch's two formats: parts of our generator and of ESRGAN's."""
    generator = Generator(2, 1)
    ours = {
        "format": files.GENERATOR_FORMAT,
        **generator.architecture,
        "state_dict": {
            name: tensor for name, tensor in generator.state_dict().items() if tensor.numel() < 100
        },
    }
    esrgans = {
        "params": {
            "conv_first.weight": torch.ones(2, 3, 3, 3),
            "body.0.rdb1.conv1.weight": torch.ones(2, 2, 3, 3),
        }
    }
    found = []
    for content in (ours, esrgans):
        for new_format in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new_format)
            found.append(file.getvalue())
    return found


TARGETS = {
    "pictures": (read_a_picture, [content for _, content in corpus.originals()]),
    "weights": (generator_file.load, weight_files()),
}


def main() -> None:
    """Fuzz one target until libFuzzer's options tell it to stop."""
    target, seeds = TARGETS[sys.argv[1]]
    folder = Path(sys.argv[2], "corpus")
    for place in (folder, WORKPLACE):
        place.mkdir(parents=True)
    for index, content in enumerate(seeds):
        (folder / f"seed_{index:03d}").write_bytes(content)

    warnings.simplefilter("ignore")

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
