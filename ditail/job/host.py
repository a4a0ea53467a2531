"""The protocols that a host (the WebUI, the command line) implements for the job layer."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..cache.features import Features
from ..content.collage import Part
from ..method.inversion import Denoiser
from ..method.latents import SourceLatents
from ..method.layers import Layers
from ..method.prediction import Prediction
from ..method.schedule import InjectionSteps
from ..unet.shortcuts import Savings

# A loaded model, and a prompt's extra networks. Both are the host's own objects, which the job layer only passes on.
Model = Any
Networks = Mapping[str, Sequence]
Prompts = tuple[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file. name: for messages. title: for metadata. handle: the host's own object for it."""

    path: str
    name: str
    title: str
    handle: object = None


class Replacement(NamedTuple):
    """A checkpoint with which the host samples instead of the target, at timesteps up to `up_to` of a pass.

    key: the host's name of its setting, for messages.
    """

    checkpoint: Checkpoint
    hires: bool
    up_to: float
    key: str


class Row(NamedTuple):
    """A row of a U-Net call. image: its image's number in the batch. is_cond: whether it is of the prompt."""

    image: int
    is_cond: bool


@dataclass(frozen=True)
class Pass:
    """A sampling pass of a job. hires: the second pass of the hires fix. size: (width, height) in pixels.

    is_sampled: False if the host starts from a given image of this size instead.
    """

    hires: bool
    size: tuple[int, int]
    is_sampled: bool = True


@dataclass(frozen=True)
class PromptSteps:
    """What prompt editing (`[a:b:0.5]`) counts in a pass. calls: calls of the U-Net before that of each timestep.

    first, hires: how many calls the prompts of the first pass and, in the hires pass, of that one are meant for. In
    img2img `first` is more than there are, as only a part of the steps is taken.
    """

    calls: tuple[int, ...]
    first: int
    hires: int | None = None


@dataclass(frozen=True)
class SamplingPlan:
    """What the host's sampler will do in a pass.

    timesteps: where the U-Net will be called, ascending. steps: for the progress bar. start: the timestep at which
    sampling starts; the last one, unless the sampler adds noise before its first call (`s_churn`). The sampler begins
    at `image_scale * x + noise_scale * noise`; the VP latent `z` of `start` is `start_scale * z` there. is_adaptive:
    the sampler chooses its steps by the model's output. prompt_steps: None if the host knows no prompt editing.
    """

    timesteps: tuple[float, ...]
    steps: int
    start: float
    image_scale: float
    noise_scale: float
    start_scale: float
    is_adaptive: bool = False
    prompt_steps: PromptSteps | None = None

    def start_from(self, z: Tensor, x: Tensor, noise: Tensor) -> None:
        """Overwrite `noise` so that the sampler begins at the VP latent `z`; `x` (the init latent) is not changed."""
        start = self.start_scale * z.to(noise)
        # In txt2img x and noise may be one tensor, and image_scale is 0.
        noise.copy_((start - self.image_scale * x.to(noise)) / self.noise_scale)


class Interrupted(Exception):
    """The user ended the source pass."""


class Progress(Protocol):
    """Shows the progress of the source pass. Every method raises Interrupted once the user has ended the job."""

    def show(self, text: str) -> None:
        """Show what is being done."""

    def begin(self, steps: int, text: str) -> None:
        """Begin a batch of sources that takes this many steps."""

    def step(self, index: int, z: Tensor) -> None:
        """Report that step `index` of a batch is done, with latents `z`."""

    def check(self) -> None:
        """Report nothing; only raises Interrupted."""

    def end(self) -> None:
        """Report that a batch is done."""


class Library(Protocol):
    """Looks up a host's checkpoints, VAEs and presets by name."""

    def find_checkpoint(self, name: str) -> Checkpoint | None:
        """The checkpoint of a name; None for "". Raises DitailError if there is none."""

    def find_vae(self, name: str) -> str:
        """A VAE's name in the host's spelling. Raises DitailError if there is none."""

    def presets(self) -> Mapping[str, Mapping]:
        """The settings by key of each preset that a request may name."""


class Checkpoints(Protocol):
    """The checkpoints of a job, and fingerprints of them for cache keys."""

    def target(self) -> Checkpoint:
        """The checkpoint that the job samples with."""

    def check_family(self, checkpoint: Checkpoint) -> None:
        """Raise DitailError unless a checkpoint is of the target's architecture."""

    def replacements(self, plans: Mapping[bool, SamplingPlan]) -> Sequence[Replacement]:
        """The checkpoints that replace the target during the job's passes (a refiner). plans: by whether it is hires.

        Where the exact timestep isn't known, `up_to` is a lower one.
        """

    def vae_file(self, checkpoint: Checkpoint, vae: str) -> str | None:
        """The file of the VAE that a source uses; None for the checkpoint's own. vae: "" = the loaded one."""

    def parse_prompt(self, text: str) -> tuple[str, Networks]:
        """(prompt without the tags of extra networks, those networks)."""

    def fingerprint(self, checkpoint: Checkpoint, vae_file: str | None, prompts: Prompts, networks: Networks) -> dict:
        """Everything that a source model's output depends on, for a cache key."""


