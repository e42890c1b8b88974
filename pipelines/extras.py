"""The extra of the package that installs a module, for the message of a command that lacks it."""

from __future__ import annotations

# Modules of the packages that pyproject.toml lists under [project.optional-dependencies].
MODULES = {
    "train": frozenset(
        {
            "torch",
            "sklearn",
            "scipy",
            "numba",
            "llvmlite",  # comes with numba
            "threadpoolctl",
            "onnx",
            "onnxscript",
            "optuna",
            "sqlalchemy",
            "mlflow",
            "safetensors",
            "matplotlib",
            "fsspec",
            "packaging",
        }
    ),
    "serve": frozenset({"starlette", "uvicorn", "uvloop", "httptools", "prometheus_client"}),
    "pasts": frozenset({"lmdb", "redis"}),
    "bench": frozenset({"pandas"}),
}


def missing_extra(error: ModuleNotFoundError, command: str) -> str | None:
    """What to install for a command that found a module missing; None where no extra brings that module.

    Args:
        error: what the import raised.
        command: e.g. `train`.
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in MODULES.items():
        if module in modules:
            return (
                f"quadrank {command}: needs {module}, which is not installed. The extra `{extra}` brings it: "
                f'pip install "quadrank[{extra}]"'
            )
    return None
