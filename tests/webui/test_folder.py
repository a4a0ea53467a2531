"""The script "Ditail folder" from the API; `test_tab.py` has it in the tab."""

import pytest
from PIL import Image

from ditail.content.images import read_image, shrunk_to_cover
from ditail.job.plan import image_hash
from tests.webui.webui_helpers import SIDE, difference, encode


@pytest.fixture
def folder(content, other_content, tmp_path):
    """A small image, and a larger one than twice the job's size."""
    content.save(tmp_path / "a.png")
    other_content.resize((900, 600), Image.Resampling.BICUBIC).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("with a hat")
    return tmp_path


def run(webui, args: list, **overrides):
    made = webui.generate({"source_checkpoint": "house-noto"}, script_name="Ditail folder", script_args=args,
                          **overrides)
    assert made.status == 200, made.json
    return made


def test_by_one_object_and_by_position(webui, folder):
    by_object = run(webui, [{"folder": str(folder), "prompts": "a .txt file beside it"}])
    by_position = run(webui, [None, str(folder), "a .txt file beside it"])
    assert by_object.infotexts == by_position.infotexts and len(by_object.images) == 2
    assert [text.splitlines()[0] for text in by_object.infotexts] == ["a fox on pink with a hat", "a fox on pink"]
    assert run(webui, [{"folder": str(folder)}]).infotexts[0].startswith("a fox on pink\n")


def test_only_images_that_are_larger_than_needed_are_shrunk(webui, folder):
    made = run(webui, [{"folder": str(folder)}])
    for image, text, name in zip(made.images, made.infotexts, ("a.png", "b.png"), strict=True):
        image_file = read_image(folder / name)
        assert f"Ditail image hash: {image_hash(shrunk_to_cover(image_file, 2 * SIDE, 2 * SIDE))}" in text
        alone = webui.generate({"source_checkpoint": "house-noto", "image": encode(image_file)})
        assert difference(image, alone.image) < (0.001 if name == "a.png" else 1)


def test_a_second_pass_needs_larger_images(webui, folder):
    """Of twice its size: the larger image is not shrunk."""
    made = run(webui, [{"folder": str(folder)}], enable_hr=True, hr_scale=3, hr_upscaler="Latent", steps=2,
               denoising_strength=0.6)
    assert f"Ditail image hash: {image_hash(read_image(folder / 'b.png'))}" in made.infotexts[1]


def test_inpainting_only_the_masked_part_gives_images_of_the_files_sizes(webui, folder):
    mask = Image.new("L", (900, 600), 0)
    mask.paste(255, (300, 200, 500, 400))
    (folder / "a.png").unlink()
    made = run(webui, [{"folder": str(folder)}], tab="img2img", init_images=[encode(Image.new("RGB", (900, 600)))],
               mask=encode(mask), inpaint_full_res=True, denoising_strength=0.9, steps=4)
    assert made.image.size == (900, 600)


def test_its_content_images_are_shown(webui, folder):
    made = webui.generate({"source_checkpoint": "house-noto", "show_source": True}, script_name="Ditail folder",
                          script_args=[{"folder": str(folder)}], steps=2)
    assert len(made.images) == len(made.infotexts) == 4
    assert difference(made.images[1], read_image(folder / "a.png")) == 0
