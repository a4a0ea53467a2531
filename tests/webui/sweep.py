"""Faults by a seed: which are injected, and what each leaves behind.

Environment variables: `DITAIL_FAULTS` is the number of faults (or "all": each call of each function, at most
`MOST_CALLS` of one function), `DITAIL_SEED` chooses them, `DITAIL_FAULTS_LOG` is a file of JSON lines which a run that
was cut off goes on from.
"""

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.webui.faulty import SEED, Faulty, Kind, differences
from tests.webui.server import IS_FORGE

HOW_MANY = os.environ.get("DITAIL_FAULTS", "40")
LOG = os.environ.get("DITAIL_FAULTS_LOG")
MOST_CALLS = 12
# How many kinds of job are run with one yaml for all checkpoints; Forge makes a new model of each checkpoint anyway.
SHARE_OF_ONE_CONFIG = 0.4
PLAIN = Kind(None, {})
# A job's model need not be back at once, as long as the next job finds the right one.
UNTIL_THE_NEXT_JOB = {"model", "loaded_models", "vae_file", "base_vae", "options"}
RNG = {"torch_rng", "numpy_rng", "python_rng"}
# The WebUI resets these when a job begins.
OF_ONE_JOB = ("interrupted", "skipped", "stopping_generation")
# Where the WebUI itself catches what is raised, and goes on: any job's image is then another.
CAUGHT_BY_THE_WEBUI = {"networks.load", "networks.patch"}
# The WebUI takes these for the end of the sampling.
ENDS_SAMPLING = {"InterruptedException", "RecursionError"}


@dataclass(frozen=True)
class Fault:
    """One fault: the kind of job, whether its sources are cached, whether the demo checkpoints share one yaml, and what
    `arm` takes."""

    kind: str
    warm: bool
    one_config: bool
    point: str
    call: int
    error: str
    when: str
    lasting: bool = False

    @property
    def armed(self) -> dict:
        return {key: getattr(self, key) for key in ("point", "call", "error", "when", "lasting")}


@dataclass(frozen=True)
class Reference:
    """What a kind of job gives, what it gives without Ditail, and the states of the random generators then."""

    images: bytes
    without: bytes
    rng: frozenset[str]


class Sweep:
    """Injects faults into one WebUI."""

    def __init__(self, webui, kinds: dict[str, Kind]):
        self.faulty, self.kinds = Faulty(webui), kinds
        self.one_config = False
        # One model object is loaded without drawing random numbers, which shows in a matrix of img2img.
        self.references: dict[tuple[str, bool], Reference] = {}
        self.plain = self.faulty.image(PLAIN)
        self.at_rest = self.state()
        self.primed = ""

    def state(self) -> dict:
        state = self.faulty.fingerprint()
        for key in OF_ONE_JOB:
            state["state"].pop(key)
        state["marks"] = state["model"].pop("marks", []) + state.pop("other_marks")
        return state

    def share_config(self, on: bool) -> None:
        """Whether loading makes a new model or puts weights into the one that is there."""
        if self.one_config != on:
            self.faulty.post("share-config", {"on": on})
            for name in ("house-flat", "house-ink"):
                self.faulty.ask(Kind(None, {"override_settings": {"sd_model_checkpoint": name}}))
            self.one_config, self.primed = on, ""
            assert self.faulty.image(PLAIN) == self.plain
            self.at_rest = self.state()

    def reference(self, name: str) -> Reference:
        key = name, self.one_config
        if key not in self.references:
            kind = self.kinds[name]
            self.faulty.post("empty-caches")
            images = self.faulty.image(kind)
            assert self.faulty.image(kind) == images, f"{name}: cached latents make another image"
            rng = set()
            for first in (PLAIN, kind):  # with its LoRAs to be loaded, which draws, and with LoRAs that are there
                self.faulty.image(first, plain=True)
                with self.faulty.armed(record=True) as seen:
                    answers = [self.faulty.ask(kind, plain=True) for _ in range(kind.plain_jobs)]
                after = self.faulty.fingerprint()
                rng |= {*seen["rng"], after["torch_rng"], after["python_rng"]}
            without = b"".join(image.tobytes() for image in answers[0].images)
            self.references[key] = Reference(images, without, frozenset(rng))
        return self.references[key]

    def counts(self, name: str, warm: bool) -> dict[str, int]:
        """How often a kind of job calls each function."""
        self.reference(name)
        self.prepare(name, warm)
        with self.faulty.armed() as seen:
            assert self.faulty.ask(self.kinds[name]).status == 200
        return seen["counts"]

    def prepare(self, name: str, warm: bool) -> None:
        if not warm:
            self.faulty.post("empty-caches")
        elif self.primed != name:
            self.faulty.image(self.kinds[name])
        self.primed = name

    def inject(self, fault: Fault) -> dict:
        """Inject a fault; gives what it left behind ("left": nothing if that is empty)."""
        self.share_config(fault.one_config)
        reference, kind = self.reference(fault.kind), self.kinds[fault.kind]
        self.prepare(fault.kind, fault.warm)
        with self.faulty.armed(**fault.armed) as seen:
            answer = self.faulty.ask(kind)
        left = self.left_at_once(fault, kind, reference)
        left |= self.wrong_answer(fault, answer, reference) if seen["fired"] else {}
        plain, mixed = self.faulty.image(PLAIN), self.faulty.image(kind)
        if "<lora" in str(kind):
            self.faulty.image(PLAIN)  # LoRAs stay until a job without them
        if plain != self.plain:
            left["the next plain image"] = shortened_answer(plain)
        if mixed != reference.images:
            left["the next image with Ditail"] = shortened_answer(mixed)
        later = differences(self.at_rest, self.state(), RNG)
        left |= {f"{topic}, for good": change for topic, change in later.items()}
        if left:
            self.repair()
        return {"fired": seen["fired"], "where": seen["where"], "status": answer.status, "left": left}

    def left_at_once(self, fault: Fault, kind: Kind, reference: Reference) -> dict:
        now = self.state()
        found = differences(self.at_rest, now, UNTIL_THE_NEXT_JOB)
        # Loading draws. A matrix loads as jobs without Ditail do, and after a load that failed the WebUI may load once
        # more, so in these no one job is to be compared with.
        loads = "matrix" in fault.kind or fault.point.partition(".")[0] in ("load", "hijack")
        if now["torch_rng"] in reference.rng or loads or fault.point in ("vae.reload", "vae.load", "vae.restore"):
            found.pop("torch_rng", None)
        if now["python_rng"] in reference.rng:  # a plot draws seeds
            found.pop("python_rng", None)
        # As after any job that fails: the LoRAs of its own prompt stay until the next one.
        if "networks" in found and now["networks"] == [["test-lora", 1.0, 1.0]] and "<lora" in str(kind.overrides):
            found.pop("networks")
        return found

    def wrong_answer(self, fault: Fault, answer, reference: Reference) -> dict:
        """A job whose fault was hidden, though its image is not what it should be."""
        if answer.status != 200 or "X/Y/Z" in fault.kind or fault.point in CAUGHT_BY_THE_WEBUI:
            return {}
        images = b"".join(image.tobytes() for image in answer.images)
        if images and images == reference.without != reference.images:
            return {"answer": "the image without Ditail"}
        if images != reference.images and fault.error not in ENDS_SAMPLING:
            return {"answer": "another image"}
        return {}

    def repair(self) -> None:
        self.faulty.post("repair", {"options": self.at_rest["options"]})
        self.primed = ""
        assert self.faulty.image(PLAIN) == self.plain, "the WebUI could not be repaired"
        self.at_rest = self.state()


