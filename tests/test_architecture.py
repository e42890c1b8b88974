"""The house rules of docs/architecture.md, enforced: who may import whom, file sizes, docstrings."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "ctr", "pipelines")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MEASURING = sorted((ROOT / "benchmarks").rglob("*.py"))
FOLDERS = sorted({path.parent for path in (*MODULES, *MEASURING, *(ROOT / "tools").rglob("*.py"))})
# Packages of a floor in the order in which data moves: one imports only those before it, and the floor's own files.
FLOORS = {
    "features": "contract store sources encoding checks fitting point_in_time requests vectors monitor build",
    "ctr": "data kernels history trees towers model evaluation training serving export diagnosis reporting",
    "pipelines": "project operate gate job stages tune study inspect report serving cli",
}
# Beside the path of the data: only `pipelines` imports these, and of their floor they import its own files and `also`.
BESIDE = {"simulator": {"simulator"}, "datasets": {"datasets", "contract"}}
# Packages of the benchmarks, in the order in which they may import each other; only `bench_NAME` beside them has all.
BENCHMARKS = ("harness", "inputs", "peers", "jobs", "profiling", "month")
MOST_FILES = 12
FORBIDDEN = {
    "features": {"torch", "numba", "mlflow", "optuna", "typer", "ctr", "pipelines"},
    "ctr": {"optuna", "typer", "pipelines"},
    "pipelines": set(),
}


def imports_of(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside a function, by dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return found


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert not top_level(imports_of(path)) & FORBIDDEN[package]


def room(module: str) -> tuple[str, str]:
    """Floor and package of a module's dotted name; no package for a floor's own file."""
    floor, *rest = module.split(".")
    known = rest and rest[0] in (*FLOORS.get(floor, "").split(), *BESIDE)
    return floor, rest[0] if known else ""


def allowed_rooms(floor: str, package: str) -> set[str]:
    """Packages of the floor that a file of `package` may import."""
    if package in BESIDE:
        return BESIDE[package] | {""}
    if (floor, package) == ("ctr", "serving"):
        return {"serving"}
    order = FLOORS[floor].split()
    return {"", *order[: order.index(package) + 1]} if package else {""}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_imports_run_one_way_between_the_packages_of_a_floor(path):
    floor, package = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if path.name in {"__main__.py"}:
        return
    imported = {room(name)[1] for name in imports_of(path) if name.split(".")[0] == floor}
    assert imported <= allowed_rooms(floor, package)


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files_imported(path: Path, files: dict[str, Path]) -> set[Path]:
    """Files of the tree that a file imports: `from a import b` is the module `a.b` if there is one, else `a`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in files else node.module for name in whole]
        else:
            continue
        found |= {files[name] for name in names if name in files}
    return found


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Some circle of imports, from a file back to itself; nothing where there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for target in sorted(imports.get(name, ())):
                if found := walk(target, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(imports) if (found := walk(name, []))), [])


def test_a_circle_of_imports_is_found():
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def test_no_file_imports_itself_by_way_of_others():
    files = {dotted(path): path for path in MODULES}
    imports = {named(path): {named(target) for target in files_imported(path, files)} for path in MODULES}
    assert circle(imports) == []


@pytest.mark.parametrize("parent", sorted({path.parent.parent for path in MODULES} - {ROOT}), ids=named)
def test_no_folder_imports_its_neighbour_that_imports_it(parent):
    """Of the packages inside a package: `ctr/serving/server` reads `answering`, never the other way."""
    prefix = named(parent).replace("/", ".") + "."
    imports: dict[str, set[str]] = {}
    for path in parent.rglob("*.py"):
        own = dotted(path).removeprefix(prefix).split(".")
        names = {name.removeprefix(prefix).split(".")[0] for name in imports_of(path) if name.startswith(prefix)}
        # A file beside the packages is no package.
        folders = {name for name in names if (parent / name).is_dir()}
        if len(own) > 1 and (parent / own[0]).is_dir():
            imports.setdefault(own[0], set()).update(folders - {own[0]})
    assert circle(imports) == []


@pytest.mark.parametrize("floor", PACKAGES)
def test_every_package_of_a_floor_has_its_place_in_the_order(floor):
    found = {path.name for path in (ROOT / floor).iterdir() if (path / "__init__.py").exists()}
    assert found == set(FLOORS[floor].split()) | {name for name in BESIDE if (ROOT / floor / name).exists()}


@pytest.mark.parametrize("path", [path for path in MEASURING if path.parent != ROOT / "benchmarks"], ids=named)
def test_imports_run_one_way_between_the_packages_of_benchmarks(path):
    package = path.parent.relative_to(ROOT / "benchmarks").parts[0]
    imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("benchmarks.")}
    assert imported <= set(BENCHMARKS[: BENCHMARKS.index(package) + 1])


@pytest.mark.parametrize("folder", FOLDERS, ids=named)
def test_a_folder_holds_about_a_dozen_files(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MOST_FILES


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_mlflow_is_imported_by_its_store_and_its_flavor_alone(path):
    if named(path) not in ("ctr/reporting/mlflow_store.py", "ctr/reporting/mlflow_flavor.py"):
        assert "mlflow" not in top_level(imports_of(path))


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_room_has_a_reason_and_stays_small(path):
    text = path.read_text(encoding="utf-8")
    first_line = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    assert first_line and first_line[0].rstrip().endswith((".", ":", "?"))
    assert len(text.splitlines()) <= 450


def test_every_yaml_says_what_it_is_for():
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        head = path.read_text(encoding="utf-8").splitlines()[:12]
        assert head[0].startswith("# "), f"{path} opens without a comment"
        assert any("make " in line or "quadrank " in line for line in head), f"{path} does not say how to run it"
