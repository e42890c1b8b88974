"""`make mutants`: mutmut over the modules where layers meet, each with its own tests alone.

Each module gets a folder below `.mutants/`: a copy of the project for mutmut, its log, and what survived. Writes
`.mutants/scores.md` (a row a module) and `.mutants/<module>.diff` (each survivor). Run it from the project's root:

    python -m tests.mutation.run [--module features/point_in_time/history.py] [--sample 60]
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OUT = Path(".mutants")
TABLE = Path(__file__).with_name("modules.toml")
SOURCES = ("features", "ctr", "pipelines")
COPIED = ("benchmarks", "conf", "docs", "README.md", "Makefile")
SEED = 20_231_114
KILLED = (1, 3, -11, -9)  # a failed test, an error inside pytest, a crash
OUT_OF_TIME = (-24, 24, 36, 152, 255)
# One core a mutant: kernels and matrix products would else fight for it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "NUMBA_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Score:
    """What became of a module's mutants.

    Args:
        module: its path.
        generated: mutants that mutmut makes of it and that may change what it does.
        tried: of them, those that met the tests.
        killed: those that a test refused, the ones that ran out of time among them.
        out_of_time: those that ended at the time limit.
        seconds: of the whole run.
    """

    module: str
    generated: int
    tried: int
    killed: int
    out_of_time: int
    seconds: float

    @property
    def share(self) -> float:
        """Killed of tried."""
        return self.killed / self.tried if self.tried else 1.0


@dataclass(frozen=True)
class Mutant:
    """One change of one function, as mutmut names it, and its unified diff."""

    name: str
    diff: str


class _WhatTestsJudge(ast.NodeTransformer):
    """Drops what no test is asked to judge: the wording of errors, `strict=` of zip, `encoding="utf-8"` on Linux."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                part.value = ""
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [one for one in node.keywords if one.arg not in ("strict", "encoding")]
        return self.generic_visit(node)


