"""EXIF, XMP and resolution are carried over to a picture of another size."""

import corpus
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, IptcImagePlugin, JpegImagePlugin, PngImagePlugin
from PIL.ExifTags import IFD, Base

from utils import images, metadata

ARTIST = "Jürgen ©".encode().decode("latin-1")  # as Pillow reads text


def enlarged(path, out):
    """Write a picture three times as large, as enlarging does; return the image of the file."""
    picture = images.read_picture(path)
    picture.rgb = picture.rgb.repeat(3, 0).repeat(3, 1)
    images.write_picture(out, picture)
    with Image.open(out) as image:
        image.load()
    return image


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp", "tif"])
def test_what_describes_a_picture_is_carried_over_and_stays_true(
    tmp_path, astronaut, source, target, order
):
    path = tmp_path / f"a.{source}"
    Image.fromarray(astronaut[:20, :24]).save(
        path, **corpus.described_options(source, order=order, orientation=6)
    )
    image = enlarged(path, tmp_path / f"b.{target}")
    assert image.size == (60, 72)  # turned upright
    exif = image.getexif()
    assert exif[Base.Make] == "Maker" and exif.get(Base.Orientation, 1) == 1
    if "tif" not in (source, target):  # Pillow itself has spoilt it in a TIFF source
        assert exif[Base.Artist] == ARTIST
    details = exif.get_ifd(IFD.Exif)
    assert (details[Base.ExifImageWidth], details[Base.ExifImageHeight]) == (60, 72)
    assert details[Base.LensModel] == "35mm f/2"
    assert exif.get_ifd(IFD.GPSInfo)[2] == (52, 30, 0)
    assert not exif.get_ifd(IFD.IFD1)  # the thumbnail
    if "webp" not in (source, target):  # which has no place for it
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    xmp = image.info["xmp"]
    assert b"XMP title" in xmp and b"Thumbnails" not in xmp
    assert b"<tiff:ImageWidth>60<" in xmp and b'Dimension="60"' in xmp
    assert b"Orientation" not in xmp or b'tiff:Orientation="1"' in xmp


def test_text_that_is_not_ascii_survives_in_a_tiff(tmp_path, astronaut):
    options = corpus.described_options("jpg")
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.jpg", **options)
    for source, target in (("a.jpg", "b.tif"), ("b.tif", "c.jpg")):
        image = enlarged(tmp_path / source, tmp_path / target)
        assert image.getexif()[Base.Artist] == ARTIST
    with tifffile.TiffFile(tmp_path / "b.tif") as written:
        tags = written.pages[0].tags
        assert tags["Make"].value == "Maker" and tags["ExifTag"].value["PixelXDimension"] == 72


def test_an_exif_block_changes_only_where_it_would_be_wrong(tmp_path, astronaut):
    block = corpus.exif(orientation=1)
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block)
    written = enlarged(tmp_path / "a.jpg", tmp_path / "b.jpg").info["exif"][6:]
    changed = [place for place in range(len(block)) if block[place] != written[place]]
    assert len(written) == len(block) and len(changed) <= 12
    assert written.count(b"NoteOfMaker") == 1
    assert Base.MakerNote in Image.open(tmp_path / "b.jpg").getexif().get_ifd(IFD.Exif)


def test_what_a_format_cannot_hold_is_left_out(tmp_path, astronaut):
    picture = images.Picture(astronaut[:20, :24])
    picture.metadata.exif = corpus.exif() + bytes(70_000)
    picture.metadata.xmp = corpus.XMP + b" " * 70_000
    for suffix, held in {
        "png": True,
        "webp": True,
        "tif": True,
        "jpg": False,
        "bmp": False,
    }.items():
        images.write_picture(tmp_path / f"a.{suffix}", picture)
        again = images.read_picture(tmp_path / f"a.{suffix}")
        assert bool(again.metadata.exif) == bool(again.metadata.xmp) == held, suffix
        assert again.rgb.shape == (20, 24, 3)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"II*\0", b"MM\0*\xff\xff\xff\xff", corpus.exif()[:100], b"no EXIF at all"],
)
def test_damaged_metadata_count_as_none(tmp_path, exif):
    picture = images.Picture(np.zeros((4, 4, 3), np.uint8))
    picture.metadata.exif = exif
    picture.metadata.xmp = b"\xff no XML <xmp:Thumbnails>"
    for suffix in ("png", "jpg", "webp", "tif"):
        images.write_picture(tmp_path / f"a.{suffix}", picture)
        assert images.read_picture(tmp_path / f"a.{suffix}").metadata.exif is None
    Image.fromarray(picture.rgb).save(tmp_path / "none.tif")
    assert images.read_picture(tmp_path / "none.tif").metadata.dpi is None
    Image.fromarray(picture.rgb).save(tmp_path / "odd.png", dpi=(0, 0))
    assert images.read_picture(tmp_path / "odd.png").metadata.dpi is None


