import io
import os

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from utils import images


def save(path, image, **options):
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


def test_ranges_are_inverse_and_exact():
    levels = torch.arange(256, dtype=torch.uint8)
    signed = images.uint8_to_signed(levels)
    assert signed.min() == -1 and signed.max() == 1
    assert torch.equal(images.signed_to_uint8(signed), levels)
    assert torch.allclose(images.signed_to_unit(signed), images.uint8_to_unit(levels), atol=1e-7)
    assert images.signed_to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_a_picture_survives_the_disk(tmp_path, astronaut, suffix):
    images.write_picture(tmp_path / f"a{suffix}", images.Picture(astronaut))
    assert np.array_equal(images.read_picture(tmp_path / f"a{suffix}").rgb, astronaut)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_modes_come_out_as_rgb(tmp_path, astronaut):
    rgb = Image.fromarray(astronaut[:64, :80])
    gray = rgb.convert("L")
    gray16 = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    expected_gray = np.repeat(np.asarray(gray)[..., None], 3, 2)
    cases = {
        "gray.png": (gray, expected_gray, 0),
        "gray16.png": (gray16, expected_gray, 0),
        "gray16.tif": (gray16, expected_gray, 0),
        "bilevel.png": (gray.convert("1"), np.asarray(gray.convert("1").convert("RGB")), 0),
        "palette.gif": (rgb.quantize(256), np.asarray(rgb.quantize(256).convert("RGB")), 0),
        "float.tif": (Image.fromarray(np.asarray(gray).astype(np.float32) / 255), expected_gray, 0),
        "cmyk.jpg": (rgb.convert("CMYK"), np.asarray(rgb), 40),
        "photo.jpg": (rgb, np.asarray(rgb), 90),
    }
    for name, (image, expected, tolerance) in cases.items():
        picture = images.read_picture(save(tmp_path / name, image))
        assert picture.rgb.shape == (64, 80, 3) and picture.rgb.dtype == np.uint8, name
        assert np.abs(picture.rgb.astype(int) - expected).max() <= tolerance, name
        assert picture.alpha is None, name
        assert images.read_size(tmp_path / name) == (64, 80)


def test_gray_is_known_as_gray_and_written_as_gray(tmp_path, astronaut):
    gray = Image.fromarray(astronaut[:40, :60]).convert("L")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = np.asarray(gray).astype(np.int32) * 257
    cases = {
        "1.png": (gray.convert("1"), {}),
        "L.jpg": (gray, {"quality": 100}),
        "LA.png": (Image.merge("LA", (gray, gray)), {}),
        "I16.png": (Image.fromarray(deep.astype(np.uint16)), {}),
        "I.tif": (Image.fromarray(deep), {}),
        "F.tif": (Image.fromarray((deep / 65535).astype(np.float32)), {}),
        "P.gif": (gray.quantize(16), {}),
        "RGB.png": (gray.convert("RGB"), {}),
        "profile.png": (gray.convert("RGB"), {"icc_profile": srgb}),
    }
    for name, (image, options) in cases.items():
        picture = images.read_picture(save(tmp_path / name, image, **options))
        assert picture.gray and picture.icc_profile is None, name
        if name not in ("1.png", "P.gif"):
            error = np.abs(picture.rgb.astype(int) - np.asarray(gray)[..., None]).max()
            assert error <= (1 if name == "L.jpg" else 0), name
        for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp"):
            mode = "RGB" if suffix == ".webp" else "L"
            if picture.alpha is not None and suffix not in (".jpg", ".bmp"):
                mode += "A"
            images.write_picture(tmp_path / f"out{suffix}", picture)
            with Image.open(tmp_path / f"out{suffix}") as written:
                assert written.mode == mode, (name, suffix)
                if picture.alpha is None and suffix != ".jpg":
                    rgb = np.asarray(written.convert("RGB"))
                    assert np.array_equal(rgb, picture.rgb), (name, suffix)
    almost = np.array(gray.convert("RGB"))
    almost[20, 31, 2] ^= 1
    assert not images.read_picture(save(tmp_path / "colour.png", almost)).gray


def test_the_gray_of_three_estimates_is_their_rounded_mean():
    rgb = np.array([[[0, 0, 1], [0, 1, 1], [255, 255, 255], [10, 20, 31]]], np.uint8)
    assert images.to_gray(rgb).tolist() == [[[0] * 3, [1] * 3, [255] * 3, [20] * 3]]


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 257 * 10, 32768, 65535]], np.uint16))
    assert images.read_picture(path).rgb[0, :, 0].tolist() == [0, 10, 128, 255]


