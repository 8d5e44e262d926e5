"""Pictures of 16 bits per channel: read, enlarged and written as they are."""

import corpus
import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from test_decoding import gray_profile, p3_profile

import inference
import test_image
from model import Generator
from utils import depth, generator_file, images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)


def save(path, values: np.ndarray, **options) -> None:
    """Write with OpenCV or tifffile, which know nothing of our writer."""
    if path.suffix == ".png":
        if values.ndim == 3:
            values = values[..., [2, 1, 0, 3][: values.shape[2]]]
        assert cv2.imwrite(str(path), values)
    else:
        kind = "minisblack" if values.ndim == 2 else "rgb"
        extra = ["unassalpha"] if values.shape[-1] == 4 else None
        tifffile.imwrite(path, values, photometric=kind, extrasamples=extra, **options)


def stored(path) -> np.ndarray:
    """Read with OpenCV or tifffile."""
    if path.suffix != ".png":
        return tifffile.imread(path)
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]]


def sharp(upscale: int = 2) -> Generator:
    torch.manual_seed(0)
    return Generator(upscale, 1).eval()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3), (8, 9, 4)])
def test_every_bit_is_read(tmp_path, suffix, shape):
    values = noise(*shape)
    values.flat[:2] = 0, 65535  # so that white is where it should be
    path = tmp_path / f"a{suffix}"
    save(path, values)
    picture = images.read_picture(path, keep_depth=True)
    rgb = values[..., :3] if len(shape) == 3 else values[..., None].repeat(3, 2)
    assert picture.rgb.dtype == np.uint16 and np.array_equal(picture.rgb, rgb)
    assert picture.gray == (len(shape) == 2) and picture.notes == ()
    if shape[-1] == 4:
        assert np.array_equal(picture.alpha, values[..., 3])
    reduced = images.read_picture(path)
    assert reduced.rgb.dtype == np.uint8
    assert reduced.notes == ("16 bits per channel, reduced to 8",)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("transparent", [False, True])
def test_every_bit_is_written(tmp_path, suffix, gray, transparent):
    rgb = noise(150, 40, 3)  # more rows than are converted at a time
    if gray:
        rgb = np.repeat(rgb[..., :1], 3, 2)
    rgb[0, 0], rgb[0, 1] = 0, 65535
    alpha = noise(150, 41)[:, 1:] if transparent else None
    path = tmp_path / f"a{suffix}"
    picture = images.Picture(rgb, alpha, icc_profile=None if gray else SRGB, gray=gray)
    picture.metadata.exif = corpus.exif()
    picture.metadata.xmp = corpus.XMP
    picture.metadata.dpi = (300, 200)
    picture.metadata.colours = {b"cICP": bytes([9, 16, 0, 1])}
    images.write_picture(path, picture)

    # Other programs take gray with alpha for colour with alpha
    channels = rgb[..., 0] if gray and not transparent else rgb
    expected = np.dstack([channels, alpha]) if transparent else channels
    assert np.array_equal(stored(path), expected)
    with Image.open(path) as image:
        if image.mode != "I;16":  # Pillow keeps the upper halves of colour
            assert np.array_equal(np.asarray(image), expected >> 8)
    if gray and suffix == ".png":
        assert path.read_bytes()[24:26] == bytes([16, 4 if transparent else 0])

    again = images.read_picture(path, keep_depth=True)
    assert np.array_equal(again.rgb, rgb)
    assert transparent == (again.alpha is not None) and np.array_equal(again.alpha, alpha)
    assert again.icc_profile == picture.icc_profile
    assert again.metadata.xmp and again.metadata.exif
    assert suffix == ".tif" or again.metadata.colours == picture.metadata.colours
    assert again.metadata.dpi == pytest.approx((300, 200), abs=0.02)


