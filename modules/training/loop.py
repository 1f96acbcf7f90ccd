"""The one training loop: a generator of step records. It knows nothing of what is trained.

    ema = MovingAverage(model)
    store = CheckpointStore("runs/vae.safetensors", provenance={"data": "sprite world"})
    for record in train(model, loss, batches, TrainSettings(steps=1000, lr=1e-3), store, ema):
        print(record.step, record.loss)

    batches(draw)           -> batch    any object; a function of the number of the draw, 0, 1, ...
    loss(batch, generator)  -> loss     scalar tensor, or (scalar tensor, {"name": number to report})

All randomness of step n comes from (seed, n): batches by `seeding.batch_indices`, noise from the generator
handed to the loss, dropout from torch's own generators, which are seeded for the step and put back after it.
So a resumed run equals an uninterrupted one bit for bit, and no state of a generator is ever stored.

A step has `accumulate` draws. Launched in several processes each takes its share: with n processes a step is made of
n x accumulate draws, the same ones that one process with n x accumulate would take.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..seeding import seed_for, stream
from .checkpoint import CheckpointError, CheckpointStore
from .ema import MovingAverage, copy_weights, trainable
from .optimizer import Optimizer
from .processes import Processes
from .settings import MAY_DIFFER, TrainSettings, learning_rate
from .updates import Loss, Update, check_updates, of_optimizer, parameters_of


class NonFiniteError(RuntimeError):
    """The loss or the gradient is NaN or infinite."""


@dataclass(frozen=True)
class StepRecord:
    """What one finished step has to say. `step` counts from 1.

    The loss and each of `extras` are means over the draws of the step; one that only some draws reported is the mean
    of those. Loss and gradient are those of the first update; the others' are among the extras, by their names.
    """

    step: int
    loss: float
    grad_norm: float                                    # before clipping
    lr: float
    seconds: float
    extras: Mapping[str, float] = field(default_factory=dict)


def train(model: nn.Module, loss: Loss | Sequence[Update], batches: Callable[[int], Any], settings: TrainSettings,
          store: CheckpointStore | None = None, ema: MovingAverage | None = None,
          lr_scale: Callable[[str], float] = lambda name: 1.0, memory: nn.Module | None = None,
          decay_scale: Callable[[str], float] = lambda name: 1.0,
          processes: Processes | None = None) -> Iterator[StepRecord]:
    """Train the parameters of `model` that require a gradient; yield a record after each step.

    Args:
        model: its trainable parameters are float32; buffers are not trained and not stored.
        loss, batches: see the top of this file; several updates in their order instead of one loss.
        store: where checkpoints go. If it holds one, the run resumes there (yields nothing if it is the end).
        average: updated after each step and stored.
        lr_scale, decay_scale: factor on the learning rate and on the weight decay for the parameter of that name.
        memory: its buffers are what the loss remembers from step to step; stored and resumed with the weights.
        processes: those that train together; the first one's memory and checkpoint count.

    Closing the generator, or an exception inside a step, leaves a checkpoint of the last finished step.
    Raises NonFiniteError (the weights stay those before the bad step), CheckpointError, ValueError.
    """
    updates = tuple(loss) if isinstance(loss, Sequence) else (Update(loss),)
    run = _Run(model, updates, batches, settings, store, ema, lr_scale, memory, decay_scale, processes or Processes())
    run.resume()
    try:
        while run.step < settings.steps:
            record = run.take_step()
            if run.step % settings.checkpoint_every == 0 and run.step < settings.steps:
                run.save()
            yield record
        run.save()
    except (NonFiniteError, CheckpointError):
        raise
    except BaseException:
        run.save()
        raise


class _Run:
    """The state of one training between two steps: optimizer, number of finished steps, losses so far."""

    def __init__(self, model, updates, batches, settings, store, ema, lr_scale, memory, decay_scale, processes):
        self.model, self.updates, self.batches, self.settings = model, updates, batches, settings
        self.store, self.ema, self.memory, self.processes = store, ema, memory, processes
        self.remembered = self._remember()              # the memory after the last finished step
        self.weights = trainable(model)
        _check_weights(self.weights)
        self.device = next(iter(self.weights.values())).device
        check_updates(updates, self.weights)
        self.optimizers: dict[str, Optimizer] = {}      # by the prefix of their weights' names
        self.chosen: dict[str, dict] = {}               # the settings of each
        with _training_mode():
            for update in updates:
                if update.weights not in self.optimizers:
                    chosen = self.chosen[update.weights] = of_optimizer(update, settings)
                    self.optimizers[update.weights] = Optimizer(
                        chosen["kind"], parameters_of(update, self.weights), lr_scale, chosen["betas"],
                        chosen["weight_decay"], decay_scale)
        self.step = 0
        self.losses: list[float] = []
        self.saved = 0                                  # the step that the store holds; 0: none, nor is it worth one
        self.whole = True                               # False while the optimizer is changing the weights

    def take_step(self) -> StepRecord:
        started = time.perf_counter()
        settings, extras, main = self.settings, {}, None
        with _training_mode(), _seeded(self.device, seed_for("step", settings.seed, self.step)):
            for update in self.updates:
                if self.step % update.every == 0:
                    total, norm, reported = self._change(update)
                    extras |= reported
                    if main is None:
                        main = total, norm
                    else:
                        extras |= {f"{update.name} loss": total, f"{update.name} gradient": norm}
            if self.ema:
                self.ema.update(self.model)
        self.processes.share(dict(self.memory.named_buffers()) if self.memory else {})
        self.losses.append(main[0])
        self.step += 1
        self.whole, self.remembered = True, self._remember()
        return StepRecord(self.step, *main, learning_rate(settings, self.step - 1), time.perf_counter() - started,
                          extras)

    def _change(self, update: Update) -> tuple[float, float, dict[str, float]]:
        """Take the draws of a step and change the weights of an update: (loss, gradient norm, what it reported)."""
        settings, reports, total = self.settings, {}, 0.0
        chosen, weights = self.chosen[update.weights], parameters_of(update, self.weights)
        optimizer, several = self.optimizers[update.weights], len(self.optimizers) > 1
        optimizer.zero_grad()
        first = (self.step * self.processes.count + self.processes.index) * settings.accumulate
        for draw in range(first, first + settings.accumulate):
            with autocast(self.device, settings.precision):
                result = update.loss(self.batches(draw), stream("loss", *[update.name] * bool(update.name),
                                                                settings.seed, draw))
            loss, reported = result if isinstance(result, tuple) else (result, {})
            total += loss.item() / settings.accumulate
            if self.processes.count == 1:
                self._finite("loss", total)
            for name, value in reported.items():
                reports.setdefault(name, []).append(value)
            (loss / settings.accumulate).backward(inputs=list(weights.values()) if several else None)
        total, reports = self.processes.mean_report(total, reports)
        self._finite("loss", total)
        self.processes.mean_gradients(weights.values())
        clip = chosen["grad_clip"] or math.inf
        norm = self._finite("gradient", nn.utils.clip_grad_norm_(weights.values(), clip).item())
        self.whole = False
        optimizer.step(learning_rate(settings, self.step, chosen["lr"]))
        return total, norm, {name: sum(values) / len(values) for name, values in reports.items()}

    def _finite(self, what: str, value: float) -> float:
        if math.isfinite(value):
            return value
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        kept = (f"The checkpoint of step {self.saved} in {self.store.path} is good." if self.saved
                else "No checkpoint had been written yet.")
        raise NonFiniteError(
            f"Training stopped: the {what} of step {self.step + 1} is {value}. {kept} Lower the learning "
            "rate, use fp32, or look for damaged samples in the data, and start again.")

    def save(self) -> None:
        """Write a checkpoint of the last finished step, unless it is there or an update was cut short."""
        if self.store is None or not self.whole or self.saved == self.step:
            return
        if not self.processes.is_first:
            self.saved = self.step
            return
        tensors = {f"weight/{name}": weight for name, weight in self.weights.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        for optimizer in self.optimizers.values():
            tensors |= {f"optimizer/{name}": value for name, value in optimizer.state().items()}
        if self.ema:
            tensors |= {f"average/{name}": weight for name, weight in self.ema.weights.items()}
        tensors |= {f"memory/{name}": value for name, value in self.remembered.items()}
        self.store.save(tensors, self._facts())
        self.saved = self.step

    def _remember(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.memory.named_buffers()} if self.memory else {}

    def _facts(self) -> dict:
        ema = {"decay": self.ema.decay, "updates": self.ema.updates} if self.ema else None
        return {"step": self.step, "settings": asdict(self.settings), "average": ema,
                "processes": self.processes.count, "updates": _told(self.updates, self.settings)}


    def resume(self) -> None:
        """Go on from the store's checkpoint, if any. Only the settings in MAY_DIFFER may differ."""
        self.processes.share(self.weights)
        if self.store is None or not self.store.exists():
            return
        with _training_mode():
            tensors, facts = self.store.load()
            self._check_same(tensors, facts)
            copy_weights(_under("weight/", tensors), self.weights)
            for optimizer in self.optimizers.values():
                optimizer.load(_under("optimizer/", tensors))
            if self.ema:
                copy_weights(_under("average/", tensors), self.ema.weights)
                self.ema.updates = facts["average"]["updates"]
            if self.memory:
                copy_weights(_under("memory/", tensors), dict(self.memory.named_buffers()))
                self.remembered = self._remember()
        self.losses = tensors["losses"].tolist()
        self.step = self.saved = facts["step"]

    def _check_same(self, tensors: Mapping[str, Tensor], facts: dict) -> None:
        then = {"optimizer": "adamw", **facts["settings"], "EMA decay": (facts["average"] or {}).get("decay"),
                "updates": facts.get("updates")}
        now = {**asdict(self.settings), "EMA decay": self.ema.decay if self.ema else None,
               "updates": _told(self.updates, self.settings)}
        then["accumulate"] = then.get("accumulate", 1) * facts.get("processes", 1)
        now["accumulate"] *= self.processes.count       # the same draws, however they are shared
        for name in now.keys() - MAY_DIFFER:
            if _plain(then.get(name)) != _plain(now[name]):
                raise CheckpointError(
                    f"The checkpoint {self.store.path} was made with {name} {then.get(name)}, this run has "
                    f"{now[name]}. Resume with the same settings, or give another name. These may differ: "
                    f"{', '.join(sorted(MAY_DIFFER))}.")
        shapes = {name: tuple(tensor.shape) for name, tensor in _under("weight/", tensors).items()}
        if shapes != {name: tuple(weight.shape) for name, weight in self.weights.items()}:
            raise CheckpointError(
                f"The checkpoint {self.store.path} holds the weights of another network: {len(shapes)} "
                f"tensors, not the {len(self.weights)} of this one. Give another checkpoint name.")


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def _told(updates: Sequence[Update], settings: TrainSettings) -> list[list] | None:
    """What a checkpoint keeps of several updates, but for what may differ."""
    if len(updates) == 1:
        return None
    return [[update.name, update.weights, update.every] + [
        _plain(value) for name, value in of_optimizer(update, settings).items() if name not in MAY_DIFFER]
        for update in updates]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _check_weights(weights: Mapping[str, nn.Parameter]) -> None:
    if not weights:
        raise ValueError("Nothing to train: no parameter of the model requires a gradient.")
    for name, weight in weights.items():
        if weight.dtype != torch.float32 or weight.is_inference():
            kind = "a tensor made in inference mode" if weight.is_inference() else str(weight.dtype)
            raise ValueError(f"Trainable weights must be ordinary float32 tensors; {name} is {kind}. Train a "
                             "float32 clone made outside inference mode; precision is a setting of the loop.")


@contextmanager
def _training_mode() -> Iterator[None]:
    """Gradients on, whatever the caller runs in: ComfyUI executes nodes in inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the block and put them back after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
