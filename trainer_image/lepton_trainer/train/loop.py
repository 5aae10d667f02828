"""The training loop, from top to bottom: join, prepare, resume, then step after step until the end, a stop, or something that cannot be.

The state that matters is three things: the weights with their optimiser, the step, and `consumed`, the number of samples used. Which
samples the next step uses follows from `consumed` and the seed alone, so a run may end anywhere, and go on with another number of
processes, and use each sample once per epoch. Nothing in a step waits for the device; figures are fetched once per interval.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lepton_trainer.train import fp8, optim, parallel, pipeline, ranks, schedule, tasks, warm
from lepton_trainer.train.checkpoint import Checkpointer
from lepton_trainer.train.config import TaskConfig, name_of
from lepton_trainer.train.data.feed import Batch, Feed
from lepton_trainer.train.data.order import portions, share
from lepton_trainer.train.delivery import conclusion
from lepton_trainer.train.errors import NonFiniteLoss, NotSaved, OutOfMemory
from lepton_trainer.train.parallel import Engine
from lepton_trainer.train.pipeline import PipelineEngine
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.reporting import Journal, Stopping, places
from lepton_trainer.train.settings.delivery import NOTHING, Delivery
from lepton_trainer.train.throughput import Throughput, peak_of

EVALUATION_BATCH = 512
NO_MEMORY = "can't allocate memory"
"""What torch's allocator for CPUs says in an error that has no type of its own."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: `finished` is False after a stop that was asked for; `terminated` says that a SIGTERM asked."""

    step: int
    consumed: int
    finished: bool
    terminated: bool
    figures: dict[str, float]


def train(config: TaskConfig, delivery: Delivery = NOTHING) -> Result:
    """Run a configuration to its end, alone or as one rank of the group that the environment describes; then deliver the model.

    Raises:
        UserError: the configuration, data or checkpoint has to be changed; the same on every rank.
        NonFiniteLoss, NotSaved, OutOfMemory, Fenced: see `errors`.
    """
    with ranks.joined() as place, Stopping() as stopping:
        try:
            return _train(config, delivery, place, stopping)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and NO_MEMORY not in str(error):
                raise
            raise out_of_memory(config, place, error) from None


