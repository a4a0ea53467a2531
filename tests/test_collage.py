"""Collages: what their objects may be, where pieces come to lie, and the ground between them."""

import base64

import pytest
from PIL import Image

from ditail import DitailError
from ditail.content.collage import MAX_PIECES, Part, Piece, compose, parse_collage
from ditail.content.images import fit
from tests.drawings import BLUE, RED, encoded, halves

GREEN = (0, 128, 0)


def one(colour, size=(20, 20)):
    return Image.new("RGB", size, colour)


def gray(*columns, size=(64, 32)):
    """A mask of columns of equal width."""
    mask = Image.new("L", (len(columns), 1))
    mask.putdata(columns)
    return mask.resize(size, Image.Resampling.NEAREST)


def base64_of(image):
    return base64.b64encode(encoded(image)).decode()


def at(image, *points):
    return [image.getpixel(point) for point in points]


def test_boxes_are_fractions_of_the_image_and_later_pieces_lie_over_earlier_ones():
    image, mask = compose([Piece(one(RED), (0, 0, 0.5, 1)), Piece(one(BLUE), (0.25, 0.5, 0.5, 0.5))], 64, 32)
    assert image.size == mask.size == (64, 32)
    assert (image.mode, mask.mode) == ("RGB", "L")
    assert at(image, (0, 0), (31, 15), (16, 16), (47, 31), (15, 16)) == [RED, RED, BLUE, BLUE, RED]
    assert at(mask, (31, 0), (32, 0), (32, 15), (32, 16), (47, 31), (48, 31)) == [255, 0, 0, 255, 255, 0]


def test_boxes_side_by_side_leave_no_gap():
    third = 1 / 3
    boxes = [(0, 0, third, 1), (third, 0, third, 1), (2 * third, 0, 1 - 2 * third, 1)]
    _, mask = compose([Piece(one(RED), box) for box in boxes], 64, 32)
    assert mask.getextrema() == (255, 255)


@pytest.mark.parametrize("mode", ["crop", "fill", "stretch"])
def test_pieces_are_made_to_fit_their_box(mode):
    colours = gray(0, 90, 180, 255, size=(80, 20)).convert("RGB")
    image, _ = compose([Piece(colours, (0.5, 0, 0.5, 1), None, mode)], 64, 32)
    assert image.crop((32, 0, 64, 32)).tobytes() == fit(colours, 32, 32, mode).tobytes()


def test_a_mask_says_where_in_its_box_and_soft_ones_blend():
    masked = [Piece(one(RED)), Piece(one(BLUE), mask=gray(0, 0, 128, 255))]
    image, mask = compose(masked, 64, 32)
    assert at(image, (0, 0), (40, 16), (63, 31)) == [RED, (127, 0, 128), BLUE]
    assert mask.getextrema() == (255, 255)
    image, mask = compose([Piece(one(BLUE), (0.5, 0, 0.5, 1), gray(255, 0, size=(32, 32)))], 64, 32)
    assert at(mask, (16, 0), (33, 0), (46, 31), (49, 0), (63, 0)) == [0, 255, 255, 0, 0]


def test_soft_masks_add_up_in_the_mask_of_all():
    _, mask = compose([Piece(one(RED), mask=gray(128)), Piece(one(BLUE), mask=gray(128))], 64, 32)
    assert mask.getextrema() == (192, 192)
    assert compose([Piece(one(RED), mask=gray(128))], 64, 32)[0].getpixel((0, 0)) == RED


def test_the_background_is_the_mean_of_the_visible_pieces():
    covered = Piece(one(GREEN), (0, 0, 0.25, 0.5))
    image, _ = compose([covered, Piece(one(RED), (0, 0, 0.25, 1)), Piece(one(BLUE), (0.25, 0, 0.5, 0.5))], 64, 32)
    assert image.getpixel((63, 31)) == (128, 0, 128)
    assert compose([Piece(halves(), (0, 0, 0.5, 0.5))], 64, 32)[0].getpixel((63, 31)) == (128, 0, 128)


def test_a_background_is_cut_to_the_size_and_all_of_it_counts():
    image, mask = compose([Piece(one(GREEN), (0, 0, 0.1, 0.1))], 64, 32, halves(80, 80))
    assert at(image, (0, 0), (20, 20), (63, 31)) == [GREEN, RED, BLUE]
    assert mask.getextrema() == (255, 255)


def test_pieces_keep_their_pixels():
    image, _ = compose([Piece(halves(), (0, 0, 0.5, 0.5))], 80, 40)
    assert image.crop((0, 0, 40, 20)).tobytes() == halves().tobytes()


@pytest.mark.parametrize("box", [(0.999, 0.999, 0.001, 0.001), (0, 0, 1e-9, 1e-9), (1 - 1e-7, 0, 1e-7, 1)])
def test_the_smallest_box_is_one_pixel(box):
    _, mask = compose([Piece(one(RED), box)], 64, 32)
    assert len([v for v in mask.getdata() if v]) in (1, 32)