def test_tags_on_pixel_layout_in_a_jpegs_exif_are_ignored(tmp_path, astronaut):
    """Tags that say where a TIFF's pixels are change nothing in a TIFF made from the JPEG."""
    lying = Image.Exif()
    lying[Base.ImageWidth] = 9999
    lying[Base.StripOffsets] = 5
    lying[Base.SamplesPerPixel] = 7
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.jpg", exif=lying, quality=100)
    assert isinstance(Image.open(tmp_path / "a.jpg"), JpegImagePlugin.JpegImageFile)
    assert enlarged(tmp_path / "a.jpg", tmp_path / "b.tif").size == (72, 60)
    exif = enlarged(tmp_path / "a.jpg", tmp_path / "c.png").getexif()
    assert exif[Base.ImageWidth] == 72


# --- IPTC and texts -----------------------------------------------------------------------------

IPTC = b"".join(
    b"\x1c\x02" + bytes([number]) + len(text).to_bytes(2, "big") + text
    for number, text in ((5, b"A title"), (25, b"one"), (25, b"two"), (116, b"(c) me"))
)
PROMPT = "a cat, Größe 5, 猫\nSteps: 20, Sampler: Euler a"


@pytest.mark.parametrize("source", ["jpg", "png", "tif"])
@pytest.mark.parametrize("target", ["jpg", "png", "tif"])
def test_iptc_is_carried_over(tmp_path, astronaut, source, target):
    resource = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + len(IPTC).to_bytes(4, "big") + IPTC + b"\0"
    segment = b"\xff\xed" + (2 + len(resource)).to_bytes(2, "big") + resource
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.jpg", extra=segment)
    enlarged(tmp_path / "a.jpg", tmp_path / f"b.{source}")
    image = enlarged(tmp_path / f"b.{source}", tmp_path / f"c.{target}")
    assert images.read_picture(tmp_path / f"c.{target}").metadata.iptc == IPTC
    if target == "png":
        assert image.text["Raw profile type iptc"].startswith("\niptc\n")
    else:
        records = IptcImagePlugin.getiptcinfo(image)
        assert records[2, 5] == b"A title" and records[2, 25] == [b"one", b"two"]


def test_texts_of_a_png_are_carried_over_or_become_the_exif_comment(tmp_path, astronaut):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", PROMPT)
    info.add_text("Title", "Night", zip=True)
    info.add_text("workflow", "x" * 2_000_000, zip=True)  # more than Pillow reads by default
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.png", pnginfo=info)
    texts = {"parameters": PROMPT, "Title": "Night", "workflow": "x" * 2_000_000}
    assert enlarged(tmp_path / "a.png", tmp_path / "b.png").text == texts
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    try:  # other programs' limit
        PngImagePlugin.MAX_TEXT_CHUNK = 2**20
        with Image.open(tmp_path / "b.png") as image:
            image.load()
    finally:
        PngImagePlugin.MAX_TEXT_CHUNK = limit
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", PROMPT)
    info.add_text("Title", "Night")
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.png", pnginfo=info)
    for suffix in ("jpg", "webp", "tif", "avif"):
        exif = enlarged(tmp_path / "a.png", tmp_path / f"b.{suffix}").getexif()
        comment = exif.get_ifd(IFD.Exif)[Base.UserComment]
        assert comment[8:].decode("utf-16-be") == f"{PROMPT}\nTitle: Night"


def test_what_is_lost_is_said(tmp_path):
    picture = images.Picture(np.zeros((4, 4, 3), np.uint8))
    picture.metadata.iptc = IPTC
    picture.metadata.texts = {"parameters": PROMPT}
    iptc = "WEBP cannot hold its IPTC records (title, keywords, copyright)"
    assert images.what_is_lost(picture, "a.png") == images.what_is_lost(picture, "a.jpg") == []
    assert images.what_is_lost(picture, "a.webp") == [iptc]
    picture.alpha = np.full((4, 4), 255, np.uint8)
    assert images.what_is_lost(picture, "a.jpg") == []
    picture.alpha[0] = 254
    clear = "JPEG cannot hold its transparency; it is on white"
    assert images.what_is_lost(picture, "a.jpg") == [clear]
    picture.metadata.exif = corpus.exif()
    assert images.what_is_lost(picture, "a.webp") == [
        iptc,
        "WEBP cannot hold its texts (parameters)",
    ]
    picture.metadata.iptc = bytes(70_000)
    assert "JPEG cannot hold its IPTC" in images.what_is_lost(picture, "a.jpg")[0]
    images.write_picture(tmp_path / "a.jpg", picture)


