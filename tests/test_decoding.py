"""Which value of a gray image is white, and how gray profiles are applied."""

import errno
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from utils import images

SMOOTH = np.linspace(0, 1, 2400).reshape(40, 60)
OUTLIER = np.where(np.arange(2400).reshape(40, 60) == 1234, 1, 0)
MAX_TAG, S_MAX_TAG = 281, 341


def saved(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def gray_profile() -> bytes:
    """The smallest ICC profile of a gray space with linear tones."""
    white = [round(value * 65536) for value in (0.9642, 1, 0.8249)]
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", 2) + b"g\0" + bytes(79),
        b"wtpt": b"XYZ " + struct.pack(">4x3i", *white),
        b"kTRC": b"curv" + struct.pack(">4xI", 0),
    }
    table = struct.pack(">I", len(tags))
    body = b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    header = bytearray(128)
    size = len(header) + len(table) + len(body)
    struct.pack_into(">I4xI4s4s4s", header, 0, size, 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, *white)
    return bytes(header) + table + body


@pytest.mark.parametrize(
    ("values", "white"),
    [
        (np.where(OUTLIER, 1.02, SMOOTH), 1),
        (np.where(OUTLIER, 300, SMOOTH), 1),
        (SMOOTH * 1.2, 1),  # sharpened beyond white
        (SMOOTH * 255, 255),
        (SMOOTH * 4000, 4095),
        (SMOOTH * 1e6, 1e6),
    ],
)
def test_the_range_of_floating_point_gray(tmp_path, values, white):
    path = saved(tmp_path / "a.tif", values.astype(np.float32))
    gray = images.read_picture(path).rgb[..., 0].astype(int)
    expected = (values / white * 255).clip(0, 255)
    assert np.abs(gray - expected).max() <= 1


@pytest.mark.parametrize(
    ("values", "dtype", "white"),
    [
        (SMOOTH * 255, np.int32, 255),
        (SMOOTH * 255 + 9000 * OUTLIER, np.uint16, 255),
        (SMOOTH * 4095, np.uint16, 4095),
        (SMOOTH * 4095 + 61000 * OUTLIER, np.uint16, 4095),
        (SMOOTH * 65535, np.uint16, 65535),
        (SMOOTH * 65535, np.int32, 65535),
        (SMOOTH * (2**31 - 1), np.int32, 2**31 - 1),
        (SMOOTH * (2**32 - 1), np.uint32, 2**32 - 1),
        (SMOOTH * 32767, np.int16, 32767),
    ],
)
def test_the_range_of_integer_gray(tmp_path, values, dtype, white):
    values = values.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    paths = [tmp_path / "a.tif"]
    if dtype == np.uint16:
        paths.append(saved(tmp_path / "a.png", values))
    for path in paths:
        gray = images.read_picture(path).rgb[..., 0].astype(int)
        assert np.abs(gray - (values / white * 255).clip(0, 255)).max() <= 1, path


def test_a_range_that_had_to_be_guessed_is_said(tmp_path):
    guessed = saved(tmp_path / "dark.png", (SMOOTH * 4000).astype(np.uint16))
    assert images.read_picture(guessed).notes == (
        "its 16-bit values hardly exceed 4,095, which is taken as white",
    )
    bright = saved(tmp_path / "bright.png", (SMOOTH * 65535).astype(np.uint16))
    assert images.read_picture(bright).notes == ()
    unit = saved(tmp_path / "unit.tif", SMOOTH.astype(np.float32))
    assert images.read_picture(unit).notes == ()


def test_the_range_that_a_file_tells(tmp_path):
    values = (SMOOTH * 1000).astype(np.uint16)
    for tag in (MAX_TAG, S_MAX_TAG):
        tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(tag, 3, 1, 2000, True)])
        assert images.read_picture(tmp_path / "a.tif").rgb.max() == 128
    cannot_be_true = (MAX_TAG, 3, 1, 1, True)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[cannot_be_true])
    assert images.read_picture(tmp_path / "a.tif").rgb.max() == 62
    full = (SMOOTH * 65535).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", full, photometric="miniswhite")
    assert images.read_picture(tmp_path / "a.tif").rgb[[0, -1], [0, -1], 0].tolist() == [255, 0]
    (tmp_path / "a.pgm").write_bytes(b"P5 60 40 65535\n" + values.astype(">u2").tobytes())
    assert images.read_picture(tmp_path / "a.pgm").rgb.max() == 4


def test_a_gray_profile_is_applied_also_beside_alpha(tmp_path):
    levels = np.array([[0, 64, 128, 255]], np.uint8)
    linear = levels / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    expected = srgb * 255
    gray = Image.fromarray(levels)
    for image in (gray, gray.convert("LA"), Image.fromarray(levels.astype(np.uint16) * 257)):
        picture = images.read_picture(saved(tmp_path / "a.png", image, icc_profile=gray_profile()))
        assert picture.gray and picture.icc_profile is None
        assert np.abs(picture.rgb[..., 0] - expected).max() <= 1, image.mode


def test_a_failing_disk_is_not_taken_for_a_damaged_picture(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", (SMOOTH * 255).astype(np.uint8))

    def load(_image):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(OSError, match="Input/output error") as failed:
        images.read_picture(path)
    assert failed.value.filename == str(path)
