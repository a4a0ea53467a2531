"""Properties that hold for any input: it is understood, or refused in one short line that names the setting."""

import base64
import io
import json
import struct
import zlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ditail import DitailError
from ditail.content.collage import compose, parse_collage
from ditail.content.further import parse_sources
from ditail.content.images import decode_base64, fit, mask_to_latent, read_image, read_mask
from ditail.content.infotext import SOURCES, from_infotext, sources_from_infotext, sources_text, to_infotext
from ditail.content.settings import BY_KEY, FIELDS, DitailSettings
from ditail.errors import MAX_SENTENCE, named, shown
from ditail.method.layers import Layer, parse_layers

# Images are slow to make, and the machine may be busy: the number of examples is bounded instead.
settings.register_profile("ditail", deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ditail")

TEXTS = st.text(st.characters(codec=None), max_size=80)  # lone surrogates among them, as JSON may hold
NUMBERS = st.one_of(st.integers(), st.floats(), st.just(10**4000))  # longer ones Python itself can't write
JSON = st.recursive(st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS), lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)), max_leaves=8)
LONG = st.sampled_from(["x" * 10**6, "[" * 10**6, "\n" * 5000, "\ud800", "\x1b[31m", "data:image/png;base64,"])
ANYTHING = st.one_of(JSON, LONG)


def encoded(image: Image.Image, kind: str = "PNG") -> str:
    out = io.BytesIO()
    image.save(out, kind)
    return base64.b64encode(out.getvalue()).decode()


PICTURE = encoded(Image.new("RGB", (5, 3), "red"))


def refused(function, *args) -> DitailError | None:
    """The DitailError that the call raises, checked for its form; None where it gives a value."""
    try:
        function(*args)
    except DitailError as error:
        sentence = str(error)
        assert len(sentence) <= MAX_SENTENCE and sentence.isprintable()
        sentence.encode()
        return error
    return None


def wrong_or_right(keys, *others):
    """Objects of which most keys are known ones."""
    keys = st.one_of(st.sampled_from(list(keys)), st.sampled_from(list(keys)), TEXTS)
    return st.dictionaries(keys, st.one_of(ANYTHING, *others), max_size=4)


VALUES = wrong_or_right(BY_KEY, st.floats(0, 10), st.sampled_from(["image", "noise", "fill", "f4"]))


@given(st.one_of(ANYTHING, VALUES))
@example({"\ud800": 1})
@example({"[": 1})
@example({"x" * 10**6: 1})
@example({"source_checkpoint": "\ud800"})
@example({"source_prompt": "half \udc00"})
@example({"source_vae": "v" * 10**6})
def test_settings_are_taken_or_refused_by_name(values):
    error = refused(DitailSettings.from_dict, values)
    if error is None:
        result = DitailSettings.from_dict(values)
        assert all(0 <= getattr(result, key) <= 10 for key in ("alpha", "beta"))
        assert len(result.source_checkpoint) <= 4096
        return
    names = {*BY_KEY, "args", *(map(named, values) if isinstance(values, dict) else ())}
    assert names & {error.key, error.key.partition("[")[0]}
    assert str(error).startswith(f"{error.key}:"[:MAX_SENTENCE])


@pytest.mark.parametrize("key", ["image", "mask"])
def test_an_empty_text_is_no_image(key):
    """As null: clients that fill in every key send it, and it never meant anything else."""
    assert getattr(DitailSettings.from_dict({key: ""}), key) is None
    assert 'null or "" in the API' in BY_KEY[key].help
    [source] = parse_sources([{key: ""}])
    assert getattr(source, key) is None


@given(ANYTHING)
def test_a_value_is_shown_in_one_short_line(value):
    assert len(shown(value)) <= 60 and shown(value).isprintable()
    assert len(named(value)) <= 60 and named(value).isprintable()


NUMBER = st.integers(0, 1000).map(lambda n: n / 1000)
STEPS = st.one_of(st.none(), st.tuples(NUMBER, NUMBER).filter(lambda s: s[0] < s[1]))
LAYERS = st.dictionaries(st.builds(Layer, st.sampled_from("fa"), st.integers(0, 99)), STEPS, max_size=12)


@given(LAYERS)
def test_layers_come_back_from_their_line(layers):
    terms = [f"{layer.kind}{layer.block}" + (f"@{steps[0]:g}-{steps[1]:g}" if steps else "")
             for layer, steps in layers.items()]
    assert parse_layers(" ".join(terms)) == layers


@given(st.one_of(ANYTHING, st.text("fa0123456789-@. ", max_size=60)))
def test_any_text_of_layers_is_parsed_or_refused(text):
    error = refused(parse_layers, text)
    assert error is None or (error.key == "layers" and str(error).startswith("layers: "))


PIECE = wrong_or_right(("image", "box", "mask", "resize_mode"), st.just(PICTURE), st.lists(st.floats(0, 1), min_size=4,
                                                                                           max_size=4))


