"""Runs inside the WebUI or Forge under test: raises, or presses a button, at a chosen call of a chosen function, and
reports all state that a job has to leave as it was.

`POINTS` names the functions, here and in `ditail_test_host.py`, which has what differs between the two. Each is wrapped
once, when the WebUI starts, so that wrapping itself never shows as a change. Calls are counted from `arm` on.
"""

import functools
import gc
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import random
import signal
import sys
import traceback

import ditail_test_host as host
import numpy as np
import torch
from fastapi import Body, FastAPI
from modules import (
    extra_networks,
    images,
    processing,
    prompt_parser,
    rng,
    script_callbacks,
    scripts,
    sd_models,
    sd_samplers,
    sd_samplers_cfg_denoiser,
    sd_samplers_common,
    sd_unet,
    sd_vae,
    shared,
)

from ditail.webui import caches

MODULE = "ditail_test_faults"
# Name of a point: where its function is, as "module:attribute" or "module:class.attribute".
POINTS = {
    **host.POINTS,
    "load.state_dict": "torch.nn:Module.load_state_dict",
    "load.callbacks": "modules.script_callbacks:model_loaded_callback",
    "load.schedule": "modules.sd_models:apply_alpha_schedule_override",
    "networks.activate": "modules.extra_networks:activate",
    "networks.deactivate": "modules.extra_networks:deactivate",
    "networks.load": "networks:load_networks",
    "prompt.encode": "modules.prompt_parser:get_learned_conditioning",
    "prompt.encode_multi": "modules.prompt_parser:get_multicond_learned_conditioning",
    "sampler.create": "modules.sd_samplers:create_sampler",
    "sampler.launch": "modules.sd_samplers_common:Sampler.launch_sampling",
    "sampler.denoiser": "modules.sd_samplers_cfg_denoiser:CFGDenoiser.forward",
    "scripts.before_sampling": "modules.scripts:ScriptRunner.process_before_every_sampling",
    "scripts.post_sample": "modules.scripts:ScriptRunner.post_sample",
    "scripts.postprocess_image": "modules.scripts:ScriptRunner.postprocess_image",
    "scripts.postprocess": "modules.scripts:ScriptRunner.postprocess",
    "images.save": "modules.images:save_image",
    "infotext": "modules.processing:create_infotext",
    "ditail.prepare": "ditail.job.job:Job.prepare",
    "ditail.plan": "ditail.webui.sampling:plan_sampling",
    "ditail.sources": "ditail.job.source:sources_of",
    "ditail.invert": "ditail.method.inversion:invert",
    "ditail.generate": "ditail.webui.source_models:record_generation",
    "ditail.mixed": "ditail.job.plan:Sampling.weighted_sources",
    "ditail.start": "ditail.job.host:SamplingPlan.start_from",
    "ditail.infotext": "ditail.webui.infotext:infotext_of",
    "install": "ditail.unet.injection:Injection.install",
    "install.hook": "torch.nn:Module.register_forward_hook",
    "install.pre_hook": "torch.nn:Module.register_forward_pre_hook",
    "install.shortcut": "ditail.unet.shortcuts:Shortcut.__init__",
    "install.enter": "ditail.unet.shortcuts:Shortcut.__enter__",
    "source_run": "ditail.unet.injection:InjectionHooks._run_source",
    "features.get": "ditail.cache.features:FeatureCache.get",
    "features.put": "ditail.cache.features:FeatureCache.put",
    "latents.get": "ditail.cache.latents:LatentCache.get",
    "latents.put": "ditail.cache.latents:LatentCache.put",
    "disk.get": "ditail.cache.folder:LatentFolder.get",
    "disk.put": "ditail.cache.folder:LatentFolder.put",
    "disk.save": "ditail.method.latents:SourceLatents.save",
    "disk.write": "pathlib:Path.write_bytes",
}
# Functions of everybody's, counted only while one of these points is being called.
ONLY_IN = {"install.hook": "install", "install.pre_hook": "install", "disk.write": "disk.save", **host.ONLY_IN}
# Where else a function may have been imported to by name.
PACKAGES = ("modules", "backend", "ditail", "networks", "extra_networks_lora")
ERRORS = {
    "ValueError": ValueError, "OutOfMemoryError": torch.cuda.OutOfMemoryError, "MemoryError": MemoryError,
    "OSError": OSError, "InterruptedException": sd_samplers_common.InterruptedException,
    "RecursionError": RecursionError,
}
WATCHED = (
    extra_networks, images, processing, prompt_parser, rng, scripts, sd_models, sd_samplers, sd_samplers_cfg_denoiser,
    sd_samplers_common, sd_unet, sd_vae, shared, *host.WATCHED,
)
RNG_SEED = 20230


