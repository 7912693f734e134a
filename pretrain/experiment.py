"""The composition root: a gin-configured experiment that joins curation, cache, training, evaluation and report.

    experiment = pretrain.Experiment.from_gin(["gin_configs/runs/quickstart.gin"], workdir="runs/quickstart")
    experiment.run()                      # or .curate(), .cache(), .train(), .evaluate(), .generate(), .report()
    experiment = pretrain.Experiment.open("runs/quickstart")   # a workdir knows its configuration

Only this file knows all the parts; they do not know each other.
"""

import dataclasses
import functools
import importlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import jax
import numpy as np

from pretrain.core import config as gin_config
from pretrain.core import processes
from pretrain.core.console import say
from pretrain.core.environment import environment
from pretrain.core.errors import UserError, check
from pretrain.core.memory import keep_freed_memory
from pretrain.core.objective import Vocabulary
from pretrain.core.storage import Path, read_json, write_json, write_text
from pretrain.core.trees import size
from pretrain.curate.command import run_configured
from pretrain.curate.recipe import Recipe
from pretrain.data import tokenizers
from pretrain.data.cache import CacheConfig, build_cache, read_info
from pretrain.data.inspect import describe_batch
from pretrain.data.inspect_page import batch_page
from pretrain.data.loader import Loader, LoaderConfig, make_loader
from pretrain.data.training_data import TrainingData, recorded_position
from pretrain.evaluate.generation import Generation, generate
from pretrain.evaluate.matching import Matching
from pretrain.evaluate.perplexity import Perplexity
from pretrain.evaluation import score_objective, score_text
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.base import Objective, check_architecture, import_objectives
from pretrain.objectives.causal import Causal
from pretrain.own_scores import own_scores
from pretrain.plan.costs import Costs
from pretrain.plan.planner import ratio_warning
from pretrain.plan.sweep import Sweep
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.placement import share_of_batch, tree_shardings
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.events import find_event
from pretrain.train.loop import Data, Trainer, Training
from pretrain.train.state import TrainState
from pretrain.train.step import StepBuilder
from pretrain.training import TRAINER_CONFIGS, build_trainer, check_layout

# What a run may change when it goes on: everything else decides the numbers. Documented in docs/configuration.md.
MAY_CHANGE = (
    "MeshConfig.", "Parallelism.", "LoaderConfig.", "MixtureConfig.", "Checkpointing.", "Training.log_every",
    "Training.eval_every", "Training.eval_batches", "Generation.", "Perplexity.", "Matching.", "Sweep.", "Costs.",
    "Supervision.", "Recovery.", "Detector.", "Statistics.",
)  # fmt: skip

CONFIGS = (
    Recipe, CacheConfig, LoaderConfig, MeshConfig, TransformerConfig, *TRAINER_CONFIGS, Perplexity, Generation,
    Matching, Sweep, Costs,
)  # fmt: skip
import_objectives()
DATA_RECORD = "data.json"  # in the workdir: the plan that training reads, with the phases of its mixture
RESULTS = ("corpus/complete.json", "cache", "checkpoints")  # once one is there, the configuration is fixed


