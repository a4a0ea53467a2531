"""Families of models, recognised by the names and shapes of their U-Net's parameters."""

from collections.abc import Mapping, Sequence

from safetensors import safe_open
from torch import nn

UNET_PREFIX = "model.diffusion_model."
SUPPORTED = ("SD 1.x", "SD 2.x", "SDXL")
SUPPORTED_IN_WORDS = "SD 1.x, SD 2.x or SDXL"
# Architectures without the blocks that Ditail needs, by a parameter that only they have.
TRANSFORMERS = {"SD3": "x_embedder.proj.weight", "Flux": "double_blocks.0.img_mod.lin.weight"}
# Checkpoints that read an image besides the latent, by their U-Net's input channels.
READS_AN_IMAGE = {5: "a depth model", 8: "InstructPix2Pix"}


def family_of(shapes: Mapping[str, Sequence[int]]) -> str:
    """The family of a U-Net by its parameters' names and shapes; "of no known family" for any other.

    SD 2.x has linear projections in its transformers, where SD 1.x has convolutions.
    """
    for name, mark in TRANSFORMERS.items():
        if mark in shapes:
            return name
    channels = shapes.get("input_blocks.0.0.weight", (0, 4))[1]
    if channels in READS_AN_IMAGE:
        return READS_AN_IMAGE[channels]
    blocks = 1 + max((int(k.split(".")[1]) for k in shapes if k.startswith("output_blocks.")), default=-1)
    if blocks == 9:
        return "SDXL"
    projection = next((s for k, s in shapes.items() if k.endswith("proj_in.weight")), ())
    if blocks != 12 or not projection:
        return "of no known family"
    if any(".transformer_blocks.1." in k for k in shapes):
        return "an SDXL refiner"
    return "SD 1.x" if len(projection) == 4 else "SD 2.x"


def family_of_unet(unet: nn.Module) -> str:
    """The family of a loaded U-Net."""
    return family_of({name: parameter.shape for name, parameter in unet.named_parameters()})


def family_of_file(path: str) -> str:
    """The family of a safetensors checkpoint, by its header. Raises SafetensorError or OSError if it can't be read."""
    return family_of(shapes_of_file(path))


def shapes_of_file(path: str) -> dict[str, Sequence[int]]:
    """The shapes of the U-Net's parameters by name, from a safetensors checkpoint's header. Raises as above."""
    with safe_open(path, "pt") as file:
        names = [k for k in file.keys() if k.startswith(UNET_PREFIX)]  # noqa: SIM118 (not a dict)
        return {k.removeprefix(UNET_PREFIX): file.get_slice(k).get_shape() for k in names}
