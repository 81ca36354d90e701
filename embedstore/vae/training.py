"""Trains a variational autoencoder: epochs, validation, early stopping, checkpoints from which it goes on.

The learning rate rises to its height in the first tenth of the steps and falls along a cosine to nothing (Smith and
Topin 2019), as a function of the step alone, so that a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from embedstore.errors import InvalidInput, TrainingFailed
from embedstore.vae.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from embedstore.vae.objective import kl_from_standard_normal, sampled, warmed_up, with_free_bits

PRECISIONS = ("float32", "bfloat16")
LEAST_ITEMS = 10
_STEPS, _LEAST_EPOCHS, _MOST_EPOCHS = 6000, 10, 200
_RISE = 0.1
_MOST_WHOLE = 2**32
_CLIPPED_AT = 100.0
_MOST_VALIDATED = 5000
_REPORT_SECONDS = 2.0


class Feed(Protocol):
    """The items that a network learns from, read as they are needed."""

    def __len__(self) -> int: ...

    def batch(self, places: np.ndarray) -> Tensor:
        """The items at these places, as the network takes them: (n, ...)."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a network is trained.

    epochs: most passes over the items, 0 for as many as make about 6,000 steps, from 10 to 200. minutes: most minutes
    of the whole, None for no limit, which is looked at between epochs and shortens the schedule of the learning rate by
    what the first epoch took. beta: weight of the KL; warm_up: share of the steps in which it rises to that;
    free_nats: what a dimension may tell at no cost.
    hidden: share of the columns that the encoder does not see of each row while it learns, so that it learns what
    tells what, and rows that are known in part have a place (tables only). validation: share of the items held out;
    patience: epochs without a better validation after which it ends, 0 for never. precision: 'float32', or 'bfloat16'
    for what is computed of it (mixed precision, for a GPU).
    """

    epochs: int = 0
    minutes: float | None = None
    batch: int = 128
    learning_rate: float = 2e-3
    beta: float = 1.0
    warm_up: float = 0.1
    free_nats: float = 0.05
    validation: float = 0.05
    patience: int = 5
    hidden: float = 0.0
    seed: int = 0
    precision: str = "float32"

    def check(self) -> None:
        """Raise InvalidInput for settings that cannot be."""
        whole = {"epochs": 0, "batch": 2, "patience": 0, "seed": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _MOST_WHOLE:
                raise InvalidInput(
                    f"{name} is {value!r}; it must be a whole number from {least} on, below {_MOST_WHOLE:,}"
                )
        for name in ("warm_up", "validation", "learning_rate", "beta", "free_nats", "hidden", "minutes"):
            value = getattr(self, name)
            fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not fits and (name, value) != ("minutes", None):
                raise InvalidInput(f"{name} is {value!r}; it must be a number")
        shares = {"warm_up": (0.0, 1.0), "validation": (0.0, 0.5), "learning_rate": (0.0, 1.0)}
        for name, (least_share, most) in shares.items():
            value = getattr(self, name)
            if not least_share <= value <= most or (name != "warm_up" and value == 0):
                raise InvalidInput(f"{name} is {value!r}; it must be above {least_share:g} and at most {most:g}")
        for name in ("beta", "free_nats"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidInput(f"{name} is {value!r}; it must be a number from 0 on")
        if not 0 <= self.hidden < 1:
            raise InvalidInput(f"hidden is {self.hidden!r}; it must be from 0 to below 1")
        if self.minutes is not None and not self.minutes > 0:
            raise InvalidInput(f"minutes is {self.minutes!r}; it must be above 0")
        if self.precision not in PRECISIONS:
            raise InvalidInput(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass came to, all in nats an item: minus the ELBO in training and on what is held out, and its parts.

    objective: what is to be low on what is held out, with the KL weighed by beta; the epoch where it is least is best.
    """

    number: int
    training: float
    validation: float
    reconstruction: float
    kl: float
    objective: float
    seconds: float


