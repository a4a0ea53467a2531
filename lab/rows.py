"""The rows of the evaluation: each a method with its settings, in the order of their importance."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ditail.content.balance import at_balance
from ditail.content.presets import PRESETS
from ditail.content.settings import DitailSettings
from ditail.errors import DitailError

STEPS, OMEGA = 10, 5.0
FEW_STEPS, MORE_STEPS = (4, 6, 8), 20
MAIN, GENERATED, BY_STEPS, TRIED = "main", "generated", "steps", "tried"

TRUTH, CONTENT = "true target image", "content through the VAE"
PLAIN, IMG2IMG, PAPER, OURS, DRAFT = "plain", "img2img", "Paper", "Balance", "Draft"
DDIB, PNP, DIFFSTYLER, PAPER_CFG_3 = "DDIB", "PnP", "DiffStyler", "Paper CFG 3"
ANCHORED, REFINER = "Anchored", "refiner"
SAME_NOISE = "same noise without injection"


@dataclass(frozen=True)
class Row:
    """One line of the tables: a method at one value of its knob.

    curve: the method, whose rows in order of `value` are its curve. table: where it is shown. way: the function of
    `lab.methods` that makes its images. settings: Ditail's, by key. strength: img2img's denoising; gain: DiffStyler's
    weight. inverter: which of the two models inverts, with the main prompt or, `is_null`, with the empty one.
    """

    name: str
    curve: str
    way: str
    value: float = 0.0
    table: str = MAIN
    settings: tuple[tuple[str, object], ...] = ()
    omega: float = OMEGA
    steps: int = STEPS
    strength: float = 1.0
    gain: float = 1.0
    inverter: str = "source"
    is_null: bool = False

    @cached_property
    def ditail(self) -> DitailSettings:
        return DitailSettings.from_dict(dict(self.settings))

    @property
    def inversion(self) -> tuple | None:
        """What the row's source latents depend on; None where it has none."""
        if self.way not in ("ditail", "diffstyler"):
            return None
        s = self.ditail
        return (self.steps, s.source, s.source_latents if s.source == "generate" else "", s.alpha, s.beta,
                s.inversion_steps, self.inverter, self.is_null)


def _ditail(name: str, curve: str, values: Mapping, **others) -> Row:
    return Row(name, curve, "ditail", settings=tuple(sorted(values.items())), **others)


def main_rows() -> list[Row]:
    """The curves: structure against style over each method's own knob."""
    rows = [Row(TRUTH, TRUTH, "truth"), Row(CONTENT, CONTENT, "content"), Row(PLAIN, PLAIN, "plain")]
    rows += [Row(f"img2img {s:g}", IMG2IMG, "img2img", s, strength=s) for s in (0.4, 0.6, 0.8)]
    rows += [_ditail(f"Paper alpha {a:g}", PAPER, {"alpha": a}, value=a) for a in (3.0, 1.0, 8.0)]
    rows += [_ditail(_name_of(b), OURS, at_balance(b), value=b) for b in (0.5, 1.0, 0.0)]
    start = {"alpha": 1.0, "beta": 0.0, "conv_ratio": 0.0, "attn_ratio": 0.0}
    rows += [_ditail(f"DDIB CFG {w:g}", DDIB, start, value=w, omega=w) for w in (5.0, 3.0)]
    rows += [_ditail(f"PnP attention {a:g}", PNP, {"alpha": 1.0, "beta": 0.0, "conv_ratio": c, "attn_ratio": a},
                     value=a, inverter="target", is_null=True) for a, c in ((0.5, 0.8), (0.2, 0.4))]
    rows += [_ditail("Draft", DRAFT, PRESETS["Draft"], value=3.0)]
    rows += [Row(f"DiffStyler weight {g:g}", DIFFSTYLER, "diffstyler", g, gain=g,
                 settings=(("alpha", 1.0), ("beta", 0.0))) for g in (1.0, 0.5)]
    rows += [_ditail(f"Paper CFG 3 alpha {a:g}", PAPER_CFG_3, {"alpha": a}, value=a, omega=3.0) for a in (3.0, 1.0)]
    return rows


def _name_of(balance: float) -> str:
    names = {0.0: "Style", 0.5: "Balanced", 1.0: "Structure"}
    return names.get(balance, f"Balance {balance:g}")


def generated_rows() -> list[Row]:
    """Content that the source model generates from the same noise; structure is measured against its image."""
    generate = {"source": "generate"}
    rows = [
        Row(f"generated: {SAME_NOISE}", SAME_NOISE, "plain", settings=tuple(generate.items())),
        _ditail("generated: Paper latents kept", "kept", {**generate, "source_latents": "kept"}),
        _ditail("generated: Paper inverted", PAPER, generate),
        _ditail("generated: Balanced inverted", OURS, {**PRESETS["Balanced"], **generate}),
        _ditail("generated: Balanced latents kept", "kept", {**PRESETS["Balanced"], **generate,
                                                              "source_latents": "kept"}),
    ]
    rows += [Row(f"generated: refiner after {switch:g} of the steps", REFINER, "refiner", switch, strength=strength,
                 settings=(*generate.items(), ("source_latents", "kept")))
             for switch, strength in ((0.2, 0.8), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2))]
    return [replace(row, table=GENERATED) for row in rows]


def tried_rows() -> list[Row]:
    """Methods that were tried and are not in Ditail."""
    start = {"alpha": 1.0, "beta": 0.0, "conv_ratio": 0.0, "attn_ratio": 0.0}
    injected = {"alpha": 1.0, "beta": 0.0, "inject": "cond"}
    return [Row(f"{name} CFG {w:g}", ANCHORED, "anchored", w, TRIED, tuple(values.items()), w)
            for name, values, weights in (("Anchored", start, (5.0, 2.0)),
                                          ("Anchored and injected", injected, (5.0, 3.0))) for w in weights]


def step_rows() -> list[Row]:
    """Fewer and more steps."""
    rows = []
    for steps in (*FEW_STEPS, MORE_STEPS):
        rows += [Row("img2img 0.6", IMG2IMG, "img2img", strength=0.6, steps=steps),
                 _ditail("Paper alpha 3", PAPER, {}, steps=steps),
                 _ditail("Balanced", OURS, PRESETS["Balanced"], steps=steps)]
    return [replace(row, name=f"{row.steps} steps: {row.name}", value=row.steps, table=BY_STEPS) for row in rows]


def all_rows() -> list[Row]:
    return [*main_rows(), *generated_rows(), *step_rows(), *tried_rows()]


def choose_rows(only: str | None) -> list[Row]:
    """The rows whose names begin with one of the comma-separated parts of `only`, in the order of the parts.

    All for None. Raises DitailError where there is none.
    """
    if not only:
        return all_rows()
    parts = [part.strip().lower() for part in only.split(",") if part.strip()]
    chosen = [row for part in parts for row in all_rows() if row.name.lower().startswith(part)]
    if not chosen:
        names = ", ".join(row.name for row in all_rows())
        raise DitailError("rows", f"nothing is called {only!r}; there are {names}")
    return list(dict.fromkeys(chosen))