def test_alpha_is_kept_apart(tmp_path, astronaut):
    alpha = np.arange(64, dtype=np.uint8)[:, None].repeat(32, 1)
    for mode in ("RGBA", "LA"):
        image = Image.fromarray(np.dstack([astronaut[:64, :32], alpha])).convert(mode)
        path = save(tmp_path / f"{mode}.png", image)
        assert np.array_equal(images.read_picture(path).alpha, alpha)
    keyed = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    keyed.putpalette([255, 0, 0, 0, 255, 0])
    picture = images.read_picture(save(tmp_path / "p.png", keyed, transparency=1))
    assert picture.alpha.tolist() == [[255, 0]] and picture.rgb[0, 0].tolist() == [255, 0, 0]
    images.write_picture(tmp_path / "flat.bmp", picture)
    assert images.read_picture(tmp_path / "flat.bmp").rgb[0, 1].tolist() == [255, 255, 255]


def test_transparent_pixels_take_the_colour_of_the_nearest_visible_pixel(astronaut):
    rgb = np.zeros((5, 9, 3), np.uint8)
    alpha = np.zeros((5, 9), np.uint8)
    rgb[:, :2] = (255, 0, 0)
    rgb[:, 7:] = (0, 0, 255)
    alpha[:, :2] = 255
    alpha[:, 7:] = 8
    alpha[2, 4] = 7  # all but transparent
    filled = images.fill_transparent(rgb, alpha)
    assert (filled[:, :4] == (255, 0, 0)).all() and (filled[:, 5:] == (0, 0, 255)).all()
    for same in (np.zeros_like(alpha), np.full_like(alpha, 255)):
        assert np.array_equal(images.fill_transparent(rgb, same), rgb)


def test_exif_rotation_is_applied(tmp_path, astronaut):
    upright = astronaut[:40, :60]
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, np.rot90(upright), exif=exif)
        assert set(images.read_size(path)) == {40, 60}
        assert np.array_equal(images.read_picture(path).rgb, upright)


def test_the_size_is_read_without_decoding(tmp_path, astronaut, monkeypatch):
    path = save(tmp_path / "a.png", astronaut[:40, :60])
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("was decoded"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("was decoded"))
    assert images.read_size(path) == (40, 60)


def test_profiles(tmp_path, astronaut):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(tmp_path / "rgb.png", astronaut, icc_profile=srgb)
    picture = images.read_picture(path)
    assert picture.icc_profile == srgb
    images.write_picture(tmp_path / "again.png", picture)
    assert Image.open(tmp_path / "again.png").info["icc_profile"] == srgb
    # A profile of another space, or of nothing, is dropped
    for name, mode in (("gray.png", "L"), ("cmyk.jpg", "CMYK")):
        image = Image.fromarray(astronaut).convert(mode)
        for profile in (srgb, b"not a profile"):
            path = save(tmp_path / name, image, icc_profile=profile)
            assert images.read_picture(path).icc_profile is None


def test_first_of_several_frames(tmp_path, astronaut):
    first = Image.fromarray(astronaut[:20, :20])
    second = Image.fromarray(astronaut[100:120, 100:120])
    for name, options in {"a.tif": {}, "a.webp": {"lossless": True}}.items():
        first.save(tmp_path / name, save_all=True, append_images=[second], **options)
        picture = images.read_picture(tmp_path / name)
        assert np.array_equal(picture.rgb, astronaut[:20, :20])
        assert picture.notes == ("2 frames or pages, only the first is used",)
    assert images.read_picture(save(tmp_path / "one.png", first)).notes == ()


