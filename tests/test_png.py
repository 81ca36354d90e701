"""What is read of a PNG without decoding it is what Pillow reads, and nothing that is not sound passes for sound."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from embedstore.png import plain_png

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def png(mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
    held = io.BytesIO()
    (image.convert("I;16") if mode == "I;16" else image).save(held, "PNG", **options)
    return held.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_the_header_of_a_plain_file_is_what_pillow_reads(mode):
    found = plain_png(png(mode))
    assert found is not None
    opened = Image.open(io.BytesIO(png(mode)))
    assert (found.width, found.height, found.mode) == (*opened.size, opened.mode)


def test_every_file_of_pngsuite_that_is_called_plain_is_one(data):
    n_plain = 0
    for path in sorted((data / "pngsuite").glob("*.png")):
        body = path.read_bytes()
        found = plain_png(body)
        if found is None:
            continue
        n_plain += 1
        with Image.open(io.BytesIO(body)) as opened:
            assert (found.width, found.height, found.mode) == (*opened.size, opened.mode), path.name
            opened.verify()
        with Image.open(io.BytesIO(body)) as opened:
            opened.load()
    assert n_plain > 100


def test_a_file_with_one_changed_byte_or_cut_off_is_not_called_plain():
    body = png()
    for place in range(len(body)):
        changed = bytearray(body)
        changed[place] ^= 0x41
        assert plain_png(bytes(changed)) is None, place
    for cut in range(len(body)):
        assert plain_png(body[:cut]) is None, cut


def test_a_file_that_says_when_it_was_taken_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0132] = "2024:01:02 03:04:05"
    assert plain_png(png(exif=exif)) is None
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "a picture")
    assert plain_png(png(pnginfo=told)) is None
