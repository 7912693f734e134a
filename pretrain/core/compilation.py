"""Compiled programs are kept with the run, so that a restart does not compile again."""

import platform

import jax

from pretrain.core.storage import Path, fingerprint

FOLDER = "compiled"  # in the workdir
_WORTH_KEEPING = 0.5  # seconds of compilation


def keep_compiled(workdir: Path) -> None:
    """Keeps programs in `WORKDIR/compiled`, unless jax is told another place (JAX_COMPILATION_CACHE_DIR).

    All processes of a run read them; the first one writes. They are machine code: as a gin file, a stranger's workdir
    is nothing to train in.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    kind = jax.default_backend()
    if kind == "cpu":  # code for one processor may not run on another
        kind = f"cpu-{fingerprint([platform.machine(), _processor_features()])}"
    jax.config.update("jax_compilation_cache_dir", str(workdir / FOLDER / kind))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)


def _processor_features() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
