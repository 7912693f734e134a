"""The commands of the pipeline: their flags, and what each runs. `main` turns a command line into one of them."""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator

from absl import flags

from pretrain.core import processes
from pretrain.core.errors import UserError, check


@dataclasses.dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        help: one line.
        define: adds its own flags to the given FlagValues.
        run: does the work, from parsed flags and gin bindings.
    """

    help: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[[flags.FlagValues, list[str]], None]


def common_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string(
        "gin_file",
        [],
        "gin file of the run; may be given several times; not needed for a workdir that already holds a run",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the run, local or gs://...", flag_values=values)
    flags.DEFINE_multi_string(
        "module_import",
        [],
        "Python module to import first, with the user's own seqio tasks or configurables",
        flag_values=values,
    )


def _curate_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "input",
        None,
        "corpus: a glob, file or folder of .jsonl[.gz|.zst], .txt, .parquet, .warc[.gz] ...; code:DIR, books:GLOB, "
        "tfds:NAME:SPLIT, seqio:TASK:SPLIT, or 'python'; stands for --gin.INPUT",
        flag_values=values,
    )
    _workers_flag(values)


def _recipe_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "decontaminate_against",
        None,
        "benchmark files (JSONL; a glob or folder): documents with their items in them are dropped, and reported",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "engine", "local", ["local", "beam"], "where to run: processes here, or Apache Beam", flag_values=values
    )
    flags.DEFINE_multi_string(
        "beam_options",
        [],
        "a pipeline option of Beam, e.g. --beam_options=--runner=DataflowRunner; may be given several times",
        flag_values=values,
    )
    flags.DEFINE_string(
        "explain", None, "id of a document: print what became of it in --output, and run nothing", flag_values=values
    )


def _workers_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "workers", None, "processes for curation and cache; default: one per core", lower_bound=1, flag_values=values
    )


def _output_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", None, "where the curated corpus goes; default: WORKDIR/corpus", flag_values=values)


def _train_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "init_from", None, "workdir of another run whose newest parameters to start from", flag_values=values
    )


def _process_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, to start the processes of a run by hand; a TPU pod, Slurm and GKE need none of these",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_processes", None, "processes of the run; 1 looks for no others", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "max_restarts",
        0,
        "supervise the run: start it again after a crash or a hang, up to so many times in a row without a new step",
        lower_bound=0,
        flag_values=values,
    )


def _checkpoint_flag(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "checkpoint_step", None, "step of the checkpoint to use; default: the newest", lower_bound=0, flag_values=values
    )


def _generate_flags(values: flags.FlagValues) -> None:
    _checkpoint_flag(values)
    flags.DEFINE_multi_string("prompt", [], "text to continue; may be given several times", flag_values=values)
    flags.DEFINE_integer("max_tokens", None, "most tokens to add", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", None, "0 takes the likeliest token each time", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "top_k", None, "sample among the k likeliest tokens; 0: all", lower_bound=0, flag_values=values
    )
    flags.DEFINE_float(
        "top_p",
        None,
        "sample among the likeliest tokens of this total probability",
        lower_bound=0,
        upper_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer("seed", None, "seed of the samples", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("num_samples", None, "continuations per prompt", lower_bound=1, flag_values=values)


def _inspect_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "step", 0, "which batch: steps trained before it, 0 is the first", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "event",
        None,
        "in place of a step: the batches of this event in events.jsonl, such as a loss spike",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string("split", "train", "train or validation", flag_values=values)
    flags.DEFINE_integer("rows", 4, "rows of the batch to show", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "characters", 300, "of each piece's text; the middle is left out", lower_bound=10, flag_values=values
    )
    flags.DEFINE_string("html", None, "also write a page that shows every token to this file", flag_values=values)


def _words_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_multi_string("similar", [], "word whose nearest ones to print", flag_values=values)
    flags.DEFINE_multi_string(
        "analogy", [], "three words A,B,C: print what is to C as B is to A, e.g. man,king,woman", flag_values=values
    )
    flags.DEFINE_integer("count", 10, "words to print for each question", lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "judgements", None, "file of word, word, score with tabs between: print Spearman's correlation",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "output", None, "file for the vectors in word2vec's format, binary where it ends in .bin", flag_values=values
    )


def all_of(*definers: Callable) -> Callable[[flags.FlagValues], None]:
    def define(values: flags.FlagValues) -> None:
        for definer in definers:
            definer(values)

    return define


def _with_input(values: flags.FlagValues, bindings: list[str]) -> list[str]:
    given = getattr(values, "input", None)
    return bindings if given is None else [*bindings, f"INPUT={given!r}"]


def _experiment(values: flags.FlagValues, bindings: list[str]):
    from pretrain.experiment import Experiment

    bindings = _with_input(values, bindings)
    if values.module_import:
        sys.path.insert(0, os.getcwd())  # the user's own modules; an installed script starts without it
    workdir = values.workdir
    if workdir is None:
        if getattr(values, "output", None) is None:
            raise UserError("--workdir is missing: the folder of the run, e.g. --workdir=runs/quickstart")
        workdir = values.output
    return Experiment.from_gin(values.gin_file, bindings, workdir=workdir, module_import=values.module_import)


@contextlib.contextmanager
def _joined(values: flags.FlagValues, bindings: list[str]) -> Iterator:
    """The experiment, in one of perhaps several processes."""
    with processes.joined(values.coordinator, values.num_processes, values.process_id):
        from pretrain.core.compilation import keep_compiled

        experiment = _experiment(values, bindings)
        keep_compiled(experiment.workdir)
        yield experiment


def _run_all(values, bindings):
    with _joined(values, bindings) as experiment:
        experiment.run(workers=values.workers, init_from=values.init_from)


def _curate(values, bindings):
    if values.explain is not None:
        return _explain(values)
    options = {
        "workers": values.workers,
        "against": values.decontaminate_against,
        "engine": values.engine,
        "beam_options": values.beam_options,
    }
    if values.workdir is None and values.output is not None and not values.module_import:
        from pretrain.curate.command import run_configured

        if _load_recipe(values, bindings):
            run_configured(values.output, **options)
            return
    _experiment(values, bindings).curate(output=values.output, **options)


def _record_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("input", None, "episodes, e.g. pusht:300 or lerobot:FOLDER", flag_values=values)
    flags.DEFINE_string("output", None, "folder to make; default: recordings/ in --workdir", flag_values=values)
    flags.DEFINE_enum("layout", "lerobot", ["lerobot", "rlds"], "how episodes are written", flag_values=values)
    flags.DEFINE_float("fps", 10.0, "steps a second of the episodes", lower_bound=1e-3, flag_values=values)


def _record(values, bindings):
    from pretrain.core import config
    from pretrain.curate.formats import records
    from pretrain.curate.lerobot_writer import write_recordings
    from pretrain.curate.readers import Fields
    from pretrain.curate.rlds import write_rlds

    output = values.output or (values.workdir and os.path.join(values.workdir, "recordings"))
    check(values.input is not None, "--input is missing: which episodes, e.g. --input=pusht:300")
    check(output is not None, "--output is missing: the folder to make")
    config.load(values.gin_file, bindings)
    unread = []
    episodes = records(values.input, Fields(), unread)
    rlds = values.layout == "rlds"
    written = write_rlds(output, episodes) if rlds else write_recordings(output, episodes, fps=values.fps)
    for item in unread:
        print(f"record: left out {item.origin}: {item.problem}", file=sys.stderr)
    print(json.dumps({**written, "left_out": len(unread), "output": output}))


def _load_recipe(values, bindings) -> bool:
    """Configures curation alone, without waiting for jax; False where the gin files are about more, or are wrong."""
    from pretrain.core import config

    try:
        config.load(values.gin_file, _with_input(values, bindings))
    except UserError:
        return False
    return bool(values.gin_file)


def _explain(values):
    from pretrain.curate.explain import explain

    if values.output is None and values.workdir is None:
        raise UserError("--explain needs --output=DIR, the folder that `pretrain curate` wrote, or --workdir")
    print(explain(values.output or os.path.join(values.workdir, "corpus"), values.explain))


def _cache(values, bindings):
    _experiment(values, bindings).cache(workers=values.workers)


def _train(values, bindings):
    with _joined(values, bindings) as experiment:
        experiment.train(init_from=values.init_from)


def _evaluate(values, bindings):
    print(json.dumps(_experiment(values, bindings).evaluate(checkpoint_step=values.checkpoint_step)))


def _generate(values, bindings):
    names = ("max_tokens", "temperature", "top_k", "top_p", "seed", "num_samples")
    changes = {name: getattr(values, name) for name in names if getattr(values, name) is not None}
    experiment = _experiment(values, bindings)
    for sample in experiment.generate(values.prompt or None, checkpoint_step=values.checkpoint_step, **changes):
        print(sample["prompt"] + sample["text"], end="\n\n")


def _words(values, bindings):
    from pretrain.evaluation import word_vectors

    asked = values.similar or values.analogy or values.output or values.judgements
    check(bool(asked), "nothing to do: give --similar, --analogy, --judgements or --output")
    check(values.workdir is not None, "--workdir is missing: the folder of a run that trained word vectors")
    experiment = _experiment(values, bindings)
    vectors = word_vectors(experiment.tokenizer, experiment.checkpoint(values.checkpoint_step)[1])
    found = {word: vectors.most_similar([word], count=values.count) for word in values.similar}
    for question in values.analogy:
        words = [word.strip() for word in question.split(",")]
        check(len(words) == 3, f"--analogy={question}: give three words with commas between, A,B,C")
        found[question] = vectors.analogy(*words, count=values.count)
    for question, answers in found.items():
        print(question + ":", ", ".join(f"{word} {cosine:.3f}" for word, cosine in answers))
    if values.output is not None:
        vectors.save(values.output)
    if values.judgements is not None:
        print(json.dumps(vectors.correlation(values.judgements)))


def _inspect(values, bindings):
    names = ("step", "split", "rows", "characters", "html", "event")
    print(_experiment(values, bindings).inspect(**{name: getattr(values, name) for name in names}))


def _report(values, bindings):
    print(_experiment(values, bindings).report())


PIPELINE = {
    "run": Command("all of the below, one after another; skips what is finished, goes on where it stopped",
                   all_of(common_flags, _curate_flags, _train_flags, _process_flags), _run_all),
    "curate": Command("raw text to clean documents, rejects with reasons, and a datasheet",
                      all_of(common_flags, _curate_flags, _recipe_flags, _output_flag), _curate),
    "cache": Command("documents to a tokenizer and globally shuffled token records",
                     all_of(common_flags, _workers_flag), _cache),
    "train": Command("trains, from the newest checkpoint on",
                     all_of(common_flags, _train_flags, _process_flags), _train),
    "inspect": Command("the decoded batch of any step: what is packed with what, masks, targets, sources",
                       all_of(common_flags, _inspect_flags), _inspect),
    "evaluate": Command("bits per byte and perplexity on held-out documents; JSON on the last line",
                        all_of(common_flags, _checkpoint_flag), _evaluate),
    "generate": Command("samples from the trained model", all_of(common_flags, _generate_flags), _generate),
    "record": Command("robot episodes in LeRobot's or RLDS's layout, for other programs",
                      all_of(common_flags, _record_flags), _record),
    "words": Command("word vectors: nearest words, analogies, judgements, word2vec's files",
                     all_of(common_flags, _checkpoint_flag, _words_flags), _words),
    "report": Command("one self-contained report.html", common_flags, _report),
}  # fmt: skip
