"""What the job layer asks of a host: the WebUI, or the command line."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..cache.features import Features
from ..method.inversion import Denoiser
from ..method.latents import SourceLatents
from ..method.layers import Layers
from ..method.schedule import InjectionSteps
from ..unet.shortcuts import Savings

# A loaded model, and a prompt's extra networks: the host's own objects, which the job layer only passes on.
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


class Row(NamedTuple):
    """A row of a call of the U-Net: of which image of the batch, and whether it is one of the prompt's (cond)."""

    image: int
    is_cond: bool


@dataclass(frozen=True)
class Pass:
    """A sampling that a job may do: `size` is (width, height) in pixels; hires: the second pass of the hires fix.

    is_sampled: False where the host starts from an image of this size instead.
    """

    hires: bool
    size: tuple[int, int]
    is_sampled: bool = True


@dataclass(frozen=True)
class SamplingPlan:
    """What the host's sampler is going to do.

    timesteps: where the U-Net will be called, ascending; sampling starts at the last one. steps: what the progress bar
    counts. The sampler begins at `image_scale * x + noise_scale * noise`; the VP latent `z` of the first timestep is
    `start_scale * z` there. is_adaptive: the sampler takes other steps on a real model.
    """

    timesteps: tuple[float, ...]
    steps: int
    image_scale: float
    noise_scale: float
    start_scale: float
    is_adaptive: bool = False

    def start_from(self, z: Tensor, x: Tensor, noise: Tensor) -> None:
        """Overwrite `noise` so that the sampler begins at the VP latent `z`; `x` (the init latent) stays."""
        start = self.start_scale * z.to(noise)
        # In txt2img x and noise may be one tensor, and image_scale is 0.
        noise.copy_((start - self.image_scale * x.to(noise)) / self.noise_scale)


class Interrupted(Exception):
    """The user ended the source pass."""


class Progress(Protocol):
    """The source pass as the host shows it. Every method raises Interrupted once the user has ended the job."""

    def show(self, text: str) -> None:
        """Say what is being done."""

    def begin(self, steps: int, text: str) -> None:
        """A batch of sources begins that takes so many steps."""

    def step(self, index: int, z: Tensor) -> None:
        """Step `index` of a batch is done, with latents `z`."""

    def check(self) -> None:
        """Nothing new."""

    def end(self) -> None:
        """A batch is done."""


class Library(Protocol):
    """A host's checkpoints and VAEs by their names."""

    def find_checkpoint(self, name: str) -> Checkpoint | None:
        """The checkpoint of a name; None for "". Raises DitailError if there is none."""

    def find_vae(self, name: str) -> str:
        """A VAE's name as the host writes it. Raises DitailError if there is none."""

    def presets(self) -> Mapping[str, Mapping]:
        """The presets that a request may name: settings by key."""


class Checkpoints(Protocol):
    """The checkpoints of a job, and what sources that are made with them depend on."""

    def target(self) -> Checkpoint:
        """The checkpoint that the job samples with."""

    def check_family(self, checkpoint: Checkpoint) -> None:
        """Raise DitailError unless a checkpoint is of the target's architecture."""

    def vae_file(self, checkpoint: Checkpoint, vae: str) -> str | None:
        """The file of the VAE that a source uses; None for the checkpoint's own. vae: "" keeps the one in place."""

    def parse_prompt(self, text: str) -> tuple[str, Networks]:
        """A prompt without its extra networks' tags, and those."""

    def fingerprint(self, checkpoint: Checkpoint, vae_file: str | None, prompts: Prompts, networks: Networks) -> dict:
        """What a source model's answers depend on, for a cache key."""


