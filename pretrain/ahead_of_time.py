"""The pod on the desk: compiles a run's real train step for chips that are not there, and says what it will need.

XLA's compiler for TPU comes with libtpu and runs on any machine. From the gin file alone (no cache, no tokenizer: the
vocabulary is the model's) this makes the step that `pretrain train` would run, lays it out on the mesh of a topology,
compiles it, and reads memory, FLOPs and collectives off the result.

A plan is compiled at XLA's optimization level O1, which takes a third of the time and gave 1.7 % less memory for
Llama-3-8B; what is saved for a pod is compiled as the pod would.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path as LocalPath
from typing import Any

import jax
import jax.export
import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.core.objective import Vocabulary
from pretrain.core.platform import traced_for
from pretrain.core.storage import Path
from pretrain.core.trees import named_leaves, size
from pretrain.data.tokenizer_training import TokenizerConfig
from pretrain.experiment import Experiment
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.buffers import largest_buffers
from pretrain.plan.chips import Pod
from pretrain.plan.collectives import find_collectives
from pretrain.plan.hlo import Program
from pretrain.plan.roofline import roofline
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import batch_shardings, replicated
from pretrain.sharding.rules import named_sharding, use_mesh
from pretrain.train.loop import Training
from pretrain.train.state import init_state, state_shardings
from pretrain.train.step import StepBuilder
from pretrain.training import build_step

PLANNED = "O1"  # XLA's optimization level for plans
# What libtpu would otherwise ask the machine for, at length.
QUIET_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_LOG_DIR": "disabled",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Job:
    """A run's train step and its layout, ready to be lowered.

    Attributes:
        model: its configuration, with a vocabulary.
        training: sizes.
        builder: the step.
        mesh: the absent devices.
        state, batch: abstract arguments with their shardings.
        targets: positions of a sequence that are predicted.
        encoded: length of what an encoder reads, where that is not the sequence.
        activations: (logical axes, shape, dtype) of what was laid out when the step was traced; filled by `lower`.
    """

    model: TransformerConfig
    training: Training
    builder: StepBuilder
    mesh: jax.sharding.Mesh
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    targets: int
    encoded: int | None
    activations: list = dataclasses.field(default_factory=list)

    @property
    def ways(self) -> dict[str, int]:
        """Ways of each mesh axis."""
        return dict(self.mesh.shape)

    @property
    def model_flops(self) -> int:
        """FLOPs of one step by the model's own formula, without what is computed again."""
        per_token = count_flops(self.model, self.training.sequence_length, self.targets, self.encoded).training
        return per_token * self.training.batch_size * self.training.sequence_length

    def lower(self) -> jax.stages.Lowered:
        """The step as StableHLO for TPU."""
        layout = functools.partial(jax.tree.map, lambda leaf: leaf.sharding)
        state_layout = layout(self.state)
        step = jax.jit(
            self.builder.train,
            donate_argnums=0,
            in_shardings=(state_layout, layout(self.batch)),
            out_shardings=(state_layout, replicated(self.mesh)),
        )
        with traced_for("tpu"), use_mesh(self.mesh, self.activations):
            return step.trace(self.state, self.batch).lower(lowering_platforms=("tpu",))


def tpu_devices(pod: Pod) -> list[Any]:
    """The devices of a pod as libtpu describes them.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    check(
        importlib.util.find_spec("libtpu") is not None,
        "compiling for TPU needs its compiler, which is not installed: pip install 'pretrain[tpu]'",
    )
    for name, value in QUIET_LIBTPU.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    name = f"{pod.kind}:{'x'.join(map(str, pod.shape))}"
    options = {"wrap": pod.wraps, **({"num_slices": pod.slices} if pod.slices > 1 else {})}
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except Exception as error:  # XLA's errors have no type of their own
        raise UserError(f"--topology={name}: libtpu knows no such topology ({str(error).splitlines()[0]})") from error


def model_with_vocabulary() -> TransformerConfig:
    """The loaded model; where it takes the tokenizer's vocabulary, with the size that tokenizer is to have."""
    model = TransformerConfig()
    return model if model.vocab_size else model.with_vocab(TokenizerConfig().vocab_size)