@given(st.one_of(ANYTHING, st.lists(PIECE, max_size=3), st.lists(st.just({}), min_size=15, max_size=20)))
def test_collages_are_laid_out_or_refused(pieces):
    error = refused(lambda: [compose(parse_collage(pieces), 24, 16)])
    assert error is None or (error.key.startswith("collage") and str(error).startswith("collage"))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from([(8, 8), (64, 8), (8, 264)]))
@example([1.0, 1.0, 1e-7, 1e-7], (8, 8))
@example([0.0, 0.0, 5e-324, 1.0], (8, 264))
def test_a_box_covers_at_least_a_pixel(box, size):
    error = refused(parse_collage, [{"image": PICTURE, "box": box}])
    left, top, width, height = box
    reaches_out = not width or not height or left + width > 1 + 1e-6 or top + height > 1 + 1e-6
    assert (error is not None) == reaches_out
    if not reaches_out:
        image, mask = compose(parse_collage([{"image": PICTURE, "box": box}]), *size)
        assert image.size == mask.size == size and mask.getextrema()[1] == 255


SOURCE_KEYS = ("source", "image", "source_checkpoint", "source_vae", "source_prompt", "weight", "mask", "steps")
SOURCE = wrong_or_right(SOURCE_KEYS, st.just(PICTURE), st.floats(0, 10),
                        st.lists(st.floats(0, 1), min_size=2, max_size=2))


@given(st.one_of(ANYTHING, st.lists(SOURCE, max_size=3), st.lists(st.just({}), min_size=7, max_size=10)))
def test_further_sources_are_taken_or_refused(sources):
    error = refused(parse_sources, sources)
    assert error is None or (error.key.startswith("sources") and str(error).startswith("sources"))
    if error is None:
        parsed = parse_sources(sources)
        assert len(parsed) <= 8 and all(0 <= s.weight <= 10 and 0 <= s.steps[0] < s.steps[1] <= 1 for s in parsed)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@st.composite
def pngs(draw) -> bytes:
    """PNG files whose headers promise anything, cut off or changed anywhere."""
    header = struct.pack(">IIBBBBB", draw(st.sampled_from([0, 1, 3, 10**4, 10**8, 2**31 - 1])),
                         draw(st.sampled_from([1, 2, 10**4, 2**31 - 1])), draw(st.sampled_from([1, 8, 16, 99])),
                         draw(st.sampled_from([0, 2, 3, 4, 6, 7])), 0, 0, draw(st.sampled_from([0, 1])))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += draw(st.sampled_from([b"", chunk(b"tRNS", b"\0"), chunk(b"PLTE", b"abc"), chunk(b"eXIf", b"MM\0*\0\0")]))
    data += chunk(b"IDAT", zlib.compress(draw(st.binary(max_size=30)))) + chunk(b"IEND", b"")
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


@st.composite
def damaged(draw) -> bytes:
    """Files of many kinds with some bytes changed and the end cut off."""
    image = Image.new(draw(st.sampled_from(["L", "RGB", "P"])), (7, 5), 3)
    out = io.BytesIO()
    image.convert("RGB" if (kind := draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "TGA"])))
                  in ("JPEG", "WEBP") else image.mode).save(out, kind)
    data = bytearray(out.getvalue())
    for place in draw(st.lists(st.integers(0, len(data) - 1), max_size=6)):
        data[place] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(1, len(data)))])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=400)
@given(st.one_of(st.binary(max_size=300), pngs(), damaged()))
def test_any_bytes_are_an_image_or_refused(data):
    for read, mode, key in ((read_image, "RGB", "image"), (read_mask, "L", "mask")):
        error = refused(read, data)
        if error is None:
            assert read(data).mode == mode
        else:
            assert error.key == key and str(error).startswith(f"{key}: ")


@given(st.one_of(TEXTS, st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode())))
def test_any_text_is_base64_or_refused(text):
    error = refused(decode_base64, text)
    assert error is None or str(error).startswith("image: ")


def test_a_bomb_is_refused_before_it_goes_off():
    """10^8 pixels a side promised by a hundred bytes."""
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(DitailError, match="^image: it is over 100 megapixels"):
        read_image(data)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "I;16B", "LA",
                                  "PA", "RGBX", "RGBa"])
def test_every_mode_is_read(mode):
    assert read_image(Image.new(mode, (5, 7))).mode == "RGB"
    assert read_mask(Image.new(mode, (5, 7))).mode == "L"


def test_a_mode_without_a_way_to_gray_is_refused():
    with pytest.raises(DitailError, match="^mask: it can't be read as an image"):
        read_mask(Image.new("LAB", (5, 7)))


SIDES = st.one_of(st.integers(1, 40), st.sampled_from([999, 10**4, 10**5]))


@settings(max_examples=60)
@given(SIDES, SIDES, st.sampled_from([8, 64, 512]), st.sampled_from([8, 64, 512]),
       st.sampled_from(["crop", "fill", "stretch"]))
