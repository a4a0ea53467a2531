"""The WebUI's endpoints with Ditail on, bombarded with bodies that schemathesis makes from their OpenAPI schema.

An answer 500 is wrong where the same request without Ditail gives none, and so is a traceback through Ditail's code.
`DITAIL_REQUESTS` is the number of requests to each endpoint, `DITAIL_SEED` chooses them.
"""

import os
import re

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ditail.content.settings import FIELDS
from tests.webui.faulty import SEED

schemathesis = pytest.importorskip("schemathesis")
REQUESTS = int(os.environ.get("DITAIL_REQUESTS", "60"))
LARGEST = {"steps": 3, "width": 128, "height": 128, "batch_size": 2, "n_iter": 2, "firstpass_image": 0, "hr_scale": 1.5,
           "hr_resize_x": 128, "hr_resize_y": 128, "hr_second_pass_steps": 2, "firstphase_width": 128,
           "firstphase_height": 128}
# Ends the server, asks it for another model than the tests have, or is the test's own: left in, a made-up script's name
# would be refused in the plain request alone.
NOT_TO_BE_SENT = {"override_settings", "force_task_id", "refiner_checkpoint", "hr_checkpoint_name", "alwayson_scripts"}
# What nearly every made-up text would fail on before Ditail is asked.
USUAL = {"sampler_name": "DDIM", "sampler_index": "DDIM", "scheduler": "Automatic", "script_name": None, "styles": [],
         "hr_upscaler": "Latent", "hr_sampler_name": None, "hr_scheduler": None, "script_args": [], "mask": None}
# The WebUI's answer repeats the request, and can't say greater integers.
INTEGERS = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(st.none() | st.booleans() | INTEGERS | st.floats(allow_nan=False) | st.text(max_size=20),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                    max_leaves=6)


@pytest.fixture(scope="module")
def openapi(webui) -> dict:
    """The WebUI's schema, without the fields that none of its models know (which they would ignore)."""
    found = webui.call("/openapi.json").json
    for model in found["components"]["schemas"].values():
        model["additionalProperties"] = False
        # The test draws which of them a request keeps; of its own accord schemathesis may leave out nearly all.
        model["required"] = sorted(model.get("properties", {}))
    return found


def fields_of(openapi: dict, tab: str) -> list[str]:
    body = openapi["paths"][f"/sdapi/v1/{tab}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    model = body["$ref"].rpartition("/")[2]
    return sorted(openapi["components"]["schemas"][model]["properties"])


def setting(field) -> st.SearchStrategy:
    """Values for a setting: mostly of its own kind, some of any other."""
    if field.choices:
        own = st.sampled_from(field.choices)
    elif isinstance(field.default, bool):
        own = st.booleans()
    elif isinstance(field.default, float):
        own = st.floats(field.low, field.high) | st.floats(allow_nan=False)
    elif isinstance(field.default, tuple):
        own = st.lists(st.dictionaries(st.sampled_from(["image", "source", "weight", "steps", "box", "mask"]), JSON),
                       max_size=2)
    else:
        own = st.text(max_size=20)
    return st.one_of(own, own, own, JSON)


def ditail_args(image: str) -> st.SearchStrategy:
    """The always-on script's `args`: an object of settings, or a list of anything."""
    some = st.fixed_dictionaries({}, optional={field.key: setting(field) for field in FIELDS if field.key != "enabled"})
    usual = {"enabled": True, "image": image, "source_checkpoint": "house-noto"}
    objects = some.map(lambda values: [{**usual, **values}])
    few = st.dictionaries(st.sampled_from([f.key for f in FIELDS if f.key not in usual]), JSON, max_size=1)
    return st.one_of(objects, few.map(lambda values: [{**usual, **values}]), st.lists(JSON, min_size=1, max_size=40))


def bounded(body: dict, kept: set[str], image: str, tab: str) -> dict:
    """A made body with the fields of `kept`, and none that would take minutes."""
    body = {key: value for key, value in body.items() if key in kept and key not in NOT_TO_BE_SENT}
    for key, most in LARGEST.items():
        if isinstance(body.get(key), int | float):
            body[key] = max(0, min(body[key], most))
    for key, value in USUAL.items():
        if key in body and key not in kept:
            body[key] = value
    own = {"init_images": [image]} if tab == "img2img" else {}
    return {"prompt": "a fox on pink", "steps": 2, "width": 64, "height": 64, "sampler_name": "DDIM", **own, **body,
            "save_images": False}


def tracebacks(text: str) -> list[str]:
    """Tracebacks in the WebUI's log that pass through Ditail's code, without those of refused requests."""
    found = re.split(r"(?=Traceback \(most recent call last\))", text)[1:]
    return [t[:3000] for t in found if "/ditail/" in t and "DitailError" not in t and "HTTPException" not in t]


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_no_500_and_no_traceback_that_a_plain_webui_does_not_give(webui, openapi, base64_content, tab, capsys):
    """Fields of the schema by schemathesis, Ditail's own by hypothesis."""
    operation = schemathesis.openapi.from_dict(openapi)[f"/sdapi/v1/{tab}"]["POST"]
    answered, wrong, used = {}, [], set()
    plain = webui.generate(steps=2, width=64, height=64, override_settings={}).image.tobytes()

    @seed(SEED)
    @settings(max_examples=REQUESTS, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(), args=ditail_args(base64_content), data=st.data())
    def bombard(case, args, data):
        made = case.body if isinstance(case.body, dict) else {}
        kept = set(data.draw(st.lists(st.sampled_from(sorted(made) or ["steps"]), max_size=4)))
        body = bounded(made, kept, base64_content, tab)
        used.update(kept & made.keys())
        before = webui.log.stat().st_size
        answer = webui.call(f"/sdapi/v1/{tab}", {**body, "alwayson_scripts": {"Ditail": {"args": args}}})
        log = webui.log.read_bytes()[before:].decode(errors="replace")
        answered[answer.status] = answered.get(answer.status, 0) + 1
        found = tracebacks(log)
        if (found or answer.status >= 500) and webui.call(f"/sdapi/v1/{tab}", body).status < 500:
            wrong.append((answer.status, body, args, answer.json, found[-1:]))

    bombard()
    with capsys.disabled():
        print(f"\n{tab}: {sum(answered.values())} requests, answers by status {dict(sorted(answered.items()))}")  # noqa: T201
    assert wrong == []
    assert len(answered) > 1 and answered.get(200, 0) > 0
    assert used <= set(fields_of(openapi, tab)) and len(used) > min(REQUESTS, 40) / 2
    assert webui.generate(steps=2, width=64, height=64, override_settings={}).image.tobytes() == plain
