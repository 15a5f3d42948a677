"""Pictures in every form that people hold are opened truly, or refused with what would work."""

import base64
import dataclasses
import http.server
import inspect
import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

import lvlm_interp as li
from lvlm_interp.errors import ImageError, InputError
from lvlm_interp.inputs.media import open_image, open_images, open_video
from lvlm_interp.reference import make_scene
from tests.saved import processor
from tests.tiny import tiny_llava

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
unchecked = inspect.unwrap  # without the tests' own type checks


@pytest.fixture(scope="module")
def picture():
    return make_scene(3).image


def stream(image, kind="PNG", **options):
    """A file in memory, just written: it stands at its end."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made


def grey(image):
    """The bytes of a picture that must be grey."""
    found = np.asarray(open_image(image))
    assert found.ndim == 3 and (found == found[..., :1]).all()
    return found[..., 0]


def saved(tmp_path, name, image, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_a_missing_image(tmp_path):
    with pytest.raises(ImageError, match="no image file at"):
        open_image(tmp_path / "absent.png")


def test_an_empty_file_and_a_text_file(tmp_path):
    for content in (b"", b"not an image"):
        (tmp_path / "broken.png").write_bytes(content)
        with pytest.raises(ImageError, match="not an image that Pillow can read"):
            open_image(tmp_path / "broken.png")


def test_a_truncated_image(tmp_path, picture):
    stream = io.BytesIO()
    picture.resize((300, 300)).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    with pytest.raises(ImageError, match="cannot be decoded"):
        open_image(tmp_path / "cut.png")


def test_an_animated_image(tmp_path, picture):
    frames = [picture, picture.rotate(90)]
    path = saved(tmp_path, "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=r"has 2 frames or pages"):
        open_image(path)


def test_transparency_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(open_image(clear)).min() == 255
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert open_image(saved(tmp_path, "half.png", half)).getpixel((0, 0)) == (255, 127, 127)


def test_what_is_no_image_at_all():
    for nothing in (5, 2.0, object(), {1, 2}):
        with pytest.raises(ImageError, match=f"an image is a PIL image, a path, .*; got {type(nothing).__name__}"):
            unchecked(open_image)(nothing)
    with pytest.raises(ImageError, match="empty"):
        open_image(Image.new("RGB", (0, 3)))


# --- numbers that mean something else than bytes ----------------------------------------------------------------------

WIDE = RAMP.astype(np.uint16) * 257
GREYS = {
    "I;16": lambda: Image.fromarray(WIDE),
    "I": lambda: Image.fromarray(WIDE.astype(np.int32)),
    "F": lambda: Image.fromarray((RAMP / 255).astype(np.float32)),
    "PNG of 16 bits": lambda: stream(Image.fromarray(WIDE)),
    "TIFF of 16 bits": lambda: stream(Image.fromarray(WIDE), "TIFF"),
    "LA": lambda: Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (16, 16), 255)]),
    "uint16": lambda: WIDE,
    "float64": lambda: RAMP / 255,
    "float32, channels first": lambda: torch.tensor(RAMP / 255, dtype=torch.float32)[None],
    "bfloat16": lambda: torch.tensor((RAMP > 100) * 1.0, dtype=torch.bfloat16),
    "bool": lambda: RAMP > 100,
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_every_depth_is_the_same_grey(kind):
    expected = (RAMP > 100) * 255 if kind in ("bool", "bfloat16") else RAMP
    assert np.array_equal(grey(GREYS[kind]()), expected)


def test_numbers_that_could_mean_anything():
    refused = {
        "0 to 255: divide by 255": Image.fromarray(RAMP.astype(np.float32)),
        "0 to 255: divide": RAMP.astype(float),
        "-1 to 1: clip or scale them": np.array([[-1.0, 1.0]]),
        "NaN": np.array([[np.nan, 1.0]]),
        "array of int64": RAMP.astype(int),
        "mode I.* bytes, or dark 16 bits": Image.fromarray(RAMP.astype(np.int32)),
        "from 0 to 65535": Image.fromarray(RAMP.astype(np.int32) * 1000),
        "in two ways": np.zeros((3, 5, 3), np.uint8),
        "in no way": np.zeros((7, 5, 9), np.uint8),
        "several pictures": torch.zeros(1, 3, 8, 8),
    }
    for message, image in refused.items():
        with pytest.raises(ImageError, match=message):
            open_image(image)


def test_an_array_with_masked_numbers_is_refused():
    masked = np.ma.masked_greater(COLORS, 200)
    with pytest.raises(ImageError, match=r"masked is no picture: .*filled"):
        open_image(masked)
    assert open_image(np.ma.array(COLORS)).size == open_image(COLORS).size


def test_colors_stay_what_they_are():
    expected = COLORS.tolist()
    for image in (COLORS, COLORS.transpose(2, 0, 1), torch.tensor(COLORS), torch.tensor(COLORS / 255).permute(2, 0, 1)):
        assert np.asarray(open_image(image)).tolist() == expected
    inks = Image.fromarray(COLORS).convert("CMYK")
    assert np.asarray(open_image(inks)).tolist() == np.asarray(inks.convert("RGB")).tolist()


def test_palettes_and_grey_with_transparency_are_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    found = open_image(stream(palette, transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    half = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 128)])
    assert set(grey(half).flatten().tolist()) == {127}
    sixteen = stream(Image.fromarray(WIDE), transparency=int(WIDE[0, 7]))
    assert grey(sixteen)[0, 7] == 255 and grey(sixteen)[0, 6] == 6


# --- upright ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_stand_as_the_camera_says(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, "photo.png", Image.fromarray(COLORS), exif=exif)
    expected = np.asarray(load_image(str(path)))
    for image in (path, path.read_bytes(), Image.open(path), {"bytes": None, "path": str(path)}):
        assert np.array_equal(np.asarray(open_image(image)), expected)
    assert np.array_equal(np.asarray(open_video([path])[0]), expected)
    assert (expected.shape == COLORS.shape) == (orientation < 5)  # the control: the others are turned
    x = li.wrap(tiny_llava(), processor("llava")).prepare("What?", path)
    assert x.images[0].picture.size == (expected.shape[1], expected.shape[0])


def test_a_photo_with_smaller_ones_behind_it_is_a_photo(tmp_path):
    frames = [Image.fromarray(COLORS), Image.fromarray(COLORS[::2, ::2])]
    path = saved(tmp_path, "photo.mpo", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as opened:
        assert (opened.format, opened.n_frames) == ("MPO", 2)
    assert open_image(path).size == (20, 12)


# --- where pictures come from -----------------------------------------------------------------------------------------


def test_every_kind_of_picture_that_people_hold(tmp_path, picture):
    path, made = saved(tmp_path, "a.png", picture), stream(picture)
    data = made.getvalue()
    read = io.BytesIO(data)
    read.read(10)
    held = [
        picture,
        path,
        str(path),
        path.as_uri(),
        data,
        bytearray(data),
        memoryview(data),
        made,
        read,
    ]
    held += [
        path.open("rb"),
        {"bytes": data, "path": None},
        {"bytes": None, "path": str(path)},
        {"type": "image", "url": path.as_uri()},
    ]
    coded = base64.b64encode(data).decode()
    held += [coded, f"data:image/png;base64,{coded}", {"base64": coded}, np.asarray(picture)]
    held += [torch.tensor(np.asarray(picture)), dataclasses.replace(make_scene(3), image=picture)]
    expected = np.asarray(picture)
    for image in held:
        assert np.array_equal(np.asarray(open_image(image)), expected), type(image)
        assert len(open_images([image, image])) == 2 and len(open_images(image)) == 1
    assert (made.tell(), read.tell()) == (len(data), 10)  # files stand where they stood
    assert [one.size for one in open_images(iter([path, data]))] == [picture.size] * 2


@pytest.fixture(scope="module")
def server(picture):
    """The address of a server on this machine, which has `/a.png`."""
    data = stream(picture).getvalue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data if self.path == "/a.png" else b"<html>no</html>")

        def log_message(self, *told):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_addresses(server, picture):
    assert np.array_equal(np.asarray(open_image(f"{server}/a.png")), np.asarray(picture))
    assert open_image(Path(f"{server}/a.png")).size == picture.size  # as the command line has it
    with pytest.raises(ImageError, match=r"could be fetched from 'http.*b.png': .*404.*save the picture"):
        open_image(f"{server}/b.png")
    with pytest.raises(ImageError, match=r"could be fetched from 'http://127.0.0.1:9/.*save the picture and give"):
        open_image("http://127.0.0.1:9/a.png")
    with pytest.raises(ImageError, match="could be fetched from 'data:image/png;base64,"):
        open_image("data:image/png;base64,abc")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture.*pillow-heif"),
        (b"<?xml version='1.0'?>\n<svg xmlns='a'></svg>", "an SVG drawing.*convert it to PNG"),
        (b"<svg/>", "an SVG drawing"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video.*its frames"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x93NUMPY\x01", r"np\.load"),
        (b"", "0 bytes"),
        (b"plain", "empty or broken"),
    ],
)
def test_what_pillow_does_not_read_is_named(data, message):
    with pytest.raises(ImageError, match=f"(?s){message}"):
        open_image(data)


@pytest.mark.parametrize("most", [64, 16])  # Pillow warns up to twice as many, and raises beyond
def test_a_picture_that_is_too_large_for_pillow(tmp_path, monkeypatch, most):
    path = tmp_path / "large.png"
    Image.new("RGB", (10, 10)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(ImageError, match=f"large.png' has more than {most} pixels.*PIL.Image.MAX_IMAGE_PIXELS"):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # what is told to do
    assert open_image(path).size == (10, 10)


def test_names_that_are_no_files(tmp_path):
    for name, message in (
        ("a" * 400, "no image file at 'a"),
        (tmp_path, "is a folder"),
        ("", "given as '', which names nothing"),
        (" ", "names nothing"),
        ("What is it?", "no image file"),
    ):
        with pytest.raises(ImageError, match=message):
            open_image(name)
    with pytest.raises(ImageError, match=r"one of \['image', 'bytes'"):
        open_image({"bytes": None, "path": None})
    with pytest.raises(ImageError, match="opened as text"):
        open_image(io.StringIO("text"))
    with pytest.raises(ImageError, match="under 'base64'"):
        open_image({"base64": "?"})


def test_nothing_in_the_place_of_a_picture_is_never_a_prompt_without_one(picture):
    vlm = li.wrap(tiny_llava(), processor("llava"))
    read = iter([picture])
    next(read)
    for nothing, message in (
        ([], "no picture"),
        ((), "no picture"),
        (read, "read already"),
        ([None], "image 0 of 1.*None"),
    ):
        with pytest.raises(ImageError, match=message):
            unchecked(li.HookedVLM.prepare)(vlm, "What?", nothing)
    with pytest.raises(ImageError, match=r"image 1 of 2.*None"):
        unchecked(li.HookedVLM.prepare)(vlm, "What?", [picture, None])
    assert "image" in vlm.prepare("What?", stream(picture)).roles  # just written


def test_swapped_and_wrong_arguments(picture, tmp_path):
    vlm, path = li.wrap(tiny_llava(), processor("llava")), str(saved(tmp_path, "a.png", picture))
    prepare, chat = unchecked(li.HookedVLM.prepare), unchecked(li.HookedVLM.prepare_chat)
    for question, image in ((picture, "What is it?"), (path, "What is it?")):
        with pytest.raises(InputError, match=r"question and image stand the other way round.*What is it"):
            prepare(vlm, question, image)
    for told, message in (
        ({"question": 5, "image": picture}, "question= is one text, got int 5"),
        ({"question": None}, "question= is one text, got NoneType"),
        ({"question": "What?", "answer": ["a", "b"]}, r"answer= is one text, got list \['a', 'b'\]; ask about each"),
        ({"question": "What?", "context": 3}, "context= is one text"),
        ({"question": "What?", "system": picture}, "system= is one text, got Image"),
        ({"question": "What?", "image": 7}, "an image is a PIL image.*got int"),
    ):
        with pytest.raises((InputError, ImageError), match=message):
            prepare(vlm, **told)
    with pytest.raises(InputError, match="answer= is one text, got list"):
        unchecked(li.HookedVLM.answered)(vlm, vlm.prepare("What?", picture), ["a"])
    for messages, named in (
        ("What?", "'What"),
        ({"role": "a"}, "{'role"),
        ([{"role": "a"}, {}], "message 1, {}"),
        (["a"], "message 0"),
    ):
        with pytest.raises(InputError, match=f"a conversation is a list of messages.*got {named}"):
            chat(vlm, messages)


# --- pictures in messages ---------------------------------------------------------------------------------------------


def test_parts_as_transformers_takes_them(picture, tmp_path):
    vlm, path = li.wrap(tiny_llava(), processor("llava")), saved(tmp_path, "a.png", picture)
    coded = base64.b64encode(path.read_bytes()).decode()
    ways = [{"image": picture}, {"image": str(path)}, {"path": str(path)}, {"url": path.as_uri()}, {"base64": coded}]
    parts = [{"type": "image", **way} for way in ways]
    parts += [{"type": "image_url", "image_url": way} for way in (path.as_uri(), {"url": path.as_uri()})]
    text, earlier = {"type": "text", "text": "What?"}, [{"role": "assistant", "content": None}]
    expected = vlm.prepare("What?", picture).model_inputs
    for part in parts:
        given = {"role": "user", "content": [part, text]}
        for messages in ([given], [{"role": "user", "content": [part, "What?"]}]):
            found = vlm.prepare_chat(messages).model_inputs
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert given == {"role": "user", "content": [part, text]}  # nothing of the user's is changed
        assert vlm.prepare_chat([*earlier, given]).roles.count("image") == 4
    for content, error, message in (
        ([{"type": "image"}, text], ImageError, "part 0 of message 0, .*shows nothing: give one of"),
        ([{"type": "audio", "audio": "a"}, text], InputError, "part 0 of message 0.*type 'audio'"),
        ([{"image": picture}, text], InputError, "type None and the keys"),
        ([{"type": "text", "text": None}], InputError, "a text under"),
        ([5], InputError, "is no part"),
        (5, InputError, "is a text or a list of parts, got int"),
        (None, InputError, "asks nothing"),
    ):
        with pytest.raises(error, match=message):
            vlm.prepare_chat([{"role": "user", "content": content}])


def chunk(name, data):
    """A piece of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of_16_bits(colors, *more):
    """Pillow writes none."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    head = struct.pack(">IIBBBBB", colors.shape[1], colors.shape[0], 16, 2, 0, 0, 0)
    pieces = (chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def test_a_transparent_colour_of_16_bits_is_refused():
    colors = COLORS.astype(np.uint16) * 257
    assert (np.asarray(open_image(png_of_16_bits(colors))) == COLORS).all()
    with pytest.raises(ImageError, match="alpha channel"):
        open_image(png_of_16_bits(colors, chunk(b"tRNS", struct.pack(">HHH", *colors[0, 0].tolist()))))
