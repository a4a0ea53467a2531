"""The Ditail folder in the Script dropdown. The implementation is in `ditail.webui.folder`."""

from modules import scripts

try:
    from ditail.webui import check_webui

    check_webui()
    from ditail.webui import folder
except ImportError:
    pass  # scripts/ditail_script.py says why
else:

    class DitailFolder(scripts.Script):
        """One job for each content image of a folder or an upload."""

        def title(self):
            return folder.FOLDER_TITLE

        def elem_id(self, item_id):
            return f"{'img2img' if self.is_img2img else 'txt2img'}_ditail_folder_{item_id}"

        def ui(self, is_img2img):
            return folder.build(self.elem_id)

        def run(self, p, *args):
            return folder.run_args(p, args)
