"""Methods beside each other at equal style and at equal structure, with paired bootstrap intervals over the scenes.

A method is a curve: its rows in the order of their knob, each a point (style, structure), joined by straight lines.
Differences are paired: every sample draws scenes, the same ones for both methods and all directions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 2000
SEED = 0
STYLE, STRUCTURE = 0, 1
LEVEL = 95

Direction = tuple[str, str]


@dataclass(frozen=True)
class Difference:
    """An estimate with its interval. is_bound: the other curve does not reach the level at which it is compared.

    Then it is compared at the point where the curve comes nearest, which has more of the other quantity than it would
    have at that level: the difference is at least this.
    """

    value: float
    low: float
    high: float
    is_bound: bool


class Scores:
    """Style and structure of every row, direction and scene."""

    def __init__(self, records: Iterable[dict], structure: str = "edge_f1"):
        self.by_row: dict[str, dict[Direction, dict[int, tuple[float, float]]]] = {}
        for record in records:
            # A distance counts the other way round.
            sign = -1 if structure == "distance" else 1
            scenes = self.by_row.setdefault(record["row"], {}).setdefault((record["source"], record["target"]), {})
            values = zip(record["style"], (sign * v for v in record[structure]), strict=True)
            scenes.update(zip(record["scenes"], values, strict=True))

    def common_scenes(self, rows: Sequence[str], directions: Sequence[Direction]) -> list[int]:
        """The scenes that every one of the rows has in every direction."""
        sets = [set(self.by_row.get(row, {}).get(direction, ())) for row in rows for direction in directions]
        return sorted(set.intersection(*sets)) if sets else []

    def values(self, rows: Sequence[str], directions: Sequence[Direction], scenes: Sequence[int]) -> np.ndarray:
        """`[rows, directions, scenes, 2]`."""
        return np.array([[[self.by_row[row][d][scene] for scene in scenes] for d in directions] for row in rows])


def sample_means(values: np.ndarray, samples: int = SAMPLES) -> np.ndarray:
    """Means over the scenes of `[rows, directions, scenes, 2]`: `[1 + samples, rows, directions, 2]`.

    The first is that of all scenes, the others of scenes drawn with replacement, the same for rows and directions.
    """
    count = values.shape[2]
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), samples)
    weights = np.concatenate([np.ones((1, count)), drawn]) / count
    return np.einsum("rdsm,ns->nrdm", values, weights)


def at_least(curve: np.ndarray, level: np.ndarray, along: int) -> tuple[np.ndarray, np.ndarray]:
    """The most that a curve has of one quantity where it has at least `level` of the other.

    curve: `[n, points, directions, 2]`, in the order of the knob. level: `[n, directions]`, of the quantity `along`.
    Returns (`[n, directions]`, whether the curve has that level at all); where it has not, the value at its nearest
    point.
    """
    x, y = curve[..., along], curve[..., 1 - along]
    level = level[:, None]
    best = np.where(x >= level, y, -np.inf).max(1)
    x0, x1, y0, y1 = x[:, :-1], x[:, 1:], y[:, :-1], y[:, 1:]
    crosses = (np.minimum(x0, x1) < level) & (level < np.maximum(x0, x1))
    share = np.divide(level - x0, x1 - x0, out=np.zeros_like(x0), where=crosses)
    between = np.where(crosses, y0 + share * (y1 - y0), -np.inf)
    if between.shape[1]:
        best = np.maximum(best, between.max(1))
    nearest = np.take_along_axis(y, x.argmax(1)[:, None], 1)[:, 0]
    reaches = np.isfinite(best)
    return np.where(reaches, best, nearest), reaches


def compare(point: np.ndarray, curve: np.ndarray, along: int) -> tuple[np.ndarray, np.ndarray]:
    """How much more a method's point has than another's curve at the point's own `along`: `[n, directions]` each.

    point: `[n, 1, directions, 2]`, curve: `[n, points, directions, 2]`. Returns (differences, whether the curve
    reaches that far).
    """
    other, reaches = at_least(curve, point[:, 0, :, along], along)
    return point[:, 0, :, 1 - along] - other, reaches


def summary(differences: np.ndarray, reaches: np.ndarray) -> Difference:
    """Of `[n]` differences, the first of all scenes."""
    low, high = np.percentile(differences[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Difference(float(differences[0]), float(low), float(high), not bool(reaches[0]))


def point_against_curve(scores: Scores, row: str, rivals: Sequence[str], directions: Sequence[Direction],
                        along: int) -> list[Difference]:
    """A row against a curve of others: a difference for each direction, then that of their mean.

    Empty where there is nothing to compare: no rival, or no scene in common.
    """
    scenes = scores.common_scenes([row, *rivals], directions)
    if not rivals or not scenes:
        return []
    means = sample_means(scores.values([row, *rivals], directions, scenes))
    differences, reaches = compare(means[:, :1], means[:, 1:], along)
    each = [summary(differences[:, d], reaches[:, d]) for d in range(len(directions))]
    return [*each, summary(differences.mean(1), reaches.all(1))]


def curve_against_point(scores: Scores, rows: Sequence[str], rival: str, directions: Sequence[Direction],
                        along: int) -> list[Difference]:
    """A curve against another's row, seen from that row: as `point_against_curve` with the sign turned.

    Here a curve that does not reach the row's level is behind by at least the difference.
    """
    turned = point_against_curve(scores, rival, rows, directions, along)
    return [Difference(-d.value, -d.high, -d.low, d.is_bound) for d in turned]