def make_job(experiment: Experiment, devices: list[Any]) -> Job:
    """The step of the loaded gin configuration on these devices.

    Raises:
        UserError: batch, sequence, model and mesh do not go together.
    """
    training, model = experiment.training, model_with_vocabulary()
    objective = experiment.objective.bind(Vocabulary(model.vocab_size, num_sentinels=experiment.objective.sentinels))
    with traced_for("tpu"):
        mesh = make_mesh(MeshConfig(), devices)
        experiment.mesh = mesh
        experiment.check_sizes()
        functional = build_model(model, objective.model_needs)
        builder = build_step(training, model, functional, objective)
        specs = objective.batch_spec(training.batch_size, training.sequence_length)
        made_of = functional, builder.optimizer
        shapes = jax.eval_shape(lambda: init_state(*made_of, training.seed, builder.begin_control))
        layout = state_shardings(*made_of, mesh, training.seed, builder.begin_control)
    with_layout = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    batch = {
        name: jax.ShapeDtypeStruct(specs[name].shape, np.dtype(specs[name].dtype), sharding=where)
        for name, where in batch_shardings(specs, mesh).items()
    }
    targets = specs["targets"].shape[1] if "targets" in specs else training.sequence_length
    state, read = jax.tree.map(with_layout, shapes, layout), objective.encoded_length
    return Job(model, training, builder, mesh, state, batch, targets, read)


def compile_job(job: Job, pod: Pod, save: Path | None = None) -> dict[str, Any]:
    """Compiles the step and measures it; see `docs/scale.md` for the keys. `save` is a folder for what is compiled."""
    if save is not None:
        jax.config.update("jax_compilation_cache_dir", str(save))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")  # nothing here can load a step
    start = time.perf_counter()
    lowered = job.lower()
    with tempfile.TemporaryDirectory() as folder:
        # Where the compiler writes down what it made is no part of the key under which a pod finds the step again.
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_dump_hlo_module_re": "jit_train"}
        try:
            with at_level(PLANNED) if save is None else contextlib.nullcontext():
                memory, done = _memory(lowered.compile(compiler_options=options), pod), True
        except Exception as error:  # XLA's errors have no type of their own
            memory, done = _memory_of_failure(error, job, pod), False
        seconds = time.perf_counter() - start
        kinds = ("", "_before_buffer_assignment", "-buffer-assignment", "-memory-usage-report")
        text, unassigned, assignment, usage = (_dumped(folder, kind) for kind in kinds)
    if usage:
        memory["peak"] = peak_of(usage)
    if save is not None and done:
        _save(job, save)
    text = text or unassigned  # where memory was not enough, the program is known and its places are not
    check(bool(text), f"XLA gave up on this step for {pod} before its program was made")
    program = Program(text)
    collectives = find_collectives(program, job.ways, pod)
    times = roofline(program, collectives, pod)
    return {
        "topology": str(pod),
        "chips": pod.chips,
        "mesh": job.ways,
        "remat": job.model.remat,
        "parameters": size(job.builder.model.shapes),
        "hbm_bytes": memory,
        "fits": done and memory["peak"] <= memory["capacity"],
        "buffers": [dataclasses.asdict(each) for each in largest_buffers(assignment, text, program)],
        "model_flops": job.model_flops,
        "hardware_flops": times.hardware_flops,
        "arithmetic_intensity": times.intensity,
        "collectives": [dataclasses.asdict(each) for each in collectives],
        "kernels": program.pallas_kernels(),
        "kernel_seconds": times.kernel_seconds,
        "collective_seconds": times.collective_seconds,
        **speed(job.model_flops, times.step_seconds, job.training, pod),
        "assumptions": list(ASSUMPTIONS),
        "unknown_loops": program.unknown_loops,
        "compile_seconds": seconds,
        "optimization": PLANNED if save is None else jax.config.jax_optimization_level,
    }