def test_a_mask_that_leaves_nothing_is_refused():
    with pytest.raises(DitailError, match="has no pieces"):
        compose([], 64, 32)
    with pytest.raises(DitailError, match=r"^collage\[1\]\.mask: leaves nothing of the piece at 32x32") as caught:
        compose([Piece(one(RED)), Piece(one(BLUE), (0, 0, 0.5, 1), gray(0))], 64, 32)
    assert caught.value.key.startswith("collage")


def test_the_apis_objects_become_pieces():
    image, mask = base64_of(halves()), base64_of(gray(0, 255))
    pieces = parse_collage([{"image": image, "box": [0, 0, 0.5, 1]}, {"image": image, "mask": mask, "box": None},
                            {"image": f"data:image/png;base64,{image}", "box": [0.5, 0.25, 0.5, 0.75], "mask": mask,
                             "resize_mode": "fill"}])
    assert [piece.box for piece in pieces] == [(0, 0, 0.5, 1), (0, 0, 1, 1), (0.5, 0.25, 0.5, 0.75)]
    assert [piece.mask and piece.mask.size for piece in pieces] == [None, (64, 32), (64, 32)]
    assert [piece.resize_mode for piece in pieces] == ["crop", "crop", "fill"]
    assert pieces[0].image.tobytes() == halves().tobytes()
    assert parse_collage(None) == parse_collage([]) == ()
    assert len(parse_collage([{"image": image, "box": [1 / 3, 0, 1 - 1 / 3 + 1e-9, 1]}])) == 1


PICTURE = base64_of(one(RED))


@pytest.mark.parametrize(("values", "sentence"), [
    ({"image": PICTURE}, "collage: must be a list of objects, got dict"), ("text", "collage: must be a list"),
    ([PICTURE], r"collage\[0\]: must be an object, got str"),
    ([{"image": PICTURE, "box": [0, 0, 1, 1]}, {"box": [0, 0, 1, 1]}], r"collage\[1\]\.image: is missing"),
    ([{"image": "", "box": [0, 0, 1, 1]}], r"collage\[0\]\.image: is missing"),
    ([{"image": PICTURE}], r"collage\[0\]: needs a box or a mask"),
    ([{"image": PICTURE, "mask": None}], r"collage\[0\]: needs a box or a mask"),
    ([{"image": PICTURE, "bocks": [0, 0, 1, 1]}], r"collage\[0\]: 'bocks' is not one of its keys \(image, box,"),
    ([{"image": 1, "box": [0, 0, 1, 1]}], r"collage\[0\]\.image: must be a base64 image"),
    ([{"image": "no base64!", "box": [0, 0, 1, 1]}], r"collage\[0\]\.image: is not base64"),
    ([{"image": "aGVsbG8=", "box": [0, 0, 1, 1]}], r"collage\[0\]\.image: it is not an image"),
    ([{"image": PICTURE, "mask": "aGVsbG8="}], r"collage\[0\]\.mask: it is not an image"),
    ([{"image": PICTURE, "box": [0, 0, 1]}], r"collage\[0\]\.box: must be a list of 4 numbers from 0 to 1"),
    ([{"image": PICTURE, "box": "0, 0, 1, 1"}], "must be a list of 4"),
    ([{"image": PICTURE, "box": [0, 0, 1, True]}], "must be a list of 4"),
    ([{"image": PICTURE, "box": [0, 0, 1, float("nan")]}], "must be a list of 4"),
    ([{"image": PICTURE, "box": [0, 0, 1, 10**400]}], "must be a list of 4"),
    ([{"image": PICTURE, "box": [-0.1, 0, 1, 1]}], "must be a list of 4"),
    ([{"image": PICTURE, "box": [0.5, 0, 0.6, 1]}], r"\[0.5, 0, 0.6, 1\] .* is empty or reaches out"),
    ([{"image": PICTURE, "box": [0, 0, 0, 1]}], "is empty or reaches out"),
    ([{"image": PICTURE, "box": [0, 0, 1, 1], "resize_mode": "0"}], r'\[0\]\.resize_mode: must be one of "crop"'),
    ([{"image": PICTURE, "box": [0, 0, 1, 1]}] * (MAX_PIECES + 1), "collage: has 17 entries, at most 16"),
])
def test_what_is_wrong_with_a_piece_is_named(values, sentence):
    with pytest.raises(DitailError, match=sentence) as caught:
        parse_collage(values)
    assert caught.value.key.startswith("collage")
    assert str(caught.value).startswith("collage")


def test_a_part_of_the_whole():
    """Boxes are fractions of the whole: here the right half of it is seen, at twice its size."""
    pieces = [Piece(one(RED), (0.5, 0, 0.25, 1)), Piece(one(BLUE), (0, 0, 0.25, 1))]
    image, _ = compose(pieces, 64, 64, one(GREEN), Part((64, 32), (32, 0, 64, 32)))
    assert [image.getpixel((x, 20)) for x in (4, 28, 36, 60)] == [RED, RED, GREEN, GREEN]
