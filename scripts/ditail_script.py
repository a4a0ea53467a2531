"""Ditail as an always-on script of the WebUI. The implementation is in `ditail.webui`."""

import logging
from pathlib import Path

from modules import extensions, scripts

import ditail


def check_package() -> None:
    """Raise ImportError with a message for the user if `ditail` is the package of another extension."""
    package = Path(ditail.__file__).resolve().parent
    if not package.is_relative_to(Path(scripts.basedir()).resolve()):
        raise ImportError(
            f"another extension has brought its own package `ditail` ({package}). Disable that extension "
            "(sd-webui-ditail, say) or this one in the Extensions tab, and restart the WebUI."
        )


def warn_of_namesakes() -> None:
    """Log an error for each extension with a package named `ditail`: it gets this one's, which was loaded first."""
    ours = Path(ditail.__file__).resolve()
    for extension in extensions.active():
        theirs = Path(extension.path, "ditail", "__init__.py")
        if theirs.is_file() and theirs.resolve() != ours:
            logging.getLogger("ditail").error(
                "%s can't work beside this extension, as its package is named `ditail`, too. Disable one of the two in "
                "the Extensions tab, and restart the WebUI.", extension.name)


try:
    check_package()
    from ditail.webui import check_webui

    check_webui()
    from ditail.webui import live_line, script, ui
except ImportError as error:
    logging.getLogger("ditail").error("Ditail is off: %s", error)
else:

    class DitailScript(scripts.Script):
        """Content from one image or model, style from the target checkpoint."""

        def title(self):
            return ui.TITLE

        def show(self, is_img2img):
            return scripts.AlwaysVisible

        def elem_id(self, item_id):
            return f"{'img2img' if self.is_img2img else 'txt2img'}_ditail_{item_id}"

        def after_component(self, component, **kwargs):
            # The live line depends on these components, most of which are created before this script's controls.
            tab, _, name = str(kwargs.get("elem_id")).partition("_")
            if tab == ("img2img" if self.is_img2img else "txt2img") and name in live_line.WEBUI_CONTROLS:
                self.webui_controls = {**getattr(self, "webui_controls", {}), name: component}

        def ui(self, is_img2img):
            tab = ui.build(self.elem_id, is_img2img=is_img2img, webui_controls=getattr(self, "webui_controls", {}))
            # Without `paste_field_names`, as "Send to" with the settings would invert the mixed image again.
            self.infotext_fields = tab.infotext_fields
            return tab.controls

        def before_process(self, p, *args):
            script.before_process(p, args)

        def process_before_every_sampling(self, p, *args, x, noise, **kwargs):
            script.before_sampling(p, x, noise)

        def postprocess_image(self, p, pp, *args):
            script.postprocess_image(p, pp)

        def postprocess(self, p, processed, *args):
            script.release(p, processed)

    script.register()
    warn_of_namesakes()