@contextlib.contextmanager
def at_level(level: str) -> Iterator[None]:
    """Compiles at an optimization level of XLA in a block, "O0" to "O3"."""
    before = jax.config.jax_optimization_level
    jax.config.update("jax_optimization_level", level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _save(job: Job, folder: Path) -> None:
    """Writes the step as a jax.export artefact of flat arguments: leaves of the state, then of the batch."""
    leaves, tree = jax.tree.flatten((job.state, job.batch))

    def step(*leaves):
        with traced_for("tpu"), use_mesh(job.mesh):
            return tuple(jax.tree.leaves(job.builder.train(*jax.tree.unflatten(tree, leaves))))

    exported = jax.export.export(jax.jit(step), platforms=("tpu",))(*leaves)
    (folder / "step.jax_export").write_bytes(bytes(exported.serialize()))


ASSUMPTIONS = (
    "every kernel at the chip's peak FLOP/s or its memory's full bandwidth, one after another",
    "collectives entirely beside them, at the full speed of the links of the dimensions they use",
    "no time for the host, the input, or between kernels: a real step is slower",
)


def speed(model_flops: float, step_seconds: float, training: Training, pod: Pod) -> dict[str, Any]:
    """MFU, tokens a day, and what the run's token budget takes."""
    tokens = training.batch_size * training.sequence_length
    days = training.steps * step_seconds / 86400
    return {
        "step_seconds": step_seconds,
        "mfu": model_flops / (step_seconds * pod.chips * pod.peak_flops),
        "tokens_per_day": tokens / step_seconds * 86400,
        "budget": {"tokens": training.steps * tokens, "days": days, "chip_hours": days * 24 * pod.chips},
    }


def _memory(compiled: jax.stages.Compiled, pod: Pod) -> dict[str, int]:
    """Sizes as the compiler gives them; the peak is their sum, until the report on memory says better.

    For TPU the temporaries count a loop's own twice: as part of the heap, and again as what the heap has beyond the
    arrays that live outside of loops.
    """
    found = compiled.memory_analysis()
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    return _hbm(arguments, temporaries, found.output_size_in_bytes, found.alias_size_in_bytes, pod)


def _hbm(arguments: int, temporaries: int, outputs: int, aliased: int, pod: Pod) -> dict[str, int]:
    return {
        "arguments": arguments, "temporaries": temporaries, "outputs": outputs, "aliased": aliased,
        "peak": arguments + temporaries + outputs - aliased, "capacity": int(pod.chip.memory),
    }  # fmt: skip


def peak_of(usage: str) -> int:
    """What a chip allocates in HBM, by the text of the compiler's report on memory."""
    return int(re.search(r"Memory Space: default.*\nTotal bytes: (\d+)", usage)[1])


def bytes_wanted(message: str) -> tuple[int, bool] | None:
    """What XLA:TPU says a step would use of HBM when it gives up for want of it, and whether arguments are counted.

    None for other errors.
    """
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    whole = found is not None
    found = found or re.search(r"memory required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds", message)
    return found and (int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")), whole)


def _memory_of_failure(error: Exception, job: Job, pod: Pod) -> dict[str, int]:
    """What the compiler says it would have needed, where it gave up for want of memory.

    Raises:
        UserError: it gave up for another reason.
    """
    wanted = bytes_wanted(str(error))
    if wanted is None:
        raise UserError(f"XLA cannot compile this step for {pod}: {str(error).splitlines()[0]}") from error
    state, batch = (sum(_bytes_here(leaf) for leaf in jax.tree.leaves(tree)) for tree in (job.state, job.batch))
    size, whole = wanted
    return _hbm(state + batch, size - (state + batch if whole else 0), state, state, pod)


def _dumped(folder: str, kind: str) -> str:
    paths = sorted(LocalPath(folder).glob(f"*.after_optimizations{kind}.txt"))
    return paths[-1].read_text() if paths else ""


def layout_rows(job: Job) -> list[dict[str, Any]]:
    """Every parameter, batch array and laid-out activation: name, shape, partition, bytes on one device."""
    rows = []
    for kind, tree in (("parameter", job.state.params), ("batch", job.batch)):
        for name, leaf in named_leaves(tree).items():
            rows.append(_layout_row(kind, name, leaf.shape, leaf.dtype, leaf.sharding))
    counts: dict[tuple, int] = {}
    for seen in job.activations:
        counts[seen] = counts.get(seen, 0) + 1
    for axes, shape, dtype in counts:
        name = "[" + ", ".join(axis or "-" for axis in axes) + "]"
        rows.append(_layout_row("activation", name, shape, dtype, named_sharding(axes, shape, job.mesh)))
    return rows


def _bytes_here(array: jax.ShapeDtypeStruct) -> int:
    """Bytes of one device's part of an array."""
    return int(np.prod(array.sharding.shard_shape(array.shape))) * array.dtype.itemsize


def _layout_row(kind: str, name: str, shape: tuple[int, ...], dtype: Any, sharding: Any) -> Mapping[str, Any]:
    here = _bytes_here(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding))
    spec = [list(part) if isinstance(part, tuple) else part for part in sharding.spec]
    return {"kind": kind, "name": name, "shape": list(shape), "dtype": str(dtype), "spec": spec, "bytes": here}
