"""Each scheduler's example calls a stub of the job, and is read by its own tool or schema."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.locks import SILENT_AFTER
from tests.command_lines import commands_of, problem
from tests.documents import ROOT

EXAMPLES = ROOT / "docs" / "examples"
FIELD = r"(\*|\d+)([-,/]\d+)*"


def text(name: str) -> str:
    return (EXAMPLES / name).read_text(encoding="utf-8")


# A job that ends with the first of the codes that are left in a file.
NEXT_CODE = "code=$(head -1 codes); sed -i 1d codes; exit $code"


def write_script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def quadrank_lines(name: str) -> list[str]:
    """The calls of ours in an example, each from the command's name on."""
    found = re.findall(r"quadrank (?:run|gc)\b[^\n;&]*", text(name))
    return [re.sub(r"\s*\|\|.*", "", line) for line in found]


@pytest.mark.parametrize("name", ["quadrank.cron", "quadrank.service", "kubernetes.yaml", "github_actions.yml"])
def test_the_commands_of_an_example_have_these_options(name: str) -> None:
    commands = [command for line in quadrank_lines(name) for command in commands_of(name, line, whole=True)]
    assert commands and [found for command in commands if (found := problem(command))] == []


@pytest.mark.parametrize("name", ["quadrank.cron", "quadrank.service", "kubernetes.yaml", "github_actions.yml"])
def test_the_job_of_an_example_has_guards(name: str) -> None:
    (job,) = [line for line in quadrank_lines(name) if line.startswith("quadrank run")]
    assert {"data.checks.newest_day=error", "data.checks.max_age=36h"} <= set(job.split())


@pytest.mark.parametrize("codes", ["0", "6", "75 0", "75 75"])
def test_cron_tries_again_on_75_alone(codes: str, tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    write_script(tmp_path / ".venv" / "bin" / "quadrank", NEXT_CODE)
    write_script(tmp_path / "sleep", "")
    (job,) = re.findall(r"^JOB=(.*)$", text("quadrank.cron"), re.MULTILINE)
    (line,) = re.findall(r"^0 3 \* \* \* ranking (.*)$", text("quadrank.cron"), re.MULTILINE)
    command = line.replace("/srv/ranking", str(tmp_path))
    subprocess.run(["bash", "-c", command], env={"PATH": f"{tmp_path}:/bin:/usr/bin", "JOB": job})
    assert (tmp_path / "codes").read_text() == ""


def test_cron_lines_have_five_fields_a_user_and_a_command() -> None:
    lines = [line for line in text("quadrank.cron").splitlines() if re.match(r"[\d*]", line)]
    assert len(lines) == 2
    assert [line for line in lines if not re.fullmatch(rf"({FIELD} ){{5}}ranking cd /srv/ranking && \S.*", line)] == []


# As much of Airflow as the example uses: a task runs when it is called, and says which error it ended with.
AIRFLOW = {
    "exceptions": """
class AirflowException(Exception): pass
class AirflowFailException(AirflowException): pass
class AirflowSkipException(AirflowException): pass
""",
    "sdk": """
def dag(**_): return lambda function: function
def task(**_):
    def decorate(function):
        def run():
            try: function()
            except BaseException as error: print(type(error).__name__, flush=True)
            else: print("success", flush=True)
        return run
    return decorate
""",
    "__init__": "",
}
TIMEOUT = """
import signal
def over(*_): raise TimeoutError
signal.signal(signal.SIGALRM, over)
"""


def task_of_the_dag(tmp_path: Path, job: str, before: str = "") -> subprocess.Popen[str]:
    """The example as Airflow calls it, in a folder whose `quadrank` is a stub."""
    for name, code in AIRFLOW.items():
        (tmp_path / "airflow").mkdir(exist_ok=True)
        (tmp_path / "airflow" / f"{name}.py").write_text(code)
    write_script(tmp_path / ".venv" / "bin" / "quadrank", job)
    code = before + text("airflow_dag.py").replace("from __future__ import annotations", "").replace(
        "/srv/ranking", str(tmp_path)
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)


def test_the_command_of_the_airflow_dag_has_these_options(tmp_path: Path) -> None:
    task_of_the_dag(tmp_path, 'echo "quadrank $*" > words').communicate(timeout=50)
    (command,) = commands_of("airflow_dag.py", (tmp_path / "words").read_text(), whole=True)
    assert problem(command) is None


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("exit 0", "success"),
        ("exit 3", "success"),
        ("exit 6", "AirflowFailException"),
        ("exit 7", "AirflowSkipException"),
        ("exit 75", "AirflowException"),
        ("kill -9 $$", "AirflowException"),
    ],
)
def test_airflow_tries_again_after_75_and_a_kill_alone(ends: str, expected: str, tmp_path: Path) -> None:
    assert task_of_the_dag(tmp_path, ends).communicate(timeout=50)[0] == f"{expected}\n"


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, "AirflowException"), (signal.SIGALRM, "TimeoutError")]
)
def test_airflow_lets_the_job_save_when_it_ends_the_task(number: int, expected: str, tmp_path: Path) -> None:
    """With SIGTERM, or by an error that its own timer raises."""
    task = task_of_the_dag(tmp_path, SAVES, TIMEOUT)
    wait_for(tmp_path / "began")
    task.send_signal(number)
    said = task.communicate(timeout=50)[0]
    assert (said, (tmp_path / "saved").exists()) == (f"{expected}\n", True)


