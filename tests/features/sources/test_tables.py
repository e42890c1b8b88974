"""Raw tables of every kind, place and spelling read the same; what does not fit together is told."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from uuid import uuid4

import fsspec
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from features.contract.log import Format
from features.errors import ConfigError, DataError
from features.sources.files import content_hash, find_files
from features.sources.tables import read, scan
from tests.features.sources.written import put_local

TABLE = pl.DataFrame({"user": [3, 1, 2], "title": ["Misérables, Les", "b", "c"], "score": [1.5, 2.0, -1.0]})


def text(separator: str, header: bool = True, encoding: str = "utf-8") -> bytes:
    rows = [TABLE.columns] if header else []
    return "".join(separator.join(map(str, row)) + "\n" for row in [*rows, *TABLE.iter_rows()]).encode(encoding)


def parquet(path: Path) -> None:
    TABLE.write_parquet(path)


def arrow(path: Path) -> None:
    TABLE.write_ipc(path)


def plain(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content) and None


NAMES = ("user", "title", "score")
KINDS = [
    ("t.parquet", parquet, Format()),
    ("t.arrow", arrow, Format()),
    ("t.feather", arrow, Format()),
    ("t.csv", lambda path: TABLE.write_csv(path), Format()),
    ("t.tsv", plain(text("\t")), Format()),
    ("t.tsv.gz", plain(text("\t")), Format()),
    ("t.csv.gz", plain(text("|")), Format(separator="|")),
    (
        "t.item",
        plain(text("|", False, "latin-1")),
        Format(kind="csv", separator="|", encoding="latin-1", columns=NAMES),
    ),
    ("t.dat", plain(text("::", False)), Format(kind="csv", separator="::", columns=NAMES)),
    ("t.dat", plain(text("¦", False)), Format(kind="csv", separator="¦", columns=NAMES)),
    ("t.dat", plain(text("þ", True, "latin-1")), Format(kind="csv", separator="þ", encoding="latin-1")),
    ("t.gz", plain(text("::", True, "utf-16")), Format(kind="csv", separator="::", encoding="utf-16")),
    ("t", parquet, Format(kind="parquet")),
]


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's file system in memory."""
    system, folder = fsspec.filesystem("memory"), f"/{uuid4().hex}"
    system.mkdir(folder)
    yield f"memory:/{folder}"
    system.rm(folder, recursive=True)


def put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


@pytest.mark.parametrize(("name", "write", "format"), KINDS, ids=[kind[0] for kind in KINDS])
def test_the_same_table_from_every_kind_of_file(
    tmp_path: Path, memory: str, name: str, write: Callable[[Path], None], format: Format
) -> None:
    write(tmp_path / name)
    assert_frame_equal(scan(str(tmp_path / name), format).collect(), TABLE)
    put(f"{memory}/{name}", (tmp_path / name).read_bytes())
    remote = scan(f"{memory}/{name}", format)
    assert_frame_equal(remote.collect(engine="streaming"), TABLE)
    kept = remote.filter(pl.col("score") > 0).select("title")
    assert kept.collect()["title"].to_list() == ["Misérables, Les", "b"]
    assert read(f"{memory}/{name}", ["score", "user"], format).columns == ["score", "user"]


