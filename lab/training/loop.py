"""The training loop, with a schedule by wall clock, and batches of scenes."""

import math
import random
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lab.precision import autocast


def cosine(progress: float, warmup: float = 0.03) -> float:
    """Learning-rate factor at `progress` 0..1: a linear warm-up, then a half cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def train(name: str, parameters: list[nn.Parameter], loss_of: Callable[[float], Tensor], *, minutes: float, lr: float,
          weight_decay: float = 0.01, save: Callable[[], None] | None = None) -> int:
    """Minimise `loss_of(progress)` with AdamW, in `lab.precision`, for `minutes` of wall clock; returns the steps.

    save: called every ten minutes. The learning rate follows the clock, so that it reaches 0 in time on a slow machine,
    too.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98), fused=True)
    begin, steps, mean, saved = time.monotonic(), 0, None, 0
    with tqdm(total=round(minutes * 60), desc=name, unit="s", mininterval=10) as bar:
        while (progress := (time.monotonic() - begin) / (minutes * 60)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = lr * cosine(progress)
            with autocast():
                loss = loss_of(progress)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            steps += 1
            mean = loss.item() if mean is None else 0.99 * mean + 0.01 * loss.item()
            if save and (minute := int(progress * minutes)) >= saved + 10:
                saved = minute
                save()
            bar.update(round(progress * minutes * 60) - bar.n)
            bar.set_postfix(steps=steps, loss=f"{mean:.4f}", refresh=False)
    return steps


def to_tensor(images) -> Tensor:
    """RGB images of one size to `[b, 3, h, w]` in -1..1."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in images])).permute(0, 3, 1, 2).float() / 127.5 - 1


def shuffled_batches(count: int, size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of indices below `count`, each epoch in a new order."""
    while True:
        order = rng.sample(range(count), count)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))
