"""Ditail in the AUTOMATIC1111 WebUI: the only package here that imports `modules` and gradio."""

from importlib.util import find_spec


def check_webui() -> None:
    """Raise ImportError, with a sentence for the user, in a WebUI whose models are not ldm's."""
    if find_spec("ldm") is None or find_spec("modules_forge"):
        raise ImportError("it needs the `ldm` models of AUTOMATIC1111's WebUI 1.10 or a fork that has them; Forge and "
                          "reForge have others.")
