"""Comparison of methods at equal style and at equal structure, with paired bootstrap intervals over the scenes.

A method is a curve: its rows in the order of their parameter, each a point (style, structure), joined by straight
lines. Differences are paired: every bootstrap sample has the same scenes for both methods and all directions.
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
    """A difference with its interval. is_bound: the other curve does not reach the level of the comparison.

    Then the curve's nearest point is used, which has more of the other quantity than the curve would have at that
    level, so the difference is at least `value`.
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
            # A smaller distance is better.
            sign = -1 if structure == "distance" else 1
            scenes = self.by_row.setdefault(record["row"], {}).setdefault((record["source"], record["target"]), {})
            values = zip(record["style"], (sign * v for v in record[structure]), strict=True)
            scenes.update(zip(record["scenes"], values, strict=True))

    def common_scenes(self, rows: Sequence[str], directions: Sequence[Direction]) -> list[int]:
        """The scenes that all rows have in all directions."""
        sets = [set(self.by_row.get(row, {}).get(direction, ())) for row in rows for direction in directions]
        return sorted(set.intersection(*sets)) if sets else []

    def values(self, rows: Sequence[str], directions: Sequence[Direction], scenes: Sequence[int]) -> np.ndarray:
        """(style, structure) as `[rows, directions, scenes, 2]`."""
        return np.array([[[self.by_row[row][d][scene] for scene in scenes] for d in directions] for row in rows])


def sample_means(values: np.ndarray, samples: int = SAMPLES) -> np.ndarray:
    """Means of `[rows, directions, scenes, 2]` over the scenes, `[1 + samples, rows, directions, 2]`.

    The first is over all scenes, the others over scenes drawn with replacement, the same for all rows and directions.
    """
    count = values.shape[2]
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), samples)
    weights = np.concatenate([np.ones((1, count)), drawn]) / count
    return np.einsum("rdsm,ns->nrdm", values, weights)


def at_least(curve: np.ndarray, level: np.ndarray, along: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest value of one quantity on a curve where the other one is at least `level`.

    curve: `[n, points, directions, 2]`, in the order of the parameter. level: `[n, directions]`, of the quantity
    `along`. Returns (values, whether the curve reaches the level), both `[n, directions]`; if it does not, the value is
    that of its nearest point.
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
    """The difference of a method's point and another's curve at the point's value of `along`.

    point: `[n, 1, directions, 2]`. curve: `[n, points, directions, 2]`. Returns (differences, whether the curve reaches
    that value), both `[n, directions]`.
    """
    other, reaches = at_least(curve, point[:, 0, :, along], along)
    return point[:, 0, :, 1 - along] - other, reaches


def summary(differences: np.ndarray, reaches: np.ndarray) -> Difference:
    """The Difference of bootstrap differences `[n]`, of which the first is over all scenes. reaches: `[n]`."""
    low, high = np.percentile(differences[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Difference(float(differences[0]), float(low), float(high), not bool(reaches[0]))


def point_against_curve(scores: Scores, row: str, rivals: Sequence[str], directions: Sequence[Direction],
                        along: int) -> list[Difference]:
    """The differences of a row and the curve of `rivals`: one per direction, then that of the mean over directions.

    Empty if there is no rival or no scene in common.
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
    """The differences of a curve and the row of a rival: those of `point_against_curve` with the opposite sign.

    If the curve does not reach the row's level, it is behind by at least the difference.
    """
    differences = point_against_curve(scores, rival, rows, directions, along)
    return [Difference(-d.value, -d.high, -d.low, d.is_bound) for d in differences]