def shortened_answer(images: bytes) -> str:
    return "another" if len(images) > 3000 else images.decode(errors="replace")


def choose(sweep: Sweep, names: Sequence[str], errors: Sequence[str], how_many: str = HOW_MANY) -> list[Fault]:
    """The faults to inject, those that need the same preparation one after another; few ones in a few kinds of job."""
    rng = random.Random(SEED)
    if how_many != "all":
        names = rng.sample(sorted(names), min(len(names), 3 + int(how_many) // 10))
    cells = []
    configs = (False,) if IS_FORGE else (False, True)
    for one_config in configs:
        sweep.share_config(one_config)
        for name in names:
            for warm in (False, True):
                if IS_FORGE or how_many == "all" or one_config == (rng_of(name, warm).random() < SHARE_OF_ONE_CONFIG):
                    counts = sweep.counts(name, warm)
                    cells += [(name, warm, one_config, point, count) for point, count in counts.items()]
    if how_many == "all":
        calls = [(*cell, call) for cell in cells for call in spread(cell[-1])]
    else:
        calls = [(*cell, rng.randint(1, cell[-1])) for cell in at_random(cells, int(how_many), rng)]
    faults = []
    for name, warm, one_config, point, _, call in calls:
        faults.append(Fault(name, warm, one_config, point, call, rng.choice(errors),
                            rng.choice(("before", "before", "after")), rng.random() < 0.15))
    return sorted(set(faults), key=lambda f: (f.one_config, f.kind, f.warm, f.point, f.call))


def rng_of(*names) -> random.Random:
    return random.Random(f"{SEED} {names}")


def at_random(cells: Sequence, count: int, rng: random.Random) -> Iterator:
    """Cells in a random order, each before any comes again."""
    while count > 0:
        taken = rng.sample(cells, min(count, len(cells)))
        yield from taken
        count -= len(taken)


def spread(count: int) -> list[int]:
    """The calls 1 to `count`, or `MOST_CALLS` of them."""
    if count <= MOST_CALLS:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (MOST_CALLS - 1)) for i in range(MOST_CALLS)})


def run(sweep: Sweep, faults: Sequence[Fault], log: str | None = LOG) -> list[dict]:
    """Inject faults; the results are written to `log`, and what it holds is not injected again."""
    done = {}
    if log and Path(log).exists():
        for line in Path(log).read_text().splitlines():
            result = json.loads(line)
            done[json.dumps(result["fault"], sort_keys=True)] = result
    results = []
    for fault in faults:
        key = json.dumps(asdict(fault), sort_keys=True)
        if key not in done:
            done[key] = {"fault": asdict(fault), **sweep.inject(fault)}
            if log:
                with open(log, "a") as file:
                    file.write(json.dumps(done[key]) + "\n")
        results.append(done[key])
    return results
