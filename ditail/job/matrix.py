"""The m x m matrix (paper figure 1): content of the row's model, style of the column's; the diagonal is plain."""

from collections.abc import Sequence
from dataclasses import dataclass

from .host import Checkpoint


@dataclass(frozen=True)
class MatrixModel:
    """A checkpoint with the tags of extra networks, if any."""

    checkpoint: Checkpoint
    tags: str = ""

    @property
    def name(self) -> str:
        return f"{self.checkpoint.name} {self.tags}".strip()


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix: content of `source`, style of `target`."""

    row: int
    column: int
    source: MatrixModel
    target: MatrixModel

    @property
    def is_plain(self) -> bool:
        return self.source == self.target


def cells_of(models: Sequence[MatrixModel], source: MatrixModel | None = None) -> list[Cell]:
    """All cells, row by row; a single row if `source` is given."""
    rows = [source] if source else models
    return [Cell(i, j, row, column) for i, row in enumerate(rows) for j, column in enumerate(models)]


def in_loading_order(cells: Sequence[Cell]) -> list[Cell]:
    """The cells in an order that loads each model at most twice.

    First the plain images, whose latents go into the cache; then the others by target, beginning with the model that is
    loaded by then. Cells with the same target checkpoint follow one another.
    """
    plain = sorted((c for c in cells if c.is_plain), key=lambda c: c.target.checkpoint.path)
    mixed = sorted((c for c in cells if not c.is_plain), key=lambda c: c.target.checkpoint.path, reverse=bool(plain))
    return plain + mixed
