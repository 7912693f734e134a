"""`pretrain plan` for a run and a topology: compiles, estimates, searches, and prints what it found."""

import json
from typing import Any

import jax

from pretrain.core import config
from pretrain.core.errors import RunError


class DoesNotFit(RunError):
    """The run does not fit on the topology. Exit code 3."""

    exit_code = 3


def plan_pod(values: Any, bindings: list[str]) -> None:
    """Runs the command.

    Raises:
        UserError: the configuration, the topology or the mesh is wrong.
        DoesNotFit: after the report is printed.
    """
    jax.config.update("jax_platforms", "cpu")  # planning needs no accelerator, and looking for one takes a minute
    from pretrain import ahead_of_time
    from pretrain.experiment import Experiment
    from pretrain.plan.chips import parse_pod
    from pretrain.plan.pod_table import layout_table, pod_table

    config.load(values.gin_file, bindings)
    pod = parse_pod(values.topology, values.slices)
    experiment = Experiment(values.workdir or "")
    job = ahead_of_time.make_job(experiment, ahead_of_time.tpu_devices(pod))
    if values.show_sharding:
        job.lower()
        rows = ahead_of_time.layout_rows(job)
        print(json.dumps(rows) if values.json else layout_table(rows))
        return
    result = ahead_of_time.compile_job(job, pod)
    print(json.dumps(result) if values.json else pod_table(result))
    if not result["fits"]:
        raise DoesNotFit(f"the step does not fit on {pod}")
