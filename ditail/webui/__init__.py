"""Ditail in the AUTOMATIC1111 WebUI and in Forge: the only package here that imports `modules` and gradio."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

# The functions and classes of Forge that the adapter uses, by module.
FORGE = {
    "backend.loader": ("forge_loader",),
    "backend.memory_management": ("current_loaded_models", "soft_empty_cache"),
    "backend.nn.unet": ("CrossAttention", "ResBlock"),
    "backend.sampling.sampling_function": ("sampling_prepare", "sampling_cleanup"),
    "modules.processing": ("apply_token_merging",),
    "modules.script_callbacks": ("callback_map", "add_callback"),
    "modules.sd_models": ("forge_model_reload", "model_data", "apply_alpha_schedule_override"),
}


def check_webui() -> None:
    """Raise ImportError with a message for the user in a WebUI that Ditail has no adapter for."""
    if find_spec("modules_forge") is None:
        if find_spec("ldm") is None:
            raise ImportError("it needs the `ldm` models of AUTOMATIC1111's WebUI 1.10 or a fork that has them, or "
                              "lllyasviel's Forge.")
        return
    for module, names in FORGE.items():
        missing = _missing(module, names)
        if missing:
            raise ImportError("it needs lllyasviel's Forge or a fork with the same modules; this one has no "
                              f"`{missing}`.")


def _missing(module: str, names: Sequence[str]) -> str:
    """The module, or the first of the names in it, that a WebUI lacks; "" if it has all."""
    try:
        imported = import_module(module)
    except Exception:  # a fork's module may raise anything when it is imported
        return module
    return next((f"{module}.{name}" for name in names if not hasattr(imported, name)), "")