def job_spec() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(text("kubernetes.yaml"))["spec"]["jobTemplate"]["spec"]
    return spec


def container() -> dict[str, Any]:
    job = job_spec()
    (container,) = job["template"]["spec"]["containers"]
    return {**container, "rules": job["podFailurePolicy"]["rules"], "restart": job["template"]["spec"]["restartPolicy"]}


def test_the_cron_job_fails_at_once_on_codes_that_would_come_again() -> None:
    found = container()
    by_action = {rule["action"]: rule.get("onExitCodes", {}).get("values") for rule in found["rules"]}
    assert by_action == {"Ignore": None, "FailJob": [1, 2, 4, 5, 6], "Count": [7, 75]}
    # A failure policy of a pod is read with this restart policy alone.
    assert found["restart"] == "Never"


def test_the_cron_job_tries_until_the_lock_of_a_killed_pod_is_nobodys() -> None:
    """The next pod is another host, which respects the lock until it was silent for long enough."""
    tries = job_spec()["backoffLimit"]
    # Kubernetes waits 10 s, and twice as long each time, up to six minutes.
    waited = sum(min(10 * 2**earlier, 360) for earlier in range(tries))
    assert waited > SILENT_AFTER


def shell_of_the_pod(tmp_path: Path) -> subprocess.Popen[bytes]:
    """The container's command in a folder whose `quadrank` is a stub."""
    found = container()
    return subprocess.Popen(
        [*found["command"], *found["args"]], cwd=tmp_path, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}
    )


@pytest.mark.parametrize(
    ("ends", "expected"), [("exit 0", 0), ("exit 3", 0), ("exit 6", 6), ("exit 75", 75), ("kill -9 $$", 137)]
)
def test_the_cron_job_hands_the_code_on(ends: str, expected: int, tmp_path: Path) -> None:
    write_script(tmp_path / "quadrank", ends)
    assert shell_of_the_pod(tmp_path).wait(timeout=50) == expected


# A job that needs a moment to save, and says so in files.
SAVES = """trap 'sleep 0.3; touch saved; exit 75' TERM
touch began
while :; do sleep 0.05; done"""


def wait_for(path: Path) -> None:
    until = time.monotonic() + 50
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.02)


def test_the_cron_job_hands_sigterm_on_and_waits_for_the_job(tmp_path: Path) -> None:
    write_script(tmp_path / "quadrank", SAVES)
    pod = shell_of_the_pod(tmp_path)
    wait_for(tmp_path / "began")
    pod.terminate()
    assert (pod.wait(timeout=50), (tmp_path / "saved").exists()) == (75, True)


@pytest.mark.parametrize(("codes", "expected"), [("0", 0), ("3", 0), ("6", 6), ("75 0", 0), ("75 75 75", 75)])
def test_the_workflow_tries_again_on_75_alone(codes: str, expected: int, tmp_path: Path) -> None:
    steps = yaml.safe_load(text("github_actions.yml"))["jobs"]["run"]["steps"]
    (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
    write_script(tmp_path / ".venv" / "bin" / "quadrank", NEXT_CODE)
    write_script(tmp_path / "sleep", "")
    done = subprocess.run(
        ["bash", "-e", "-c", steps[0]["run"]], cwd=tmp_path, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}
    )
    assert (done.returncode, (tmp_path / "codes").read_text()) == (expected, "")


