"""`make setup`: which torch is taken, uv and its way out, failures, and what the Makefile hands to the shell."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests import dummy_wheels
from tools import environment, installers
from tools import lock as lock_tool

ROOT = Path(__file__).parent.parent
UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module", autouse=True)
def no_network(tmp_path_factory):
    """No package comes from elsewhere than the wheels that a test names, and no setting of this machine counts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*os.environ]:
            if name.startswith(("PIP_", "UV_", "PYTHON", "MAKE")) or name in ("SET", "ROOT", "TORCH_INDEX", "VENV"):
                patch.delenv(name)
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        patch.setenv("UV_CACHE_DIR", str(tmp_path_factory.mktemp("uv-cache")))
        patch.setenv("UV_NO_CONFIG", "1")
        yield patch


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of the lock; uv is a script that calls the real one."""
    if not UV.exists():
        pytest.skip("uv is not installed here; `make setup` installs it")
    folder = tmp_path_factory.mktemp("wheels")
    dummy_wheels.wheel(folder, "uv", "0.13.9", {"scripts/uv": f'#!/bin/sh\nexec {UV} "$@"\n'})
    dummy_wheels.wheel(folder, "small", "1.0", {"small.py": ""})
    dummy_wheels.packaging_wheel(folder)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python with no package at all."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin/python"


def lock_of(folder: Path) -> str:
    return "".join(dummy_wheels.pin(path) for path in sorted(folder.glob("*.whl")))


def installed(venv: Path) -> dict[str, tuple[str, str]]:
    """Version and installer of each distribution of an environment."""
    found = map(PathDistribution, venv.glob("lib/python3*/site-packages/*.dist-info"))
    return {one.metadata["Name"]: (one.version, (one.read_text("INSTALLER") or "").strip()) for one in found}


@pytest.fixture(scope="module")
def set_up(tmp_path_factory, wheels, bare, no_network):
    """An environment that lacks torch alone, made once: tests take copies of it."""
    root = dummy_wheels.project(tmp_path_factory.mktemp("set-up") / "project", lock_of(wheels), Path(__file__).parent)
    checkout = environment.Checkout(root, root / ".venv", bare)
    subprocess.run([bare, "-m", "venv", checkout.venv], check=True)
    no_network.setenv("PIP_FIND_LINKS", str(wheels))
    installer = installers.Installer(checkout.python, installers.pip_settings(checkout.python))
    installer.fetch_uv(checkout.lock)
    installer.install("--no-deps", "--require-hashes", "-r", str(checkout.lock))
    assert installer.warnings == []
    return checkout


@pytest.fixture
def checkout(set_up, tmp_path):
    shutil.copytree(set_up.root, tmp_path / "project", symlinks=True)
    return environment.Checkout(tmp_path / "project", tmp_path / "project/.venv", set_up.base)


def provide_torch(checkout, links: list[Path], monkeypatch, index="") -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", " ".join(map(str, links)))
    settings = installers.pip_settings(checkout.python)
    installer = installers.Installer(checkout.python, settings, checkout.venv / "bin/uv")
    environment.provide_torch(checkout, installer, index)
    assert installer.warnings == []


def base_with_torch(folder: Path, version: str) -> Path:
    """A Python that has a torch of its own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    shutil.unpack_archive(dummy_wheels.torch_wheel(folder / "wheels", version), site, "zip")
    return folder / "bin/python"


def torch_seen(checkout) -> str:
    return installers.run([checkout.python, "-c", "import torch; print(torch.__file__, torch.__version__)"])