class Injector:
    """The fault that is armed, if any, and how often each point was called since."""

    def __init__(self):
        self.active, self.missing, self.one_config = {}, [], False
        self.arm()

    def arm(self, point: str = "", call: int = 1, action: str = "raise", error: str = "ValueError",
            when: str = "before", lasting: bool = False, record: bool = False) -> None:
        """action: "raise" the error, "interrupt", "skip", "stop", "reload" (the UI), "save" (the settings), or
        "kill" (this process).

        when: "before" or "after" the function does its work. lasting: at each later call, too. record: note at each
        call the state of torch's generator, and the settings that other threads see.
        """
        self.point, self.call, self.action, self.error, self.when = point, call, action, error, when
        self.lasting, self.record = lasting, record
        self.counts, self.fired, self.where = {}, 0, []
        self.rng, self.options, self.options_seen = {rng_digest()}, options_of(), {}

    def called(self, name: str, function, args, kwargs):
        if name in ONLY_IN and not self.active.get(ONLY_IN[name]):
            return function(*args, **kwargs)
        count = self.counts[name] = self.counts.get(name, 0) + 1
        if self.record:
            self.rng |= {rng_digest(), python_digest()}
            self.note_options(name)
        due = name == self.point and (count == self.call or (self.lasting and count > self.call))
        if due and self.when == "before":
            self.fire(args)
        self.active[name] = self.active.get(name, 0) + 1
        try:
            result = function(*args, **kwargs)
        finally:
            self.active[name] -= 1
        if due and self.when == "after":
            self.fire(args)
        return one_config(result) if name == "load.config" and self.one_config else result

    def note_options(self, name: str) -> None:
        for key, value in options_of().items():
            if value != self.options.get(key):
                self.options_seen.setdefault((key, value), name)

    def fire(self, args) -> None:
        self.fired += 1
        frames = [f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in traceback.extract_stack()
                  if "/ditail/" in f.filename and "site-packages" not in f.filename]
        self.where = self.where or frames[-8:]
        state = shared.state
        if self.action == "raise":
            raise ERRORS[self.error]("injected by the test")
        if self.action == "kill":
            die_writing(*args)
        presses = {"interrupt": state.interrupt, "skip": state.skip, "stop": state.stop_generating,
                   "reload": state.request_restart, "save": lambda: shared.opts.save(shared.config_filename)}
        presses[self.action]()


def one_config(path: str) -> str:
    """The same yaml for all demo checkpoints, as checkpoints without a yaml of their own have: the WebUI then loads
    weights into the model that is there."""
    folder, name = os.path.split(path)
    return os.path.join(folder, "house-ink.yaml") if name.startswith("house-") else path


def die_writing(*args) -> None:
    """End this process as a power cut would; half written, if what was called is `Path.write_bytes(path, data)`."""
    if len(args) == 2 and isinstance(args[0], pathlib.Path):
        with open(args[0], "wb") as file:
            file.write(args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(injector: Injector, name: str, place: str) -> None:
    """Put a counting function in the place of a point, wherever it was imported to."""
    module, _, path = place.partition(":")
    *owners, attribute = path.split(".")
    try:
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, attribute)
    except (ImportError, AttributeError):
        injector.missing.append(name)
        return

    @functools.wraps(original)
    def counted(*args, **kwargs):
        return injector.called(name, original, args, kwargs)

    setattr(owner, attribute, counted)
    if not inspect.isclass(owner):
        for name_of_other, other in list(sys.modules.items()):
            if name_of_other.partition(".")[0] in PACKAGES:
                for key in [key for key, value in vars(other).items() if value is original]:
                    setattr(other, key, counted)


def digest(data) -> str:
    return hashlib.sha256(data if isinstance(data, bytes) else str(data).encode()).hexdigest()[:16]


def rng_digest() -> str:
    return digest(torch.get_rng_state().numpy().tobytes())


def python_digest() -> str:
    return f"{hash(random.getstate()):x}"


def options_of() -> dict[str, str]:
    """The settings as any thread sees them. The WebUI itself notes there the hash of whatever checkpoint it loads."""
    return {key: str(value) for key, value in list(shared.opts.data.items()) if key != "sd_checkpoint_hash"}


def rewind() -> None:
    """Set the global random generators to a known state."""
    torch.manual_seed(RNG_SEED)
    np.random.seed(RNG_SEED)
    random.seed(RNG_SEED)


def functions_of(module) -> dict:
    """All functions of a module and of the classes that it defines, by name; and data that are classes' own."""
    found = {}
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            found |= {f"{module.__name__}.{name}.{k}": v for k, v in vars(value).items() if callable(v)}
        elif inspect.isfunction(value):
            found[f"{module.__name__}.{name}"] = value
    return found


def replaced_functions(base: dict) -> list[str]:
    now = {name: value for module in WATCHED for name, value in functions_of(module).items()}
    return sorted(name for name in base.keys() | now.keys() if base.get(name) is not now.get(name))


def marks_on(model) -> list[str]:
    """What is hooked or replaced on a model's modules."""
    found = []
    for name, module in (named for part in host.parts(model).values() for named in part.named_modules()):
        own = module.__dict__
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found += [f"{name} {kind} {getattr(f, '__qualname__', type(f).__name__)}" for f in own[kind].values()]
        found += [f"{name} {key} {getattr(value, '__qualname__', type(value).__name__)}" for key, value in own.items()
                  if key in ("forward", "_forward") or key.startswith("_ditail")]
    return sorted(found)


