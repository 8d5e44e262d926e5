"""HEIC and JPEG XL, with and without Pillow's plug-ins for them."""

import io
import struct
import sys

import corpus
import numpy as np
import pytest
from PIL import Image, ImageCms

import test_image
from utils import cli, images, outputs, plugins

FORMATS = {"heic": ("HEIF", {"quality": 90, "chroma": 444}), "jxl": ("JXL", {"lossless": True})}
XMP = corpus.XMP.replace(b'tiff:Orientation="6" ', b"")  # by which pillow-heif would turn it
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(params=FORMATS)
def suffix(request):
    plugin = plugins.BY_SUFFIX[f".{request.param}"]
    if not plugin.load():
        pytest.skip(f"{plugin.package} is not installed")
    return request.param


@pytest.fixture
def without_plugins(monkeypatch):
    for plugin in plugins.ALL:
        monkeypatch.setitem(sys.modules, plugin.module, None)  # which no import can find


def saved(path, image: np.ndarray, **more):
    file_format, options = FORMATS[path.suffix[1:]]
    Image.fromarray(image).save(path, file_format, **options, **more)
    return path


def test_they_are_read_like_any_other_picture(tmp_path, astronaut, suffix):
    rgb = np.ascontiguousarray(astronaut[:64, :96])
    path = saved(tmp_path / f"a.{suffix}", rgb, exif=b"Exif\0\0" + corpus.exif(), xmp=XMP)
    picture = images.read_picture(path)
    assert images.read_size(path) == (64, 96)
    assert np.abs(picture.rgb.astype(int) - rgb).mean() < (2 if suffix == "heic" else 1e-9)
    assert picture.metadata.xmp == XMP and b"NoteOfMaker" in picture.metadata.exif
    with pytest.raises(cli.UserError, match="more than 6,143 pixels"):
        images.read_picture(path, 64 * 96 - 1)
    (tmp_path / "no suffix").write_bytes(path.read_bytes())
    assert images.list_image_names(tmp_path) == [path.name, "no suffix"]
    rgba = np.dstack([rgb, rgb[..., 0]])
    assert images.read_picture(saved(path, rgba)).alpha.shape == (64, 96)


def test_a_profile_in_a_heic_is_kept(tmp_path, astronaut):
    if not plugins.HEIF.load():
        pytest.skip("pillow-heif is not installed")
    path = saved(tmp_path / "a.heic", np.ascontiguousarray(astronaut[:64, :96]), icc_profile=SRGB)
    assert images.read_picture(path).icc_profile == SRGB


def test_a_heic_in_hdr_says_so_in_a_png(tmp_path, astronaut):
    if not plugins.HEIF.load():
        pytest.skip("pillow-heif is not installed")
    colours = {"color_primaries": 9, "transfer_characteristics": 16}
    options = {**colours, "matrix_coefficients": 9, "full_range_flag": 1}
    path = saved(tmp_path / "a.heic", np.ascontiguousarray(astronaut[:64, :96]), **options)
    picture = images.read_picture(path)
    assert picture.metadata.colours == {b"cICP": bytes([9, 16, 0, 1])}
    assert "its colour tags (cICP)" in images.what_is_lost(picture, "a.jpg")[0]


def test_orientation_is_applied_once(tmp_path, astronaut, suffix):
    upright = np.ascontiguousarray(astronaut[:64, :96])
    exif = Image.Exif()
    exif[0x0112] = 6
    if suffix == "heic":
        path = saved(tmp_path / "a.heic", np.rot90(upright).copy(), exif=exif.tobytes())
    else:
        # A JPEG in a new dress keeps its own; elsewhere in JPEG XL, that of EXIF means nothing
        Image.fromarray(np.rot90(upright)).save(tmp_path / "a.jpg", exif=exif, quality=100)
        path = tmp_path / "a.jxl"
        with Image.open(tmp_path / "a.jpg") as jpeg:
            jpeg.save(path, "JXL", lossless_jpeg=True)
        other = saved(tmp_path / "b.jxl", upright, exif=exif.tobytes())
        assert np.array_equal(images.read_picture(other).rgb, upright)
    found = images.read_picture(path).rgb
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 4


def test_damaged_files_are_one_line_or_pictures(tmp_path, astronaut, suffix):
    path = saved(tmp_path / f"a.{suffix}", np.ascontiguousarray(astronaut[:24, :32]))
    content = path.read_bytes()
    refused = 0
    for data in corpus.damaged(content, 60):
        path.write_bytes(data)
        try:
            assert images.read_picture(path).rgb.ndim == 3
        except cli.UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


def jxl_header(height: int, width: int) -> bytes:
    """The first bytes of a codestream, by the standard's variable-length numbers."""
    bits = "0"  # not in units of 8
    for side, ratio in ((height, "000"), (width, "")):
        selector = next(i for i, n in enumerate((9, 13, 18, 30)) if side <= 1 << n)
        number = f"{side - 1:0{(9, 13, 18, 30)[selector]}b}"[::-1]
        bits += f"{selector:02b}"[::-1] + number + ratio
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[place : place + 8][::-1], 2) for place in range(0, len(bits), 8))
    return b"\xff\x0a" + packed