def test_a_large_tiff_of_gray_with_alpha_is_a_bigtiff_by_its_four_channels(tmp_path, monkeypatch):
    gray = noise(30, 20)[..., None].repeat(3, 2)
    picture = images.Picture(gray, noise(30, 20), gray=True)
    monkeypatch.setattr(images, "_LARGEST_FILE", 30 * 20 * 4 * 2 - 1)
    images.write_picture(tmp_path / "a.tif", picture)
    with tifffile.TiffFile(tmp_path / "a.tif") as written:
        assert written.is_bigtiff and written.asarray().shape == (30, 20, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_tiff_is_a_bigtiff(tmp_path, monkeypatch, channels):
    rgb = noise(30, 20, 3)
    if channels == 1:
        rgb[..., 1:] = rgb[..., :1]
    picture = images.Picture(rgb, gray=channels == 1, icc_profile=None)
    picture.metadata.exif = corpus.exif()
    monkeypatch.setattr(depth, "_STRIP_BYTES", 7 * 20 * 2 * channels)
    size = rgb[..., :channels].nbytes
    for limit in (size, size - 1):
        monkeypatch.setattr(images, "_LARGEST_FILE", limit)
        images.write_picture(tmp_path / "a.tif", picture)
        with tifffile.TiffFile(tmp_path / "a.tif") as written:
            assert written.is_bigtiff == (limit < size)
            assert np.array_equal(written.asarray(), rgb[..., :channels].squeeze())
            assert written.pages[0].tags["Make"].value == "Maker"
            assert len(written.pages[0].dataoffsets) == 5
        assert np.array_equal(images.read_picture(tmp_path / "a.tif", keep_depth=True).rgb, rgb)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_orientation_is_applied(tmp_path, suffix, orientation, channels):
    values = noise(8, 9, 3)
    values[0, :2] = [[0] * 3, [65535] * 3]
    if channels == 1:
        values[..., 1:] = values[..., :1]
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        pixels = values if channels == 3 else values[..., 0]
        save(path, pixels, extratags=[(274, 3, 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        with open(path, "wb") as file:
            options = {"exif": exif.tobytes()}
            depth.write(file, "PNG", values, None, channels == 1, options)
    high = Image.fromarray((values >> 8).astype(np.uint8))
    high.save(tmp_path / "b.png", exif=Image.Exif() if orientation == 1 else exif_of(orientation))
    expected = images.read_picture(tmp_path / "b.png").rgb
    found = images.read_picture(path, keep_depth=True).rgb
    assert found.dtype == np.uint16 and np.array_equal(found >> 8, expected)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def test_gray_of_other_depths_uses_16_bits(tmp_path):
    ramp = np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    picture = images.read_picture(tmp_path / "a.tif", keep_depth=True)
    assert np.abs(picture.rgb[..., 0] - ramp.astype(float) * 65535).max() < 0.51
    assert picture.notes == ("32 bits per channel, reduced to 16",)
    Image.fromarray((ramp * 255).astype(np.uint8)).save(tmp_path / "b.tif")
    assert images.read_picture(tmp_path / "b.tif", keep_depth=True).rgb.dtype == np.uint8
    Image.fromarray(noise(16, 16)).save(tmp_path / "c.png", transparency=int(noise(16, 16)[3, 4]))
    alpha = images.read_picture(tmp_path / "c.png", keep_depth=True).alpha
    assert alpha[3, 4] == 0 and np.unique(alpha).tolist() == [0, 65535]


def as_ppm(values: np.ndarray, white: int) -> bytes:
    kind = 6 if values.ndim == 3 else 5
    dtype = ">u2" if white > 255 else "u1"
    header = f"P{kind} {values.shape[1]} {values.shape[0]} {white}\n"
    return header.encode() + values.astype(dtype).tobytes()


def test_other_formats_say_that_they_lose_depth(tmp_path):
    deep = noise(64, 64, 3)
    pictures = {
        "a.ppm": (as_ppm(deep, 65535), 16),
        "b.ppm": (as_ppm(deep >> 6, 1023), 16),
        "c.jp2": (cv2.imencode(".jp2", deep)[1], 16),
        "d.avif": (cv2.imencode(".avif", deep >> 6, [cv2.IMWRITE_AVIF_DEPTH, 10])[1], 10),
        "e.avif": (cv2.imencode(".avif", deep >> 4, [cv2.IMWRITE_AVIF_DEPTH, 12])[1], 12),
        "f.ppm": (as_ppm(deep >> 8, 255), 8),
        "g.jp2": (cv2.imencode(".jp2", depth.to_8_bits(deep))[1], 8),
        "h.avif": (cv2.imencode(".avif", depth.to_8_bits(deep))[1], 8),
        "i.ppm": (b"P3 1 1 100 1 2 3", 8),
        "j.pbm": (b"P4 8 1 a", 8),
        "k.pbm": (b"P1 2 1 0 1", 8),
    }
    for name, (content, bits) in pictures.items():
        (tmp_path / name).write_bytes(bytes(content))
        notes = images.read_picture(tmp_path / name, keep_depth=True).notes
        expected = (f"{bits} bits per channel, reduced to 8",) if bits > 8 else ()
        assert notes == expected, name
    # Gray keeps its depth
    (tmp_path / "a.pgm").write_bytes(as_ppm(deep[..., 0], 65535))
    picture = images.read_picture(tmp_path / "a.pgm", keep_depth=True)
    assert np.array_equal(picture.rgb[..., 0], deep[..., 0]) and picture.notes == ()


def test_colours_that_are_converted_have_8_bits(tmp_path):
    values = noise(8, 9)
    values.flat[:2] = 0, 65535
    image = Image.fromarray(values)
    image.save(tmp_path / "a.png", icc_profile=gray_profile())
    picture = images.read_picture(tmp_path / "a.png", keep_depth=True)
    assert picture.rgb.dtype == np.uint8
    assert picture.notes == ("16 bits per channel, reduced to 8",)
    # What the format cannot hold is converted when it is written
    picture = images.Picture(noise(8, 9, 3), noise(8, 9), icc_profile=p3_profile())
    for suffix, said in {
        ".png": [],
        ".bmp": [
            "BMP cannot hold its transparency; it is on white",
            "BMP cannot hold 16 bits per channel; reduced to 8",
            "BMP cannot hold its colour profile; converted to sRGB in 8 bits",
        ],
        ".jpg": [
            "JPEG cannot hold its transparency; it is on white",
            "JPEG cannot hold 16 bits per channel; reduced to 8",
        ],
    }.items():
        images.write_picture(tmp_path / f"b{suffix}", picture)
        assert images.what_is_lost(picture, f"b{suffix}") == said
        reduced = images.read_picture(tmp_path / f"b{suffix}", keep_depth=True).rgb
        assert reduced.dtype == (np.uint16 if suffix == ".png" else np.uint8)


def test_16_bits_round_to_the_nearest_8():
    levels = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(depth.to_8_bits(levels), np.rint(levels / 257).astype(np.uint8))
    signed = images.array_to_signed(levels.reshape(256, 256, 1).repeat(3, 2))
    assert signed.min() == -1 and signed.max() == 1
    assert np.array_equal(images.signed_to_array(signed, levels.dtype)[..., 1].ravel(), levels)


def test_a_generator_gives_16_bits_for_16_bits(astronaut):
    network = sharp()
    lr = astronaut[:24, :30].astype(np.uint16) * 257 + noise(24, 30, 3) // 512
    engine = inference.TorchEngine(network)
    sr = inference.upscale(engine, lr, tile=0)
    with torch.no_grad():
        exact = network(torch.from_numpy(images.array_to_signed(lr)))[0].permute(1, 2, 0).numpy()
    assert sr.dtype == np.uint16
    assert np.abs(sr - (exact.clip(-1, 1) + 1.0) * 32767.5).max() <= 1
    assert np.abs(inference.upscale(engine, lr, tile=8).astype(int) - sr).max() <= 1
    ensemble = inference.upscale(inference.Ensemble(engine), lr)
    assert ensemble.dtype == np.uint16 and np.abs(ensemble.astype(int) - sr).mean() < 3000
    small = inference.upscale(engine, depth.to_8_bits(lr))
    assert np.abs(sr / 257 - small).max() < 3


def test_transparency_has_16_bits_too():
    rgb = noise(12, 12, 3)
    alpha = np.zeros((12, 12), np.uint16)
    alpha[:, 6:] = 65535
    result = inference.upscale_picture(sharp(), images.Picture(rgb, alpha))
    assert result.rgb.dtype == result.alpha.dtype == np.uint16
    assert (result.alpha[:, :8] == 0).all() and (result.alpha[:, 16:] == 65535).all()
    smaller = images.resized(result, 10, 9)
    assert smaller.rgb.shape == (9, 10, 3) and smaller.rgb.dtype == smaller.alpha.dtype == np.uint16
    assert smaller.alpha[:, -1].min() == 65535


def test_the_command_line_keeps_16_bits_where_the_format_can(tmp_path, capsys, astronaut):
    generator_file.save(tmp_path / "x2.pth", sharp())
    values = astronaut[:20, :24].astype(np.uint16) * 257
    save(tmp_path / "a.png", values)
    base = [tmp_path / "a.png", "--weights", tmp_path / "x2.pth", "--backend", "torch"]

    def enlarged(name: str, *options) -> str:
        arguments = [*base, "--out", tmp_path / name, *options]
        assert test_image.main(test_image.get_args_parser().parse_args(map(str, arguments))) == 0
        return capsys.readouterr().err

    for name, options in (("b.png", ["--compare"]), ("b.tif", []), ("c.png", ["--size", "30x25"])):
        assert enlarged(name, *options) == ""
        found = stored(tmp_path / name)
        assert found.dtype == np.uint16
        assert len(np.unique(found % 257)) > 100  # levels of 8 bits would be multiples of 257
    assert "d.jpg: JPEG cannot hold 16 bits per channel; reduced to 8" in enlarged("d.jpg")
