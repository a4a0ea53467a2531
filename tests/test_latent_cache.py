"""The cache of source latents, in RAM and on disk, and its key."""

import json
import logging
import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditail import DitailError, LatentCache, SourceLatents
from ditail.cache.folder import LatentFolder
from ditail.keys import cache_key
from ditail.method.latents import FORMAT
from tests.injected import entry

KEYS = [cache_key({"n": n}) for n in range(4)]


@pytest.fixture
def folder(tmp_path):
    return LatentFolder(tmp_path / "cache" / "ditail", 2**20)


def put(folder, *values):
    """Entries of these values under the first keys, the last one the most recently used."""
    for n, value in enumerate(values):
        folder.put(KEYS[n], entry(value), {})
        os.utime(file_of(folder, n), (n, n))


def file_of(folder, n=0):
    return folder.path / f"{KEYS[n]}.safetensors"


def remaining(folder):
    return [n for n, key in enumerate(KEYS) if file_of(folder, n).exists()]


def test_the_least_recently_used_entry_is_dropped_first():
    cache = LatentCache(budget=2 * entry().nbytes)
    cache.put("a", entry(1))
    cache.put("b", entry(2))
    assert cache.get("a").latents.max() == 1
    cache.put("c", entry(3))
    assert cache.get("b") is None
    assert cache.get("a") is not None and cache.get("c") is not None
    assert cache.nbytes == 2 * entry().nbytes
    cache.clear()
    assert len(cache) == 0


def test_an_entry_over_the_whole_budget_is_not_kept():
    cache = LatentCache(budget=10)
    cache.put("a", entry())
    assert len(cache) == 0 and cache.get("a") is None


def test_an_entry_over_the_budget_costs_no_other(folder):
    for cache in (LatentCache(entry().nbytes), LatentCache(entry().nbytes, folder)):
        cache.put(KEYS[0], entry(1))
        cache.put(KEYS[1], entry(2, steps=3))
        assert cache.get(KEYS[0]).latents.max() == 1


def test_a_lowered_budget_frees(folder):
    cache = LatentCache(2**20, folder)
    for key in KEYS:
        cache.put(key, entry())
    cache.budget, folder.budget = entry().nbytes, folder.nbytes // 2
    cache.trim()
    assert (len(cache), len(folder)) == (1, 2)
    cache.clear()
    assert (cache.nbytes, folder.nbytes) == (0, 0)


def test_an_image_is_kept_with_the_latents(tmp_path):
    image = torch.arange(4 * 6 * 3, dtype=torch.uint8).reshape(4, 6, 3)
    latents = entry(image=image)
    assert latents.nbytes == entry().nbytes + image.nbytes
    latents.save(tmp_path / "z.safetensors")
    assert torch.equal(SourceLatents.load(tmp_path / "z.safetensors")[0].image, image)
    with pytest.raises(DitailError, match="uint8"):
        entry(image=image.float())


@pytest.mark.parametrize("change", [
    {"alpha": 3.0000001}, {"alpha": 3}, {"prompt": "a fox "}, {"timesteps": [1.0, 52.0]}, {"lora": [["x", 0.7]]},
    {"image": torch.ones(3).double()}, {"image": torch.zeros(3)}, {"image": torch.ones(1, 3)}, {"vae": None},
])
def test_no_two_settings_share_a_key(change):
    base = {"alpha": 3.0, "prompt": "a fox", "timesteps": [1.0, 51.0], "lora": [], "image": torch.ones(3), "vae": "x"}
    assert cache_key(base) == cache_key(dict(reversed(base.items())))
    assert cache_key({**base, **change}) != cache_key(base)


def test_what_a_key_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="object"):
        cache_key({"model": object()})


def test_entries_on_disk_survive_a_restart(folder):
    metadata = {"checkpoint": "house-ink", "prompt": "ein Fuchs auf Grün"}
    LatentCache(2**20, folder).put(KEYS[0], entry(7), metadata)
    assert [p.name for p in folder.path.iterdir()] == [f"{KEYS[0]}.safetensors"]
    with safe_open(str(file_of(folder)), "pt") as file:
        assert metadata.items() <= file.metadata().items() and file.metadata()["key"] == KEYS[0]
    cache = LatentCache(2**20, LatentFolder(folder.path, 2**20))
    assert len(cache) == 0
    cached = cache.get(KEYS[0])
    assert torch.equal(cached.latents, entry(7).latents) and cache.get(KEYS[0]) is cached
    assert cache.get(KEYS[1]) is None


def test_the_least_recently_used_file_is_deleted_first(folder):
    put(folder, 0, 1, 2)
    assert folder.get(KEYS[0]) is not None
    folder.budget = folder.nbytes
    folder.put(KEYS[3], entry(3), {})
    assert remaining(folder) == [0, 2, 3]


def test_use_in_ram_counts_as_use_on_disk(folder):
    cache = LatentCache(2**20, folder)
    cache.put(KEYS[0], entry(0))
    put(folder, 0, 1)
    cache.get(KEYS[0])
    folder.budget = folder.nbytes // 2
    folder.trim()
    assert remaining(folder) == [0]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def with_tensors(**changed):
    def damage(path):
        with safe_open(str(path), "pt") as file:
            metadata = {key: value for key, value in file.metadata().items() if key != "sha256"}
        tensors = load_file(path) | changed
        save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, path, metadata)

    return damage