class TestTorch:
    def test_the_base_pythons_own_is_taken(self, checkout, tmp_path, monkeypatch):
        base = base_with_torch(tmp_path / "base", "2.12.0+cu130")
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), [], monkeypatch)
        assert torch_seen(checkout).startswith(str(tmp_path / "base")) and "torch" not in installed(checkout.venv)

    def test_our_packages_come_before_those_of_the_base(self, checkout, tmp_path, monkeypatch):
        base = base_with_torch(tmp_path / "base", "2.12.0")
        (next((tmp_path / "base").glob("lib/python3*/site-packages")) / "small.py").write_text("old = True")
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), [], monkeypatch)
        where = installers.run([checkout.python, "-c", "import small; print(small.__file__)"])
        assert where.startswith(str(checkout.venv))

    def test_one_that_is_too_old_is_left_with_a_warning(self, checkout, tmp_path, monkeypatch, capfd):
        base = base_with_torch(tmp_path / "base", "2.10.1")
        links = [dummy_wheels.torch_wheel(tmp_path / "links").parent]
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), links, monkeypatch)
        assert installed(checkout.venv)["torch"] == ("2.13.0", "uv")
        assert f"the torch 2.10.1 of {base} is older than 2.11" in capfd.readouterr().err

    def test_a_build_from_the_head_of_the_oldest_release_is_new_enough(self, checkout, tmp_path, monkeypatch):
        base = base_with_torch(tmp_path / "base", "2.11.0a0+nv")
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), [], monkeypatch)
        assert "2.11.0a0+nv" in torch_seen(checkout)

    def test_one_that_imports_only_in_the_base_is_left_with_a_warning(self, checkout, tmp_path, monkeypatch, capfd):
        base = base_with_torch(tmp_path / "base", "2.12.0")
        module = next((tmp_path / "base").glob("lib/python3*/site-packages/torch/__init__.py"))
        module.write_text("import sys\n__version__ = '2.12.0'\nassert 'base' in sys.prefix, 'built for the base'\n")
        links = [dummy_wheels.torch_wheel(tmp_path / "links").parent]
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), links, monkeypatch)
        assert not checkout.base_packages.exists() and installed(checkout.venv)["torch"] == ("2.13.0", "uv")
        assert "AssertionError: built for the base" in capfd.readouterr().err

    def test_a_wheel_that_imports_alone_gets_no_dependencies(self, checkout, tmp_path, monkeypatch):
        links = tmp_path / "links"
        dummy_wheels.wheel(
            links, "torch", "2.13.0", {"torch.py": "__version__ = '2.13.0'"}, ["nvidia_cudnn; sys_platform != 'none'"]
        )
        dummy_wheels.wheel(links, "nvidia_cudnn", "9", {"nvidia_cudnn.py": ""})
        provide_torch(checkout, [links], monkeypatch)
        assert "nvidia_cudnn" not in installed(checkout.venv)

    def test_a_wheel_that_does_not_gets_them(self, checkout, tmp_path, monkeypatch, wheels, capfd):
        dummy_wheels.cuda_torch_wheel(tmp_path / "links")
        dummy_wheels.wheel(tmp_path / "links", "nvidia_cudnn", "9", {"nvidia_cudnn.py": ""})
        dummy_wheels.wheel(tmp_path / "links", "small", "1.5", {"small.py": ""})
        provide_torch(checkout, [wheels, tmp_path / "links"], monkeypatch)
        assert installed(checkout.venv)["nvidia_cudnn"] == ("9", "uv")
        assert installed(checkout.venv)["small"] == ("1.0", "uv")  # the lock's, although torch would take 1.5
        assert "libcudnn.so.9: cannot open shared object file" in capfd.readouterr().err

    def test_a_named_index_is_the_only_source(self, checkout, tmp_path, monkeypatch):
        """Neither the folder of wheels that pip is told of nor the base Python's torch counts."""
        newer = dummy_wheels.torch_wheel(tmp_path / "links", "2.13.0+newer")
        cpu = dummy_wheels.torch_wheel(tmp_path / "index", "2.13.0+cpu")
        base = base_with_torch(tmp_path / "base", "2.13.0+cu130")
        index = dummy_wheels.simple_index(tmp_path / "simple", cpu)
        provide_torch(environment.Checkout(checkout.root, checkout.venv, base), [newer.parent], monkeypatch, index)
        assert installed(checkout.venv)["torch"] == ("2.13.0+cpu", "uv")

    def test_a_named_index_is_the_only_source_of_pip_too(self, checkout, tmp_path, monkeypatch):
        newer = dummy_wheels.torch_wheel(tmp_path / "links", "2.13.0+newer")
        index = dummy_wheels.simple_index(
            tmp_path / "simple", dummy_wheels.torch_wheel(tmp_path / "index", "2.13.0+cpu")
        )
        monkeypatch.setenv("PIP_FIND_LINKS", str(newer.parent))
        installer = installers.Installer(checkout.python, installers.pip_settings(checkout.python))
        environment.provide_torch(checkout, installer, index)
        assert installed(checkout.venv)["torch"] == ("2.13.0+cpu", "pip")

    def test_none_that_imports_is_an_error(self, checkout, tmp_path, monkeypatch):
        links = tmp_path / "links"
        dummy_wheels.wheel(links, "torch", "2.13.0", {"torch.py": "raise ImportError('libfoo.so.1')"})
        with pytest.raises(installers.InstallError, match=r"with its dependencies either: ImportError: libfoo\.so\.1"):
            provide_torch(checkout, [links], monkeypatch)


