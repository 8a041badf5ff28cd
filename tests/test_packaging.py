"""The unusual layout (folders at the top level, installed as `edm2.*`) must survive packaging, and keep its floors."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import edm2

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("networks", "training", "post_hoc_ema", "tools")
NOT_SOURCES = (".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", "build", "dist", "runs", "demo", "golden")


def python_files(folder: str) -> list[Path]:
    """Every module of a top-level folder, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob("*.py"))


SOURCES = [path for folder in ("edm2", *FOLDERS) for path in python_files(folder)]
STUDIES = Path("tools/bench/studies")  # one-off measurements, which stay out of the wheel
INSTALLED = [path for path in SOURCES if STUDIES not in path.parents]


def installed_path(source: Path) -> str:
    """Path of a source file in the wheel: networks/x.py becomes edm2/networks/x.py."""
    return (source if source.parts[0] == "edm2" else "edm2" / source).as_posix()


def module_name(source: Path) -> str:
    """Import name of a source file."""
    return installed_path(source).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def run_python(*arguments: str, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a fresh interpreter, which must succeed; `path` goes to the front of its sys.path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that building leaves nothing here and nothing lying here helps the build."""
    copy = tmp_path_factory.mktemp("checkout") / "source"
    return shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES))


@pytest.fixture(scope="module")
def distributions(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist and the wheel made from that sdist, with the tools of the `test` extra and no network."""
    built = tmp_path_factory.mktemp("distributions")
    run_python("-m", "build", "--no-isolation", "--outdir", str(built), str(checkout), cwd=built)
    return built


@pytest.fixture(scope="module")
def unpacked(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Contents of the wheel, as pip would put them into site-packages."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(next(distributions.glob("*.whl"))).extractall(site)
    return site


@pytest.fixture(scope="module")
def metadata(unpacked: Path) -> str:
    """Metadata of the wheel."""
    return (unpacked / f"edm2-{edm2.__version__}.dist-info" / "METADATA").read_text()


def test_wheel_holds_every_module_but_studies_assets_and_licence_and_nothing_else(unpacked, metadata):
    assert {path.name for path in unpacked.iterdir()} == {"edm2", f"edm2-{edm2.__version__}.dist-info"}
    assert f"\nVersion: {edm2.__version__}\n" in metadata
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*")}
    assert {name for name in files if name.endswith(".py")} == set(map(installed_path, INSTALLED))
    assert len(INSTALLED) < len(SOURCES)
    assets = {f"edm2/assets/{path.name}" for path in (ROOT / "edm2" / "assets").glob("*.safetensors")}
    assert {"edm2/py.typed", *assets} <= files
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_pages_of_the_documentation_are_read_from_the_wheel_and_from_a_checkout(unpacked, checkout, tmp_path):
    """Messages cite them as `edm2 docs settings`; pictures lie beside them."""
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    for where, folder in ((unpacked, unpacked / "edm2" / "docs"), (checkout, checkout / "docs")):
        listed = run_python("-m", "edm2", "docs", cwd=tmp_path, path=where)
        assert {line.split()[0] for line in listed.split("\n\n")[0].splitlines()} == pages
        assert str(folder) in listed
        page = run_python("-m", "edm2", "docs", "settings", cwd=tmp_path, path=where)
        assert page.strip() == (ROOT / "docs" / "settings.md").read_text().strip()
    assert {path.name for path in (unpacked / "edm2" / "docs").iterdir()} == {
        path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".png")
    }


def test_messages_cite_pages_as_a_command_that_prints_them():
    """What a user of the wheel reads, in help, plans and errors, names no file of a checkout."""
    for source in INSTALLED:
        tree = ast.parse((ROOT / source).read_text(encoding="utf-8"))
        nodes = list(ast.walk(tree))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        texts = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        cited = [node.value for node in texts if "docs/" in node.value and node not in docstrings]
        assert not cited, f"{source}: {cited[0]}"
    cited = {name for source in INSTALLED for name in re.findall(r"edm2 docs ([a-z_-]+)", (ROOT / source).read_text())}
    assert cited <= {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_sdist_holds_the_sources_and_what_building_and_testing_need(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {source.as_posix() for source in SOURCES} <= names
    assert {path.as_posix() for path in python_files("tests") if "golden" not in path.parts} <= names
    assert {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md"} <= names


@pytest.mark.slow
def test_every_module_of_the_unpacked_wheel_imports(unpacked, tmp_path):
    names = [module_name(source) for source in INSTALLED]
    program = f"import importlib\nfor name in {names}: print(importlib.import_module(name).__file__)"
    files = run_python("-c", program, cwd=tmp_path, path=unpacked).split("\n")[:-1]
    assert [Path(file).relative_to(unpacked).as_posix() for file in files] == list(map(installed_path, INSTALLED))


def test_the_console_script_points_at_a_function(unpacked, tmp_path):
    entry = (next(unpacked.glob("*.dist-info")) / "entry_points.txt").read_text()
    module, function = re.search(r"^edm2 = ([\w.]+):(\w+)$", entry, re.MULTILINE).groups()
    program = f"import {module}; print(callable({module}.{function}))"
    assert run_python("-c", program, cwd=tmp_path, path=unpacked).strip() == "True"


def test_importing_edm2_alone_is_light(tmp_path):
    program = "import sys, edm2; print(sorted({'torch', 'numpy', 'scipy', 'diffusers', 'click'} & set(sys.modules)))"
    assert run_python("-c", program, cwd=tmp_path, path=ROOT).strip() == "[]"


def test_a_bare_checkout_works(checkout):
    assert "Usage" in run_python("-m", "edm2", "--help", cwd=checkout)
    assert "Usage" in run_python("-m", "edm2.tools.bench.studies.solvers", "--help", cwd=checkout)
    program = "import edm2.networks, edm2.tools; print(edm2.networks.__file__, edm2.tools.__file__)"
    assert all(Path(file).is_relative_to(checkout) for file in run_python("-c", program, cwd=checkout).split())


def imports(source: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports anywhere, `from a import b` as a.b."""
    for node in ast.walk(ast.parse((ROOT / source).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("source", [*SOURCES, *python_files("tests")], ids=str)
def test_folders_are_imported_as_parts_of_edm2(source):
    """A bare `import networks` works in the root of a checkout and makes a second, different module."""
    assert not {name.split(".")[0] for name in imports(source)} & set(FOLDERS)


def test_every_imported_package_is_declared(metadata):
    """So that a clean environment with the `test` extra runs everything, and `make test` (clean-fid is an extra)."""
    extra = set(re.findall(r'^Requires-Dist: ([\w.-]+).*; extra == "test"$', metadata, re.MULTILINE))
    assert {"pytest", "pytest-xdist", "ruff", "mypy", "pre-commit"} <= extra
    assert {"build", "setuptools"} <= extra  # --no-isolation builds with what is installed
    declared = {normalized(name) for name in re.findall(r"^Requires-Dist: ([\w.-]+)", metadata, re.MULTILINE)}
    ours = {"edm2", *(path.stem for path in python_files("tests"))}
    tops = {name.split(".")[0] for source in [*SOURCES, *python_files("tests")] for name in imports(source)}
    homes = importlib.metadata.packages_distributions()
    for top in tops - set(sys.stdlib_module_names) - ours:
        assert {normalized(name) for name in homes.get(top, [top])} & declared, f"{top} is imported, not declared"


def normalized(name: str) -> str:
    """Name of a distribution without its separators: clean-fid and cleanfid compare equal."""
    return re.sub(r"[-_.]", "", name).lower()
