"""The training loop: it only moves batches in and metrics out; everything that learns is in `step`.

The next step is dispatched before the metrics of the last one are fetched, and batches are on the devices before they
are needed, so that the device never waits for Python.
"""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gin
import jax
from jax.sharding import Mesh

from pretrain.core.batch import Batch
from pretrain.core.console import Progress, say
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.storage import Path
from pretrain.sharding.placement import batch_shardings, place_batch, replicated
from pretrain.sharding.rules import use_mesh
from pretrain.train.checkpoint import Checkpointer, Checkpointing
from pretrain.train.events import EventLog
from pretrain.train.hardware import peak_flops
from pretrain.train.hardware_checks import HardwareChecks
from pretrain.train.metrics import MetricsLog
from pretrain.train.state import TrainState, init_state, state_shardings
from pretrain.train.step import StepBuilder, summarize
from pretrain.train.stopping import Stopped, StopRequests, stop_requests
from pretrain.train.timekeeper import Timekeeper


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Training:
    """The run as a whole.

    Attributes:
        steps: updates to make.
        batch_size: sequences per update, over all devices and microbatches.
        sequence_length: tokens per sequence.
        seed: of initial parameters, data order and everything else that is random.
        microbatches: parts a batch is accumulated over.
        head_chunks: parts of the length that head and loss are computed over.
        log_every, eval_every: steps between rows of metrics, and between validations; 0 turns validation off.
        eval_batches: batches a validation looks at; 0 takes the whole validation split.
    """

    steps: int = 1000
    batch_size: int = 8
    sequence_length: int = 256
    seed: int = 0
    microbatches: int = 1
    head_chunks: int = 1
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 20

    def __post_init__(self):
        check_fields(self)
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("sequence_length", 2),
            ("seed", 0),
            ("microbatches", 1),
            ("head_chunks", 1),
            ("log_every", 1),
            ("eval_every", 0),
            ("eval_batches", 0),
        ):
            value = getattr(self, name)
            check(value >= least, f"Training.{name} must be >= {least}, got {value!r}")
        check(
            self.batch_size % self.microbatches == 0,
            f"BATCH_SIZE ({self.batch_size}) must be a multiple of Training.microbatches ({self.microbatches})",
        )
        check(
            self.sequence_length % self.head_chunks == 0,
            f"SEQUENCE_LENGTH ({self.sequence_length}) must be a multiple of Training.head_chunks ({self.head_chunks})",
        )


@dataclasses.dataclass
class Data:
    """Where the batches come from: what the loop needs of a loader.

    Attributes:
        batches: start step -> iterator of this host's rows of each global batch, from that step on.
        position: step -> small JSON object that says where the data stands after that many steps; kept in checkpoints.
        resume: takes the position in the checkpoint that the run goes on from; raises if it is one in other data.
        validation: makes a fresh iterator over validation batches, or None.
        bytes_per_token: of the validation text, to give bits per byte; None when unknown.
        ahead: batches that are put on the devices before the step that uses them.
    """

    batches: Callable[[int], Iterator[Batch]]
    position: Callable[[int], dict[str, Any]]
    resume: Callable[[dict[str, Any]], None] = lambda position: None
    validation: Callable[[], Iterator[Batch]] | None = None
    bytes_per_token: float | None = None
    ahead: int = 2


