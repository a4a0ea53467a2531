"""What of the tests is about AUTOMATIC1111's WebUI alone, or about what Forge has in another way: test and reason."""

import os

import pytest

from tests.webui.server import IS_FORGE

NO_SUCH_OPTION = "Forge has no such option"
OWN_VAE = "Forge has no VAE for one checkpoint, and no `sd_vae` option; `test_forge.py` has its own test"
INFOTEXT = "Forge's API answers a request with infotext with 500, with Ditail or without"
# Its filter of the masks divides the pixels among a number of jobs that is negative then.
FEW_CORES = "on six cores or fewer Forge's soft inpainting gives back the init image, with Ditail or without"
NOT_ON_FORGE = {
    "test_nothing_is_unloaded_that_cannot_be_loaded_again": "Forge keeps the target in memory",
    "test_hypertile_in_a_matrix": "Forge has no hypertile",
    "test_behaviour.py": "the record is AUTOMATIC1111's",
    "test_flags.py": NO_SUCH_OPTION, "test_memory.py": NO_SUCH_OPTION,
    "TestVAE": OWN_VAE, "test_a_vae_file_that_is_replaced": OWN_VAE,
    "test_a_hypernetwork_file": "Forge has no hypernetworks",
    "replaced_while_the_webui_keeps_its_weights": "Forge keeps no weights of checkpoints in RAM",
    "test_downcast_alphas": "Forge does not downcast them",
    "sdxl-inpainting": "Forge's small checkpoints have none", "sdxl-refiner": "Forge's small checkpoints have none",
    "test_refused[-sd3": "Forge can't load a file with no U-Net in it",
    "test_rows_and_attention.py::test_attention": NO_SUCH_OPTION,
    "test_infotext_in_a_request_makes_the_same_image": INFOTEXT, "test_infotext_of_a_request": INFOTEXT,
    "test_infotext_beside_settings": INFOTEXT,
    "test_any_infotext": INFOTEXT, "comes_back_through_infotext": INFOTEXT,
    "test_off_while_injected[chosen0]": "Forge has no hypertile",
    "test_networks_that_do_not_exist_are_named": "Forge names none of the main prompt; `test_forge.py` has its own",
    "test_tiling": 'Forge has no tiling ("under maintenance")',
    "test_img2img_alternative": "Forge's own script fails (no `parameterization`), with Ditail or without",
    "TestControlNet": "it is the extension of AUTOMATIC1111's WebUI",
}

if (os.cpu_count() or 1) <= 6:
    NOT_ON_FORGE["test_soft_inpainting"] = FEW_CORES


def mark_items(items) -> None:
    """Skip what is not for the host under test."""
    for item in items:
        for name, reason in NOT_ON_FORGE.items():
            if IS_FORGE and name in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