class HostJob(Protocol):
    """The host's job: its prompts, passes and images."""

    @property
    def batch_size(self) -> int:
        """The number of images in each batch but the last, which may have fewer."""

    def prompts(self) -> Sequence[Prompts]:
        """(prompt, negative prompt) of each image of the job."""

    def passes(self) -> Sequence[Pass]:
        """The sampling passes of the job, in order."""

    def plan(self, *, hires: bool) -> SamplingPlan | None:
        """The plan of a pass with the target; None if it takes no step."""

    @property
    def part(self) -> Part | None:
        """The part of the init image that is sampled (inpainting "only masked"); None if it is all of it."""

    def sampled_part(self, image: Image.Image, resize_mode: str) -> Image.Image:
        """The part of `image` that is sampled, if it covers the whole init image (inpainting "only masked")."""

    def generation_fingerprint(self, image: int) -> dict:
        """What generating image number `image` depends on besides model, prompts and size, for a cache key."""

    def generation_metadata(self, image: int) -> dict[str, str]:
        """Metadata of that generation for a cache entry, including "seed"."""

    def match_colours(self, image: Image.Image, content: Image.Image) -> Image.Image:
        """An image in the colours of its content image. Raises DitailError if the host can't do that."""

    def comment(self, text: str) -> None:
        """Show the user a message with the images."""


class SourceModels(Protocol):
    """Source models: loading them, and encoding, inverting, generating and decoding with them."""

    @property
    def device(self) -> torch.device:
        """The device on which latents are inverted."""

    def source_pass(self, steps: Sequence[int]) -> AbstractContextManager[Progress]:
        """A context for computing sources. steps: the number of steps of each batch.

        In it other extensions do not change the U-Net, and attention is not shortened (token merging, tiles). The state
        of random generators is restored afterwards.
        """

    def borrowed_models(self) -> AbstractContextManager[Callable[..., AbstractContextManager[Model]]]:
        """A context that yields `borrow(checkpoint, vae_file, networks, why)`, itself a context that yields that model.

        Raises DitailError if a model can't be loaded. Afterwards the target is loaded again, also after an exception.
        """

    def encode(self, model: Model, pixels: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        """`z_0` `[1, 4, h, w]` of pixels `[1, 3, H, W]` in -1..1, float32."""

    def decode(self, model: Model, z0: Tensor) -> Tensor:
        """The image `[H, W, 3]` uint8, on the CPU, of `z_0` `[1, 4, H / 8, W / 8]`."""

    def denoiser(self, model: Model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                 plan: SamplingPlan) -> Denoiser:
        """`(z, t) -> eps` under `alpha * C_pos - beta * C_neg`, at the timesteps of a plan."""

    def alphas_cumprod(self, model: Model) -> Tensor:
        """The model's schedule `[1000]`, float32 on the CPU."""

    def generate(self, model: Model, images: Sequence[tuple[Prompts, int]], size: tuple[int, int], plan: SamplingPlan,
                 check: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
        """The latents of the model's sampling of each of `images`, given as (prompts, number in the job).

        They include `z_0`. check: called before each call of the U-Net. decoded: include the decoded images, too.
        Raises DitailError if the sampling ends early.
        """


class Target(Protocol):
    """The target's U-Net while the host samples."""

    def unet(self) -> nn.Module:
        """The current U-Net; a refiner may replace it during sampling."""

    def prediction(self) -> Prediction:
        """What its output means."""

    def check_layers(self, layers: Layers) -> None:
        """Raise DitailError for layers that the U-Net lacks; empty = its architecture's default."""

    def is_plain(self) -> bool:
        """Whether the U-Net is unchanged: no hooks or patches of others, no shortened attention."""

    def keep_attention_whole(self) -> None:
        """Switch off whatever shortens the target's attention (token merging, tiles) for the rest of the job."""

    def check_injection(self, steps: InjectionSteps) -> None:
        """Raise DitailError if another extension rewrites the layers that `steps` injects; called at each step."""

    def rows_of(self, count: int, call: Mapping) -> Sequence[Row]:
        """The image and kind of each of the `count` rows of a U-Net call. call: its keyword arguments."""

    def null(self, size: tuple[int, int]) -> Mapping[str, Tensor]:
        """The U-Net's keyword arguments for the empty prompt (see `Injection`)."""

    def savings(self) -> Savings:
        """Which shortcuts may be used."""

    def features(self, source_keys: Sequence[str], null: Mapping[str, Tensor],
                 size: tuple[int, int]) -> Features | None:
        """The cache of the target's features for these sources; None = they are not kept."""

    def without_others(self) -> AbstractContextManager:
        """A context in which other extensions do not change the U-Net."""


class Host(Protocol):
    """A host with one job. Its contexts undo every change of the host's state when they end."""

    @property
    def checkpoints(self) -> Checkpoints: ...

    @property
    def job(self) -> HostJob: ...

    @property
    def models(self) -> SourceModels: ...

    @property
    def target(self) -> Target: ...