def reads(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A reader of the extra `dev`, which has its schemas inside; `make setup` installs it beside this Python."""
    program = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    assert program is not None, f"{tool} is not installed: `make setup` installs what requirements.lock pins"
    return subprocess.run([program, *words], capture_output=True, text=True)


def workflow(path: Path) -> subprocess.CompletedProcess[str]:
    return reads("check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(path))


def manifest(path: Path) -> subprocess.CompletedProcess[str]:
    return reads("kubernetes-validate", "--strict", str(path))


@pytest.mark.parametrize("path", [EXAMPLES / "github_actions.yml", ROOT / ".github/workflows/ci.yml"])
def test_a_workflow_has_the_keys_of_its_schema(path: Path) -> None:
    done = workflow(path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cron_job_has_the_keys_of_its_schema() -> None:
    done = manifest(EXAMPLES / "kubernetes.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("read", "name", "key", "wrong"),
    [
        (workflow, "github_actions.yml", "timeout-minutes:", "timeout-minuets:"),
        (manifest, "kubernetes.yaml", "concurrencyPolicy:", "concurrencyPolity:"),
    ],
)
def test_a_wrong_key_in_an_example_is_noticed(
    read: Callable[[Path], subprocess.CompletedProcess[str]], name: str, key: str, wrong: str, tmp_path: Path
) -> None:
    assert key in text(name)
    (tmp_path / name).write_text(text(name).replace(key, wrong))
    done = read(tmp_path / name)
    assert done.returncode != 0
    assert wrong.rstrip(":") in done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
@pytest.mark.parametrize("file", [EXAMPLES / "github_actions.yml", ROOT / ".github/workflows/ci.yml"])
def test_actionlint_reads_the_workflows(file: Path) -> None:
    """`ranking` is the label of a runner of one's own."""
    done = subprocess.run(
        ["actionlint", "-ignore", 'label "ranking" is unknown', str(file)], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_reads_timer_and_service(tmp_path: Path) -> None:
    """With a command that is there: systemd also looks for the program."""
    service = text("quadrank.service").replace("/srv/ranking/.venv/bin/quadrank", "/bin/true")
    (tmp_path / "quadrank.service").write_text(service.replace("User=ranking", "User=root"))
    (tmp_path / "quadrank.timer").write_text(text("quadrank.timer"))
    units = [str(tmp_path / name) for name in ("quadrank.service", "quadrank.timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "quadrank." in line]
    assert (done.returncode, said) == (0, [])


def make(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A target of our Makefile, for whose environment a stub stands."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / ".venv").mkdir()
    for file in (".venv/.ready", "requirements.lock", "requirements-torch.lock", "pyproject.toml"):
        (tmp_path / file).write_text("")
    return subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/.ready", *words, "DATA=movielens_100k"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )


def in_docs() -> str:
    """The lines of docs/operations.md by which a scheduler that calls make learns the code."""
    (lines,) = re.findall(r"```sh\n(\(make train\).*?)```", (ROOT / "docs/operations.md").read_text(), re.DOTALL)
    return str(lines)


@pytest.mark.parametrize("code", [3, 4, 6, 7, 75])
def test_make_train_lets_the_code_through(code: int, tmp_path: Path) -> None:
    """What reads it is docs/operations.md: from the last lines of stderr."""
    write_script(tmp_path / "quadrank", f"echo 'quadrank: exit {code}' >&2; exit {code}")
    done = make(tmp_path, "train", f"QUADRANK={tmp_path}/quadrank")
    assert done.returncode == 2
    assert re.search(rf"^make: \*\*\* .*train\] Error {code}$", done.stderr, re.MULTILINE)
    write_script(tmp_path / "make", f"cat <<'END' >&2\n{done.stderr}END\nexit 2")
    script = f"{in_docs()}\necho code $code"
    read = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env={"PATH": f"{tmp_path}:/bin:/usr/bin"}, capture_output=True, text=True
    )
    assert read.stdout.splitlines()[-1] == f"code {code}"


def test_make_says_the_code_that_it_hides(tmp_path: Path) -> None:
    done = make(tmp_path, "features", "ROOT=/nowhere", f"QUADRANK={sys.executable} -m pipelines")
    assert done.returncode == 2
    assert re.findall(r"^quadrank: exit (\d+)$", done.stderr, re.MULTILINE) == ["4"]
    assert re.search(r"^make: \*\*\* .*features\] Error 4$", done.stderr, re.MULTILINE)