def test_exif_and_xmp_that_a_format_cannot_hold_are_said(tmp_path):
    picture = images.Picture(np.zeros((4, 4, 3), np.uint8))
    picture.metadata.exif = corpus.exif()
    picture.metadata.xmp = corpus.XMP
    assert images.what_is_lost(picture, "a.jpg") == images.what_is_lost(picture, "a.webp") == []
    names = [f"its EXIF ({len(corpus.exif())} bytes)", "its XMP ("]
    said = images.what_is_lost(picture, "a.bmp")
    assert all(f"BMP cannot hold {name}" in line for line, name in zip(said, names, strict=True))
    picture.metadata.exif = corpus.exif() + bytes(70_000)
    longest = 65_533 - 29  # of the XMP as it is written, without thumbnails
    picture.metadata.xmp = corpus.XMP
    picture.metadata.xmp += b" " * (longest - len(metadata.fitted_xmp(corpus.XMP, 4, 4)))
    for spaces in (0, 1):
        picture.metadata.xmp += b" " * spaces
        said = images.what_is_lost(picture, "a.jpg")
        assert said[0] == f"JPEG cannot hold its EXIF ({len(corpus.exif()) + 70_000:,} bytes)"
        images.write_picture(tmp_path / "a.jpg", picture)
        lost = images.read_picture(tmp_path / "a.jpg").metadata.xmp is None
        assert lost == (len(said) == 2)
    assert images.what_is_lost(picture, "a.png") == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("swapped", [False, True])
def test_iptc_that_a_tiff_stores_as_numbers_is_read(tmp_path, order, swapped):
    records = IPTC.ljust(-(-len(IPTC) // 4) * 4, b"\0")
    stored = np.frombuffer(records, ">u4" if (order == ">") != swapped else "<u4")
    tag = (33723, 4, len(stored), tuple(stored.tolist()), True)
    pixels = np.zeros((4, 4, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, extratags=[tag])
    assert images.read_picture(tmp_path / "a.tif").metadata.iptc == records


CICP_OF_PQ = bytes([9, 16, 0, 1])
COLOURS = {  # chunks, and those that count
    "HDR": ({b"cICP": CICP_OF_PQ}, [b"cICP"]),
    "sRGB in CICP": ({b"cICP": bytes([1, 13, 0, 1])}, []),
    "linear": ({b"gAMA": (100_000).to_bytes(4, "big")}, [b"gAMA"]),
    "usual": ({b"gAMA": (45_455).to_bytes(4, "big")}, []),
    "sRGB before gAMA": ({b"sRGB": b"\0", b"gAMA": (100_000).to_bytes(4, "big")}, []),
    "CICP before gAMA": ({b"cICP": CICP_OF_PQ, b"sRGB": b"\0", b"gAMA": bytes(4)}, [b"cICP"]),
}


def colour_chunks(path) -> dict[bytes, bytes]:
    content = path.read_bytes()
    found = {}
    for name in (b"cICP", b"gAMA", b"cHRM"):
        start = content.find(name)
        if start >= 0:
            length = int.from_bytes(content[start - 4 : start], "big")
            found[name] = content[start + 4 : start + 4 + length]
    return found


@pytest.mark.parametrize("case", COLOURS)
def test_what_a_pngs_values_mean_is_kept_or_its_loss_said(tmp_path, astronaut, case):
    chunks, counting = COLOURS[case]
    info = PngImagePlugin.PngInfo()
    for name, content in chunks.items():
        info.add(name, content)
    Image.fromarray(astronaut[:20, :24]).save(tmp_path / "a.png", pnginfo=info)
    enlarged(tmp_path / "a.png", tmp_path / "b.png")
    assert colour_chunks(tmp_path / "b.png") == {name: chunks[name] for name in counting}
    said = images.what_is_lost(images.read_picture(tmp_path / "a.png"), "a.jpg")
    names = b", ".join(counting).decode()
    lost = f"JPEG cannot hold its colour tags ({names}), so that colours may look different"
    assert said == ([lost] if counting else [])


def test_colour_tags_of_colours_that_are_converted_are_dropped(tmp_path, astronaut):
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", CICP_OF_PQ)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for mode, kept in (("RGB", {b"cICP": CICP_OF_PQ}), ("L", {})):
        image = Image.fromarray(astronaut[:20, :24]).convert(mode)
        image.save(tmp_path / "a.png", pnginfo=info, icc_profile=profile)
        enlarged(tmp_path / "a.png", tmp_path / "b.png")
        assert colour_chunks(tmp_path / "b.png") == kept


def test_a_profile_that_would_make_a_png_unreadable_is_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile += np.random.default_rng(0).bytes(1_500_000)
    profile = len(profile).to_bytes(4, "big") + profile[4:]
    picture = images.Picture(np.full((4, 4, 3), (9, 80, 200), np.uint8), icc_profile=profile)
    images.write_picture(tmp_path / "a.png", picture)
    again = images.read_picture(tmp_path / "a.png")
    assert again.icc_profile is None and np.abs(again.rgb.astype(int) - picture.rgb).max() <= 1
    said = ["PNG cannot hold its colour profile; converted to sRGB"]
    assert images.what_is_lost(picture, "a.png") == said
