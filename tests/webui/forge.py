"""What of the tests is about AUTOMATIC1111's WebUI alone, or about what Forge has in another way: test and reason."""

import pytest

from tests.webui.server import IS_FORGE

NO_SUCH_OPTION = "Forge has no such option"
FAMILIES = "Forge recognises checkpoints by SD's own widths, and the small ones of other families are not made for it"
INFOTEXT = "Forge's API answers a request with infotext with 500, with Ditail or without"
POINTS = "its points are AUTOMATIC1111's functions"
NOT_ON_FORGE = {
    "test_faults.py": POINTS, "test_breaks.py": POINTS, "test_soak.py": POINTS,
    "test_behaviour.py": "the record is AUTOMATIC1111's",
    "test_flags.py": NO_SUCH_OPTION, "test_memory.py": NO_SUCH_OPTION,
    "test_families.py": FAMILIES,
    "test_rows_and_attention.py::test_attention": NO_SUCH_OPTION,
    "test_infotext_in_a_request_makes_the_same_image": INFOTEXT, "test_infotext_of_a_request": INFOTEXT,
    "test_any_infotext": INFOTEXT, "comes_back_through_infotext": INFOTEXT,
    "test_off_while_injected[chosen0]": "Forge has no hypertile",
    "TestControlNet": "it is the extension of AUTOMATIC1111's WebUI",
}


def mark_items(items) -> None:
    """Skip what is not for the host under test."""
    for item in items:
        for name, reason in NOT_ON_FORGE.items():
            if IS_FORGE and name in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))
