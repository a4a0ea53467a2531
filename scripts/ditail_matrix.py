"""The Ditail matrix in the Script dropdown. The implementation is in `ditail.webui.matrix`."""

from modules import scripts

try:
    from ditail.webui import check_webui

    check_webui()
    from ditail.webui import matrix, ui
except ImportError:
    pass  # scripts/ditail_script.py says why
else:

    class DitailMatrix(scripts.Script):
        """Every chosen model's content in every chosen model's style."""

        def title(self):
            return matrix.MATRIX_TITLE

        def elem_id(self, item_id):
            return f"{'img2img' if self.is_img2img else 'txt2img'}_ditail_matrix_{item_id}"

        def ui(self, is_img2img):
            return ui.build_matrix(self.elem_id)

        def run(self, p, *args):
            return matrix.run_args(p, args)
