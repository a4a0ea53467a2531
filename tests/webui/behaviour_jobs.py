"""The jobs of `test_behaviour.py`, as data: what is asked of the WebUI's API, by the job's name."""

from dataclasses import dataclass, field

from tests.behaviour_record import draw_avocado, draw_fox, draw_mask
from tests.webui.webui_helpers import SIDE, encode

FOX, AVOCADO = encode(draw_fox()), encode(draw_avocado())
UPSIDE_DOWN = encode(draw_fox().rotate(180))
WIDE = encode(draw_fox().resize((2 * SIDE, SIDE)))
RIGHT, BOX = encode(draw_mask(SIDE // 2, 0, SIDE, SIDE)), encode(draw_mask(64, 32, 112, 96))
LONG = ", ".join(["a fox on pink"] * 30)
OTHER_VAE = "other.safetensors"
LORA = "<lora:test-lora:1>"
# Sent with every job: the WebUI does not set back an overridden option that was never saved.
USUAL_OPTIONS = {"CLIP_stop_at_last_layers": 1, "batch_cond_uncond": True, "pad_cond_uncond": False,
                 "skip_early_cond": 0, "ditail_features_mb": 512}


@dataclass(frozen=True)
class Job:
    """One request. ditail: the extension's settings (None: it is off); asked: changes of the usual body.

    options: settings of the WebUI, overridden for this job. matrix: arguments of the script "Ditail matrix". plot: one
    or two axes of the X/Y/Z plot with their values. times: how often it is sent, the caches kept in between.
    """

    ditail: dict | None = None
    asked: dict = field(default_factory=dict)
    tab: str = "txt2img"
    target: str = "house-ink"
    options: dict = field(default_factory=dict)
    matrix: dict | None = None
    plot: tuple = ()
    times: int = 1


SOURCE = {"image": FOX, "source_checkpoint": "house-noto"}
INIT = {"image": None, "source_checkpoint": "house-noto"}  # the init image is the content image
SAME = {"image": FOX}  # the target's own model inverts
GENERATED = {"source": "generate", "source_checkpoint": "house-noto"}
BATCH = {"batch_size": 2, "n_iter": 2, "seed": 5}
TWO = {"batch_size": 2, "seed": 5}
EULER_A = {"sampler_name": "Euler a"}
HIRES = {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 4, "denoising_strength": 0.6}
LATENT, LANCZOS = {**HIRES, "hr_upscaler": "Latent"}, {**HIRES, "hr_upscaler": "Lanczos"}
INPAINT = {"mask": BOX, "mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False, "inpaint_full_res_padding": 16}
ONLY_MASKED = {**INPAINT, "inpaint_full_res": True}
REFINER = {"refiner_checkpoint": "house-flat", "refiner_switch_at": 0.4}
LEFT_HALF = {"image": FOX, "box": [0, 0, 0.5, 1], "resize_mode": "stretch"}
RIGHT_HALF = {"image": AVOCADO, "mask": RIGHT}
MODELS = ["house-noto", "house-ink"]


def img2img(ditail: dict | None, *, strength: float = 0.75, images: tuple = (FOX,), **asked) -> Job:
    return Job(ditail, {"init_images": list(images), "denoising_strength": strength, **asked}, "img2img")


def matrix(settings: dict | None = None, checkpoints: tuple | list = MODELS, **asked) -> Job:
    return Job(asked={"steps": 4, **asked}, matrix={"checkpoints": list(checkpoints), **(settings or {})})


SAMPLERS = {
    "DDIM": {"sampler_name": "DDIM"}, "Euler a": EULER_A,
    "DPM++ 2M Karras": {"sampler_name": "DPM++ 2M", "scheduler": "Karras"}, "UniPC": {"sampler_name": "UniPC"},
    "Restart": {"sampler_name": "Restart"}, "DPM adaptive": {"sampler_name": "DPM adaptive"},
    "DPM++ SDE": {"sampler_name": "DPM++ SDE"}, "LCM": {"sampler_name": "LCM"},
}

PLAIN = {
    "plain": Job(),
    "plain, img2img": img2img(None),
}

SAMPLING = {
    **{name: Job(SOURCE, asked) for name, asked in SAMPLERS.items()},
    **{f"{name}, img2img": img2img(INIT, **asked) for name, asked in SAMPLERS.items()},
    **{f"{name}, generated": Job(GENERATED, asked) for name, asked in SAMPLERS.items() if name in (
        "DPM++ 2M Karras", "Restart", "DPM++ SDE")},
    "DDIM CFG++": Job(SOURCE, {"sampler_name": "DDIM CFG++"}),
    "denoising strength 0.3": img2img(INIT, strength=0.3, steps=8),
    "denoising strength 1": img2img(INIT, strength=1),
    "start noise": Job({**SOURCE, "start": "noise"}),
    "start noise, img2img": img2img({**INIT, "start": "noise"}),
    "CFG 1": Job(SOURCE, {"cfg_scale": 1}),
    "tiling": Job(SOURCE, {"tiling": True}),
    "variation seed": Job(GENERATED, {"subseed": 9, "subseed_strength": 0.5}),
    "clip skip": Job(SOURCE, options={"CLIP_stop_at_last_layers": 2}),
}

ROWS = {
    "batches": Job(SOURCE, BATCH),
    "batches, Euler a, img2img": img2img(INIT, **BATCH, **EULER_A),
    "a batch of two init images": img2img(INIT, images=(FOX, UPSIDE_DOWN), **TWO),
    "AND": Job(SOURCE, {"prompt": "a fox AND pink :0.5", **TWO}),
    "unequal prompts": Job(SOURCE, {"prompt": LONG}),
    "AND, unequal prompts, img2img": img2img(INIT, images=(FOX, UPSIDE_DOWN), prompt=f"a fox AND pink :0.5, {LONG}",
                                             **TWO),
    "separate calls": Job(SOURCE, TWO, options={"batch_cond_uncond": False}),
    "separate calls, unequal prompts": Job(SOURCE, {"negative_prompt": LONG}, options={"batch_cond_uncond": False}),
    "padded": Job(SOURCE, {"prompt": LONG}, options={"pad_cond_uncond": True}),
    "skip early CFG": Job(SOURCE, TWO, options={"skip_early_cond": 0.4}),
    "NGMS": Job(SOURCE, {"s_min_uncond": 15, "sampler_name": "Euler"}),
    "no features kept": Job(SOURCE, TWO, options={"ditail_features_mb": 0}),
    "twice": Job(SOURCE, EULER_A, times=2),
    "generated, twice": Job(GENERATED, TWO, times=2),
}

SOURCES = {
    "generated": Job(GENERATED),
    "generated by the target": Job({"source": "generate"}),
    "generated, batches": Job(GENERATED, {**BATCH, **EULER_A}),
    "generated, img2img": img2img({"source": "generate", "source_checkpoint": "house-noto"}),
    "generated, shown": Job({**GENERATED, "show_source": True}, {**TWO, **EULER_A}),
    "image, shown": Job({**SOURCE, "show_source": True}),
    "source prompts": Job({**SOURCE, "source_prompt": "a cat", "source_negative_prompt": "blurry"},
                          {"negative_prompt": "worst quality"}),
    "alpha and beta 0": Job({**SOURCE, "alpha": 0, "beta": 0}),
    "ratios": Job({**SOURCE, "alpha": 1, "conv_ratio": 1, "attn_ratio": 0.25}),
    "fill": Job({**SOURCE, "image": WIDE, "resize_mode": "fill"}),
    "stretch": Job({**SOURCE, "image": WIDE, "resize_mode": "stretch"}),
    "crop": Job({**SOURCE, "image": WIDE}),
    "not square": Job(SOURCE, {"width": 192}),
    "own content image, img2img": img2img({**SOURCE, "image": AVOCADO}),
    "mask": Job({**SOURCE, "mask": RIGHT}),
    "mask, batch, start noise": Job({**SOURCE, "mask": BOX, "start": "noise"}, TWO),
    "mask, img2img": img2img({**INIT, "mask": RIGHT}),
    "layers": Job({**SOURCE, "layers": "f4@0.2-0.9 a3-8"}),
    "layers, batch": Job({**SOURCE, "layers": "f3-5 a9-11@0-0.5"}, TWO),
    "source VAE": Job({**SOURCE, "source_vae": OTHER_VAE}),
    "source VAE, same checkpoint": Job({**SAME, "source_vae": OTHER_VAE}),
    "LoRA in the prompt": Job(SAME, {"prompt": f"a fox on pink {LORA}"}),
    "LoRA in the source prompt": Job({**SOURCE, "source_prompt": f"a fox on pink {LORA}"}),
    "LoRA in the prompt, generated": Job({"source": "generate", "source_prompt": "a fox on pink"},
                                         {"prompt": f"a fox on pink {LORA}"}),
}

MIXED = {
    "two models": Job({**SOURCE, "sources": [{"source_checkpoint": "house-flat", "weight": 0.5}]}),
    "two images, mask": Job({**SOURCE, "sources": [{"image": AVOCADO, "source_checkpoint": "house-noto",
                                                    "mask": RIGHT}]}, TWO),
    "range of steps, generated": Job({**SOURCE, "sources": [{"source": "generate", "steps": [0, 0.4]}]}, TWO),
    "three sources": Job({**SAME, "sources": [{"image": AVOCADO, "weight": 2, "steps": [0.4, 1]},
                                              {"image": UPSIDE_DOWN, "mask": BOX}]}, EULER_A),
    "mixed, img2img": img2img({**INIT, "sources": [{"source_checkpoint": "house-flat", "mask": RIGHT}]}),
    "mixed, hires": Job({**SAME, "sources": [{"image": AVOCADO, "mask": RIGHT}]}, LATENT),
    "collage": Job({**SOURCE, "image": None, "collage": [LEFT_HALF], "show_source": True}),
    "collage over an image": Job({**SOURCE, "image": AVOCADO, "collage": [LEFT_HALF], "show_source": True}),
    "collage by mask": Job({**SOURCE, "image": None, "collage": [LEFT_HALF, RIGHT_HALF], "show_source": True}, TWO),
    "collage over the init image": img2img({**INIT, "collage": [RIGHT_HALF], "show_source": True}),
}

PASSES = {
    "hires": Job(SOURCE, LATENT),
    "hires, off in the second pass": Job({**SOURCE, "hires": False}, LATENT),
    "hires by an upscaler": Job(SOURCE, LANCZOS),
    "hires by an upscaler, off in the second pass": Job({**SOURCE, "hires": False}, LANCZOS),
    "hires, generated, shown": Job({**GENERATED, "show_source": True}, {**LATENT, "seed": 7}),
    "hires, batch": Job(SAME, {**LATENT, **TWO, **EULER_A}),
    "inpaint": img2img(INIT, **INPAINT),
    "inpaint, fill with noise": img2img(INIT, **{**INPAINT, "inpainting_fill": 2}),
    "inpaint only masked": img2img(INIT, **ONLY_MASKED),
    "inpaint only masked, own content image": img2img({**SOURCE, "image": AVOCADO}, **ONLY_MASKED),
    "inpaint, batch": img2img(INIT, **{**INPAINT, "mask_blur": 4}, **TWO, **EULER_A),
    "refiner": Job(SOURCE, REFINER),
    "refiner, generated": Job(GENERATED, REFINER),
}

FAMILIES = {
    **{name: Job({"image": FOX, "source_checkpoint": f"{name}-b"}, target=f"{name}-a")
       for name in ("sd2-eps", "sd2-v", "sdxl-eps", "sdxl-v")},
    "sdxl-v, generated": Job({"source": "generate", "source_checkpoint": "sdxl-v-b"}, TWO, target="sdxl-v-a"),
    "sd2-v, Euler a": Job({"image": FOX}, EULER_A, target="sd2-v-a"),
    "inpainting checkpoint": Job({"image": FOX, "source_checkpoint": "inpainting-noto"}, target="inpainting-ink"),
}

SCRIPTS = {
    "matrix": matrix(),
    "matrix, three models, Euler a": matrix({"conv_ratio": 1.0}, [*MODELS, "house-flat"], **EULER_A),
    "matrix, batch": matrix(**TWO),
    "matrix, LoRA": matrix(checkpoints=["house-noto", f"house-noto + {LORA}"]),
    "matrix, collage": matrix({"collage": [LEFT_HALF]}),
    "matrix, img2img": Job(asked={"init_images": [FOX], "denoising_strength": 0.8}, tab="img2img",
                           matrix={"checkpoints": MODELS}),
    "matrix, one source": Job(asked={"init_images": [FOX], "denoising_strength": 0.8}, tab="img2img",
                              matrix={"checkpoints": [*MODELS, "house-flat"], "one_source": True,
                                      "source_checkpoint": "house-noto"}),
    "X/Y/Z, alpha": Job(SOURCE, plot=(("[Ditail] Alpha", "1, 3"),)),
    "X/Y/Z, source checkpoint and attention ratio": Job(SOURCE, plot=(
        ("[Ditail] Source checkpoint", ["house-noto.safetensors", "house-flat.safetensors"]),
        ("[Ditail] Attention ratio", "0, 1"))),
    "X/Y/Z, source prompt S/R and CFG": Job(SAME, plot=(("[Ditail] Source prompt S/R", "fox, cat"),
                                                        ("CFG Scale", "2, 7"))),
    "X/Y/Z, checkpoint and start, generated": Job(GENERATED, plot=(
        ("Checkpoint name", ["house-ink.safetensors", "house-flat.safetensors"]),
        ("[Ditail] Start", ["source", "noise"]))),
}

REFUSED = {
    "unknown key": Job({**SOURCE, "alhpa": 1}),
    "alpha 11": Job({**SOURCE, "alpha": 11}),
    "alpha as text": Job({**SOURCE, "alpha": "abc"}),
    "ratio over 1, img2img": img2img({**INIT, "conv_ratio": 1.5}),
    "no image": Job({"source_checkpoint": "house-noto"}),
    "text as base64": Job({**SOURCE, "image": "aGVsbG8gd29ybGQ="}),
    "mask not an image": Job({**SOURCE, "mask": "aGVsbG8="}),
    "no such checkpoint": Job({**SOURCE, "source_checkpoint": "no-such-model"}),
    "no such VAE": Job({**SOURCE, "source_vae": "no-such.vae"}),
    "other architecture": Job({**SOURCE, "source_checkpoint": "other-architecture"}),
    "no checkpoint at all": Job({**SOURCE, "source_checkpoint": "broken"}),
    "wrong family, SDXL": Job({**SAME, "source_checkpoint": "sdxl-eps-a"}),
    "wrong family, SD 2.x": Job({**SAME, "source_checkpoint": "sd2-eps-a"}),
    "wrong family, target": Job({**SAME, "source_checkpoint": "house-noto"}, target="sdxl-v-a"),
    "InstructPix2Pix": Job({**SAME, "source_checkpoint": "pix2pix"}),
    "unknown start": Job({**SOURCE, "start": "middle"}),
    "layer that is none": Job({**SOURCE, "layers": "a2-11"}),
    "layers that make no sense": Job({**SOURCE, "layers": "x4"}),
    "weight of a further source": Job({**SOURCE, "sources": [{"weight": 11}]}),
    "steps of a further source": Job({**SOURCE, "sources": [{}, {"steps": [0.5, 0.5]}]}),
    "checkpoint of a further source": Job({**SOURCE, "sources": [{"source_checkpoint": "none-such"}]}),
    "box of a collage": Job({**SOURCE, "collage": [{"image": FOX, "box": [0, 0, 2, 1]}]}),
    "collage of a generated source": Job({"source": "generate", "collage": [LEFT_HALF]}),
    "arguments of no kind": Job(asked={"alwayson_scripts": {"Ditail": {"args": ["on"]}}}),
    "matrix of one": matrix(checkpoints=["house-ink"]),
    "matrix of unknown checkpoints": matrix(checkpoints=["house-ink", "none-such"]),
    "matrix, unknown key": matrix({"nonsense": 1}),
    "X/Y/Z, alpha 11": Job(SOURCE, plot=(("[Ditail] Alpha", "1, 11"),)),
    "X/Y/Z, no such checkpoint": Job(SOURCE, plot=(("[Ditail] Source checkpoint", ["none-such"]),)),
}

GROUPS = {"plain": PLAIN, "sampling": SAMPLING, "rows": ROWS, "sources": SOURCES, "mixed": MIXED, "passes": PASSES,
          "families": FAMILIES, "scripts": SCRIPTS, "errors": REFUSED}
JOBS = {f"{group}: {name}": job for group, jobs in GROUPS.items() for name, job in jobs.items()}
ERRORS = {f"errors: {name}" for name in REFUSED}
