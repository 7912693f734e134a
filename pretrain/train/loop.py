"""The training loop: it only moves batches in and metrics out; everything that learns is in `step`.

The next step is dispatched before the metrics of the last one are fetched, and batches are on the devices before they
are needed, so that the device never waits for Python.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import jax
from jax.sharding import Mesh

from pretrain.core import processes
from pretrain.core.batch import Batch
from pretrain.core.console import Progress, say
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.storage import Path
from pretrain.sharding.placement import batch_shardings, place_batch, replicated
from pretrain.sharding.rules import use_mesh
from pretrain.train.checkpoint import Checkpointer, Checkpointing
from pretrain.train.control import lower_rate
from pretrain.train.events import EventLog
from pretrain.train.hardware_checks import HardwareChecks
from pretrain.train.metrics import MetricsLog
from pretrain.train.pace import Clock, placed_ahead
from pretrain.train.recovery import Course, Recovery, Rewind, Watch
from pretrain.train.spikes import Detector
from pretrain.train.state import TrainState, init_state, state_shardings
from pretrain.train.statistics import Instruments, Statistics, bounds
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
        documents: batch -> what is in it, as JSON, to write down with a spike; None where nothing is known.
        sources: batch -> the source of each of its rows, over all hosts; None where nothing is known.
    """

    batches: Callable[[int], Iterator[Batch]]
    position: Callable[[int], dict[str, Any]]
    resume: Callable[[dict[str, Any]], None] = lambda position: None
    validation: Callable[[], Iterator[Batch]] | None = None
    bytes_per_token: float | None = None
    ahead: int = 2
    documents: Callable[[int], Any] | None = None
    sources: Callable[[int], Sequence[str | None]] | None = None


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
        recovery, detector: what to do about loss spikes, and what they are; gin's by default.
        statistics: how often to look inside; gin's by default.
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
        recovery: Recovery | None = None,
        detector: Detector | None = None,
        statistics: Statistics | None = None,
    ):
        self.config, self.builder, self.mesh, self.data = config, builder, mesh, data
        self.workdir, self.checkpointing = Path(workdir), checkpointing
        self.flops_per_token, self.initial_params = flops_per_token, initial_params
        self.events = EventLog(self.workdir)
        self.keeper, self.checks = Timekeeper(self.workdir), HardwareChecks(self.events)
        recovery, writes = recovery or Recovery(), processes.is_first()
        self.watch = Watch(
            recovery, detector or Detector(), recovery.grid or checkpointing.every,
            self.events if writes else None, data.documents,
        )  # fmt: skip
        specs = builder.objective.batch_spec(config.batch_size, config.sequence_length)
        self.shardings = batch_shardings(specs, mesh)
        self.state_shardings = state_shardings(
            builder.model, builder.optimizer, mesh, config.seed, builder.begin_control
        )
        self.train_step = self.compiled(builder.train)
        self.instruments = Instruments(statistics or Statistics(), builder, self._compiled_look, data.sources)
        self.eval_step = self._traced_on_mesh(
            jax.jit(
                builder.evaluate,
                in_shardings=(self.state_shardings.params, self.shardings),
                out_shardings=replicated(mesh),
            )
        )

    def compiled(self, train: Callable) -> Callable:
        """A function (state, batch) -> (state, scalars) for this mesh, to be compiled; the state is given away."""
        return self._traced_on_mesh(
            jax.jit(
                train,
                donate_argnums=0,
                in_shardings=(self.state_shardings, self.shardings),
                out_shardings=(self.state_shardings, replicated(self.mesh)),
            )
        )

    def _compiled_look(self, look: Callable) -> Callable:
        where = (self.state_shardings, self.shardings)
        return self._traced_on_mesh(jax.jit(look, in_shardings=where, out_shardings=replicated(self.mesh)))

    def run(self) -> TrainState:
        """Trains to the last step, from the newest checkpoint if there is one. Returns the final state."""
        rules = self.checkpointing
        with (
            self.keeper,
            Checkpointer(self.workdir / "checkpoints", rules, events=self.events) as checkpointer,
            stop_requests(rules.deadline, rules.notice_file) as stop,
        ):
            checkpointer.wanted = self.watch.wanted
            state, start = self._start(checkpointer)
            if start >= self.config.steps:
                say(f"train: already at step {start} of {self.config.steps}")
                return state
            log = MetricsLog(self.workdir, start)
            try:
                while True:
                    try:
                        return self.steps(state, start, checkpointer, log, stop)
                    except Rewind as found:
                        spike = found.with_traceback(None)  # which holds the state that diverged in memory
                    with self.keeper.spending("restart"):
                        state, start = self._rewind(spike, checkpointer)
                        log.rewind(start)
            finally:
                log.close()

    def initial_state(self) -> TrainState:
        """The state before the first step, made in place on the mesh."""
        state = jax.jit(self._fresh_state, out_shardings=self.state_shardings)()
        if self.initial_params is None:
            return state
        params = jax.device_put(self.initial_params, self.state_shardings.params, may_alias=False)  # steps take theirs
        return dataclasses.replace(state, params=params)

    def _fresh_state(self) -> TrainState:
        builder = self.builder
        return init_state(builder.model, builder.optimizer, self.config.seed, builder.begin_control)

    def _start(self, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        newest = checkpointer.latest_step()
        if newest is None:
            return self.initial_state(), 0
        state = self._restore(checkpointer, newest)
        say(f"train: resumed from step {newest}")
        return state, newest

    def _restore(self, checkpointer: Checkpointer, step: int, course: Course | None = None) -> TrainState:
        """The state of a checkpoint, with the data and the watch where they were; `course` in place of the kept one."""
        shapes = jax.eval_shape(self._fresh_state)
        state, position = checkpointer.restore(shapes, self.state_shardings, step)
        if state.control.keys() != shapes.control.keys():
            begun = jax.jit(self.builder.begin_control, out_shardings=self.state_shardings.control)()
            state = dataclasses.replace(state, control={**begun, **state.control})
        self.watch.resume(position.pop("recovery", None), course)
        self.data.resume(position)
        return state

    def _rewind(self, spike: Rewind, checkpointer: Checkpointer) -> tuple[TrainState, int]:
        """Goes back to before a spike. Killed at any moment, the run comes to the same decision again.

        Raises:
            RunError: it was tried often enough.
        """
        watch, recovery = self.watch, self.watch.recovery
        target = checkpointer.newest(max(spike.at_most, 0), watch.grid)
        if target is None and spike.at_most < watch.grid:
            target = 0  # the run's beginning needs no checkpoint
        course = watch.decide(spike, target)
        checkpointer.remove_newer_than(target)
        if target == 0:
            state = self.initial_state()
            watch.resume(None, course)
        else:
            state = self._restore(checkpointer, target, course)
        if self.builder.steers_rate:
            lowered = lower_rate(state.control, recovery.lower_rate**course.tries, target + recovery.for_steps)
            control = jax.tree.map(jax.device_put, lowered, self.state_shardings.control)
            state = dataclasses.replace(state, control=control)
        return state, target

    def steps(
        self, state: TrainState, start: int, checkpointer: Checkpointer, log: MetricsLog, stop: StopRequests
    ) -> TrainState:
        """Trains from `start` steps done to the last one, logging, validating and saving as configured.

        Raises:
            Stopped: it was asked to stop, and has saved the state.
            Rewind: there was a spike, and the run has to go back.
        """
        self.keeper.start(start)
        config, clock = self.config, self._clock(start)
        batches = placed_ahead(self.watch.course.batches(self.data.batches, start), self._place, self.data.ahead)
        pending: tuple[int, dict] | None = None
        with Progress(config.steps, "train", "step", initial=start) as progress:
            for step in range(start + 1, config.steps + 1):
                batch = clock.wait_for(batches)
                looks = self._look(step, state, batch, log)
                state, scalars = self.checks.twice(self.train_step, step, state, batch)
                if pending is not None:  # the device is busy with this step while the last one's metrics are read
                    self._log(*pending, log, clock, progress)
                pending = (step, {**scalars, **looks})
                validate = config.eval_every and (step % config.eval_every == 0 or step == config.steps)
                last = stop.requested(step) or step == config.steps
                save = checkpointer.due(step) or self.watch.due(step) or last
                if validate or save:
                    values = self._log(*pending, log, clock, progress, state if validate else None)
                    pending = None
                if save:
                    with self.keeper.spending("checkpoint"):
                        about = self._position(step), _numbers(values)
                        checkpointer.save(step, state, *about, final=last, before=log.flush)
                if last and step < config.steps:
                    raise Stopped(f"{stop.reason}: step {step} is saved; run the same command again to go on")
                if validate or save:
                    clock.restart(step)
        return state

    def _look(self, step: int, state: TrainState, batch: Batch, log: MetricsLog) -> dict[str, Any]:
        """What there is to see before a step that is looked at, not fetched; histograms are drawn at once."""
        rules = self.instruments.config
        if not rules.due(step) and not rules.draws(step):
            return {}
        with self.keeper.spending("evaluation"):  # the first look is compiled, which may take as long as it likes
            if rules.draws(step):
                log.write_histograms(step, self.instruments.draw(state, batch), bounds())
            return self.instruments.look(state, batch) if rules.due(step) else {}

    def _log(
        self,
        step: int,
        scalars: dict,
        log: MetricsLog,
        clock: Clock,
        progress: Progress,
        validated: TrainState | None = None,
    ) -> dict[str, Any]:
        """Fetches a step's metrics and returns them; also keeps Python at most one step ahead of the device.

        A state in `validated` is validated, after the clock was read.

        Raises:
            Rewind: the step is part of a spike.
        """
        values = self.instruments.fetch(step, scalars, self.watch.course.batch(step - 1))
        self.keeper.step_done(step)
        self.checks.compare_hosts(step, self.keeper.seconds["data_wait"])
        progress.update(1, f"loss {values['loss']:.3f}")
        wanted = step % self.config.log_every == 0 or self.instruments.config.due(step)
        if wanted or step == self.config.steps or validated is not None:
            rates = clock.rates(step)
            validation = {}
            if validated is not None:
                with self.keeper.spending("evaluation"):
                    validation = self.validate(validated)
            values = {**values, **rates, **validation}
            log.write(step, values)
        self.watch.observe(step, values)
        return values

    def _clock(self, start: int) -> Clock:
        tokens = self.config.batch_size * self.config.sequence_length
        return Clock(start, tokens, self.flops_per_token, self.mesh, self.keeper)

    def _position(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps of the host: where the data stands, and what the watch knows."""
        return {**self.data.position(self.watch.course.batch(step)), "recovery": self.watch.kept()}

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


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Metrics without lists of numbers by layer, of which no checkpoint is the best."""
    return {name: value for name, value in values.items() if not isinstance(value, list)}
