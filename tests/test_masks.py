"""Mask files: black and white at the depth of the file, upright, and nothing else."""

import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from pointillist.tasks import read_mask
from pointillist.types import InputError

SIZE = (8, 12)
KNOWN = np.zeros(SIZE, bool)
KNOWN[:, :5] = True
KNOWN[0, 7] = True


def chunk(kind, data):
    check = zlib.crc32(kind + data).to_bytes(4, "big")
    return len(data).to_bytes(4, "big") + kind + data + check


def with_chunk(path, kind, data):
    """A PNG file with one chunk more behind its header."""
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind, data) + whole[33:])


FORMS = {
    "1 bit": lambda: Image.fromarray(KNOWN),
    "8 bits": lambda: Image.fromarray(KNOWN.astype(np.uint8) * 255),
    "16 bits": lambda: Image.fromarray(KNOWN.astype(np.uint16) * 65535),
    "colour": lambda: Image.fromarray(np.repeat(KNOWN[..., None], 3, 2).astype(np.uint8) * 255),
    "palette": lambda: FORMS["colour"]().convert("P", palette=Image.Palette.ADAPTIVE, colors=2),
}


@pytest.mark.parametrize("form", FORMS)
def test_black_and_white_are_read_at_every_depth(tmp_path, form):
    FORMS[form]().save(tmp_path / "m.png")
    assert (read_mask(tmp_path / "m.png", SIZE).numpy() == KNOWN).all()


def test_a_grey_of_few_bits_and_a_tiff_whose_black_is_white_are_read(tmp_path):
    rows = np.packbits(KNOWN.repeat(2, 1), axis=1)  # 2 bits a pixel: 3 is white
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    head = SIZE[1].to_bytes(4, "big") + SIZE[0].to_bytes(4, "big") + b"\x02\x00\x00\x00\x00"
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data))
    (tmp_path / "m.png").write_bytes(png + chunk(b"IEND", b""))
    assert (read_mask(tmp_path / "m.png", SIZE).numpy() == KNOWN).all()
    grey = Image.fromarray((~KNOWN).astype(np.uint16) * 65535)
    grey.save(tmp_path / "m.tif", tiffinfo={262: 0})
    assert (read_mask(tmp_path / "m.tif", SIZE).numpy() == KNOWN).all()


@pytest.mark.parametrize("levels", [(40000, 300), (65535, 300), (65535, 1), (255, 0), (65534, 0)])
def test_sixteen_bits_between_black_and_white_are_refused_by_their_value(tmp_path, levels):
    values = np.where(KNOWN, *levels).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "m.png")
    wrong = next(v for v in (values[0, 0], values[0, 5]) if v not in (0, 65535))
    with pytest.raises(InputError, match=f"is {wrong} at x .*; a mask is 0 .* or 65535 .known"):
        read_mask(tmp_path / "m.png", SIZE)


def test_a_one_among_eight_bits_is_no_white(tmp_path):
    Image.fromarray(KNOWN.astype(np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="is 1 at x 0, y 0; a mask is 0 .asked for. or 255"):
        read_mask(tmp_path / "m.png", SIZE)
    red = np.zeros((*SIZE, 3), np.uint8)
    red[0, 0] = 255, 0, 0
    Image.fromarray(red).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="is 255, 0, 0 at x 0, y 0; a mask is 0"):
        read_mask(tmp_path / "m.png", SIZE)


@pytest.mark.parametrize(("form", "key"), [("8 bits", 0), ("palette", 0), ("palette", b"\xff\x00")])
def test_a_colour_that_is_transparent_is_refused(tmp_path, form, key):
    FORMS[form]().save(tmp_path / "m.png", transparency=key)
    with pytest.raises(InputError, match="has an alpha channel or a transparent colour.*; flatten"):
        read_mask(tmp_path / "m.png", SIZE)


def test_a_large_text_in_a_file_is_one_sentence(tmp_path):
    FORMS["8 bits"]().save(tmp_path / "m.png")
    with_chunk(tmp_path / "m.png", b"zTXt", b"about\0\0" + zlib.compress(b"x" * (8 << 20)))
    with pytest.raises(InputError, match="m.png cannot be read as a picture: ") as caught:
        read_mask(tmp_path / "m.png", SIZE)
    assert "\n" not in str(caught.value)


def test_a_large_picture_is_refused_without_a_warning(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "m.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="10000x10000 pixels, more than 80,000,000 in all"):
            read_mask(tmp_path / "m.png", SIZE)


def test_colours_of_sixteen_bits_are_refused_as_half_of_them_is_not_read(tmp_path):
    row = b"\0" + (b"\xff\xff" * 15 + b"\x00\xc8" * 21)
    head = SIZE[1].to_bytes(4, "big") + SIZE[0].to_bytes(4, "big") + b"\x10\x02\x00\x00\x00"
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    png += chunk(b"IDAT", zlib.compress(row * SIZE[0])) + chunk(b"IEND", b"")
    (tmp_path / "m.png").write_bytes(png)
    with pytest.raises(InputError, match="of colours of 16 bits only half is read"):
        read_mask(tmp_path / "m.png", SIZE)


def test_a_picture_on_its_side_is_read_as_it_is_seen(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(KNOWN.astype(np.uint8) * 255).save(tmp_path / "m.png", exif=turned)
    assert (read_mask(tmp_path / "m.png", SIZE[::-1]).numpy() == np.rot90(KNOWN, -1)).all()