@example(1, 10**4, 64, 64, "fill")
@example(10**4, 1, 64, 64, "crop")
def test_any_proportions_fit_any_size(image_width, image_height, width, height, mode):
    # An area that a user can't send for its size is not what this is about.
    image_height = min(image_height, 10**6 // image_width)
    image = Image.new("L", (image_width, image_height), 200)
    fitted = fit(image, width, height, mode)
    assert fitted.size == (width, height) and fitted.getextrema() == (200, 200)
    assert mask_to_latent(image, width, height, mode).shape == (1, 1, height // 8, width // 8)


def test_the_longest_strip_fits():
    """PIL's own scaling runs out of memory here: 1 pixel wide, 10^8 high, within what is let in."""
    strip = Image.new("L", (1, 10**8), 200)
    for mode in ("fill", "stretch"):
        assert fit(strip, 64, 64, mode).getextrema() == (200, 200)


WRITABLE = st.text(st.characters(codec="utf-8"), max_size=40)
SETTINGS = st.builds(
    DitailSettings, enabled=st.just(True), source=st.sampled_from(["image", "generate"]),
    resize_mode=st.sampled_from(["crop", "fill", "stretch"]), source_checkpoint=WRITABLE, source_vae=WRITABLE,
    source_prompt=WRITABLE, source_negative_prompt=WRITABLE, alpha=st.floats(0, 10), beta=st.floats(0, 10),
    conv_ratio=st.floats(0, 1), attn_ratio=st.floats(0, 1), start=st.sampled_from(["source", "noise"]),
    layers=st.sampled_from(["", "f4 a4-8 a9-11@0-0.3"]), hires=st.booleans(),
)
DESCRIBED = st.lists(st.fixed_dictionaries({}, optional={
    "source": st.sampled_from(["image", "generate"]), "source_checkpoint": WRITABLE, "weight": st.floats(0, 10),
    "steps": st.tuples(NUMBER, NUMBER).filter(lambda s: s[0] < s[1]),
}), max_size=8)


@given(SETTINGS, DESCRIBED)
def test_infotext_gives_back_the_settings(original, sources):
    # The WebUI writes every value as a text.
    params = {key: str(value) for key, value in to_infotext(original, sources).items()}
    assert DitailSettings.from_dict(from_infotext(params)) == original
    assert sources_from_infotext(params) == sources


@given(SETTINGS)
def test_without_an_image_there_is_no_resize_mode(original):
    params = to_infotext(original, with_image=False)
    assert "Ditail resize mode" not in params
    assert from_infotext(params)["resize_mode"] == "crop"


INFOTEXT_KEYS = [field.infotext for field in FIELDS if field.infotext]


@given(st.dictionaries(st.one_of(st.sampled_from(INFOTEXT_KEYS), TEXTS), st.one_of(TEXTS, LONG), max_size=4))
@example({"Ditail alpha": "abc"})
@example({"Ditail alpha": "nan"})
@example({"Ditail beta": "inf"})
@example({"Ditail beta": "10.5"})
@example({"Ditail hires": "yes"})
@example({"Ditail source checkpoint": "[" * 10**6})
def test_any_infotext_is_read_or_refused(params):
    error = refused(from_infotext, params)
    assert error is None or (error.key in BY_KEY and str(error).startswith(f"{error.key}: "))
    if error is None:
        DitailSettings.from_dict(from_infotext(params))


@given(st.one_of(JSON.map(json.dumps), TEXTS,
                 st.sampled_from(["[" * 3000, '{"a":' * 3000, "[" + "9" * 5000 + "]"])))
@example('[{"weight": "x"}]')
@example('[{"steps": [1, 0]}]')
@example('[{"source_checkpoint": 3}]')
@example("[" * 3000 + "]" * 3000)
def test_any_further_sources_of_infotext_are_read_or_refused(text):
    error = refused(sources_from_infotext, {SOURCES: text})
    assert error is None or (error.key.startswith("sources") and str(error).startswith("sources"))


def test_infotext_of_earlier_versions():
    """As versions before this one wrote it: fewer keys, and more said of the further sources than is read back."""
    read = from_infotext({"Ditail source": "image", "Ditail alpha": "2.5", "Ditail image hash": "0123456789"})
    assert (read["alpha"], read["beta"], read["hires"]) == (2.5, 0.5, True)
    described = '[{"source": "image", "weight": 0.5, "steps": [0, 1], "mask": true, "image hash": "0123456789"}]'
    assert sources_from_infotext({SOURCES: described}) == [{"source": "image", "weight": 0.5, "steps": (0.0, 1.0)}]
    assert from_infotext({"Steps": "20"}) == {} and sources_from_infotext({}) == []


def test_a_text_that_looks_like_a_size_comes_back():
    """The WebUI reads `512x768` as a width and a height."""
    read = from_infotext({"Ditail source prompt-1": "512", "Ditail source prompt-2": "768"})
    assert read["source_prompt"] == "512x768"


@given(DESCRIBED)
def test_sources_are_written_without_what_the_webui_would_escape(sources):
    assert not set(sources_text(sources)) & set(',:"\\\n')
