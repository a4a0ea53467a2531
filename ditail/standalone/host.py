"""The command line as a host of the job layer: checkpoints are files, and one model is in memory at a time."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from ..cache.features import Features
from ..colours import match_colours
from ..content.presets import PRESETS
from ..errors import DitailError
from ..job.host import Checkpoint, Networks, Pass, Prompts, Replacement, Row, SamplingPlan
from ..keys import file_fingerprint
from ..method.inversion import Denoiser, combine_conds
from ..method.latents import SourceLatents
from ..method.layers import Layers
from ..method.prediction import Prediction
from ..method.schedule import InjectionSteps
from ..unet.families import family_of_file
from ..unet.shortcuts import Savings
from ..unet.sites import find_sites
from .checkpoint_files import check_checkpoint, read_config, read_schedule
from .model import Model, build_empty_unet, default_device, default_dtype, load_model, quiet, upcasts_attention
from .progress import NoBar
from .samplers import Sampler, noise_mark
from .sampling import SamplingJob, decode_image, generate, rows_of

TAG = re.compile(r"<(lora|lyco|hypernet):[^<>]*>")


class LoadedModels:
    """Loads checkpoints and keeps the last `capacity` of them in memory."""

    def __init__(self, capacity: int = 1):
        quiet()
        self._capacity = capacity
        self._models: dict[Path, Model] = {}

    def __call__(self, path: Path) -> Model:
        if path not in self._models:
            while len(self._models) >= self._capacity:
                del self._models[next(iter(self._models))]
            self._models[path] = load_model(path)
        return self._models[path]


class FileLibrary:
    """Checkpoints by their paths: see `job.host.Library`."""

    def find_checkpoint(self, name: str) -> Checkpoint | None:
        if not name:
            return None
        return self.checkpoint(Path(name))

    def checkpoint(self, path: Path) -> Checkpoint:
        """The checkpoint of a file. Raises DitailError if it can't be loaded."""
        check_checkpoint(path)
        return Checkpoint(str(path.absolute()), path.stem, path.name)

    def find_vae(self, name: str) -> str:
        if name:
            raise DitailError("source_vae", "the command line uses each checkpoint's own VAE")
        return ""

    def presets(self) -> Mapping[str, Mapping]:
        return PRESETS


class FileCheckpoints:
    """See `job.host.Checkpoints`."""

    def __init__(self, target: Checkpoint):
        self._target = target

    def target(self) -> Checkpoint:
        return self._target

    def check_family(self, checkpoint: Checkpoint) -> None:
        families = []
        for path in (checkpoint.path, self._target.path):
            try:
                families.append(family_of_file(path))
            except (SafetensorError, OSError) as error:
                raise DitailError(path, f"can't be read ({error})") from error
        if families[0] != families[1]:
            raise DitailError("source_checkpoint", f"{checkpoint.name} is {families[0]}, the target "
                              f"{self._target.name} is {families[1]}")

    def replacements(self, plans: Mapping[bool, SamplingPlan]) -> Sequence[Replacement]:
        return ()

    def vae_file(self, checkpoint: Checkpoint, vae: str) -> str | None:
        return None

    def parse_prompt(self, text: str) -> tuple[str, Networks]:
        if tag := TAG.search(text):
            raise DitailError("prompt", f"{tag[0]}: extra networks work in the WebUI only")
        return text, {}

    def fingerprint(self, checkpoint: Checkpoint, vae_file: str | None, prompts: Prompts, networks: Networks) -> dict:
        config, device = Path(checkpoint.path).with_suffix(".yaml").read_bytes(), default_device()
        # Rounding depends on the device, the dtype and the number of threads.
        return {"checkpoint": file_fingerprint(checkpoint.path), "config": hashlib.sha256(config).hexdigest(),
                "prompts": prompts, "device": device.type, "dtype": str(default_dtype(device)),
                "threads": torch.get_num_threads()}


class FileJob:
    """One job of the command line: see `job.host.HostJob`."""

    def __init__(self, sampling: SamplingJob, size: tuple[int, int], batch_size: int, alphas_cumprod: Tensor):
        self.sampling, self.size, self.batch_size, self._alphas_cumprod = sampling, size, batch_size, alphas_cumprod

    def prompts(self) -> Sequence[Prompts]:
        return [(prompt, self.sampling.negative_prompt) for prompt in self.sampling.prompts]

    def passes(self) -> Sequence[Pass]:
        return [Pass(False, self.size)]

    def plan(self, *, hires: bool) -> SamplingPlan:
        sampler = Sampler(self.sampling.sampler, self.sampling.steps, self._alphas_cumprod)
        # The samplers of the command line begin at VP latents.
        timesteps = tuple(reversed(sampler.timesteps))
        return SamplingPlan(timesteps, self.sampling.steps, timesteps[-1], 0, 1, 1)

    @property
    def part(self) -> None:
        return None

    def sampled_part(self, image: Image.Image, resize_mode: str) -> Image.Image:
        return image

    def generation_fingerprint(self, image: int) -> dict:
        sampling = self.sampling
        return {"generate": [sampling.sampler, sampling.steps, sampling.omega], "seed": sampling.seeds[image],
                **noise_mark(sampling.sampler)}

    def generation_metadata(self, image: int) -> dict[str, str]:
        sampling = self.sampling
        return {"seed": str(sampling.seeds[image]), "sampler": sampling.sampler, "steps": str(sampling.steps)}

    def match_colours(self, image: Image.Image, content: Image.Image) -> Image.Image:
        return match_colours(image, content)

    def comment(self, text: str) -> None:
        tqdm.write(text)

    def images(self, first: int) -> SamplingJob:
        """The batch of the job that begins with image number `first`."""
        batch = slice(first, first + self.batch_size)
        return self.sampling.with_(prompts=self.sampling.prompts[batch], seeds=self.sampling.seeds[batch])


