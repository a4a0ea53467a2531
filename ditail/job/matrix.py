"""The m x m matrix: content of each row's model, style of each column's (paper figure 1), the diagonal plain."""

from collections.abc import Sequence
from dataclasses import dataclass

from .host import Checkpoint


@dataclass(frozen=True)
class MatrixModel:
    """A checkpoint, with extra networks' tags if it has any."""

    checkpoint: Checkpoint
    tags: str = ""

    @property
    def name(self) -> str:
        return f"{self.checkpoint.name} {self.tags}".strip()


@dataclass(frozen=True)
class Cell:
    """Content of `source`, style of `target`, at a place of the grid."""

    row: int
    column: int
    source: MatrixModel
    target: MatrixModel

    @property
    def is_plain(self) -> bool:
        return self.source == self.target


def cells_of(models: Sequence[MatrixModel], source: MatrixModel | None = None) -> list[Cell]:
    """All cells, row by row; one row if all have one `source`."""
    rows = [source] if source else models
    return [Cell(i, j, row, column) for i, row in enumerate(rows) for j, column in enumerate(models)]


def in_loading_order(cells: Sequence[Cell]) -> list[Cell]:
    """The order that loads each model twice at the most.

    First each model's own image, which leaves its latents in the cache; then what the models make of others' content,
    beginning with the model that is in place by then. Those with one checkpoint follow one another.
    """
    plain = sorted((c for c in cells if c.is_plain), key=lambda c: c.target.checkpoint.path)
    mixed = sorted((c for c in cells if not c.is_plain), key=lambda c: c.target.checkpoint.path, reverse=bool(plain))
    return plain + mixed