class TestInstallers:
    def test_a_wrong_hash_is_refused_by_both(self, checkout, wheels, monkeypatch):
        (small,) = wheels.glob("small-*.whl")
        wrong = checkout.root / "wrong.lock"
        wrong.write_text(dummy_wheels.pin(small, "0" * 64))
        shutil.rmtree(next(checkout.venv.glob("lib/python3*/site-packages/small-1.0.dist-info")))
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
        settings = installers.pip_settings(checkout.python)
        installer = installers.Installer(checkout.python, settings, checkout.venv / "bin/uv")
        with pytest.raises(installers.InstallError, match=r"(?s)DO NOT MATCH.*small"):
            installer.install("--no-deps", "--require-hashes", "-r", str(wrong))
        assert "Hash mismatch for `small==1.0`" in installer.warnings[0]

    def test_pip_does_what_uv_fails_at(self, checkout, tmp_path, monkeypatch):
        broken = tmp_path / "uv"
        broken.write_text("#!/bin/sh\necho 'error: no space left' >&2; exit 2\n")
        broken.chmod(0o755)
        dummy_wheels.torch_wheel(tmp_path / "links")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
        installer = installers.Installer(checkout.python, installers.pip_settings(checkout.python), broken)
        installer.install("--no-deps", "torch==2.13.0")
        assert installed(checkout.venv)["torch"] == ("2.13.0", "pip")
        assert installer.warnings == ["uv failed, pip tries the same: error: no space left"]

    def test_without_uv_pip_remains(self, checkout, monkeypatch, tmp_path):
        """uv is pinned, and the index does not have it."""
        shutil.rmtree(next(checkout.venv.glob("lib/python3*/site-packages/uv-*.dist-info")))
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        installer = installers.Installer(checkout.python, installers.pip_settings(checkout.python))
        installer.fetch_uv(checkout.lock)
        assert installer.uv is None
        assert "No matching distribution found for uv==0.13.9" in installer.warnings[0]

    def test_pips_constraints_hold_for_uv(self, checkout, tmp_path, monkeypatch):
        (tmp_path / "constraints.txt").write_text("other<2\n")
        dummy_wheels.wheel(tmp_path / "links", "other", "1.0", {"other.py": ""})
        dummy_wheels.wheel(tmp_path / "links", "other", "2.0", {"other.py": ""})
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
        monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
        settings = installers.pip_settings(checkout.python)
        installers.Installer(checkout.python, settings, checkout.venv / "bin/uv").install("other")
        assert installed(checkout.venv)["other"] == ("1.0", "uv")

    def test_pips_settings_are_read_as_pip_ranks_them(self, checkout, tmp_path, monkeypatch):
        """[install] over [global], a variable over both, an empty variable over none."""
        (tmp_path / "pip.conf").write_text(
            "[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b/simple\n  https://c/simple\n"
            "cert = /a.pem\nfind-links = /wheels\ntimeout = 60\n[install]\nindex-url = https://d/simple\n"
        )
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        monkeypatch.setenv("PIP_CERT", "/b.pem")
        monkeypatch.setenv("PIP_FIND_LINKS", "")
        assert installers.uv_environment(installers.pip_settings(checkout.python)) == {
            "UV_DEFAULT_INDEX": "https://d/simple",
            "UV_INDEX": "https://b/simple https://c/simple",
            "UV_FIND_LINKS": "/wheels",
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "SSL_CERT_FILE": "/b.pem",
            "UV_HTTP_TIMEOUT": "60",
        }