@gin.configurable
class Experiment:
    """One run in one folder. Every stage can be called alone; a finished one is skipped.

    Args:
        workdir: folder of the run, local or in an object store.
        objective: what is learned; causal language modelling by default.
        data: folder of another run whose corpus and cache this one trains on; None: its own.
    """

    def __init__(self, workdir: str, objective: Objective | None = None, data: str | None = None):
        keep_freed_memory()
        self.workdir = Path(workdir)
        self.data = self.workdir if data is None else Path(data)
        self.objective = objective or Causal()
        self.training = Training()
        self.modules: tuple[str, ...] = ()  # imported first, here and in every worker process of the cache
        for config in CONFIGS:  # a wrong value shows now, not after an hour in the stage that needs it
            config()

    @classmethod
    def from_gin(
        cls, gin_files: Sequence[str], bindings: Sequence[str] = (), *, workdir: str, module_import: Sequence[str] = ()
    ) -> "Experiment":
        """An experiment from gin files and "NAME=VALUE" bindings; without files, from what `workdir` holds.

        Raises:
            UserError: a typing error, a value out of range, or a workdir with another run.
        """
        for module in module_import:
            try:
                importlib.import_module(module)
            except Exception as error:  # the user's code: it may raise anything
                raise UserError(f"--module_import={module}: {str(error) or type(error).__name__}") from error
        saved = Path(workdir) / "config.gin"
        if not gin_files:
            check(
                saved.exists(),
                f"{workdir} holds no run yet: give --gin_file=FILE, e.g. gin_configs/runs/quickstart.gin",
            )
        gin_config.load(list(gin_files) or [str(saved)], bindings)
        try:
            experiment = cls(workdir)
        except (TypeError, ValueError) as error:  # a config whose own checks did not expect such a value
            told = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
            raise UserError(f"gin gives a value of a wrong kind: {told}") from error
        experiment.modules = tuple(module_import)
        if saved.exists() and any((experiment.workdir / made).exists() for made in RESULTS):
            gin_config.check_same_run(read_json(Path(workdir) / "config.json", dict[str, str]), MAY_CHANGE, workdir)
        return experiment

    @classmethod
    def open(cls, workdir: str) -> "Experiment":
        """The experiment that `workdir` holds."""
        return cls.from_gin((), workdir=workdir)

    def run(self, *, workers: int | None = None, init_from: str | None = None) -> None:
        """All stages, each skipped where it is finished."""
        self.check_sizes()
        with processes.first_before_others():
            if CacheConfig().mixture is None:
                self.curate(workers=workers)
            self.cache(workers=workers)
        self.train(init_from=init_from)
        evaluation = self.evaluate(reuse=True)
        if self.objective.generates:
            self.generate(save=True)
        say(f"report: {self.report()}")
        print(json.dumps(evaluation))

    def curate(self, *, output: str | None = None, workers: int | None = None, **options: Any) -> dict[str, Any]:
        """Raw text to `corpus/`, or to `output`. Returns the datasheet; `options` as in `run_configured`."""
        if output is None:
            self._keep_config()
        return run_configured(output or self.data / "corpus", workers=workers, **options)

    def cache(self, *, workers: int | None = None) -> dict[str, Any]:
        """Documents to tokens in `cache/`. Returns its description."""
        self._keep_config()
        config = dataclasses.replace(CacheConfig(), modules=(*CacheConfig().modules, *self.modules))
        info = build_cache(config, self.data / "corpus", self.data / "cache", workers=workers)
        counts = [entry for splits in info["sources"].values() for entry in splits.values()]
        say(
            f"cache: {sum(e['tokens'] for e in counts):,} tokens of {len(info['sources'])} sources, "
            f"{sum(e['bytes'] for e in counts) / sum(e['tokens'] for e in counts):.2f} bytes a token"
        )
        return info

    def train(self, *, init_from: str | None = None) -> TrainState:
        """Trains to `Training.steps`, from the newest checkpoint if there is one. Returns the final state."""
        self._keep_config()
        processes.first_alone(write_json, self.workdir / "environment.json", environment())
        self._warn_of_ratio()
        return self.trainer(init_from=init_from).run()

    def trainer(self, *, init_from: str | None = None) -> Trainer:
        """Everything a training run needs, joined but not started."""
        self.check_sizes()
        params = self._params_from(init_from) if init_from else None
        return build_trainer(
            self.training, self.model_config(), self.model, self.task, self.mesh, self._data(), self.workdir, params
        )

    def evaluate(self, *, checkpoint_step: int | None = None, reuse: bool = False) -> dict[str, Any]:
        """Scores on the validation documents, kept in `evaluation.json`; see `evaluation`.

        Args:
            checkpoint_step: which checkpoint; None for the newest.
            reuse: return what `evaluation.json` holds when it is of that checkpoint.
        """
        path = self.workdir / "evaluation.json"
        step, params = self.checkpoint(checkpoint_step)
        if reuse and path.exists() and read_json(path, dict[str, Any]).get("step") == step:
            say(f"evaluate: {path} is there already")
            return read_json(path)
        training = self.training
        if self.objective.generates:
            scores = score_text(
                self.model, params, self.mesh, self.data, self.tokenizer, training.sequence_length, training.head_chunks
            )
        else:
            loader = self._open_loader("validation", epochs=1)
            builder = StepBuilder(self.model, self.task, None, None, head_chunks=training.head_chunks)
            batches = (batch for _, batch in loader.iterate())
            spec = self.task.batch_spec(training.batch_size, training.sequence_length)
            scores = score_objective(builder.evaluate, spec, params, self.mesh, batches)
            scores |= own_scores(self.model, params, self.task, self.mesh, self.data, self.tokenizer)
        result = {"step": step, "objective": type(self.objective).__name__, **scores}
        processes.first_alone(write_json, path, result)
        return result

    def generate(
        self,
        prompts: Sequence[str] | None = None,
        *,
        checkpoint_step: int | None = None,
        save: bool = False,
        **changes: Any,
    ) -> list[dict[str, str]]:
        """Continuations of prompts: `[{"prompt": ..., "text": ...}]`.

        Args:
            prompts: None for those of the configuration.
            checkpoint_step: which checkpoint; None for the newest.
            save: also write them to `samples.jsonl`, for the report.
            **changes: fields of `Generation` to set, e.g. `temperature=0`.
        """
        kind = type(self.objective).__name__
        check(self.objective.generates, f"{kind} does not train a model to continue text: there is nothing to generate")
        config = Generation(**changes)
        _, params = self.checkpoint(checkpoint_step)
        samples = []
        for prompt in prompts or config.prompts:
            ids = np.concatenate([[self.tokenizer.bos_id], self.tokenizer.encode([prompt])[0]])
            for tokens in generate(
                self.model,
                params,
                ids,
                config,
                eos_id=self.tokenizer.eos_id,
                vocab_size=self.tokenizer.vocab_size,
                max_length=self.model_config().max_length,
            ):
                samples.append({"prompt": prompt, "text": self.tokenizer.decode(tokens)})
        if save:
            lines = "".join(json.dumps(sample) + "\n" for sample in samples)
            processes.first_alone(write_text, self.workdir / "samples.jsonl", lines)
        return samples

    def report(self) -> Path | None:
        """Writes `report.html` from what the workdir holds, and returns its path; in the first process only."""
        from pretrain.report.html import write_report

        return processes.first_alone(write_report, self.workdir, gin_config.text())

    def inspect(
        self,
        step: int = 0,
        *,
        split: str = "train",
        rows: int = 4,
        characters: int = 300,
        html: str | None = None,
        event: int | None = None,
    ) -> str:
        """The batch of any step as a person can read it: who is packed with whom, masks, targets, sources.

        Args:
            step: steps trained before it: 0 is the first batch. After a rewind, batches that were left out count.
            split: "train", or "validation".
            rows: rows to show.
            characters: of each piece's text; the middle of a longer one is left out.
            html: file to write as a page that shows every token; None writes none.
            event: number in events.jsonl, to show the batches that did it in place of a step's.
        """
        steps, head = [step], ""
        if event is not None:
            found = find_event(self.workdir, event)
            check("batches" in found, f"event {event}, {found['kind']}, is not about batches: see events.jsonl")
            steps, head = found.pop("batches"), json.dumps({k: v for k, v in found.items() if k != "documents"}) + "\n"
        record = self.workdir / DATA_RECORD  # what training read, should the mixture have changed on the way
        if split == "train":
            loader = self._open_train_loader(recorded_position(record), num_workers=0)
        else:
            loader = self._open_loader(split, epochs=1)
        corpus = self.data / "corpus" if CacheConfig().mixture is None else None
        tokenizer = self.tokenizer if (self.data / "cache" / "tokenizer").exists() else None
        if html is not None:
            write_text(html, batch_page(loader, steps[-1], tokenizer, rows=rows, corpus_dir=corpus))
        show = functools.partial(describe_batch, rows=rows, characters=characters, corpus_dir=corpus)
        return head + "\n\n".join(show(loader, step, tokenizer) for step in steps)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices of this run."""
        return make_mesh(MeshConfig())

    @functools.cached_property
    def tokenizer(self):
        """The tokenizer of the cache."""
        return tokenizers.load(self.data / "cache" / "tokenizer")

    @functools.cached_property
    def task(self) -> Objective:
        """The objective with the tokenizer's ids."""
        t = self.tokenizer
        ids = t.pad_id, t.bos_id, t.eos_id
        return self.objective.bind(Vocabulary(t.vocab_size, *ids, t.num_extra_ids, t.starts_word, t.counts))

    @functools.cached_property
    def model(self) -> FunctionalModel:
        """The model as pure functions."""
        return build_model(self.model_config(), self.objective.model_needs)

    def model_config(self) -> TransformerConfig:
        """The model's configuration, with the tokenizer's vocabulary."""
        return TransformerConfig().with_vocab(self.tokenizer.vocab_size)

    def _open_train_loader(self, resume: Mapping | None, **options: Any) -> Loader:
        config = LoaderConfig()
        options = {"num_workers": config.num_workers, "total_steps": self.training.steps, **options}
        return self._open_loader("train", mixture=config.mixture, resume=resume, **options)

    def _open_loader(self, split: str, **options: Any) -> Loader:
        training, config = self.training, LoaderConfig()
        return make_loader(
            self.data / "cache", split=split, objective=self.task, batch_size=training.batch_size,
            sequence_length=self.task.packed_length(training.sequence_length), seed=training.seed,
            num_threads=config.num_threads, prefetch=config.prefetch, **options,
        )  # fmt: skip

    def _data(self) -> Data:
        part, parts = share_of_batch(self.mesh)
        hosts = {"process_index": part, "process_count": parts}
        record = self.workdir / DATA_RECORD if processes.is_first() else None
        corpus = self.data / "corpus" if CacheConfig().mixture is None else None
        train = TrainingData(lambda resume: self._open_train_loader(resume, **hosts), record, corpus)
        ahead = LoaderConfig().prefetch_to_device
        about = {"documents": train.documents, "sources": train.sources}
        data = Data(train.batches, train.position, train.resume, ahead=ahead, **about)
        sources = read_info(self.data / "cache")["sources"].values()
        held_out = [splits["validation"] for splits in sources if splits.get("validation", {}).get("tokens")]
        if held_out and self.training.eval_every:
            loader = self._open_loader("validation", epochs=1, **hosts)
            batches = self.training.eval_batches or None
            data.validation = lambda: (batch for _, batch in itertools.islice(loader.iterate(), batches))
            if type(self.objective) is Causal:
                data.bytes_per_token = sum(s["bytes"] for s in held_out) / sum(s["tokens"] for s in held_out)
        return data

    def _warn_of_ratio(self) -> None:
        training, stored = self.training, read_info(self.data / "cache")["sources"].values()
        tokens = training.steps * training.batch_size * training.sequence_length
        unique = sum(splits.get("train", {}).get("tokens", 0) for splits in stored)
        warning = not self.objective.whole_records and ratio_warning(size(self.model.shapes), tokens, unique or None)
        if warning:
            say(f"train: {warning}")

    def check_sizes(self) -> None:
        """What training needs of batch, sequence, model and mesh together; asked before any stage has worked."""
        training, longest = self.training, TransformerConfig().max_length
        check_architecture(self.objective, TransformerConfig().architecture)
        check(
            training.sequence_length <= longest,
            f"SEQUENCE_LENGTH ({training.sequence_length}) is longer than TransformerConfig.max_length ({longest})",
        )
        kind, sentinels, tokenizer = type(self.objective).__name__, self.objective.sentinels, CacheConfig().tokenizer
        check(
            CacheConfig().mixture is not None or tokenizer.kind == "load" or tokenizer.extra_ids >= sentinels,
            f"{kind} needs ids that no text holds: set TokenizerConfig.extra_ids = {sentinels} or more",
        )
        check(
            training.head_chunks == 1 or self.objective.model_needs.chunkable,
            f"Training.head_chunks must be 1: the loss of {kind} cannot be computed in parts",
        )
        check_layout(training, TransformerConfig(), self.objective, self.mesh)

    def checkpoint(self, step: int | None = None) -> tuple[int, Params]:
        """Step and parameters of a checkpoint, the newest by default."""
        check((self.workdir / "checkpoints").exists(), f"no checkpoint in {self.workdir}: run `pretrain train` first")
        with Checkpointer(self.workdir / "checkpoints", read_only=True) as checkpointer:
            step = checkpointer.latest_step() if step is None else step
            shardings = tree_shardings(self.model.logical_axes(), self.model.shapes, self.mesh)
            return step, checkpointer.restore_params(self.model.shapes, shardings, step)

    def _params_from(self, workdir: str) -> Params:
        """The newest parameters of another run, which must have the same model and tokenizer."""
        other = Path(workdir)
        check((other / "checkpoints").exists(), f"--init_from={workdir}: no checkpoints there")
        theirs = tokenizers.load(other / "cache" / "tokenizer").fingerprint
        check(
            theirs == self.tokenizer.fingerprint,
            f"--init_from={workdir}: its tokenizer is another one; give this run that tokenizer "
            f"(TokenizerConfig.kind = 'load', TokenizerConfig.path = '{other / 'cache' / 'tokenizer'}')",
        )
        shardings = tree_shardings(self.model.logical_axes(), self.model.shapes, self.mesh)
        with Checkpointer(other / "checkpoints", read_only=True) as checkpointer:
            return checkpointer.restore_params(self.model.shapes, shardings)

    def _keep_config(self) -> None:
        """Writes down what this run is made of, before it makes anything."""
        processes.first_alone(write_text, self.workdir / "config.gin", gin_config.text())
        processes.first_alone(write_json, self.workdir / "config.json", gin_config.resolved())