class Trainer:
    """One run: state, compiled step, data, metrics and checkpoints.

    Args:
        config: sizes and cadences.
        builder: the functions to compile.
        mesh: devices.
        data: batches.
        workdir: where metrics and checkpoints go.
        checkpointing: how checkpoints are kept.
        flops_per_token: model FLOPs to train one token, for MFU.
        initial_params: parameters to start from instead of fresh ones, when there is no checkpoint.
    """

    def __init__(
        self,
        config: Training,
        builder: StepBuilder,
        mesh: Mesh,
        data: Data,
        workdir: Path | str,
        checkpointing: Checkpointing,
        flops_per_token: int,
        initial_params: Any | None = None,
    ):
        self.config, self.builder, self.mesh, self.data = config, builder, mesh, data
        self.workdir, self.checkpointing = Path(workdir), checkpointing
        self.flops_per_token, self.initial_params = flops_per_token, initial_params
        self.keeper, self.checks = Timekeeper(self.workdir), HardwareChecks(EventLog(self.workdir))
        specs = builder.objective.batch_spec(config.batch_size, config.sequence_length)
        self.shardings = batch_shardings(specs, mesh)
        self.state_shardings = state_shardings(builder.model, builder.optimizer, mesh, config.seed)
        everywhere = replicated(mesh)
        self.train_step = self._traced_on_mesh(
            jax.jit(
                builder.train,
                donate_argnums=0,
                in_shardings=(self.state_shardings, self.shardings),
                out_shardings=(self.state_shardings, everywhere),
            )
        )
        self.eval_step = self._traced_on_mesh(
            jax.jit(
                builder.evaluate, in_shardings=(self.state_shardings.params, self.shardings), out_shardings=everywhere
            )
        )

    def run(self) -> TrainState:
        """Trains to the last step, from the newest checkpoint if there is one. Returns the final state."""
        rules, events = self.checkpointing, EventLog(self.workdir)
        with (
            self.keeper,
            Checkpointer(self.workdir / "checkpoints", rules, events=events) as checkpointer,
            stop_requests(rules.deadline, rules.notice_file) as stop,
        ):
            state, start = self._start(checkpointer)
            if start >= self.config.steps:
                say(f"train: already at step {start} of {self.config.steps}")
                return state
            log = MetricsLog(self.workdir, start)
            try:
                return self.steps(state, start, checkpointer, log, stop)
            finally:
                log.close()

    def initial_state(self) -> TrainState:
        """The state before the first step, made in place on the mesh."""
        make = jax.jit(
            lambda: init_state(self.builder.model, self.builder.optimizer, self.config.seed),
            out_shardings=self.state_shardings,
        )
        state = make()
        return state if self.initial_params is None else dataclasses.replace(state, params=self.initial_params)

    def _start(self, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        if checkpointer.latest_step() is None:
            return self.initial_state(), 0
        shapes = jax.eval_shape(lambda: init_state(self.builder.model, self.builder.optimizer, self.config.seed))
        state, position = checkpointer.restore(shapes, self.state_shardings)
        start = int(state.step)
        self.data.resume(position)
        say(f"train: resumed from step {start}")
        return state, start

    def steps(
        self, state: TrainState, start: int, checkpointer: Checkpointer, log: MetricsLog, stop: StopRequests
    ) -> TrainState:
        """Trains from `start` steps done to the last one, logging, validating and saving as configured.

        Raises:
            Stopped: it was asked to stop, and has saved the state.
        """
        self.keeper.start(start)
        config, clock = self.config, _Clock(self, start)
        batches = placed_ahead(self.data.batches(start), self._place, self.data.ahead)
        pending: tuple[int, dict] | None = None
        with Progress(config.steps, "train", "step", initial=start) as progress:
            for step in range(start + 1, config.steps + 1):
                state, scalars = self.checks.twice(self.train_step, step, state, clock.wait_for(batches))
                if pending is not None:  # the device is busy with this step while the last one's metrics are read
                    self._log(*pending, log, clock, progress)
                pending = (step, scalars)
                validate = config.eval_every and (step % config.eval_every == 0 or step == config.steps)
                last = stop.requested(step) or step == config.steps
                save = checkpointer.due(step) or last
                if validate or save:
                    values = self._log(step, scalars, log, clock, progress, state if validate else None)
                    pending = None
                if save:
                    log.flush()
                    with self.keeper.spending("checkpoint"):
                        checkpointer.save(step, state, self.data.position(step), values, final=last)
                if last and step < config.steps:
                    raise Stopped(f"{stop.reason}: step {step} is saved; run the same command again to go on")
                if validate or save:
                    clock.restart(step)
        return state

    def _log(
        self,
        step: int,
        scalars: dict,
        log: MetricsLog,
        clock: "_Clock",
        progress: Progress,
        validated: TrainState | None = None,
    ) -> dict[str, float]:
        """Fetches a step's metrics and returns them; also keeps Python at most one step ahead of the device.

        A state in `validated` is validated, after the clock was read.
        """
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        self.keeper.step_done(step)
        self.checks.compare_hosts(step, self.keeper.seconds["data_wait"])
        progress.update(1, f"loss {values['loss']:.3f}")
        if step % self.config.log_every == 0 or step == self.config.steps or validated is not None:
            rates = clock.rates(step)
            validation = {}
            if validated is not None:
                with self.keeper.spending("evaluation"):
                    validation = self.validate(validated)
            values = {**values, **rates, **validation}
            log.write(step, values)
        return values

    def validate(self, state: TrainState) -> dict[str, float]:
        """Loss and metrics over the validation batches, exact sums over tokens."""
        if self.data.validation is None:
            return {}
        totals = None
        for batch in self.data.validation():
            new = self.eval_step(state.params, self._place(batch))
            totals = new if totals is None else jax.tree.map(lambda a, b: a + b, totals, new)
        if totals is None:
            return {}
        means = {f"validation_{name}": float(value) for name, value in summarize(*totals).items()}
        if self.data.bytes_per_token:
            bits = means["validation_loss"] / math.log(2)
            means["validation_bits_per_byte"] = bits / self.data.bytes_per_token
        say(f"validation at step {int(state.step)}: " + ", ".join(f"{k[11:]} {v:.4f}" for k, v in means.items()))
        return means

    def _place(self, batch: Batch) -> dict[str, jax.Array]:
        return place_batch(batch, self.shardings, self.config.batch_size)

    def _traced_on_mesh(self, function):
        def call(*arguments):
            with use_mesh(self.mesh):
                return function(*arguments)

        return call


def placed_ahead(batches: Iterable[Batch], place: Callable[[Batch], Any], ahead: int) -> Iterator[Any]:
    """Batches on the devices, in order: when one is handed out, the next `ahead` have been sent after it.

    Sending does not wait for the transfer. Positions count steps, not batches sent, so nothing is lost at a restart.
    """
    waiting: collections.deque = collections.deque()
    for batch in batches:
        waiting.append(place(batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


class _Clock:
    """Speeds since the last row of metrics: tokens/s, MFU, and the share of time spent waiting for data."""

    def __init__(self, trainer: Trainer, step: int):
        config, device, self._keeper = trainer.config, trainer.mesh.devices.flat[0], trainer.keeper
        self._tokens_per_step = config.batch_size * config.sequence_length
        peak = peak_flops(device)
        self._peak_tokens = peak and peak * trainer.mesh.size / trainer.flops_per_token
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts a new interval after `step`; what came before (validation, saving) does not count."""
        self._step, self._since, self._waited = step, time.perf_counter(), 0.0

    def wait_for(self, batches: Iterator[Any]) -> Any:
        """The next batch; the time it takes is data wait."""
        start = time.perf_counter()
        with self._keeper.spending("data_wait"):
            batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def rates(self, step: int) -> dict[str, float]:
        """The interval's speeds; begins the next interval."""
        now = time.perf_counter()
        seconds, steps = max(now - self._since, 1e-9), step - self._step
        speed = steps * self._tokens_per_step / seconds
        values = {
            "tokens": step * self._tokens_per_step,
            "seconds": seconds,
            "tokens_per_second": speed,
            "data_wait": self._waited / seconds,
        }
        if self._peak_tokens:
            values["mfu"] = speed / self._peak_tokens
        self.restart(step)
        return values