@pytest.fixture
def clone(wheels, tmp_path):
    """A fresh clone of a project that has our Makefile and tools, and dummy packages."""
    root = dummy_wheels.project(tmp_path / "clone", lock_of(wheels), Path(__file__).parent)
    shutil.copytree(ROOT / "tools", root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", root)
    return root


def make(root: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["make", *words], cwd=root, capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )


class TestMake:
    @pytest.mark.slow
    def test_a_failed_set_up_says_why_and_is_tried_again(self, clone, wheels, bare, tmp_path):
        """First without uv in the lock and with dependencies that the lock does not meet, then as it should be."""
        dummy_wheels.torch_wheel(tmp_path / "links")
        links = f"{wheels} {tmp_path / 'links'}"
        words = ("setup", f"PYTHON={bare}", "VENV=.venv")
        project, lock = clone / "pyproject.toml", clone / "requirements.lock"
        right, locked = project.read_text(), lock.read_text()
        project.write_text(right.replace('"small>=1"', '"small>=2", "absent"'))
        lock.write_text(locked.replace(installers.pinned(locked, "uv"), ""))

        failed = make(clone, *words, PIP_FIND_LINKS=links)
        assert failed.returncode == 2 and not (clone / ".venv/.ready").exists()
        assert "warning: uv cannot be installed" in failed.stderr and installed(clone / ".venv")["small"][1] == "pip"
        assert "set-up failed: check that all imports and no dependency is unmet\n  cause:   " in failed.stderr
        assert "quadrank needs small>=2, and 1.0 is installed" in failed.stderr
        assert "quadrank needs absent, which is not installed" in failed.stderr
        assert "\n  way out: `make lock` resolves the lock anew" in failed.stderr

        project.write_text(right)
        lock.write_text(locked)
        (clone / "ctr/deep").mkdir()
        (clone / "ctr/deep/__init__.py").touch()
        (clone / "ctr/deep/broken.py").write_text("import absent")
        broken = make(clone, *words, PIP_FIND_LINKS=links)
        assert broken.returncode == 2 and "No module named 'absent'" in broken.stderr
        assert not (clone / ".venv/.ready").exists()

        (clone / "ctr/deep/broken.py").write_text("import small")
        again = make(clone, *words, PIP_FIND_LINKS=links, PYTHONDONTWRITEBYTECODE="1")
        assert again.returncode == 0, again.stderr
        # Whatever the shell says, what was imported is compiled: no command does that again.
        assert [*(clone / ".venv").glob("lib/python3*/site-packages/__pycache__/small.*.pyc")]
        assert (clone / ".venv/.ready").exists() and "warning" not in again.stderr
        found = installed(clone / ".venv")
        assert {name: found[name][1] for name in ("small", "packaging", "torch", "quadrank")} == dict.fromkeys(
            ["small", "packaging", "torch", "quadrank"], "uv"
        )
        assert make(clone, *words).stdout == "make: Nothing to be done for 'setup'.\n"

    @pytest.mark.parametrize(("index", "is_made"), [("https://a/simple", False), ("https://b/simple", True)])
    def test_another_index_of_torch_makes_the_environment_again(self, tmp_path, index, is_made):
        for name in ("Makefile", "requirements.lock", "requirements-torch.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, tmp_path)
        (tmp_path / "v").mkdir()
        (tmp_path / "v/.ready").write_text("https://a/simple")
        shown = make(tmp_path, "-n", "setup", "VENV=v", f"TORCH_INDEX={index}").stdout
        assert (f"--torch-index '{index}'" in shown) is is_made

    def test_a_set_up_waits_for_another_one_and_takes_its_result(self, tmp_path):
        root = dummy_wheels.project(tmp_path / "project", "", Path(__file__).parent)
        (root / ".venv").mkdir()
        with (root / "requirements.lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            command = [sys.executable, "-m", "tools.environment", "--root", root]
            second = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
            assert second.stderr.readline() == "set-up: wait for another set-up of this checkout\n"
            assert second.poll() is None
            (root / ".venv/.ready").write_text("")
        assert second.communicate(timeout=60)[1] == "" and second.returncode == 0
        assert [path.name for path in (root / ".venv").iterdir()] == [".ready"]

    def test_lock_takes_in_a_new_dependency_before_the_environment_has_it(self, clone, wheels, tmp_path):
        links = tmp_path / "links"
        for name in (*(need.replace("-", "_") for need in lock_tool.NEEDS_OF_TORCH), "added"):
            dummy_wheels.wheel(links, name, "1.0", {f"{name}.py": ""})
        dummy_wheels.wheel(links, "small", "1.5", {"small.py": ""})
        dummy_wheels.cuda_torch_wheel(links)
        dummy_wheels.wheel(links, "nvidia_cudnn", "9", {})
        index = dummy_wheels.simple_index(tmp_path / "simple", *wheels.iterdir(), *links.iterdir())
        text = (clone / "pyproject.toml").read_text()
        (clone / "pyproject.toml").write_text(text.replace('"small>=1"', '"small>=1", "added", "uv"'))
        done = make(clone, "lock", f"PYTHON={sys.executable}", PIP_INDEX_URL=index, PIP_NO_INDEX="")
        assert done.returncode == 0, done.stderr
        lock = (clone / "requirements.lock").read_text()
        needs = {f"{name}==1.0" for name in lock_tool.NEEDS_OF_TORCH}
        # small stays as it was pinned, and neither torch nor what it would bring is there.
        assert {*installers.pins(lock).splitlines()} == {"small==1.0", "added==1.0", "uv==0.13.9", *needs}
        assert lock.count("--hash=sha256:") == len(installers.pins(lock).splitlines())
        assert not (clone / ".venv").exists()

    def test_an_old_python_is_told_at_once(self, clone, tmp_path):
        old = tmp_path / "python3.8"
        old.write_text(
            f"#!/bin/sh\nexec {sys.executable} -c "
            "'import sys; sys.version_info = (3, 8, 10); exec(sys.argv[2])' \"$@\"\n"
        )
        old.chmod(0o755)
        done = make(clone, "train", f"PYTHON={old}")
        assert done.returncode == 2
        assert f"{old} is Python 3.8, and QuadRank needs 3.11 or later: make setup PYTHON=python3.12" in done.stderr

    def test_a_python_that_is_not_there_is_told(self, clone):
        assert "there is no nope here: make setup PYTHON=" in make(clone, "setup", "PYTHON=nope").stderr

    def test_the_list_names_every_target_but_the_one_whose_data_needs_a_registration(self):
        """A stranger can run what it names: the log is simulated, or `quadrank download` fetches it."""
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))
        shown = re.findall(r"^  make ([a-z-]+) ", make(ROOT, "help").stdout, re.MULTILINE)
        assert targets - set(shown) == {"mmctr"}

    @pytest.mark.parametrize(
        ("given", "venv"),
        [
            ([], ".venv/"),
            (["VENV=v"], "v/"),
            ([f"PYTHON={sys.executable}"], f".venv-{sys.version_info[0]}.{sys.version_info[1]}/"),
        ],
    )
    def test_each_named_python_has_its_environment(self, given, venv):
        assert f"\n{venv}bin/ruff check .\n" in "\n" + make(ROOT, "-n", "-o", f"{venv}.ready", "lint", *given).stdout


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("train.epochs=3 x.y=rating >= 4", ["train.epochs=3", "x.y=rating >= 4"]),
        ("data.interactions.label=rating >= 4", ["data.interactions.label=rating >= 4"]),
        ("train.epochs=3 model.dropout=0.2", ["train.epochs=3", "model.dropout=0.2"]),
        ("  train.epochs=3   model.dropout=0.2 ", ["train.epochs=3", "model.dropout=0.2"]),
        ("data.a.filter=x == 1 and t.c==4 train.x=1", ["data.a.filter=x == 1 and t.c==4", "train.x=1"]),
        ("model.sizes=[64, 32] train.x=", ["model.sizes=[64, 32]", "train.x="]),
        ("data.a.b=genre = 'new  wave' and `c` > $1; *", ["data.a.b=genre = 'new  wave' and `c` > $1; *"]),
        ("", []),
    ],
)
def test_set_reaches_the_command_as_it_was_typed(tmp_path, text, settings):
    command = tmp_path / "quadrank"
    command.write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[1:])\n")
    command.chmod(0o755)
    words = ("-o", ".venv/.ready", "train", "DATA=movielens_100k", "MODEL=qin", "VENV=.venv", f"QUADRANK={command}")
    start = ["run", "--data", "conf/data/movielens_100k.yaml", "--model", "conf/model/qin.yaml"]
    expected = str([*start, "--root", "/a b/>c", *(word for one in settings for word in ("--set", one))]) + "\n"
    assert make(ROOT, *words, f"SET={text}", "ROOT=/a b/>c").stdout == expected
    assert make(ROOT, *words, SET=text, ROOT="/a b/>c").stdout == expected


