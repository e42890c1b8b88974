"""Of tests that run whole commands: MLflow's tables are made once, since each new store takes seconds to migrate."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest

from ctr.reporting.mlflow_store import MlflowStore

_opened = MlflowStore.client.func


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """The file of a store that holds nothing, made when it is first asked for."""

    @cache
    def made() -> Path:
        store = MlflowStore(tmp_path_factory.mktemp("empty-store"))
        _opened(store)
        return store.root / "mlflow.db"

    return made


@pytest.fixture(scope="module", autouse=True)
def stores_begin_with_their_tables(empty_store: Callable[[], Path]) -> Iterator[None]:
    """A work folder without a store gets a copy of an empty one; `tests/ctr/reporting` makes stores from nothing.

    Each module has it anew: a process that ran tests of commands may run those of the store next.
    """

    def client(self: MlflowStore) -> Any:
        file = self.root / "mlflow.db"
        if self.uri == f"sqlite:///{file}" and self.root.is_dir() and not file.exists():
            copied = file.with_name(f"mlflow.db.{os.getpid()}")
            shutil.copy(empty_store(), copied)
            copied.replace(file)
        return _opened(self)

    with_tables = cached_property(client)
    with_tables.__set_name__(MlflowStore, "client")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(MlflowStore, "client", with_tables)
        yield