@dataclass(slots=True)
class Trained:
    """A training that ended: every epoch, the number of the best, and why there was no further one."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    ended: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"epochs": [asdict(one) for one in self.epochs], "best": self.best, "ended": self.ended}


Progress = Callable[[str], None]


def split(n: int, settings: TrainingSettings) -> tuple[np.ndarray, np.ndarray]:
    """The places that are trained on and those held out; InvalidInput for fewer than ten items."""
    if n < LEAST_ITEMS:
        raise InvalidInput(f"there are {n} items to learn from; at least {LEAST_ITEMS} are needed")
    order = np.random.default_rng(settings.seed).permutation(n)
    n_held_out = min(max(1, round(n * settings.validation)), _MOST_VALIDATED)
    return np.sort(order[n_held_out:]), np.sort(order[:n_held_out])


def train(
    network: Any, feed: Feed, settings: TrainingSettings, *, folder: Path, identity: Mapping[str, Any],
    device: str = "cpu", progress: Progress = lambda _: None,
) -> Trained:  # fmt: skip
    """Train a network; afterwards it has the weights of the epoch with the best validation, on the CPU.

    network: a ``torch.nn.Module`` with ``encode`` (items to mean and log variance of q(z | x)), ``decode`` (latents to
    what p(x | z) is made of) and ``log_likelihood`` (of that and items, nats (n,)); ``hidden`` where
    the settings ask for it.
    folder: where a checkpoint is written after every epoch; identity: what makes this training the same as one that
    was interrupted there, which then goes on. Raises TrainingFailed, with nothing but earlier checkpoints left, where
    the loss is no number any more.
    """
    settings.check()
    run = _Run(network, feed, settings, device, progress)
    known = read_checkpoint(folder, identity)
    if known is not None:
        run.restore(known)
        progress(f"goes on after epoch {len(run.trained.epochs)}")
    while run.may_go_on():
        run.one_epoch()
        write_checkpoint(folder, identity, run.checkpoint())
    run.finish()
    return run.trained


class _Run:
    """One training: the network, its optimizer, and how far it has come."""

    def __init__(
        self, network: Any, feed: Feed, settings: TrainingSettings, device: str, progress: Progress
    ) -> None:
        self.network = network.to(device)
        self.feed = feed
        self.settings = settings
        self.device = device
        self.progress = progress
        self.places, self.held_out = split(len(feed), settings)
        self.batch = min(settings.batch, len(self.places))
        self.steps_an_epoch = len(self.places) // self.batch
        self.optimizer = torch.optim.Adam(
            [one for one in network.parameters() if one.requires_grad], lr=settings.learning_rate, betas=(0.9, 0.99)
        )
        self.trained = Trained()
        self.best_weights = _copied(network)
        self.most_epochs = settings.epochs or min(max(round(_STEPS / self.steps_an_epoch), _LEAST_EPOCHS), _MOST_EPOCHS)
        self.n_epochs = self.most_epochs
        self.step = 0
        self.seconds = 0.0

    def may_go_on(self) -> bool:
        """Whether there is another epoch; notes why not."""
        done = self.trained.epochs
        if len(done) >= self.n_epochs:
            few = self.n_epochs < self.most_epochs
            self.trained.ended = "the time that was given was used" if few else "all epochs were done"
        elif self.settings.patience and len(done) - self.trained.best >= self.settings.patience and done:
            self.trained.ended = f"no better validation for {self.settings.patience} epochs"
        return not self.trained.ended

    def one_epoch(self) -> None:
        """One pass over the items, and a look at what was held out."""
        number = len(self.trained.epochs) + 1
        started = time.monotonic()
        torch.manual_seed(_seed_of(self.settings.seed, number))
        loss = self._pass(number)
        reconstruction, kl = self._validated()
        seconds = time.monotonic() - started
        self.seconds += seconds
        objective = reconstruction + self.settings.beta * kl
        epoch = Epoch(number, loss, reconstruction + kl, reconstruction, kl, objective, round(seconds, 3))
        self.trained.epochs.append(epoch)
        if objective < min((one.objective for one in self.trained.epochs[:-1]), default=math.inf):
            self.trained.best = number
            self.best_weights = _copied(self.network)
        self._fit_to_time()
        self.progress(
            f"epoch {number} of {self.n_epochs}: -ELBO {loss:.2f} in training, {epoch.validation:.2f} held out"
            f" (reconstruction {reconstruction:.2f} + KL {kl:.2f}), {seconds:.0f} s"
        )

    def _fit_to_time(self) -> None:
        """Have no more epochs than fit into the minutes that were given."""
        if self.settings.minutes is not None:
            an_epoch = self.seconds / len(self.trained.epochs)
            fitting = max(len(self.trained.epochs), int(self.settings.minutes * 60 / an_epoch))
            self.n_epochs = min(self.most_epochs, fitting)

    def _pass(self, number: int) -> float:
        order = np.random.default_rng([self.settings.seed, number]).permutation(self.places)
        self.network.train()
        total, told = 0.0, time.monotonic()
        for line in range(self.steps_an_epoch):
            total += self._one_step(self.feed.batch(order[line * self.batch : (line + 1) * self.batch]))
            if time.monotonic() - told > _REPORT_SECONDS:
                told = time.monotonic()
                self.progress(f"epoch {number} of {self.n_epochs}: step {line + 1:,} of {self.steps_an_epoch:,}")
        return total / self.steps_an_epoch

    def _one_step(self, items: Tensor) -> float:
        settings = self.settings
        n_steps = self.steps_an_epoch * self.n_epochs
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(self.step, n_steps)
        items = _on_device(items, self.device)
        with self._precision():
            seen = self.network.hidden(items, settings.hidden) if settings.hidden else items
            mu, log_variance = self.network.encode(seen)
            decoded = self.network.decode(sampled(mu, log_variance))
        mu, log_variance, decoded = mu.float(), log_variance.float(), decoded.float()
        missed = -self.network.log_likelihood(decoded, items).mean()
        kl = kl_from_standard_normal(mu, log_variance)
        weight = warmed_up(self.step, int(settings.warm_up * n_steps), settings.beta)
        loss = missed + weight * with_free_bits(kl, settings.free_nats)
        bound = float(missed.detach() + kl.detach().sum(1).mean())
        if not math.isfinite(bound):
            raise TrainingFailed(
                f"the loss is {bound} at step {self.step + 1:,}, so nothing is learned any more; nothing was saved:"
                " give a smaller learning rate, or look at the items"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), _CLIPPED_AT)
        self.optimizer.step()
        self.step += 1
        return bound

    def _precision(self) -> Any:
        half = self.settings.precision == "bfloat16"
        return torch.autocast(self.device.partition(":")[0], dtype=torch.bfloat16, enabled=half)

    def _validated(self) -> tuple[float, float]:
        """Minus log p(x | z) and the KL, in nats an item, of what is held out."""
        reconstruction, kl = bound_of(self.network, self.feed, self.held_out, self.device, self.batch)
        if not (math.isfinite(reconstruction) and math.isfinite(kl)):
            raise TrainingFailed("the loss on what was held out is no number; nothing was saved")
        return reconstruction, kl

    def checkpoint(self) -> Checkpoint:
        """Everything that going on needs."""
        moments = {
            f"{name}.{place}": value
            for place, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        state = {"step": self.step, "seconds": self.seconds, "n_epochs": self.n_epochs, **self.trained.to_json()}
        return Checkpoint(_copied(self.network), self.best_weights, moments, state)

    def restore(self, known: Checkpoint) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(known.weights)
        self.best_weights = known.best_weights
        held = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in known.moments.items():
            kind, _, place = name.rpartition(".")
            moments.setdefault(int(place), {})[kind] = value
        self.optimizer.load_state_dict({**held, "state": moments})
        state = dict(known.state)
        self.step, self.seconds = state["step"], state["seconds"]
        if self.settings.minutes is not None:
            self.n_epochs = state["n_epochs"]
        self.trained = Trained([Epoch(**one) for one in state["epochs"]], state["best"])

    def finish(self) -> None:
        """Give the network its best weights, on the CPU."""
        self.network.load_state_dict(self.best_weights)
        self.network.to("cpu").eval()


def bound_of(
    network: Any, feed: Feed, places: np.ndarray, device: str = "cpu", batch: int = 256
) -> tuple[float, float]:
    """Minus log p(x | z) for one sample z, and KL(q(z | x) || p(z)), in nats an item, over some items."""
    network.eval()
    reconstruction = kl = 0.0
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)  # the same noise at every look, so that looks can be compared
    with torch.no_grad():
        for chunk in _chunks(places, batch):
            items = _on_device(feed.batch(chunk), device)
            mu, log_variance = network.encode(items)
            decoded = network.decode(sampled(mu, log_variance))
            reconstruction -= float(network.log_likelihood(decoded, items).double().sum())
            kl += float(kl_from_standard_normal(mu, log_variance).double().sum())
    torch.set_rng_state(generator_state)
    return reconstruction / len(places), kl / len(places)


def _chunks(places: np.ndarray, n: int) -> Iterator[np.ndarray]:
    for start in range(0, len(places), n):
        yield places[start : start + n]


def _on_device(items: Tensor, device: str) -> Tensor:
    moved = items.to(device, non_blocking=True)
    return moved.to(memory_format=torch.channels_last) if moved.dim() == 4 else moved


def _rate(step: int, n_steps: int) -> float:
    """The learning rate at a step, as a share of its height."""
    rise = max(1, int(_RISE * n_steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rise) / max(1, n_steps - rise))))


def _seed_of(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _copied(network: Any) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}
