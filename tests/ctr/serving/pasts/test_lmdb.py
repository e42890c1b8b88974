"""Pasts in LMDB: kept over a restart and between processes, and nothing lost between two writers."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctr.serving.pasts.lmdb_store import LmdbStore
from ctr.serving.pasts.packing import header_of, pack
from ctr.serving.pasts.source import AwayError
from ctr.serving.pasts.stores import Stores
from ctr.serving.settings import PastsSettings
from features.contract.contract import Contract
from features.encoding.past import PastEvent
from features.errors import ConfigError
from pipelines.extras import missing_extra

MIB = 2**20
Note = Callable[[str], None]


def events(*times: int) -> list[PastEvent]:
    return [PastEvent(100 + time, time, {"clicked": time % 2}) for time in times]


def test_a_past_is_there_after_a_restart(tmp_path: Path, contract: Contract, note: Note, outcomes: list[str]) -> None:
    store = LmdbStore(tmp_path / "a" / "pasts", 16 * MIB)
    pasts = store.of(contract, note)
    assert pasts.newest("u1") == []
    pasts.add("u1", events(3, 1))
    pasts.add("u1", events(2, 3))
    pasts.add("u2", events(9))
    store.close()
    again = LmdbStore(tmp_path / "a" / "pasts", 16 * MIB)
    assert again.of(contract, note).newest("u1") == events(1, 2, 3)
    assert again.of(contract, note).newest("u2") == events(9)
    again.close()
    assert outcomes == ["absent", "found", "found"]


def test_what_was_taken_survives_a_power_cut(tmp_path: Path) -> None:
    """Every write syncs the page that names the newest state, too."""
    store = LmdbStore(tmp_path / "pasts", MIB)
    assert store.environment.flags()["sync"] and store.environment.flags()["metasync"]
    store.close()


def test_a_process_that_opens_it_frees_the_places_of_killed_readers(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "pasts", MIB)  # while one has it open, places are not given anew
    folder = str(tmp_path / "pasts")
    head = f"from ctr.serving.pasts.lmdb_store import LmdbStore; store = LmdbStore(Path({folder!r}), {MIB}); "
    killed = "reader = store.environment.begin(); reader.get(b'x'); os.kill(os.getpid(), 9)"
    for then in (killed, "store.close()"):
        before = store.environment.readers()
        subprocess.run([sys.executable, "-c", f"import os; from pathlib import Path; {head}{then}"])
    assert before.count("\n") == 2 and store.environment.readers() == "(no active readers)\n"
    store.close()


def test_the_newest_seven_are_kept(tmp_path: Path, contract: Contract, note: Note) -> None:
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    pasts = store.of(contract, note)
    for time in (5, 1, 9, 3, 7, 2, 8, 4, 6):
        pasts.add("u", events(time))
    assert pasts.newest("u") == events(3, 4, 5, 6, 7, 8, 9)
    store.close()


def test_whole_numbers_texts_and_long_texts_are_users_of_their_own(
    tmp_path: Path, contract: Contract, note: Note
) -> None:
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    pasts = store.of(contract, note)
    users = [7, "7", "", "x" * 499, "x" * 5000, "x" * 5001, "\ud800", 2**63 - 1]
    for place, user in enumerate(users):
        pasts.add(user, events(place))
    assert [pasts.newest(user) for user in users] == [events(place) for place in range(len(users))]
    store.close()


def test_another_contract_sees_nothing_and_writes_over(
    tmp_path: Path, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    changed = contract.model_copy(update={"history": contract.history.model_copy(update={"max_len": 9})})
    named = contract.model_copy(update={"name": "other"})
    store.of(contract, note).add("u", events(1))
    assert store.of(changed, note).newest("u") == [] and store.of(named, note).newest("u") == []
    store.of(changed, note).add("u", events(2))
    assert store.of(changed, note).newest("u") == events(2)
    assert store.of(contract, note).newest("u") == []
    assert outcomes == ["foreign", "absent", "found", "foreign"]
    store.close()


def test_a_blob_that_is_cut_short_is_nothing(
    tmp_path: Path, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    blob = pack(events(1, 2), header_of(contract.fingerprint()))
    with store.environment.begin(write=True) as transaction:
        transaction.put(b"shop:tu", blob[:-3])
    pasts = store.of(contract, note)
    assert pasts.newest("u") == [] and outcomes == ["broken"]
    pasts.add("u", events(3))
    assert pasts.newest("u") == events(3)
    store.close()


def test_of_threads_that_write_to_one_user_none_loses_an_event(tmp_path: Path, contract: Contract, note: Note) -> None:
    many = contract.model_copy(update={"history": contract.history.model_copy(update={"max_len": 200})})
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    pasts = store.of(many, note)

    def write(first: int) -> None:
        for time in range(first, 60, 3):
            pasts.add("u", events(time))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pasts.newest("u") == events(*range(60))
    store.close()


SECOND = "pasts.add('u', [PastEvent(102, 2, {'clicked': 0})])"  # the second of `events(1, 2)`


def in_another_process(folder: Path, contract: Contract, program: str) -> None:
    """Run a program that has `pasts`, of a store of 16 MiB in this folder."""
    begin = (
        "import sys; from pathlib import Path; from ctr.serving.pasts.lmdb_store import LmdbStore\n"
        "from features.contract.contract import Contract; from features.encoding.past import PastEvent\n"
        "contract = Contract.model_validate_json(sys.argv[2])\n"
        "pasts = LmdbStore(Path(sys.argv[1]), 2**24).of(contract, print)\n"
    )
    arguments = [str(folder), contract.model_dump_json()]
    subprocess.run([sys.executable, "-c", begin + program, *arguments], check=True, cwd=Path(__file__).parents[4])


def test_what_another_process_writes_is_seen(tmp_path: Path, contract: Contract, note: Note) -> None:
    store = LmdbStore(tmp_path / "pasts", 16 * MIB)
    pasts = store.of(contract, note)
    pasts.add("u", events(1))
    in_another_process(tmp_path / "pasts", contract, SECOND)
    assert pasts.newest("u") == events(1, 2)
    store.close()


def test_a_full_database_says_so(tmp_path: Path, contract: Contract, note: Note) -> None:
    store = LmdbStore(tmp_path / "pasts", 64 * 1024)
    pasts = store.of(contract, note)
    with pytest.raises(AwayError, match="full"):
        for user in range(200):
            pasts.add(user, [PastEvent(1, 1, {"text": "x" * 2000})])
    assert pasts.newest(0)[0].columns == {"text": "x" * 2000}
    store.close()


def test_the_database_may_grow_as_the_settings_say(tmp_path: Path, note: Note) -> None:
    stores = Stores(PastsSettings(kind="lmdb", folder=tmp_path / "pasts", size_mib=16), note)
    assert isinstance(stores._store, LmdbStore)
    assert stores._store.environment.info()["map_size"] == 16 * MIB
    stores.close()


@pytest.mark.timeout(60)
def test_a_database_that_another_process_let_grow_further_is_read_and_written_on(
    tmp_path: Path, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    """A server with a larger `pasts.size_mib` beside those that were started before it."""
    store = LmdbStore(tmp_path / "pasts", MIB // 4)
    pasts = store.of(contract, note)
    pasts.add("u", events(1))
    many = "for user in range(400): pasts.add(user, [PastEvent(102, 2, {'text': 'x' * 2000})])\n"
    found: list[list[PastEvent]] = []
    with store.transaction():  # of another thread, which must end before the file is mapped anew
        in_another_process(tmp_path / "pasts", contract, many + SECOND)
        reader = threading.Thread(target=lambda: found.append(pasts.newest("u")))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
    reader.join()
    assert found == [events(1, 2)] and outcomes == ["found"]
    pasts.add("u", events(3))
    assert pasts.newest("u") == events(1, 2, 3)
    store.close()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"pasts\.folder: .* cannot be opened"):
        Stores(PastsSettings(kind="lmdb", folder=tmp_path / "file"), print)
    with pytest.raises(ValueError, match=r"pasts\.folder: lmdb needs one"):
        PastsSettings(kind="lmdb")


@pytest.mark.parametrize("module", ["lmdb", "redis"])
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as error:
        Stores(PastsSettings(kind=module, folder=tmp_path), print)
    assert 'pip install "quadrank[pasts]"' in str(missing_extra(error.value, "serve"))