@given(
    rows=st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.text(st.characters(exclude_characters='\r\n:"\x1f', exclude_categories=["Cs"]), min_size=1),
        ),
        min_size=1,
    ),
    separator=st.sampled_from(["::", ":|:", ":::"]),
)
def test_a_separator_of_several_characters_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("text") / "t.dat"
    path.write_text("".join(f"{n}{separator}{word}x\n" for n, word in rows), encoding="utf-8", newline="")
    found = scan(str(path), Format(kind="csv", separator=separator, columns=("n", "word"), quote=False)).collect()
    assert found.rows() == [(n, f"{word}x") for n, word in rows]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ('1::"a::b"::2', ["1", "a::b", "2"]),
        ('"::"::x::""', ["::", "x", ""]),
        ('"say ""a::b""!"::x::y', ['say "a::b"!', "x", "y"]),
        ('"a\n::b"::x::y', ["a\n::b", "x", "y"]),
        ('x::y::"a::b"', ["x", "y", "a::b"]),
    ],
)
def test_a_separator_of_several_characters_inside_quotes_is_text(tmp_path: Path, line: str, fields: list[str]) -> None:
    (tmp_path / "t.dat").write_text(f"{line}\nk::l::m\n", encoding="utf-8")
    format = Format(kind="csv", separator="::", columns=("a", "b", "c"))
    found = scan(f"{tmp_path}/t.dat", format).select(pl.all().cast(pl.String)).collect()
    assert [list(row) for row in found.rows()] == [fields, ["k", "l", "m"]]


def days(folder: str, write: Callable[[str, bytes], object], suffix: str = "csv") -> None:
    for day, users in (("2026-01-31", "1\n2"), ("2026-02-01", "3")):
        write(f"{folder}/day={day}/part-0.{suffix}", f"user\n{users}\n".encode())


@pytest.mark.parametrize("path", ["log", "log/*", "log/day=*/*.csv", "log/**/*.csv", "log/day=2026-0{1-31,2-01}"])
def test_a_hive_key_is_a_column(tmp_path: Path, memory: str, path: str) -> None:
    days(f"{tmp_path}/log", put_local)
    days(f"{memory}/log", put)
    for root in (str(tmp_path), memory):
        put_local(f"{root}/log/_SUCCESS", b"") if root != memory else put(f"{root}/log/_SUCCESS", b"")
        found = scan(f"{root}/{path}").collect()
        assert found.rows() == [(1, date(2026, 1, 31)), (2, date(2026, 1, 31)), (3, date(2026, 2, 1))]
        assert scan(f"{root}/{path}").filter(pl.col("day") > date(2026, 1, 31)).collect()["user"].to_list() == [3]


def test_a_single_file_of_a_hive_folder_keeps_its_key(tmp_path: Path) -> None:
    days(str(tmp_path), put_local)
    assert scan(f"{tmp_path}/day=2026-02-01/part-0.csv").collect().rows() == [(3, date(2026, 2, 1))]


def test_types_of_hive_keys(tmp_path: Path) -> None:
    for folder in ("hour=07/site=a%2Fb", "hour=11/site=__HIVE_DEFAULT_PARTITION__"):
        put_local(f"{tmp_path}/{folder}/f.csv", b"user\n1\n")
    found = scan(str(tmp_path)).collect()
    assert found.select("hour", "site").rows() == [(7, "a/b"), (11, None)]
    # The file's own column counts, not the folder's name.
    put_local(f"{tmp_path}/user=9/f.csv", b"user\n1\n")
    assert scan(f"{tmp_path}/user=9").collect().rows() == [(1,)]


