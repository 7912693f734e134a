"""`pretrain plan` for a run and a topology: compiles or estimates, searches, saves, and prints what it found."""

import json
from typing import Any

import jax

from pretrain import ahead_of_time
from pretrain.core import config
from pretrain.core.errors import RunError, UserError, check
from pretrain.core.storage import Path
from pretrain.core.trees import size
from pretrain.experiment import Experiment
from pretrain.models.build import build_model
from pretrain.plan.chips import Pod, parse_pod
from pretrain.plan.estimate import ASSUMPTIONS, Setting, candidates, changes_that_fit, estimate
from pretrain.plan.pod_table import layout_table, pod_table, search_table
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import MESH_AXES

COMPILED, SHOWN = 3, 20  # of a search's candidates: the first by formula, and how many in all


class DoesNotFit(RunError):
    """The run does not fit on the topology. Exit code 3."""

    exit_code = 3


def plan_pod(values: Any, bindings: list[str]) -> None:
    """Runs the command: `values` are its flags.

    Raises:
        UserError: the configuration, the topology or the mesh is wrong.
        DoesNotFit: after the report is printed.
    """
    jax.config.update("jax_platforms", "cpu")  # planning needs no accelerator, and looking for one takes a minute
    config.load(values.gin_file, bindings)
    pod = parse_pod(values.topology, values.slices)
    experiment = Experiment(values.workdir or "")
    if values.search:
        rows = search(values.gin_file, bindings, pod)
        return print(json.dumps(rows) if values.json else search_table(rows))
    if not pod.is_tpu:
        for flag in ("show_sharding", "save"):
            check(not getattr(values, flag), f"--{flag} needs a TPU topology: {pod} is planned by formula")
        result = by_formula(experiment, pod)
    else:
        job = ahead_of_time.make_job(experiment, ahead_of_time.tpu_devices(pod))
        if values.show_sharding:
            job.lower()
            rows = ahead_of_time.layout_rows(job)
            return print(json.dumps(rows) if values.json else layout_table(rows))
        result = ahead_of_time.compile_job(job, pod, save=values.save and Path(values.save))
    if not result["fits"]:
        now = setting_of(experiment, pod)
        result["changes"] = changes_that_fit(now, result["hbm_bytes"]["peak"], pod)
    print(json.dumps(result) if values.json else pod_table(result))
    if not result["fits"]:
        raise DoesNotFit(f"the step does not fit on {pod}")


def setting_of(experiment: Experiment, pod: Pod) -> Setting:
    """What the loaded configuration sets, on all chips of a pod."""
    training, model = experiment.training, ahead_of_time.model_with_vocabulary()
    ways = dict(zip(MESH_AXES, MeshConfig().shape(pod.chips), strict=True))
    parameters = size(build_model(model, experiment.objective.model_needs).shapes)
    return Setting(model, training.batch_size, training.sequence_length, training.microbatches, ways, parameters)


def by_formula(experiment: Experiment, pod: Pod) -> dict[str, Any]:
    """The report of a step that is not compiled, with the same keys where there is a formula."""
    setting = setting_of(experiment, pod)
    guess = estimate(setting, pod)
    memory = {"arguments": guess.state, "temporaries": guess.saved + guess.working, "outputs": guess.state}
    memory |= {"aliased": guess.state, "peak": guess.peak, "capacity": pod.chip.memory}
    return {
        "topology": str(pod),
        "chips": pod.chips,
        "mesh": setting.ways,
        "remat": setting.model.remat,
        "estimate": "nothing was compiled; memory is good to about a third",
        "parameters": setting.parameters,
        "hbm_bytes": {name: int(value) for name, value in memory.items()},
        "fits": guess.peak <= pod.chip.memory,
        "model_flops": guess.model_flops,
        "hardware_flops": guess.hardware_flops,
        "collectives": [],
        **ahead_of_time.speed(guess.model_flops, guess.step_seconds, experiment.training, pod),
        "assumptions": list(ASSUMPTIONS),
    }


def search(gin_files: list[str], bindings: list[str], pod: Pod) -> list[dict[str, Any]]:
    """Meshes x remat x microbatches that fit, the fastest first; the first few compiled, where there is a compiler.

    At the end those that the run refused when they were to be compiled, with the reason.
    """
    start = setting_of(Experiment(""), pod)
    ranked = sorted(
        ((estimate(setting, pod), setting) for setting in candidates(start, pod)),
        key=lambda pair: (pair[0].step_seconds, pair[0].peak),
    )
    fitting = [(guess, setting) for guess, setting in ranked if guess.peak <= pod.chip.memory]
    if not fitting:
        raise DoesNotFit(f"no mesh, remat policy and number of microbatches fits on {pod}, by formula")
    formula = [
        _row(setting, guess.peak, guess.step_seconds, guess.model_flops, pod, start) for guess, setting in fitting
    ]
    compiled, refused = [], []
    for (_, setting), row in zip(fitting, formula, strict=True):
        if not pod.is_tpu or len(compiled) == COMPILED:
            break
        try:
            config.load(gin_files, [*bindings, *(b.removeprefix("--gin.") for b in setting.bindings(start))])
            job = ahead_of_time.make_job(Experiment(""), ahead_of_time.tpu_devices(pod))
            result = ahead_of_time.compile_job(job, pod)
        except UserError as refusal:  # the formula's candidates know of fewer constraints than the run
            refused.append({**row, "fits": False, "source": f"refused: {refusal}"})
            row["source"] = "refused"
            continue
        found = result["hbm_bytes"]["peak"], result["step_seconds"], result["model_flops"]
        compiled.append({**_row(setting, *found, pod, start), "fits": result["fits"], "source": "compiled"})
        row["source"] = "compiled"
    compiled.sort(key=lambda row: (not row["fits"], row["step_seconds"], row["peak"]))
    return [*compiled, *(row for row in formula if row["source"] == "formula")][:SHOWN] + refused


def _row(setting: Setting, peak: float, seconds: float, flops: float, pod: Pod, start: Setting) -> dict[str, Any]:
    return {
        "mesh": dict(setting.ways),
        "remat": setting.model.remat,
        "microbatches": setting.microbatches,
        "peak": peak,
        "step_seconds": seconds,
        "mfu": flops / (seconds * pod.chips * pod.peak_flops),
        "fits": True,
        "source": "formula",
        "bindings": setting.bindings(start),
    }
