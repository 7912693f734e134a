"""Runs the passes of the cache: here, in local processes, or on Apache Beam. Beam is imported only when asked for."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pretrain.core.console import Progress
from pretrain.core.errors import RunError, UserError


def run_local(label: str, function: Callable[..., Any], items: Sequence[tuple], workers: int | None) -> list:
    """`[function(*item) for item in items]`, in `workers` processes (all processors when None)."""
    workers = min(workers or os.cpu_count() or 1, len(items))
    with Progress(len(items), label, "part") as progress:
        results = []
        if workers <= 1:
            for item in items:
                results.append(function(*item))
                progress.update()
            return results
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                for future in [pool.submit(function, *item) for item in items]:
                    results.append(future.result())
                    progress.update()
        except BrokenProcessPool as error:
            raise RunError(
                f"{label}: a worker process died (out of memory?); run it again with fewer workers"
            ) from error
    return results


def run_beam(label: str, function: Callable[..., Any], items: Sequence[tuple], options: Sequence[str]) -> None:
    """Calls `function(*item)` for every item in a Beam pipeline; results are what the function writes."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("the beam engine needs apache-beam: pip install 'pretrain[data]'") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        numbered = pipeline | f"{label}: items" >> beam.Create(list(range(len(items)))) | beam.Reshuffle()
        _ = numbered | label >> beam.Map(lambda number: function(*items[number]) and None)
