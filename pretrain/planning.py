"""The commands that plan runs: `plan`, `describe`, `scaling sweep`, `scaling fit` and `scaling emergence`."""

import importlib
import json
import os

from absl import flags

from pretrain.commands import Command, all_of, common_flags
from pretrain.core.errors import UserError, check


def _json_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("json", False, "print one JSON object on standard output instead of a table", flag_values=values)


def _plan_flags(values: flags.FlagValues) -> None:
    number = {"lower_bound": 0, "flag_values": values}
    flags.DEFINE_float("compute", None, "budget in FLOPs, e.g. 1e22", **number)
    flags.DEFINE_float("tokens", None, "budget as training tokens; with --params: judge this run", **number)
    flags.DEFINE_float("params", None, "budget as parameters", **number)
    flags.DEFINE_string(
        "topology", None, "v5p:8x8x8, h100:8 ...; with --days: the budget; with --gin_file: where the run would train",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float("days", None, "how long the topology is ours", **number)
    flags.DEFINE_float("mfu", 0.5, "share of the peak that training reaches", upper_bound=1, **number)
    flags.DEFINE_string("law", None, "law to follow; default: besiroglu, or one's own", flag_values=values)
    flags.DEFINE_string("fit", None, "JSON of `pretrain scaling fit --json`: one's own law", flag_values=values)
    flags.DEFINE_float("inference_tokens", None, "tokens that the model will read and write in its life", **number)
    flags.DEFINE_float("unique_tokens", None, "fresh tokens there are; more are repeats", **number)
    flags.DEFINE_string("write", None, "gin run file to write for this plan", flag_values=values)


def _pod_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "slices", 1, "slices of the topology, joined by the data-centre network", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "show_sharding", False, "print every parameter and activation with its layout", flag_values=values
    )
    flags.DEFINE_bool("search", False, "rank meshes, remat and microbatches by what fits", flag_values=values)
    flags.DEFINE_string(
        "save", None, "folder for the compiled step: compilation cache, and a jax.export file", flag_values=values
    )


def _input_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "input", None, "CSV of runs with columns params,tokens,loss or flops,params,loss; default: WORKDIR/points.csv",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("output", None, "folder for fit.json and plots; default: none, or WORKDIR", flag_values=values)
    flags.DEFINE_integer("resamples", 1000, "bootstrap samples for the intervals", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "exclude_highest", 0, "leave out the runs of so many highest losses", lower_bound=0, flag_values=values
    )


def _sweep_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("dry_run", False, "print a command line for each run, for a cluster", flag_values=values)


