"""Self-supervised pretraining in JAX: from raw corpora to a foundation model."""


def __getattr__(name: str):
    if name == "Experiment":  # on first use, so that `pretrain --help` does not wait for jax
        from pretrain.experiment import Experiment

        return Experiment
    raise AttributeError(f"module 'pretrain' has no attribute {name!r}")