def test_files_that_are_no_pictures_are_named(tmp_path, astronaut):
    whole = io.BytesIO()
    Image.fromarray(astronaut).save(whole, "PNG")
    cases = {
        "empty.png": (b"", "empty"),
        "text.png": (b"hello" * 50, "not an image"),
        "cut.png": (whole.getvalue()[:9999], "cut short"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
            images.read_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        images.read_picture(tmp_path / "none.png")


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    path = save(tmp_path / "a.png", Image.new("1", (3000, 2000)))
    with pytest.raises(ValueError, match="more than 5,999,999 pixels"):
        images.read_picture(path, max_pixels=5_999_999)
    assert images.read_picture(path, max_pixels=6_000_000).rgb.shape == (2000, 3000, 3)


def test_postscript_is_never_opened(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(ValueError, match="not an image"):
        images.read_picture(tmp_path / "a.png")


def test_listing_is_sorted_recursive_and_ends_in_spite_of_loops(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "text").mkdir()
    for name in ("z.PNG", "b/deep/y.jpg", "a.txt", ".hidden/x.png", ".x.png", "text/a.md"):
        (tmp_path / name).touch()
    (tmp_path / "b" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert images.list_image_names(tmp_path) == ["b/deep/y.jpg", "z.PNG"]
    assert images.list_images(tmp_path) == [tmp_path / "b/deep/y.jpg", tmp_path / "z.PNG"]
    assert [path.name for path in images.list_images(tmp_path, recursive=False)] == ["z.PNG"]
    for folder, reason in ((tmp_path / "none", "no such folder"), (tmp_path / "text", "no image")):
        with pytest.raises(ValueError, match=reason):
            images.list_images(folder)


@pytest.mark.parametrize(
    "file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "BMP"]
)
def test_pictures_without_a_known_suffix_are_found_by_their_first_bytes(tmp_path, file_format):
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "none", file_format)
    picture.save(tmp_path / "a.jpg_large", file_format)
    picture.save(tmp_path / "raw.DNG", file_format)  # camera raw, which begins like a TIFF
    (tmp_path / "notes.txt").write_text("II, no picture")
    (tmp_path / "locked").symlink_to(tmp_path / "missing")
    (tmp_path / "c.JFIF").touch()
    names, others = images.sorted_by_kind(tmp_path)
    if file_format == "BMP":  # whose two bytes may begin any text
        assert names == ["c.JFIF"]
    else:
        assert names == ["a.jpg_large", "c.JFIF", "none"]
        assert others == ["locked", "notes.txt", "raw.DNG"]


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([2, 3, 4]))
def test_sizes_of_resizing(height, width, scale):
    hr = images.crop_to_multiple(np.zeros((height, width, 3), np.uint8), scale)
    assert hr.shape[0] == height // scale * scale and hr.shape[1] == width // scale * scale
    assert images.upscale_bicubic(images.downscale(hr, scale), scale).shape == hr.shape


def test_formats_that_cannot_hold_a_picture_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write \.gif"):
        images.output_format(tmp_path / "a.gif")
    for name, side in (("a.webp", 16_383), ("a.jpg", 65_500)):
        images.write_picture(tmp_path / name, images.Picture(np.zeros((1, side, 3), np.uint8)))
        with pytest.raises(ValueError, match=f"at most {side} pixels"):
            images.output_format(tmp_path / name, side + 1, 1)
    images.output_format(tmp_path / "a.bmp", 40_000, 40_000, channels=1)
    with pytest.raises(ValueError, match="BMP holds at most 4 GiB"):
        images.output_format(tmp_path / "a.bmp", 40_000, 40_000)


@pytest.mark.parametrize("channels", ["L", "LA", "RGB", "RGBA"])
def test_a_tiff_that_32_bits_cannot_address_is_a_bigtiff(
    tmp_path, monkeypatch, astronaut, channels
):
    image = Image.fromarray(astronaut).convert(channels)
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3] if "A" in channels else None
    picture = images.Picture(rgba[..., :3], alpha, gray="L" in channels)
    picture.metadata.dpi = (300, 300)
    size = 512 * 512 * len(channels)
    for limit in (size, size - 1):
        monkeypatch.setattr(images, "_LARGEST_FILE", limit)
        images.write_picture(tmp_path / "a.tif", picture)
        with tifffile.TiffFile(tmp_path / "a.tif") as written:
            assert written.is_bigtiff == (limit < size)
            assert np.array_equal(written.asarray(), np.asarray(image))
            offsets = written.pages[0].tags["StripOffsets"]
            assert offsets.dtype.name == ("LONG8" if written.is_bigtiff else "LONG")
        again = images.read_picture(tmp_path / "a.tif")
        assert np.array_equal(again.rgb, picture.rgb) and again.metadata.dpi == (300, 300)


def test_side_by_side_keeps_every_pixel(astronaut):
    row = images.side_by_side([("a", astronaut), ("b", 255 - astronaut)])
    strip = row.shape[0] - astronaut.shape[0]
    assert strip > 0
    assert np.array_equal(row[strip:, :512], astronaut)
    assert np.array_equal(row[strip:, -512:], 255 - astronaut)
    assert (row[:strip] < 128).any()  # the labels


def test_16_bit_transparency_is_not_clipped(tmp_path):
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    save(tmp_path / "a.png", Image.fromarray(values), transparency=512)
    picture = images.read_picture(tmp_path / "a.png")
    assert np.array_equal(picture.rgb[..., 0], (values / 257).round().astype(np.uint8))
    assert np.array_equal(picture.alpha == 0, values == 512)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="not a file, but a pipe"):
        images.read_picture(tmp_path / "a.png")


def test_result_names_are_unique_and_fit_a_file_system():
    names = ["a/b.png", "a_b.png", "a_B.jpg", "c.png", f"{'ü' * 120}.png", "d.e.png"]
    found = images.result_names(names)
    assert found[3] == "c" and found[5] == "d.e"
    assert all(name.startswith(short) for name, short in zip(found, ["a_b-", "a_b-", "a_B-"]))
    assert len({name.lower() for name in found}) == len(names)
    assert max(len(name.encode()) for name in found) <= 240
