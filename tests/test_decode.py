"""One file to 8-bit values: crops against known answers, odd depths, transparency, damaged EXIF."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pointillist.data import FolderConfig
from pointillist.data.decode import adm_crop, decode
from pointillist.run import Run, preset_names
from pointillist.types import InputError


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)


def adm(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(adm_crop(Image.fromarray(array), size))


@pytest.mark.parametrize("size", [(8, 8), (8, 6)])
def test_a_picture_of_exactly_twice_the_size_is_its_box_mean(size):
    h, w = size
    array = noise(2 * h, 2 * w)
    means = array.reshape(h, 2, w, 2, 3).mean((1, 3))
    # Pillow rounds rows and columns in turn: half a level each.
    assert np.abs(adm(array, size) - means).max() <= 1


def test_a_picture_whose_shorter_side_fits_is_only_cut():
    array = noise(8, 15)
    assert np.array_equal(adm(array, (8, 8)), array[:, 3:11])
    assert np.array_equal(adm(array.transpose(1, 0, 2), (8, 8)), array.transpose(1, 0, 2)[3:11])


def test_between_one_and_two_sizes_there_is_one_bicubic_resize():
    array = noise(15, 21)
    image = Image.fromarray(array).resize((11, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(adm(array, (8, 8)), np.asarray(image)[:, 1:9])


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (12, 7), (1, 9)])
@pytest.mark.parametrize("shape", [(5, 5), (9, 31), (64, 17), (99, 100)])
def test_every_shape_is_filled_without_a_border(shape, size):
    found = adm(np.full((*shape, 3), 99, np.uint8), size)
    assert found.shape == (*size, 3) and (found == 99).all()


def test_decoding_takes_the_crop_that_is_asked_for(tmp_path):
    array = noise(40, 30)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", (8, 8), 3, "adm", False)
    assert np.array_equal(found.x.transpose(1, 2, 0), adm(array, (8, 8)))


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("imagenet")])
def test_every_imagenet_preset_prepares_pictures_as_published(name):
    run = Run.load(name)
    data = run.data.of if run.data.kind == "latent" else run.data
    assert isinstance(data, FolderConfig)
    assert data.fit == "adm" and data.enlarge and run.augment.flip


# What files hold. Each picture is 2 x 2; levels are those that are read, row by row.


def saved(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def png(depth: int, colour: int, rows: bytes, key: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(
            ">I", zlib.crc32(name + body))  # fmt: skip

    head = struct.pack(">IIBBBBB", 2, 2, depth, colour, 0, 0, 0)
    half = len(rows) // 2
    lines = b"\0" + rows[:half] + b"\0" + rows[half:]
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + (chunk(b"tRNS", key) if key else b"")
            + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))  # fmt: skip


def tiff(bits: int, white: int, rows: bytes, signed: bool = False) -> bytes:
    """Greys of `bits` each; `white` 0 where the lowest value is white."""
    tags = [(256, 2), (257, 2), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, 2),
            (279, len(rows)), (339, 2 if signed else 1)]  # fmt: skip
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8 + len(rows))
    return head + rows + struct.pack("<H", len(tags)) + table + bytes(4)


def levels(content: bytes) -> tuple[list[int], tuple[str, ...]]:
    found = decode(content, (2, 2), 1, "crop", False)
    return found.x.flatten().tolist(), found.notes


def words(*values: int, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


DEPTHS = {
    "grey of 16 bits": (png(16, 0, words(0, 257 * 7, 257 * 200, 65535)), [0, 7, 200, 255]),
    "grey of 12 bits": (tiff(12, 1, b"\x00\x0f\xff\x80\x07\xff"), [0, 255, 128, 127]),
    "16 bits, 0 is white": (tiff(16, 0, words(0, 257 * 7, 257 * 200, 65535, order="<")),
                            [255, 248, 55, 0]),
    "8 bits, 0 is white": (tiff(8, 0, bytes((0, 7, 200, 255))), [255, 248, 55, 0]),
    "colour of 16 bits": (png(16, 2, words(*(0x1234,) * 3, *(0xABCD,) * 3, *(0, 0, 0) * 2)),
                          [0x12, 0xAB, 0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", DEPTHS)
def test_values_of_every_depth_have_their_own_white(name):
    content, expected = DEPTHS[name]
    found, notes = levels(content)
    assert found == expected
    assert notes == ({"16": ("16-bit",), "12": ("12-bit",)}.get(name.split(" bits")[0][-2:], ()))


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_values_are_refused(bits):
    with pytest.raises(InputError, match="unreadable: signed values have no known black and white"):
        levels(tiff(bits, 1, bytes(4 * bits // 8), signed=True))


KEYED = {
    "grey of 16 bits": (png(16, 0, words(257 * 9, 257 * 10, 257 * 9, 0), words(257 * 9)),
                        [255, 10, 255, 0]),
    "grey of 8 bits": (png(8, 0, bytes((9, 10, 9, 0)), words(9)), [255, 10, 255, 0]),
    "grey of 4 bits": (png(4, 0, bytes((0x9A, 0x90)), words(9)), [255, 170, 255, 0]),
    "grey of 2 bits": (png(2, 0, bytes((0b01100000, 0b01000000)), words(1)), [255, 170, 255, 0]),
    "grey of 1 bit": (png(1, 0, bytes((0b01000000, 0b00000000)), words(0)), [255, 255, 255, 255]),
    "colour of 8 bits": (png(8, 2, bytes((9, 9, 9, 10, 10, 10) * 2), words(9, 9, 9)),
                         [255, 10, 255, 10]),
    "colour of 16 bits": (png(16, 2, words(*[0x934] * 3, *[0xA34] * 3) * 2, words(*[0x934] * 3)),
                          [255, 10, 255, 10]),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYED)
def test_a_colour_that_stands_for_nothing_is_white_at_every_depth(name):
    content, expected = KEYED[name]
    found, notes = levels(content)
    assert found == expected and "transparent" in notes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_no_reason_to_lose_a_picture(kind):
    image = Image.new("RGB", (2, 2), (99, 99, 99))
    more = {"lossless": True} if kind == "WEBP" else {}
    found, notes = levels(saved(image, kind, exif=b"Exif\0\0no such thing", **more))
    assert found == [99] * 4 and notes == ()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 9])
def test_a_picture_stands_upright_once(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = np.repeat(np.repeat(np.array([[0, 255], [0, 255]], np.uint8), 16, 0), 16, 1)
    more = {"lossless": True} if kind == "WEBP" else {}
    content = saved(Image.fromarray(array).convert("RGB"), kind, exif=exif, **more)
    found = decode(content, (32, 32), 1, "crop", False)
    turned = {3: array[::-1, ::-1], 6: np.rot90(array, -1)}.get(orientation, array)
    assert np.abs(found.x[0].astype(int) - turned).max() < 3
    assert found.notes == (("EXIF-rotated",) if orientation in (3, 6) else ())


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_ink_is_read_as_light(kind):
    found, notes = levels(saved(Image.new("CMYK", (2, 2), (0, 0, 0, 0)), kind))
    assert found == [255] * 4 and notes == ("CMYK",)