def mutants_of(module: str, code: str, names: list[str]) -> list[Mutant]:
    """The mutants of a module's mutated source, without those that change nothing that a test judges."""
    lines = code.splitlines()
    functions = {node.name: node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
    judged = {name: _judged(node) for name, node in functions.items() if "__mutmut_" in name}
    found = []
    for name in names:
        original = f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"
        if judged[name] == judged[original]:
            continue
        # Without the line of the name, which differs in each.
        before, after = (lines[functions[one].lineno : functions[one].end_lineno] for one in (original, name))
        diff = list(difflib.unified_diff(before, after, lineterm="", n=2))[2:]
        found.append(Mutant(f"{module.removesuffix('.py').replace('/', '.')}.{name}", "\n".join(diff)))
    return found


def _judged(function: ast.FunctionDef) -> str:
    """The function as text, alike for two that tests cannot tell apart."""
    copied = deepcopy(function)
    copied.name = ""
    return ast.dump(_WhatTestsJudge().visit(copied))


def run_module(module: str, spec: dict[str, Any], sample: int, children: int) -> Score:
    """Mutate one module in a folder of its own, run mutmut, and write what survived.

    Raises:
        RuntimeError: mutmut did not run, mostly since a test fails without any mutant; the log says which.
    """
    started = time.perf_counter()
    work = OUT / module.removesuffix(".py").replace("/", ".")
    _prepare(work, module, spec)
    mutants = {mutant.name: mutant.diff for mutant in _generate(work, module)}
    drawn = sorted(random.Random(SEED).sample(sorted(mutants), min(sample, len(mutants))))
    with (work / "log.txt").open("w") as log:
        subprocess.run(
            [Path(sys.executable).with_name("mutmut"), "run", "--max-children", str(children), *drawn],
            cwd=work,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": ""},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    results = json.loads((work / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
    codes = {name: results[name] for name in drawn}
    if None in codes.values():
        raise RuntimeError(f"{module}: mutmut stopped early, read {work / 'log.txt'}")
    late = [name for name, code in codes.items() if code in OUT_OF_TIME]
    survived = [name for name, code in codes.items() if code not in (*KILLED, *OUT_OF_TIME)]
    text = "\n\n".join(f"# {name}\n{mutants[name]}" for name in survived)
    work.with_suffix(work.suffix + ".diff").write_text(text + "\n")
    score = Score(
        module=module,
        generated=len(mutants),
        tried=len(drawn),
        killed=len(drawn) - len(survived),
        out_of_time=len(late),
        seconds=round(time.perf_counter() - started, 1),
    )
    work.with_suffix(work.suffix + ".json").write_text(json.dumps(asdict(score)))
    return score


def _prepare(work: Path, module: str, spec: dict[str, Any]) -> None:
    """A folder with links to the project and a pyproject.toml that tells mutmut about this module alone."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in (*SOURCES, *COPIED, "tests"):
        (work / name).symlink_to(Path(name).resolve())
    tests = [str(path) for pattern in spec["tests"] for path in sorted(Path().glob(pattern))]
    if not tests:
        raise RuntimeError(f"{module}: none of its test files is there: {', '.join(spec['tests'])}")
    tests = list(dict.fromkeys(tests))
    settings = {
        "source_paths": list(SOURCES),
        "only_mutate": [module],
        "also_copy": list(COPIED),
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": [
            *("-p", "no:xdist", "-p", "no:cacheprovider", "-p", "tests.mutation.plugin"),
            "--hypothesis-profile=mutants",
            *("-m", "not slow"),
            *("-o", f"mutant_files={' '.join(tests)}"),
        ],
        # torch and polars have threads, which a forked child lacks: fork from a server that has only imported them.
        "process_isolation": "forkserver",
        # Wall seconds a mutant: (its tests + constant) * multiplier. Fixtures are not in the first.
        "timeout_constant": 10.0,
        "timeout_multiplier": 4.0,
        "track_dependencies": False,
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    text = Path("pyproject.toml").read_text() + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    (work / "pyproject.toml").write_text(text)


def _generate(work: Path, module: str) -> list[Mutant]:
    """Mutants of the module; in a process of its own, since mutmut reads its settings once from the current folder."""
    script = (
        "import json, sys; from mutmut.mutation.file_mutation import mutate_file_contents as mutate\n"
        "made = mutate(sys.argv[1], open(sys.argv[1]).read()); print(json.dumps([made.code, list(made.mutant_names)]))"
    )
    done = subprocess.run([sys.executable, "-c", script, module], cwd=work, capture_output=True, text=True, check=True)
    code, names = json.loads(done.stdout)
    return mutants_of(module, code, names)


def table() -> str:
    """Scores of every module that was run, as a Markdown table."""
    scores = [Score(**json.loads(path.read_text())) for path in OUT.glob("*.json")]
    order = list(_modules()[0])
    scores.sort(key=lambda score: order.index(score.module) if score.module in order else len(order))
    lines = ["| module | mutants | tried | killed | survived | share |", "|---|---|---|---|---|---|"]
    for one in scores:
        late = f" ({one.out_of_time} by time)" if one.out_of_time else ""
        survived = one.tried - one.killed
        lines.append(
            f"| `{one.module}` | {one.generated} | {one.tried} | {one.killed}{late} | {survived} | {one.share:.0%} |"
        )
    return "\n".join(lines) + "\n"


def _modules() -> tuple[dict[str, dict[str, Any]], int]:
    content = tomllib.loads(TABLE.read_text())
    sample = content.pop("sample")
    return content, sample


def main() -> int:
    """Run one module or all, print the table; 1 where a module could not be run."""
    modules, usual = _modules()
    parser = argparse.ArgumentParser(description="mutation scores of the modules where layers meet")
    parser.add_argument("--module", choices=list(modules), help="one module instead of all")
    parser.add_argument("--sample", type=int, help=f"most mutants of a module (instead of those in {TABLE.name})")
    arguments = parser.parse_args()
    chosen = [arguments.module] if arguments.module else list(modules)
    cores = os.cpu_count() or 1
    failed = 0

    def one(module: str) -> None:
        nonlocal failed
        try:
            # With several modules each takes a core: what mutmut does before the first mutant uses one alone.
            sample = arguments.sample or modules[module].get("sample", usual)
            score = run_module(module, modules[module], sample, cores if len(chosen) == 1 else 1)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failed += 1
            print(f"{error}", file=sys.stderr, flush=True)
            return
        late = f", {score.out_of_time} of them by the time limit" if score.out_of_time else ""
        text = (
            f"{score.module}: {score.killed} of {score.tried} killed ({score.share:.0%}){late}, {score.seconds:.0f} s"
        )
        print(text, flush=True)

    with ThreadPoolExecutor(max_workers=1 if len(chosen) == 1 else cores) as pool:
        list(pool.map(one, chosen))
    (OUT / "scores.md").write_text(table())
    print(f"\n{table()}\nSurvivors: {OUT}/<module>.diff")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
