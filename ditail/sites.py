"""Where Ditail injects: which modules of an ldm U-Net, per architecture, as data that is checked."""

from dataclasses import dataclass

from torch import nn

from .errors import DitailError


@dataclass(frozen=True)
class Architecture:
    """A family of ldm U-Nets.

    blocks: how many `output_blocks` it has. feature_block: the one whose ResBlock hands over its hidden state.
    attention_blocks: those whose self-attentions hand over q and k. depth: transformer blocks in each of them, where
    the family fixes it (SDXL's differ by level).
    """

    name: str
    blocks: int
    feature_block: int
    attention_blocks: tuple[int, ...]
    depth: int | None = None


# Paper section 3.3 and the authors' code for SD 1.x (diffusers' up_blocks[1].resnets[1], attentions of up_blocks 1..3
# but the first); SDXL is the same place in its own numbering (shared design, section 1).
ARCHITECTURES = (
    Architecture("SD 1.x/2.x", blocks=12, feature_block=4, attention_blocks=tuple(range(4, 12)), depth=1),
    Architecture("SDXL", blocks=9, feature_block=1, attention_blocks=tuple(range(1, 6))),
)


@dataclass(frozen=True)
class Sites:
    """The modules of one U-Net: `feature` is (name, `out_layers`), `attention` (name, `attn1`), from first to last."""

    architecture: Architecture
    feature: tuple[str, nn.Module]
    attention: tuple[tuple[str, nn.Module], ...]


def architecture_of(unet: nn.Module) -> Architecture:
    """The family of a U-Net by the number of its `output_blocks`. Raises DitailError where there is none."""
    count = len(getattr(unet, "output_blocks", ()))
    for architecture in ARCHITECTURES:
        if count == architecture.blocks:
            return architecture
    what = f"{count} output blocks" if count else "no output blocks"
    known = " and ".join(a.name for a in ARCHITECTURES)
    raise DitailError(f"{type(unet).__name__} has {what}: Ditail needs a U-Net of {known}")


def find_sites(unet: nn.Module, architecture: Architecture | None = None) -> Sites:
    """The modules to hook. `architecture` may name other layers than the default ones.

    Raises DitailError if a named block lacks its ResBlock or its self-attentions, or has more or fewer than expected.
    """
    architecture = architecture or architecture_of(unet)
    blocks = unet.output_blocks
    name = f"output_blocks.{architecture.feature_block}.0"
    out_layers = getattr(blocks[architecture.feature_block][0], "out_layers", None)
    if out_layers is None:
        raise DitailError(f"{architecture.name}: {name} is not a ResBlock with out_layers")
    attention = []
    for index in architecture.attention_blocks:
        found = [(f"output_blocks.{index}.{n}", m) for n, m in blocks[index].named_modules() if n.endswith("attn1")]
        usable = [m for _, m in found if hasattr(m, "to_q") and hasattr(m, "to_k") and not is_cross_attention(m)]
        if not found or len(usable) != len(found) or architecture.depth not in (None, len(found)):
            raise DitailError(
                f"{architecture.name}: output_blocks.{index} has {len(usable)} self-attentions of {len(found)}, "
                f"expected {architecture.depth or 'one or more'}"
            )
        attention += found
    return Sites(architecture, (f"{name}.out_layers", out_layers), tuple(attention))


def is_cross_attention(attn1: nn.Module) -> bool:
    """Whether `attn1` reads the prompt (ldm's `disable_self_attn`): its keys then come from another width."""
    in_q, in_k = (getattr(p, "in_features", None) for p in (attn1.to_q, attn1.to_k))
    return in_q != in_k
