"""The evaluation's metrics on images whose answers are known."""

import numpy as np
import pytest
import torch

from ditail.errors import DitailError
from lab import metrics, perceptual

GROUND = (0.8, 0.9, 0.85)


def square(x: int = 40, y: int = 40, side: int = 40, colour=(0.9, 0.2, 0.1)) -> np.ndarray:
    """An image `[128, 128, 3]` of one square on a pastel ground."""
    image = np.tile(np.array(GROUND, np.float32), (128, 128, 1))
    image[y : y + side, x : x + side] = colour
    return image


def f1(a: np.ndarray, b: np.ndarray) -> float:
    return metrics.edge_f1(metrics.find_edges(a), metrics.find_edges(b))


def test_identical_images_are_perfect():
    assert f1(square(), square()) == 1
    assert metrics.l1(square(), square()) == 0


def test_edges_of_another_colour_count_the_same():
    assert f1(square(colour=(0.1, 0.1, 0.1)), square()) == 1


def test_edges_differ_by_hue_alone():
    # The same luminance as the ground: an edge map of a grey image would be empty.
    luminance = np.array([0.2125, 0.7154, 0.0721])
    colour = np.array([1.0, 0.0, 0.5])
    colour[1] = (np.array(GROUND) @ luminance - colour @ luminance) / luminance[1]
    assert metrics.find_edges(square(colour=colour)).any()


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.0), (2, 1.0), (20, 0.27), (50, 0.0)])
def test_edge_f1_tolerates_two_pixels(shift, expected):
    # Shifted by 20, a square of 40 keeps half of two sides, a quarter of its outline, and the tolerance's ends.
    assert f1(square(x=20), square(x=20 + shift)) == pytest.approx(expected, abs=0.03 if 0 < expected < 1 else 0)


def test_edge_f1_is_symmetric_and_lower_with_false_edges():
    extra = np.maximum(1 - square(), 1 - square(x=90, y=90, side=20))
    assert f1(extra, square()) == pytest.approx(f1(square(), extra))
    assert 0.6 < f1(extra, square()) < 0.9


def test_empty_images():
    empty = square(side=0)
    assert f1(empty, empty) == 1
    assert f1(empty, square()) == f1(square(), empty) == 0


def test_distances():
    black, white = np.zeros((32, 32, 3), np.float32), np.ones((32, 32, 3), np.float32)
    assert metrics.l1(black, white) == 1


def test_arrays_are_cut_to_their_range():
    x = torch.tensor([-3.0, -1.0, 0.0, 3.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert metrics.to_arrays(x)[0, :, :, 0].tolist() == [[0, 0], [0.5, 1]]


def test_classifier_learns_and_survives_its_file(tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    classifier = metrics.StyleClassifier()
    classes = torch.tensor([0, 1, 2] * 4)
    x = torch.randn(12, 3, 64, 64) * 0.1 + torch.tensor([-0.8, 0.0, 0.8])[classes].view(-1, 1, 1, 1)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(classifier(x), classes).backward()
        optimizer.step()
    path = tmp_path / "classifier.safetensors"
    save_file({k: v.half() for k, v in classifier.state_dict().items()}, path)
    assert path.stat().st_size < 200_000
    loaded = metrics.load_classifier(path).probabilities(x)
    assert loaded.argmax(-1).tolist() == classes.tolist()
    assert loaded.sum(-1).tolist() == pytest.approx([1] * 12)


def test_a_broken_classifier_is_named(tmp_path):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(DitailError, match="classifier.safetensors"):
        metrics.load_classifier(path)


class Brightness(torch.nn.Module):
    """Stands in for EfficientNet-Lite: an image's colours at 8x8 places are its features."""

    def __init__(self):
        super().__init__()
        self._conv_stem = torch.nn.AdaptiveAvgPool2d(8)
        self._bn0 = self._swish = torch.nn.Identity()
        self._blocks = torch.nn.ModuleList()


def test_self_similarity_depends_on_positions_and_not_on_colours():
    measure = perceptual.SelfSimilarity(Brightness())
    measure.mean, measure.deviation = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    left, right = torch.tensor([1.0, -1, -1]).view(1, 3, 1, 1), torch.tensor([-1.0, -1, 1]).view(1, 3, 1, 1)
    x = torch.cat([left.expand(1, 3, 64, 32), right.expand(1, 3, 64, 32)], 3)
    similarity = measure.of(torch.cat([x, x.flip(3), x.transpose(2, 3), x * 9]))
    assert similarity.shape == (4, 64, 64)
    swapped, turned, cut = (perceptual.distance(similarity[i : i + 1], similarity[:1])[0] for i in (1, 2, 3))
    # Red for blue keeps which places are alike; turned by a quarter, half of the pairs differ by 1.
    assert swapped == pytest.approx(0, abs=1e-4) and cut == pytest.approx(0, abs=1e-4)
    assert turned == pytest.approx(500, abs=1)