def with_header(header):
    """A file without data."""
    text = json.dumps(header).encode()
    return lambda path: path.write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize("damage", [
    truncate, flip_a_byte, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no latents" * 999),
    with_tensors(latents=None), with_tensors(latents=torch.full((2, 1, 4, 8, 8), float("nan"))),
    with_tensors(latents=torch.zeros(2, 4, 8, 8)), with_tensors(latents=torch.zeros(3, 1, 4, 8, 8)),
    with_tensors(timesteps=torch.zeros(2, 1)), with_tensors(alphas_cumprod=torch.zeros(10)),
    with_tensors(image=torch.zeros(2, 2, 3)), with_tensors(image=torch.tensor(3, dtype=torch.uint8)),
    with_tensors(alphas_cumprod=torch.full((1000,), -0.5)), with_tensors(z0=torch.zeros(1, 4, 8, 8, dtype=torch.int32)),
    with_header({"__metadata__": {"format": FORMAT},
                 "latents": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
])
def test_a_damaged_file_is_one_warning_and_a_miss(folder, caplog, damage):
    put(folder, 0)
    damage(file_of(folder))
    assert folder.get(KEYS[0]) is None and folder.get(KEYS[0]) is None
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and KEYS[0] in caplog.text
    assert remaining(folder) == []


def test_a_header_without_metadata_is_of_another_format(tmp_path):
    with_header({"__metadata__": None})(tmp_path / "latents.safetensors")
    with pytest.raises(DitailError, match=r"latents\.safetensors: can't be read as source latents \(another format\)"):
        SourceLatents.load(tmp_path / "latents.safetensors")


def test_a_renamed_file_does_not_answer_for_another_key(folder, caplog):
    put(folder, 0)
    file_of(folder).rename(file_of(folder, 1))
    assert folder.get(KEYS[1]) is None and len(caplog.records) == 1


def test_foreign_files_are_left_alone(folder, caplog):
    """One with a name of its own, a folder, and another program's safetensors file under a name like ours."""
    put(folder, 0, 1)
    other = folder.path / "model.safetensors"
    save_file({"weight": torch.zeros(9)}, other)
    (folder.path / "subfolder").mkdir()
    save_file({"weight": torch.zeros(9)}, file_of(folder))
    before = file_of(folder).read_bytes()
    assert folder.get(KEYS[0]) is None
    folder.put(KEYS[0], entry(), {})
    for _ in range(2):
        folder.clear()
    assert other.exists() and (folder.path / "subfolder").exists() and file_of(folder).read_bytes() == before
    assert remaining(folder) == [0]
    assert len(caplog.records) == 3
    assert FORMAT not in before.decode(errors="replace")


def test_a_crash_while_writing_leaves_no_entry(folder):
    put(folder, 0)
    part = folder.path / f"{KEYS[1]}.safetensors.{'0' * 32}.part"
    part.write_bytes(b"half an entry")
    assert folder.get(KEYS[1]) is None and len(folder) == 1 and part.exists()
    os.utime(part, (0, 0))
    folder.trim()
    assert not part.exists() and remaining(folder) == [0]


def test_a_full_disk_is_one_warning(folder, caplog):
    """Files may not grow beyond a limit of the operating system, so that writing really fails halfway."""
    cache = LatentCache(2**20, folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        cache.put(KEYS[0], entry(), {})
        cache.put(KEYS[1], entry(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.records) == 1 and len(cache) == 2 and list(folder.path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    folder = LatentFolder(tmp_path / "file" / "ditail", 2**20)
    cache = LatentCache(2**20, folder)
    for key in KEYS:
        assert cache.get(key) is None
        cache.put(key, entry())
    assert len(caplog.records) == 1 and len(cache) == 4
    assert (len(folder), folder.nbytes) == (0, 0)


SHARE = """
import sys, torch
from ditail.cache.folder import LatentFolder
from ditail.keys import cache_key
from tests.injected import entry
folder, hits = LatentFolder(sys.argv[1], 30_000), 0
for i in range(400):
    n = i // 2 * int(sys.argv[2]) % 11  # each twice, so that some are found however the two take turns
    if (got := folder.get(cache_key({"n": n}))) is None:
        folder.put(cache_key({"n": n}), entry(n), {})
    else:
        assert torch.equal(got.latents, entry(n).latents)
        hits += 1
assert 0 < hits < 400 and folder.nbytes < 60_000
"""


@pytest.mark.slow
def test_two_processes_on_one_folder(tmp_path):
    """Both read, write and evict the same few entries, and neither has anything to complain about."""
    both = [subprocess.Popen([sys.executable, "-c", SHARE, str(tmp_path), step], stderr=subprocess.PIPE, text=True)
            for step in ("3", "5")]
    assert [p.communicate(timeout=120)[1] for p in both] == ["", ""]
    assert [p.returncode for p in both] == [0, 0]