class FileModels:
    """See `job.host.SourceModels`."""

    def __init__(self, load: LoadedModels, job: FileJob, progress: NoBar):
        self._load, self._job, self.progress = load, job, progress
        self.device = default_device()

    @contextmanager
    def source_pass(self, steps: Sequence[int]) -> Iterator[NoBar]:
        try:
            with torch.random.fork_rng():
                yield self.progress
        finally:
            self.progress.end()

    @contextmanager
    def borrowed_models(self) -> Iterator[Callable[..., AbstractContextManager[Model]]]:
        # The target is loaded again when it is next needed.
        yield lambda checkpoint, vae_file, networks, why: nullcontext(self._load(Path(checkpoint.path)))

    def encode(self, model: Model, pixels: Tensor, latent_hw: tuple[int, int]) -> Tensor:
        return model.encode(pixels)

    def decode(self, model: Model, z0: Tensor) -> Tensor:
        image = decode_image(model, z0)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)

    def denoiser(self, model: Model, prompts: Prompts, alpha: float, beta: float, size: tuple[int, int],
                 plan: SamplingPlan) -> Denoiser:
        context = combine_conds(alpha, model.encode_prompts(prompts[:1]), beta, model.encode_prompts(prompts[1:]))
        return lambda z, t: model.eps(z, t, context)

    def alphas_cumprod(self, model: Model) -> Tensor:
        return model.alphas_cumprod

    def generate(self, model: Model, images: Sequence[tuple[Prompts, int]], size: tuple[int, int], plan: SamplingPlan,
                 check: Callable[[], None], *, decoded: bool) -> list[SourceLatents]:
        sampling, numbers = self._job.sampling, [number for _, number in images]
        job = sampling.with_(prompts=tuple(prompts[0] for prompts, _ in images), negative_prompt=images[0][0][1],
                             seeds=tuple(sampling.seeds[number] for number in numbers))
        z, trajectory = generate(model, job, *size, self.progress.step)
        latents = rows_of(trajectory)
        if not decoded:
            return latents
        return [source.with_image(self.decode(model, row)) for source, row in zip(latents, z.split(1), strict=True)]


class FileTarget:
    """See `job.host.Target`."""

    def __init__(self, model: Callable[[], Model], checkpoint: Checkpoint):
        self._model, self._checkpoint = model, checkpoint
        self._rows: list[Row] = []

    def expect(self, rows: Sequence[Row]) -> None:
        """Set the rows of the next calls of the U-Net, in order."""
        self._rows = list(rows)

    def rows_of(self, count: int, call: Mapping) -> Sequence[Row]:
        taken, self._rows = self._rows[:count], self._rows[count:]
        return taken

    def check_layers(self, layers: Layers) -> None:
        if layers:
            find_sites(build_empty_unet(Path(self._checkpoint.path)), layers)

    def unet(self) -> nn.Module:
        return self._model().unet

    def prediction(self) -> Prediction:
        return self._model().prediction

    def is_plain(self) -> bool:
        return True

    def keep_attention_whole(self) -> None:
        pass

    def check_injection(self, steps: InjectionSteps) -> None:
        pass

    def null(self, size: tuple[int, int]) -> Mapping[str, Tensor]:
        return {"context": self._model().encode_prompts([""])}

    def savings(self) -> Savings:
        return Savings(upcast_attention=upcasts_attention())

    def features(self, source_keys: Sequence[str], null: Mapping[str, Tensor],
                 size: tuple[int, int]) -> Features | None:
        return None

    def without_others(self) -> AbstractContextManager:
        return nullcontext()


class FileHost:
    """The command line with one job: see `job.host.Host`."""

    def __init__(self, load: LoadedModels, target: Checkpoint, job: SamplingJob, size: tuple[int, int],
                 batch_size: int = 1, progress: NoBar | None = None):
        def model() -> Model:
            return load(Path(target.path))

        self.model = model
        self.checkpoints = FileCheckpoints(target)
        # The schedule is read from the yaml, as loading the target before the source pass would load it twice.
        self.job = FileJob(job, size, batch_size, read_schedule(read_config(Path(target.path))))
        self.models = FileModels(load, self.job, progress or NoBar())
        self.target = FileTarget(model, target)
