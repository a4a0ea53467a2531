"""The compared methods on the demo checkpoints: batches give what the job layer gives, and each method does its own."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_leaves

from ditail.cache.latents import LatentCache
from ditail.content.images import image_to_tensor, tensor_to_images
from ditail.content.presets import PRESETS
from ditail.content.settings import DitailSettings
from ditail.job.job import Job
from ditail.job.request import Request
from ditail.method.schedule import scaled_linear_alphas_cumprod
from ditail.standalone import demo_checkpoints
from ditail.standalone.host import FileHost, FileLibrary, LoadedModels
from ditail.standalone.model import load_model
from ditail.standalone.run import images_of
from ditail.standalone.sampling import SamplingJob, generate
from lab import evaluate, methods
from lab.rows import choose_rows

pytestmark = pytest.mark.slow
JOB = SamplingJob(("a fox on pink", "a pig on pink"), steps=6, omega=5.0, seeds=(1, 2))


@pytest.fixture(scope="module")
def evaluator():
    return evaluate.Evaluator(evaluate.load_material())


@pytest.fixture(scope="module")
def models():
    return {style: load_model(path) for style, path in demo_checkpoints.paths().items()}


@pytest.fixture(scope="module")
def z0(models):
    images = demo_checkpoints.held_out().images["noto"]
    return models["noto"].encode(torch.cat([image_to_tensor(images[0]), image_to_tensor(images[2])]))


@pytest.mark.parametrize("preset", ["Paper", "Balanced", "Style"])
def test_a_batch_is_what_the_job_layer_makes(models, z0, preset):
    settings = DitailSettings.from_dict(PRESETS[preset])
    source = methods.source_latents(models["noto"], JOB, settings, z0, is_null=False)
    batch = methods.ditail(models["ink"], JOB, settings, source, z0)
    image, = tensor_to_images(models["ink"].decode(batch[:1]))
    difference = np.abs(np.asarray(image, float) - np.asarray(_by_the_job_layer(preset), float))
    assert difference.mean() < 0.5 and difference.max() < 16


def _by_the_job_layer(preset: str) -> Image.Image:
    paths, library = demo_checkpoints.paths(), FileLibrary()
    request = Request.from_values({
        **PRESETS[preset], "enabled": True, "source_checkpoint": str(paths["noto"]),
        "image": demo_checkpoints.held_out().images["noto"][0]}, library)
    job = JOB.with_(prompts=JOB.prompts[:1], seeds=JOB.seeds[:1])
    host = FileHost(LoadedModels(), library.checkpoint(paths["ink"]), job, (128, 128))
    layer = Job(host, request, LatentCache(2**30))
    layer.prepare([])
    image, = images_of(host, layer)
    return image


def test_fused_functions_compute_the_same(models, z0):
    plain = methods.plain(models["ink"], JOB, z0)
    fused = methods.plain(methods.accelerate(load_model(demo_checkpoints.paths()["ink"])), JOB, z0)
    assert (fused - plain).abs().max() < 1e-3 * plain.abs().max()


def test_diffstyler_without_weight_injects_features_alone_and_takes_its_hooks_off(models, z0):
    settings = DitailSettings(alpha=1.0, beta=0.0)
    source = methods.source_latents(models["noto"], JOB, settings, z0, is_null=False)

    def blend(gain):
        return methods.diffstyler(models["ink"], models["noto"], JOB, source, gain)

    nothing, start = blend(0.0), DitailSettings(conv_ratio=0, attn_ratio=0)
    start_only = methods.ditail(models["ink"], JOB, start, source, z0)
    whole = blend(1.0)
    assert (nothing - start_only).abs().mean() < (whole - start_only).abs().mean()
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for name in ("ink", "noto") for module in models[name].unet.modules())


def test_anchored_sampling_of_the_source_model_itself_gives_the_content_back(models, z0):
    """With CFG 1, nothing injected, and the noise of the last step, with which DDIM ends."""
    settings = DitailSettings(alpha=1.0, beta=0.0, conv_ratio=0, attn_ratio=0)
    job = JOB.with_(steps=3, omega=1.0)
    for target, is_back in (("noto", True), ("ink", False)):
        image = methods.anchored(models[target], models["noto"], job, settings, z0)
        assert ((image - z0).abs().mean() < 0.03) == is_back


def test_a_refiner_of_the_same_model_changes_nothing(models):
    job = JOB.with_(steps=4)
    z, passed = generate(models["noto"], job, 64, 64)
    assert torch.allclose(methods.refine(models["noto"], job, passed, 0.5), z, atol=1e-3)
    assert not torch.allclose(methods.refine(models["ink"], job, passed, 0.5), z, atol=0.1)


class OnGpu(torch.Tensor):
    """A tensor that can't be combined with one on the CPU, as if it were on a GPU."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        tensors = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        if function is not torch.Tensor.to and any(not isinstance(x, cls) and x.ndim for x in tensors):
            raise RuntimeError(f"{function.__name__}: tensors on two devices")
        result = super().__torch_function__(function, types, args, kwargs or {})
        return result.as_subclass(torch.Tensor) if function is torch.Tensor.cpu else result


def test_a_tone_on_a_gpu_shifts_a_start_on_the_cpu(z0):
    def shift(device):
        target = SimpleNamespace(encode_prompts=lambda _: None, alphas_cumprod=scaled_linear_alphas_cumprod(),
                                 eps=lambda z, t, context: z * torch.full_like(z, 0.9))
        return methods._tone(target, JOB, 1.0, z0.as_subclass(device), 901)

    on_gpu, on_cpu = shift(OnGpu), shift(torch.Tensor)
    assert type(on_gpu) is torch.Tensor and torch.equal(on_gpu, on_cpu) and on_cpu.abs().max() > 0


def test_images_on_a_gpu_are_measured(evaluator):
    unit = evaluate.Unit("noto", tuple(choose_rows("plain")), (0, 1))
    images = evaluator.tensors("ink", (0, 1))
    on_gpu = images.as_subclass(OnGpu)
    assert evaluator.measure(on_gpu, on_gpu, unit, "ink") == evaluator.measure(images, images, unit, "ink")


def test_every_method_is_measured(evaluator):
    names = ("true,content,plain,img2img 0.6,balanced,ddib cfg 5,pnp attention 0.5,diffstyler weight 1,generated: bal,"
             "generated: refiner after 0.6,anchored cfg 2")
    rows = [dataclasses.replace(row, steps=4) for row in choose_rows(names)]
    units = [unit for unit in evaluate.cut_into_units(rows, evaluator.material.styles, 2, set())
             if unit.source == "noto"]
    records = {(r["row"], r["target"]): r for unit in units for r in evaluator.run(unit)}
    assert len(records) == 2 * len(rows)
    assert all(len(record[name]) == 2 for record in records.values() for name in ("style", "edge_f1", "l1"))
    assert records["true target image", "ink"]["l1"] == [0, 0]
    assert min(records["content through the VAE", "ink"]["edge_f1"]) > 0.6
    assert max(records["content through the VAE", "ink"]["style"]) < 0.3
    assert min(records["Balanced", "ink"]["edge_f1"]) > max(records["plain", "ink"]["edge_f1"])