@pytest.mark.parametrize(("pasts", "last"), [("PASTS=yes", ["--pasts"]), ("PASTS=no", []), ("PASTS=", [])])
def test_pasts_reach_the_job_and_the_export(pasts, last):
    ready = ("-n", "-o", ".venv/.ready", "VENV=.venv", "QUADRANK=quadrank", "DATA=movielens_100k", "MODEL=qin", pasts)
    exported = make(ROOT, *ready, "export").stdout.split()
    assert exported == ["quadrank", "export", "--run", "latest", *last]
    job = make(ROOT, *ready, "train").stdout.splitlines()[-1].split()
    preset = job.index("conf/model/qin.yaml")
    assert job[preset + 1 :] == [*last, '"$@"']


class TestClean:
    KEPT = ("mlflow.db", "mlartifacts", "bundles", "runs", "feature_sets", "data/simulated", "data/ml-100k")

    @pytest.fixture
    def used(self, tmp_path):
        shutil.copy(ROOT / "Makefile", tmp_path)
        for name in (*self.KEPT, ".mypy_cache", "dist"):
            (tmp_path / name).mkdir(parents=True)
        return tmp_path

    def left(self, folder: Path) -> set[str]:
        return {name for name in (*self.KEPT, ".mypy_cache", "dist") if (folder / name).exists()}

    def test_clean_removes_caches_alone(self, used):
        assert make(used, "clean").returncode == 0
        assert self.left(used) == set(self.KEPT)

    def test_clean_all_asks_first(self, used):
        done = make(used, "clean-all")
        assert done.returncode == 2 and "CONFIRM=yes" in done.stdout and "mlflow.db" in done.stdout
        assert self.left(used) == set(self.KEPT)

    def test_clean_all_keeps_raw_data(self, used):
        assert make(used, "clean-all", "CONFIRM=yes").returncode == 0
        assert self.left(used) == {"data/ml-100k"}