class HostJob(Protocol):
    """The job as the host has it."""

    batch_size: int

    def prompts(self) -> Sequence[Prompts]:
        """(prompt, negative prompt) of each image of the job."""

    def passes(self) -> Sequence[Pass]:
        """The samplings of the job, in their order."""

    def plan(self, *, hires: bool) -> SamplingPlan | None:
        """What the sampler of a pass is going to do with the target; None where it takes no step."""

    def framed(self, image: Image.Image, resize_mode: str) -> Image.Image:
        """The part of an image over the whole init image that is sampled (inpainting "only masked")."""

    def generation_fingerprint(self, image: int) -> dict:
        """What generating the job's image of this number depends on besides model, prompts and size; for a key."""

    def generation_metadata(self, image: int) -> dict[str, str]:
        """Metadata of that for a cache entry, "seed" among it."""

    def match_colours(self, image: Image.Image, content: Image.Image) -> Image.Image:
        """An image in the colours of its content image. Raises DitailError where that can't be done."""

    def comment(self, text: str) -> None:
        """Tell the user something beside the images."""


class SourceModels(Protocol):
    """The source pass: source models in place, and what is made with them."""

    @property
    def device(self) -> torch.device:
        """Where latents are while they are inverted."""

    def source_pass(self, steps: Sequence[int]) -> AbstractContextManager[Progress]:
        """A context for making sources in batches of so many steps each.

        In it other extensions leave the U-Net alone and the attention is whole; random state is as before afterwards.
        """

    def borrowed_models(self) -> AbstractContextManager[Callable[..., AbstractContextManager[Model]]]:
        """A context that gives `borrow(checkpoint, vae_file, networks, why)`, a context with that model in place.

        Raises DitailError for what can't be loaded. The target is back in place afterwards, whatever happened.
        """

    def encode(self, model: Model, pixels: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        """`z_0` `[1, 4, h, w]` of pixels `[1, 3, H, W]` in -1..1, float32."""

    def decode(self, model: Model, z0: Tensor) -> Tensor:
        """The image `[h, w, 3]` uint8, on the CPU, of `z_0` `[1, 4, h / 8, w / 8]`."""

    def denoiser(self, model: Model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                 timesteps: Sequence[float]) -> Denoiser:
        """`(z, t) -> eps` under `alpha * C_pos - beta * C_neg`."""

    def alphas_cumprod(self, model: Model) -> Tensor:
        """The model's schedule `[1000]`, float32 on the CPU."""

    def generate(self, model: Model, images: Sequence[tuple[Prompts, int]], size: tuple[int, int], plan: SamplingPlan,
                 check: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
        """The latents that the model passes through as it generates images, one for each (prompts, number in the job).

        They have the `z_0` that they end in. check: called before each call of the U-Net. decoded: with the images that
        they end in. Raises DitailError if the sampling ends early.
        """


class Target(Protocol):
    """The target's U-Net while the host samples."""

    def unet(self) -> nn.Module:
        """As it is now: a refiner may have replaced it."""

    def check_layers(self, layers: Layers) -> None:
        """Raise DitailError for layers that it lacks; none = its architecture's own."""

    def is_plain(self) -> bool:
        """Whether nothing but the target's weights is at work in it."""

    def keep_attention_whole(self) -> None:
        """For the rest of the job, let the host shorten no attention of the target (token merging, tiles)."""

    def check_injection(self, steps: InjectionSteps) -> None:
        """Raise DitailError where something else rewrites what is to be injected; asked at each step."""

    def rows_of(self, count: int, call: Mapping) -> Sequence[Row]:
        """What the `count` rows of a call of the U-Net are. call: its keyword arguments."""

    def null(self, size: tuple[int, int]) -> Mapping[str, Tensor]:
        """The U-Net's keyword arguments for the empty prompt: see `Injection`."""

    def savings(self) -> Savings:
        """Which shortcuts can be taken."""

    def features(self, source_keys: Sequence[str], null: Mapping[str, Tensor],
                 size: tuple[int, int]) -> Features | None:
        """Where the target's features are kept; None for nowhere."""

    def without_others(self) -> AbstractContextManager:
        """A context in which other extensions leave the U-Net alone."""


class Host(Protocol):
    """A host with one job. Whatever it changes of its own state is undone when the context that it is in ends."""

    @property
    def checkpoints(self) -> Checkpoints: ...

    @property
    def job(self) -> HostJob: ...

    @property
    def models(self) -> SourceModels: ...

    @property
    def target(self) -> Target: ...