def _emergence_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "checkpoints", "final", ["final", "all"], "of each run: the newest, or all that are kept", flag_values=values
    )
    flags.DEFINE_multi_string("task", [], "only this task; may be given several times", flag_values=values)
    flags.DEFINE_integer("questions", 100, "of each task and size", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the questions", lower_bound=0, flag_values=values)


def _plan(values, bindings):
    budgets = (values.compute, values.tokens, values.params, values.days)
    if values.topology and values.gin_file and all(budget is None for budget in budgets):
        from pretrain.pod import plan_pod

        return plan_pod(values, bindings)
    from pretrain.core import config
    from pretrain.core.storage import Path, write_text
    from pretrain.plan import planner, tables
    from pretrain.plan.costs import Costs, parse_topology
    from pretrain.plan.run_file import run_file

    importlib.import_module("pretrain.experiment")
    config.load(values.gin_file, bindings)
    topology = parse_topology(values.topology) if values.topology else None
    compute = values.compute
    if values.days is not None:
        check(topology is not None, "--days needs --topology, e.g. --topology=v5p:8x8x8")
        check(compute is None, "give one budget: --compute, or --topology with --days")
        compute = topology.flops(values.days, values.mfu)
    own = tables.read_law(values.fit) if values.fit else None
    plan = planner.make_plan(
        compute=compute, tokens=values.tokens, params=values.params, law=values.law or planner.DEFAULT_LAW, own=own,
        inference_tokens=values.inference_tokens, unique_tokens=values.unique_tokens,
    )  # fmt: skip
    result = plan.to_json()
    if topology is not None:
        check(values.mfu > 0, "--mfu must be above 0")
        hours = topology.hours(plan.flops, values.mfu)
        result["cost"] = {"days": hours / 24, **Costs().of(topology, hours)}
    if values.write:
        write_text(Path(values.write), run_file(plan, values.write))
    print(json.dumps(result) if values.json else tables.plan_table(result))


def _describe(values, bindings):
    from pretrain.core import config
    from pretrain.data.tokenizer_training import TokenizerConfig
    from pretrain.models.config import TransformerConfig
    from pretrain.plan import tables

    check(bool(values.gin_file), "--gin_file is missing, e.g. --gin_file=gin_configs/models/llama3_8b.gin")
    experiment = importlib.import_module("pretrain.experiment")  # its parts are what gin files bind
    config.load(values.gin_file, bindings)
    model, needs = TransformerConfig(), experiment.Experiment("").objective.model_needs
    if model.vocab_size is None:
        model = model.with_vocab(TokenizerConfig().vocab_size)
    result = tables.describe_model(model, needs if model.architecture in needs.architectures else None)
    print(json.dumps(result) if values.json else tables.model_table(result))


def _fit(values, bindings):
    from pretrain.core import config
    from pretrain.core.storage import Path
    from pretrain.plan import tables
    from pretrain.plan.measure import measure

    importlib.import_module("pretrain.experiment")
    config.load(values.gin_file, bindings)
    path = values.input or (values.workdir and os.path.join(values.workdir, "points.csv"))
    if not path:
        raise UserError("--input is missing: a CSV file with columns params,tokens,loss or flops,params,loss")
    folder = values.output or values.workdir
    result = measure(
        path, resamples=values.resamples, exclude_highest=values.exclude_highest, folder=folder and Path(folder)
    )
    print(json.dumps(result) if values.json else tables.fit_table(result))


def _sweep(values, bindings):
    from pretrain.experiment import Experiment
    from pretrain.plan import sweep

    check(
        bool(values.workdir and values.gin_file), "--workdir and --gin_file are needed, the sweep's folder and run file"
    )
    experiment = Experiment.from_gin(values.gin_file, bindings, workdir=values.workdir)
    if not values.dry_run:
        experiment.curate()
        experiment.cache()
    training = experiment.training
    model = experiment.model_config()
    runs = sweep.grid(sweep.Sweep(), model, training.batch_size * training.sequence_length)
    if values.dry_run:
        print("\n".join(sweep.launch_lines(runs, values.workdir, values.gin_file, bindings)))
    else:
        print(sweep.run_sweep(runs, values.workdir, values.gin_file, bindings))


def _emergence(values, bindings):
    check(bool(values.workdir), "--workdir is missing: the sweep's folder, e.g. --workdir=runs/scaling")
    check(not values.gin_file, "--gin_file has no use here: the folders of a sweep's runs know their configurations")
    from pretrain.emergence import evaluate_sweep
    from pretrain.plan.emergence import emergence_table

    result = evaluate_sweep(
        values.workdir, bindings, tasks=values.task, all_checkpoints=values.checkpoints == "all",
        questions=values.questions, seed=values.seed,
    )  # fmt: skip
    print(json.dumps(result) if values.json else emergence_table(result))


PLANNING = {
    "plan": Command("for a budget: parameters, tokens, shape, batch, cost; for a run and a topology: memory and time",
                    all_of(common_flags, _json_flag, _plan_flags, _pod_flags), _plan),
    "describe": Command("a run's model from shapes alone: parameters, layers, logical axes, FLOPs",
                        all_of(common_flags, _json_flag), _describe),
    "scaling sweep": Command("trains a grid of small runs of equal compute; goes on where it stopped",
                             all_of(common_flags, _sweep_flags), _sweep),
    "scaling fit": Command("fits L(N, D) = E + A / N^alpha + B / D^beta to runs, with intervals and plots",
                           all_of(common_flags, _json_flag, _input_flags), _fit),
    "scaling emergence": Command("generated tasks over a sweep's runs: exact match beside log-probability and Brier",
                                 all_of(common_flags, _json_flag, _emergence_flags), _emergence),
}  # fmt: skip