def _train(config: TaskConfig, delivery: Delivery, place: Place, stopping: Stopping) -> Result:
    settings = config.training
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
    task = ranks.together(lambda: tasks.build(config))
    torch.manual_seed(settings.seed)
    model = task.model()
    if settings.precision == "fp8":
        model = fp8.convert(model, place.device)

    # How the work is divided, and for how long.
    memory = torch.cuda.get_device_properties(place.device).total_memory if place.device.type == "cuda" else 0
    layout = parallel.layout(config.parallelism, place.world, sum(p.numel() for p in model.parameters()), memory)
    parallel.refuse_old_torch(layout, place)
    end = settings.steps * settings.global_batch if settings.steps else max(round(settings.epochs * task.size), 1)
    example, _ = task.test_batch(0, 1)
    micro_batch = pipeline.micro_batch(settings, layout) if layout.pipeline > 1 else settings.micro_batch
    if layout.pipeline > 1:  # whose micro-batches are all of one size
        end = max(end // settings.global_batch, 1) * settings.global_batch
    total_steps = math.ceil(end / settings.global_batch)
    engine = (PipelineEngine if layout.pipeline > 1 else Engine)(
        model, layout, place, task.loss, example, _autocast(settings.precision, place), settings.compile
    )
    optimizers = optim.build(config.optimizer, engine.model)
    optim.create_state(optimizers)
    average = optim.Average(engine.named, settings.ema) if settings.ema else None
    engine.warm()

    # Where it is written, and from where it goes on.
    path, output = places(name_of(config), config.checkpoint.path, config.output.directory)
    journal = Journal(place.rank, output, task.metric, total_steps, config.output.plots)
    identity = {**task.identity, "task": name_of(config), "seed": settings.seed, "optimizer": config.optimizer.name, "ema": bool(average)}
    checkpoints = Checkpointer(path, json.loads(json.dumps(identity)), config.checkpoint.keep, journal.event)
    tensors = {f"model.{name}": t for name, t in engine.model.state_dict().items()}
    called = {id(parameter): name for name, parameter in engine.named.items()}
    tensors |= {f"optimizer.{name}": t for name, t in optim.state_tensors(optimizers, called).items()}
    tensors |= {f"average.{name}": t for name, t in average.shadow.items()} if average else {}
    volatile = frozenset(f"model.{name}" for name in engine.buffers)
    run = conclusion.Run(config, delivery, task, place, path, output)
    ranks.from_first(lambda: conclusion.check(run), checkpoints.group)
    facts = checkpoints.restore(tensors)
    if facts is None and delivery.round and delivery.round.warm_start:
        plain = {name: t for name, t in tensors.items() if name.startswith("model.")}
        if warm.start(delivery.round.warm_start, plain, checkpoints.group, journal.event) and average:
            average.restart()
    facts = facts or {"step": 0, "consumed": 0, "best": None, "worse": 0}
    step, consumed, best, worse = facts["step"], facts["consumed"], facts["best"], facts["worse"]
    journal.resume(step)
    ledger = _ledger(config, output, engine, checkpoints, journal)
    for note in task.notes:
        journal.event("DataCleaned", note)
    if not path:
        journal.event("NoCheckpoints", "the job names no claim (spec.checkpoint.claimName): nothing is kept, a restart begins anew")

    devices = peak_of(torch.cuda.get_device_name(place.device)) * place.world if place.device.type == "cuda" else 0.0
    throughput = Throughput(time.perf_counter(), task.tokens, task.flops, devices)
    window = Window(engine, place)
    figures: dict[str, float] = {}
    finished = consumed >= end or 0 < settings.patience <= worse
    feed = Feed(task, settings.seed, consumed, consumed if finished else end, settings.global_batch, engine.data_rank, layout.data)
    begun, done = step, consumed
    engine.forward.train()
    try:
        for batch in feed:
            # One optimiser step over one global batch.
            factor = schedule.factor(config.schedule, step, total_steps)
            optim.set_rate(optimizers, factor)
            passes, most = portions(batch.count, micro_batch, layout.data)
            loss = engine.accumulate(batch.inputs, batch.targets, passes, most, float(batch.count * task.units))
            engine.reduce(len(batch.indices), batch.count)
            step, previous, consumed = step + 1, consumed, batch.stop
            ledger(step, batch)
            journal.stepped(step, batch.count, batch.count * task.tokens)

            # What is due after it: the same on every rank, for it follows from the step and from agreed answers.
            finished = consumed >= end
            stop = stopping.now()
            epoch_over = consumed // task.size > previous // task.size
            evaluating = _due(settings.evaluate_every_steps, step, epoch_over) or finished
            saving = _due(config.checkpoint.every_steps, step, epoch_over) or finished or stop
            looking = step % config.output.every_steps == 0 or evaluating or saving
            norm = engine.norm() if looking or config.optimizer.clip_norm else None
            if norm is not None and config.optimizer.clip_norm:
                engine.clip(norm, config.optimizer.clip_norm)
            checkpoints.before_update()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update(step)
            window.add(loss, batch.count * task.units)
            if not looking:
                continue

            last, size = window.fetch(norm, step)
            rates = throughput.interval(time.perf_counter(), step - begun, consumed - done, feed.waited)
            rate = config.optimizer.learning_rate * factor
            journal.training(step, consumed, consumed / task.size, last, rate, size, rates, checkpoints.timing.blocked)
            paused = time.perf_counter()
            if evaluating and not stop:
                figures = evaluate(task, engine, average)
                journal.evaluation(step, figures)
                best, worse = judge(figures[task.metric], best, worse, task.mode)
                if settings.patience and worse >= settings.patience:
                    finished = saving = True
            if saving:
                state = {"step": step, "consumed": consumed, "best": best, "worse": worse}
                checkpoints.save(step, tensors, state, volatile)
            throughput.skip(time.perf_counter() - paused)
            if finished or stop:
                break
    finally:
        feed.close()
        checkpoints.wait()
    checkpoints.close()
    if finished and checkpoints.problem:
        raise NotSaved(
            f"the last checkpoint, of step {step}, is not saved: {checkpoints.problem}", where=path, instead="Make room or mend the store"
        )
    if finished and not figures:
        figures = evaluate(task, engine, average)
        journal.final(figures)
    result = Result(step, consumed, finished, stopping.terminated, figures)
    journal.finish({"finished": finished, "step": step, "consumed": consumed, "best": best, **figures})
    if finished:
        conclusion.conclude(run, engine, average, journal, checkpoints.group, step)
    return result


class Window:
    """The losses since the last look, kept on the device; fetching them is the only time that a step waits for it."""

    def __init__(self, engine: Engine, place: Place) -> None:
        self.engine, self.place = engine, place
        self.losses: list[Tensor] = []
        self.units: list[int] = []

    def add(self, loss: Tensor, units: int) -> None:
        """Note one step's loss, summed over this process's units, and the units of the global batch."""
        self.losses.append(loss)
        self.units.append(units)

    def fetch(self, norm: Tensor | None, step: int) -> tuple[float, float]:
        """The mean loss over all processes and the gradient's norm of the last step.

        Raises:
            NonFiniteLoss: naming the first such step of the window.
        """
        sums = self.engine.add_up(torch.stack(self.losses))
        means = [total / count for total, count in zip(sums.tolist(), self.units, strict=True)]
        size = float(norm) if norm is not None else 0.0
        first = step - len(means) + 1
        self.losses, self.units = [], []
        for index, mean in enumerate(means):
            if not math.isfinite(mean):
                self._refuse(f"the loss of step {first + index} is {mean}")
        if not math.isfinite(size):
            self._refuse(f"the gradient of step {step} has norm {size}")
        return means[-1], size

    def _refuse(self, what: str) -> None:
        raise NonFiniteLoss(
            what,
            instead="Lower optimizer.learningRate, set optimizer.clipNorm, or write precision: fp32; the last checkpoint is from before",
        )


def evaluate(task: tasks.Task, engine: Engine, average: optim.Average | None) -> dict[str, float]:
    """Figures of merit on the held-out split, the same on every rank; uses the weights' average where there is one."""
    if average is not None:
        average.swap()
    engine.forward.eval()
    first, last = share(0, task.test_size, engine.data_rank, engine.layout.data)
    limit = max(1, EVALUATION_BATCH // max(task.tokens // 16, 1))
    passes, most = portions(task.test_size, limit, engine.layout.data)
    sums = torch.zeros(task.sums, dtype=torch.float64, device=engine.place.device)
    for turn in range(passes):
        start = min(first + turn * most, last)
        found = engine.evaluate(*task.test_batch(start, min(start + most, last)), task.score)
        if found is not None:
            sums += found
    engine.add_up(sums)
    engine.forward.train()
    if average is not None:
        average.swap()
    return task.metrics(sums.tolist())


def judge(value: float, best: float | None, worse: int, mode: str) -> tuple[float | None, int]:
    """The best value so far, and how many evaluations in a row have not beaten it; a value that is not finite never does."""
    better = math.isfinite(value) and (best is None or (value > best if mode == "max" else value < best))
    return (value, 0) if better else (best, worse + 1)


def out_of_memory(config: TaskConfig, place: Place, error: BaseException) -> OutOfMemory:
    """What to lower, by how much, when the device's memory was not enough."""
    share_of_batch = math.ceil(config.training.global_batch / place.world)
    most = config.training.micro_batch or share_of_batch
    advice = (
        f"Write training.microBatch: {most // 2}"
        if most > 1
        else "Write a smaller model, precision: bf16, or parallelism.strategy: fsdp on more processes"
    )
    text = (str(error) or type(error).__name__).splitlines()[0]
    return OutOfMemory(
        f"out of memory at {most} samples per pass ({text})", where=f"rank {place.rank}", instead=f"{advice}; the result stays the same"
    )


def _ledger(config: TaskConfig, output: Path, engine: Engine, checkpoints: Checkpointer, journal: Journal) -> Any:
    """A function that notes which samples a step used, or one that does nothing. The first row says what the generation resumed from:
    start files go with the checkpoints that nobody needs any more, the ledger stays whole. Where it can't be written, training goes on."""
    if not config.output.ledger or not engine.leads:
        return lambda step, batch: None
    output.mkdir(parents=True, exist_ok=True)
    generation, origin = checkpoints.generation, checkpoints.last
    stream = (output / f"ledger-gen-{generation}-rank-{engine.place.rank}.jsonl").open("a", buffering=1)
    resume = {"generation": origin.generation, "step": origin.step} if origin else None
    stream.write(json.dumps({"generation": generation, "resume": resume}) + "\n")

    def note(step: int, batch: Batch) -> None:
        row = {"generation": generation, "step": step, "epochs": batch.epochs.tolist(), "samples": batch.indices.tolist()}
        try:
            stream.write(json.dumps(row) + "\n")
        except OSError as error:
            journal.unwritten(stream.name, error)

    return note


def _due(every: int, step: int, epoch_over: bool) -> bool:
    return step % every == 0 if every else epoch_over


def _autocast(precision: str, place: Place) -> torch.dtype | None:
    capable = place.device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if precision in ("bf16", "fp8") or (precision == "auto" and capable) else None
