"""Ditail as an always-on script of the WebUI. All it does is in `ditail.webui`."""

from pathlib import Path

from modules import scripts

import ditail

if not Path(ditail.__file__).resolve().is_relative_to(Path(scripts.basedir()).resolve()):
    raise ImportError(
        f"Another extension has brought its own package `ditail` ({Path(ditail.__file__).parent}): disable that "
        "extension (sd-webui-ditail, say) in the Extensions tab, or this one, and restart the WebUI."
    )

from ditail.webui import script, ui  # noqa: E402 (the package has to be checked first)


class DitailScript(scripts.Script):
    """Content from one image or model, style from the target checkpoint."""

    def title(self):
        return ui.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def elem_id(self, item_id):
        return f"{'img2img' if self.is_img2img else 'txt2img'}_ditail_{item_id}"

    def ui(self, is_img2img):
        made = ui.build(self.elem_id, is_img2img=is_img2img)
        self.infotext_fields = made.infotext_fields
        self.paste_field_names = made.paste_field_names
        return made.controls

    def before_process(self, p, *args):
        script.before_process(p, args)

    def process_before_every_sampling(self, p, *args, x, noise, **kwargs):
        script.before_sampling(p, x, noise)

    def postprocess(self, p, processed, *args):
        script.release(p)


script.register()