def test_a_folder_without_keys_is_one_table(tmp_path: Path) -> None:
    for name, user in (("b.csv", 2), ("a.csv", 1), ("deep/er/c.csv", 3), (".hidden.csv", 8), ("_tmp/d.csv", 9)):
        put_local(f"{tmp_path}/{name}", f"user\n{user}\n".encode())
    put_local(f"{tmp_path}/README.md", b"no table")
    assert scan(str(tmp_path)).collect()["user"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("pattern", ["log/**/*.csv", "log/*/*/*.csv", "log/*", "l*/**/*.csv"])
def test_what_a_running_writer_has_not_finished_is_not_read(tmp_path: Path, memory: str, pattern: str) -> None:
    """Spark writes below `_temporary/` before it renames; other programs below `.staging/`."""
    for name, user in (("day=1/a/p.csv", 1), ("_temporary/0/p.csv", 8), ("day=1/.staging/p.csv", 9)):
        put_local(f"{tmp_path}/log/{name}", f"user\n{user}\n".encode())
        put(f"{memory}/log/{name}", f"user\n{user}\n".encode())
    for root in (str(tmp_path), memory):
        found = [file for file in find_files(f"{root}/{pattern}") if file.endswith(".csv")]
        assert [file.partition("/log/")[2] for file in found] == ["day=1/a/p.csv"]


@pytest.mark.parametrize("pattern", ["a/_old/*.csv", "*/_old/*.csv", "**/_old/p.csv", "a/_o*/*.csv", "a/_old"])
def test_a_hidden_folder_that_is_named_is_read(tmp_path: Path, pattern: str) -> None:
    put_local(f"{tmp_path}/a/_old/p.csv", b"user\n1\n")
    assert find_files(f"{tmp_path}/{pattern}") == [f"{tmp_path}/a/_old/p.csv"]


def test_alternatives_keep_their_order_and_each_file_is_read_once(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1"):
        put_local(f"{tmp_path}/{name}.csv", f"user\n{name}\n".encode())
    assert [Path(file).stem for file in find_files(f"{tmp_path}/{{b1,a*,a1}}.csv")] == ["b1", "a1", "a2"]
    assert [Path(file).stem for file in find_files(f"{tmp_path}/{{a{{2,1}},b1}}.csv")] == ["a2", "a1", "b1"]
    with pytest.raises(DataError, match=r"c1\.csv: no such file\. .* holds: a1\.csv"):
        find_files(f"{tmp_path}/{{a1,c1}}.csv")


def test_names_with_brackets_are_names_first(tmp_path: Path) -> None:
    put_local(f"{tmp_path}/[prod]/{{a,b}}*.csv", b"user\n1\n")
    assert scan(f"{tmp_path}/[prod]/{{a,b}}*.csv").collect()["user"].to_list() == [1]


@pytest.mark.parametrize(
    ("name", "content", "format", "words"),
    [
        ("u.data", b"1\t2\n", None, ["u.data: unknown kind of table '.data'", "format: {kind: csv}"]),
        ("data", b"1\t2\n", None, ["data: unknown kind of table ''"]),
        ("t.tsv", b"1\t2\t3\n", {"columns": ("a", "b")}, ["t.tsv: has 3 columns, format.columns names 2 (a, b)"]),
        ("t.csv", b"", None, ["t.csv: cannot be read as csv: empty CSV"]),
        ("t.csv", "a\né\n".encode("latin-1"), None, ["t.csv: cannot be read as csv", "format: {encoding: latin-1}"]),
        ("t.csv", "a\né\n".encode("latin-1"), {"encoding": "ascii"}, ["t.csv: is not ascii text", "format.encoding"]),
        ("t.csv", b"a::b\n\x1f::1\n", {"separator": "::"}, ["t.csv: holds the control character 0x1F"]),
        ("t.csv.gz", b"no gzip", {"encoding": "latin-1"}, ["t.csv.gz: cannot be unpacked", "Write the file again"]),
        ("t.parquet", b"no parquet", None, ["t.parquet: cannot be read as parquet", "Write the file again"]),
        ("t.arrow", b"no arrow", None, ["t.arrow: cannot be read as arrow", "Write the file again"]),
    ],
)
def test_what_is_wrong_with_a_file(
    tmp_path: Path, memory: str, name: str, content: bytes, format: dict[str, object] | None, words: list[str]
) -> None:
    put_local(f"{tmp_path}/{name}", content)
    put(f"{memory}/{name}", content)
    for root in (str(tmp_path), memory):
        with pytest.raises(DataError) as error:
            scan(f"{root}/{name}", Format.model_validate(format or {}))
        assert all(word in str(error.value) for word in words), error.value


def test_a_header_that_looks_like_data(tmp_path: Path) -> None:
    put_local(f"{tmp_path}/t.tsv", ("196\tN1\t" + "long text " * 9 + "\n").encode())
    with pytest.raises(DataError) as error:
        read(f"{tmp_path}/t.tsv", ["user"])
    assert "no column 'user'" in str(error.value) and "format: {columns:" in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_files_of_two_kinds(tmp_path: Path) -> None:
    put_local(f"{tmp_path}/a.csv", b"user\n1\n")
    put_local(f"{tmp_path}/b.tsv", b"user\n1\n")
    with pytest.raises(DataError, match=r"b\.tsv: is tsv, .*a\.csv is csv"):
        scan(str(tmp_path))


def test_addresses_that_lead_nowhere(tmp_path: Path, memory: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: is a folder without tables"):
        find_files(f"{tmp_path}/empty")
    with pytest.raises(DataError, match=r"x\.csv: no such file"):
        find_files(f"{memory}/x.csv")
    with pytest.raises(DataError, match=r"\*\.csv: no such file"):
        find_files(f"{memory}/*.csv")
    with pytest.raises(ConfigError, match=r"nosuch://a/b: Protocol not known"):
        find_files("nosuch://a/b")


def test_a_missing_driver_is_named() -> None:
    fsspec.register_implementation("drive", "package_of_drive.FileSystem", errtxt="not here", clobber=True)
    with pytest.raises(ConfigError, match=r"drive://a/b\.csv: drive:// needs the package package_of_drive"):
        find_files("drive://a/b.csv")


def test_an_unknown_encoding_is_a_mistake_of_the_contract() -> None:
    with pytest.raises(ValueError, match="unknown encoding 'latin-77'"):
        Format(encoding="latin-77")


def test_parquet_stays_lazy(tmp_path: Path) -> None:
    """Only the columns and rows asked for are read, hive keys or not."""
    for day in (1, 2):
        (tmp_path / f"day={day}").mkdir()
        TABLE.write_parquet(tmp_path / f"day={day}" / "t.parquet")
    plan = scan(str(tmp_path)).filter(pl.col("user") > 1).select("title", "day").explain()
    assert plan.count("PROJECT 2/3 COLUMNS") == 2 and plan.count('SELECTION: col("user") > 1') == 2


def test_remote_files_are_read_one_at_a_time_and_no_further_than_needed(
    memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        put(f"{memory}/{i}.csv", f"user\n{i}0\n{i}1\n".encode())
    frame = scan(f"{memory}/*.csv")
    opened: list[str] = []
    system = fsspec.filesystem("memory")
    original = system.open

    def watched(path: str, *args: object, **options: object) -> object:
        opened.append(path[-5:])
        return original(path, *args, **options)

    monkeypatch.setattr(type(system), "open", lambda self, path, *a, **k: watched(path, *a, **k))
    assert frame.head(3).collect()["user"].to_list() == [0, 1, 10]
    assert opened == ["0.csv", "1.csv"]
    assert [len(batch) for batch in frame.collect_batches(maintain_order=True)] and opened[2:] == [
        "0.csv",
        "1.csv",
        "2.csv",
    ]


def test_the_hash_of_a_file_is_that_of_its_content_and_partition(tmp_path: Path, memory: str) -> None:
    put_local(f"{tmp_path}/a.csv", b"user\n1\n")
    put_local(f"{tmp_path}/b.csv", b"user\n1\n")
    os.utime(tmp_path / "b.csv", (1, 1))
    put(f"{memory}/c.csv", b"user\n1\n")
    same = {content_hash(f"{tmp_path}/a.csv"), content_hash(tmp_path / "b.csv"), content_hash(f"{memory}/c.csv")}
    assert len(same) == 1
    put(f"{memory}/c.csv", b"user\n2\n")
    put_local(f"{tmp_path}/day=1/a.csv", b"user\n1\n")
    put_local(f"{tmp_path}/day=2/a.csv", b"user\n1\n")
    others = [f"{memory}/c.csv", f"{tmp_path}/day=1/a.csv", f"{tmp_path}/day=2/a.csv"]
    assert len(same | {content_hash(file) for file in others}) == 4
