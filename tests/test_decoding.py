"""Which value of a gray image is white, and how gray profiles are applied."""

import errno
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from utils import cli, images

SMOOTH = np.linspace(0, 1, 2400).reshape(40, 60)
OUTLIER = np.where(np.arange(2400).reshape(40, 60) == 1234, 1, 0)
MAX_TAG, S_MAX_TAG = 281, 341
DEEP = "16 bits per channel, reduced to 8"


def saved(path, image, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


WHITE = (0.9642, 1, 0.8249)  # D50
# The primaries as XYZ, in columns, relative to D50
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7139]])
P3 = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
LINEAR = b"curv" + struct.pack(">4xI", 0)


def xyz(values) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *(round(value * 65536) for value in values))


def gray_profile() -> bytes:
    return profile_of(b"GRAY", {b"kTRC": LINEAR})


def p3_profile() -> bytes:
    colours = {name: xyz(P3[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile_of(b"RGB ", colours | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), LINEAR))


def profile_of(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """The smallest ICC profile of a space with linear tones."""
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", 2) + b"g\0" + bytes(79),
        b"wtpt": xyz(WHITE),
        **tags,
    }
    table = struct.pack(">I", len(tags))
    body = b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content.ljust(-(-len(content) // 4) * 4, b"\0")
    header = bytearray(128)
    size = len(header) + len(table) + len(body)
    struct.pack_into(">I4xI4s4s4s", header, 0, size, 0x02100000, b"mntr", space, b"XYZ ")
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, *(round(value * 65536) for value in WHITE))
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
        DEEP,
    )
    bright = saved(tmp_path / "bright.png", (SMOOTH * 65535).astype(np.uint16))
    assert images.read_picture(bright).notes == (DEEP,)
    unit = saved(tmp_path / "unit.tif", SMOOTH.astype(np.float32))
    assert images.read_picture(unit).notes == (DEEP.replace("16", "32"),)


def test_depth_that_is_lost_is_said(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    cv2.imwrite(str(tmp_path / "a.png"), rgb)
    for name in ("a.tif", "a.png"):
        assert images.read_picture(tmp_path / name).notes == (DEEP,), name
    Image.fromarray((rgb >> 8).astype(np.uint8)).save(tmp_path / "b.png")
    assert images.read_picture(tmp_path / "b.png").notes == ()


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


# --- damaged ends -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"mode": "L"}])
def test_a_jpeg_that_lacks_only_its_end_is_read_and_one_that_lacks_pixels_is_not(
    tmp_path, astronaut, options
):
    options = dict(options)
    image = Image.fromarray(astronaut[:90, :70]).convert(options.pop("mode", "RGB"))
    path = tmp_path / "a.jpg"
    image.save(path, quality=90, **options)
    whole = images.read_picture(path)
    content = path.read_bytes()
    for missing in (1, 2):
        path.write_bytes(content[:-missing])
        picture = images.read_picture(path)
        assert np.array_equal(picture.rgb, whole.rgb)
        if (
            options.get("progressive") or "subsampling" in options
        ):  # Pillow reads some without a word
            assert picture.notes == ("the end of the file is missing, but no pixels are",)
    for length in range(700, len(content) - 2):
        path.write_bytes(content[:length])
        try:
            picture = images.read_picture(path)
        except cli.UserError as error:
            assert "cut short or damaged" in str(error)
        else:  # the last bits may be padding
            assert np.array_equal(picture.rgb, whole.rgb), length


def test_a_jpeg_with_restarts_that_lacks_its_end_is_refused(tmp_path, astronaut):
    image = Image.fromarray(astronaut[:90, :70])
    image.save(tmp_path / "a.jpg", quality=90, subsampling=0, restart_marker_rows=1)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(cli.UserError, match="cut short or damaged"):
        images.read_picture(tmp_path / "a.jpg")


# --- colours that a format cannot hold ----------------------------------------------------------


def test_a_profile_that_bmp_cannot_hold_is_applied(tmp_path):
    rgb = np.random.default_rng(0).integers(60, 190, (8, 9, 3), dtype=np.uint8)
    linear = (rgb / 255) @ (np.linalg.inv(SRGB) @ P3).T
    assert 0 <= linear.min() < linear.max() <= 1  # no colour is outside sRGB
    expected = 255 * np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    )
    picture = images.Picture(rgb, icc_profile=p3_profile())
    images.write_picture(tmp_path / "a.bmp", picture)
    found = images.read_picture(tmp_path / "a.bmp").rgb
    assert np.abs(found - expected).max() <= 2
    for suffix in (".png", ".jpg", ".webp", ".tif", ".avif"):
        images.write_picture(tmp_path / f"a{suffix}", picture)
        assert images.read_picture(tmp_path / f"a{suffix}").icc_profile == p3_profile()


def test_floating_point_pictures_with_lights_are_not_darkened(tmp_path):
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    values[0, :3] = 8.25
    Image.fromarray(values).save(tmp_path / "hdr.tif")
    picture = images.read_picture(tmp_path / "hdr.tif")
    assert picture.rgb[9, 9, 0] == 255 and picture.rgb[5, 5, 0] == round(255 * values[5, 5])
    assert (
        picture.notes[0]
        == "its values reach 8.25; 1 is taken as white: scale them first if that is wrong"
    )
    for low, high in ((0, 19), (200, 480), (5.25, 25.25)):  # not HDR
        Image.fromarray(np.linspace(low, high, 100, dtype=np.float32).reshape(10, 10)).save(
            tmp_path / "measured.tif"
        )
        found = images.read_picture(tmp_path / "measured.tif").rgb[..., 0]
        assert len(np.unique(found)) > 5