def weights_digest(module) -> str:
    """By some values of each tensor without LoRAs, its type and place."""
    sha = hashlib.sha256()
    # Forge takes LoRAs out of the weights only when it needs the model again.
    before = module.lora_loader.backup if hasattr(module, "lora_loader") else {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        tensor = before.get(name, tensor)
        sha.update(f"{name} {tensor.dtype} {tensor.device} {tuple(tensor.shape)}".encode())
        if tensor.device.type != "meta":
            flat = tensor.detach().flatten()
            sha.update(flat[:: max(1, flat.numel() // 24)][:24].float().numpy().tobytes())
    return sha.hexdigest()[:16]


def describe_model(model) -> dict:
    if not hasattr(model, "sd_checkpoint_info"):
        return {"checkpoint": None}
    return {
        "checkpoint": model.sd_checkpoint_info.name, "marks": marks_on(model), **host.details(model),
        **{name: weights_digest(part) for name, part in host.parts(model).items()},
    }


def fingerprint() -> dict:
    """All that a job must leave as it was, by topic."""
    model, config = sd_models.model_data.sd_model, pathlib.Path(shared.config_filename)
    models = host.models()
    return {
        "model": describe_model(model), "loaded_models": [m.sd_checkpoint_info.name for m in models],
        "other_marks": [mark for m in models if m is not model for mark in marks_on(m)],
        "options": json.loads(json.dumps(shared.opts.data, sort_keys=True, default=str)),
        "config": json.loads(config.read_text()) if config.exists() else None,
        "replaced": replaced_functions(sys.modules[MODULE].base),
        "state": {key: getattr(shared.state, key) for key in
                  ("job", "job_count", "textinfo", "interrupted", "skipped", "stopping_generation")},
        "total_tqdm": shared.total_tqdm._tqdm is not None,
        "current_unet": sd_unet.current_unet is not None,
        "torch_rng": rng_digest(), "numpy_rng": digest(np.random.get_state()), "python_rng": python_digest(),
        **host.state(model),
    }


def arm(body: dict = Body()) -> None:  # noqa: B008 (fastapi's way)
    rewind()
    sys.modules[MODULE].injector.arm(**body)


def disarm() -> dict:
    injector = sys.modules[MODULE].injector
    seen = {"fired": injector.fired, "counts": injector.counts, "where": injector.where, "rng": sorted(injector.rng),
            "options_seen": sorted([*change, name] for change, name in injector.options_seen.items())}
    injector.arm()
    return seen


def share_config(on: bool = Body(embed=True)) -> None:  # noqa: B008 (fastapi's way)
    """Whether all demo checkpoints have one yaml, so that they are loaded into one model object."""
    sys.modules[MODULE].injector.one_config = on


def empty_caches() -> None:
    caches.clear()


def repair(options: dict = Body(embed=True)) -> None:  # noqa: B008
    """After a fault that left something behind: everything that the fingerprint reports, by force."""
    for model in host.models():
        for module in (module for part in host.parts(model).values() for module in part.modules()):
            for key in [k for k in module.__dict__ if k in ("forward", "_forward") or k.startswith("_ditail")]:
                del module.__dict__[key]
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                module.__dict__[kind].clear()
    for name, value in sys.modules[MODULE].base.items():
        owner = next(m for m in WATCHED if name.startswith(f"{m.__name__}."))
        *classes, attribute = name[len(owner.__name__) + 1 :].split(".")
        owner = functools.reduce(getattr, classes, owner)
        if vars(owner).get(attribute) is not value:
            setattr(owner, attribute, value)
    shared.opts.data.clear()
    shared.opts.data.update(options)
    shared.opts.save(shared.config_filename)
    shared.total_tqdm.clear()
    caches.clear()
    host.load_again()


def add_routes(_, app: FastAPI) -> None:
    app.add_api_route("/ditail-test/faults/points", lambda: {"points": list(POINTS), "errors": list(ERRORS),
                                                             "missing": sys.modules[MODULE].injector.missing})
    for path, route in (("arm", arm), ("disarm", disarm), ("rewind", rewind), ("empty-caches", empty_caches),
                        ("repair", repair), ("share-config", share_config)):
        app.add_api_route(f"/ditail-test/faults/{path}", route, methods=["POST"])
    app.add_api_route("/ditail-test/faults/fingerprint", fingerprint)
    app.add_api_route("/ditail-test/faults/memory", memory)


def memory() -> dict:
    """Resident bytes of this process after a garbage collection."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {"rss": pages * os.sysconf("SC_PAGE_SIZE"), "objects": len(gc.get_objects())}


if MODULE not in sys.modules:  # "Reload UI" runs this file again
    sys.modules[MODULE] = type(sys)(MODULE)
    sys.modules[MODULE].injector = Injector()
    for point, place in POINTS.items():
        wrap(sys.modules[MODULE].injector, point, place)
    sys.modules[MODULE].base = {name: value for module in WATCHED for name, value in functions_of(module).items()}
script_callbacks.on_app_started(add_routes)