def test_a_jpeg_xl_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    if not plugins.JXL.load():
        pytest.skip("pillow-jxl-plugin is not installed")
    import pillow_jxl

    monkeypatch.setattr(pillow_jxl.JpegXLImagePlugin, "Decoder", lambda **_: pytest.fail("decoded"))
    bomb = jxl_header(40_000, 50_000)
    boxes = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s12x", 20, b"ftyp")
    boxes += struct.pack(">I4sI3s", 15, b"jxlp", 0, bomb[:3])
    boxes += struct.pack(">I4sI", 0, b"jxlp", 1) + bomb[3:]
    for content in (bomb, boxes):
        (tmp_path / "a.jxl").write_bytes(content + bytes(99))
        with pytest.raises(cli.UserError, match="has more than 100,000,000 pixels"):
            images.read_picture(tmp_path / "a.jxl")


# 4x3 pixels each, by libjxl's cjxl: 8 bits, 10 bits, 16 bits to be turned, floating point
DEPTHS = {
    8: "ff0a103010505c080802010084004b188b15c201ccb31fcd0158ab64b2b7a8b4aa172c14e7b7032c0a12"
    "a008812200",
    10: "ff0a103014505c08080201005c004b188b150a15996e7e4407d8abd373ea71d26a0d0d0803",
    16: "0000000c4a584c200d0a870a00000014667479706a786c20000000006a786c20000000096a786c6c0a00"
    "0000446a786c63ff0a10300b3f00c5250108020100b0004b188b154202c4dd3a40ba0eb0a7e2abe2abe2"
    "eb6139756ed5a2954b8f3a58b6ab124ecb0918c10175802102",
    32: "ff0a10307200c5850802010018024b188b15527c67cb5b88410ab2603f2799fdff33a1085213ed8df315"
    "5fde244900aff8e2155f156f7e51eda1896fb03249f3b91d977e0964029e85d933d223e2ddb66d5ecccc"
    "8e577cf18aafcac495605ff2180f7268c78347f1ad8aa8d1ddf505fff6f88acf8b0eaaf18a2f5ef1e541"
    "8ad16d085d1851da72b83be84e8b6c82fea69468fa04",
}


@pytest.mark.parametrize("bits", DEPTHS)
def test_depth_that_a_jpeg_xl_loses_is_said(tmp_path, bits):
    (tmp_path / "a.jxl").write_bytes(bytes.fromhex(DEPTHS[bits]))
    assert plugins.jxl_bits(tmp_path / "a.jxl") == bits
    if plugins.JXL.load():
        picture = images.read_picture(tmp_path / "a.jxl", keep_depth=True)
        expected = (f"{bits} bits per channel, reduced to 8",) if bits > 8 else ()
        assert picture.notes == expected
        assert picture.rgb.shape == ((4, 3, 3) if bits == 16 else (3, 4, 3))


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (8, 8), (256, 512), (60, 90), (513, 1), (9000, 3), (40, 48)]
)
def test_the_size_in_a_jpeg_xl_header(height, width):
    assert plugins.jxl_size(io.BytesIO(jxl_header(height, width))) == (height, width)
    if plugins.JXL.load():
        file = io.BytesIO()
        Image.new("L", (width, height)).save(file, "JXL")
        assert plugins.jxl_size(file) == (height, width)


def test_jpeg_xl_is_written(tmp_path, astronaut):
    if not plugins.JXL.load():
        pytest.skip("pillow-jxl-plugin is not installed")
    picture = images.Picture(np.ascontiguousarray(astronaut[:40, :60]), icc_profile=SRGB)
    picture.metadata.exif = corpus.exif()
    picture.metadata.xmp = corpus.XMP
    images.write_picture(tmp_path / "a.jxl", picture)
    again = images.read_picture(tmp_path / "a.jxl")
    assert np.abs(again.rgb.astype(int) - picture.rgb).max() <= 1  # sRGB to sRGB, by the profile
    assert again.metadata.exif and b"XMP title" in again.metadata.xmp
    said = ["JXL cannot hold its colour profile; converted to sRGB"]
    assert images.what_is_lost(picture, tmp_path / "a.jxl") == said
    lossless = (tmp_path / "a.jxl").stat().st_size
    images.write_picture(tmp_path / "a.jxl", picture, quality=50)
    assert (tmp_path / "a.jxl").stat().st_size < lossless / 2


def test_a_missing_plugin_is_named(tmp_path, astronaut, without_plugins, capsys):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a" + bytes(99))
    for name, package in (("a.heic", "pillow-heif"), ("b.jxl", "pillow-jxl-plugin")):
        with pytest.raises(cli.UserError, match=f"{name}: .*: pip install {package}$"):
            images.read_picture(tmp_path / name)
    with pytest.raises(cli.UserError, match=r"x\.jxl: JPEG XL .*: pip install pillow-jxl-plugin$"):
        images.output_format(tmp_path / "x.jxl")
    advice = "no image in this folder.*; HEIC .*: pip install pillow-heif; JPEG XL .*-jxl-plugin$"
    with pytest.raises(cli.UserError, match=advice):
        images.list_image_names(tmp_path)
    with pytest.raises(cli.UserError, match=advice):
        outputs.find(test_image.IMAGES, [tmp_path], None, "_x4", recursive=False)
    # In a folder, they are left out, and a line says how to read them
    Image.fromarray(astronaut[:8, :8]).save(tmp_path / "c.png")
    Image.fromarray(astronaut[:8, :8]).save(tmp_path / "d.avif")
    found = outputs.find(test_image.IMAGES, [tmp_path], None, "_x4", recursive=False)
    assert [path.name for path, _folder in found] == ["c.png", "d.avif"]
    assert images.list_image_names(tmp_path) == ["c.png", "d.avif"]
    said, warned = capsys.readouterr()
    assert "some images are left out; HEIC needs" in warned
    assert "(2): a.heic, b.jxl; HEIC needs a plug-in of Pillow: pip install pillow-heif" in said
