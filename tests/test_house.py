"""Properties of the structure, measured from the source: imports, functions of a step, folders, docstrings."""

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import edm2
from edm2.networks import NetworkConfig, build_network, force_weight_normalization_
from edm2.post_hoc_ema import PowerFunctionEMA
from edm2.training import EDM2Loss, inverse_sqrt_lr

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"networks": 0, "post_hoc_ema": 0, "training": 1, "edm2": 2, "tools": 3}
FRAGMENTS = {
    "Of", "What", "Those", "Whether", "Whoever", "All", "That", "Where", "How", "Over", "As", "See", "For", "From",
    "None",
}  # fmt: skip
"""First words of a docstring that has to be guessed at."""


TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FLOORS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
"""Sources by their paths below the root."""


def module_name(source: Path) -> str:
    """Import name of a source file: networks/layers.py is edm2.networks.layers."""
    parts = source.with_suffix("").parts
    return ".".join(part for part in ("edm2", *parts[parts[0] == "edm2" :]) if part != "__init__")


MODULES = {module_name(source): source for source in TREES}
FILES = {str(ROOT / source): source for source in TREES}


def lines(offenders: object) -> str:
    """Offenders for an assertion's message, one a line."""
    return "\n" + "\n".join(map(str, offenders))


# ---------------------------------------------------------------------------------------------- one training step


def own_loop() -> Callable[[int], None]:
    """Step of a training loop by hand, on the network of the preset digits8."""
    net = build_network(NetworkConfig.from_json(edm2.read_metadata("digits8")["network"]))
    loss, ema = EDM2Loss(), PowerFunctionEMA(net)
    adam = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    images, labels = torch.randn(4, 1, 8, 8), torch.eye(10)[:4]

    def step(images_seen: int) -> None:
        force_weight_normalization_(net)
        adam.zero_grad()
        loss(net, images, labels).mean().backward()
        for group in adam.param_groups:
            group["lr"] = inverse_sqrt_lr(images_seen, batch_size=4, ref_lr=0.01, ref_batches=100, rampup_images=100)
        adam.step()
        ema.update(images_seen + 4)

    return step


@pytest.fixture(scope="module")
def profile() -> tuple[Counter[str], list[str]]:
    """Calls of each project function in one step, and the deepest nesting of them.

    Every code object counts, comprehensions too where Python makes functions of them (up to 3.11). Autograd runs a
    graph of the CPU in the thread that asks for it, so backward passes of the project are counted too.
    """
    calls: Counter[str] = Counter()
    stack: list[str] = []
    deepest: list[str] = []

    def watch(frame, event: str, argument: object) -> None:
        nonlocal deepest
        code = frame.f_code
        if code.co_filename not in FILES:
            return
        if event == "call":
            stack.append(f"{FILES[code.co_filename]}:{code.co_firstlineno} {code.co_name}")
            calls[stack[-1]] += 1
            deepest = max(deepest, list(stack), key=len)
        elif event == "return":
            stack.pop()

    step = own_loop()
    step(0)  # fills caches
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        step(4)
    finally:
        sys.setprofile(before)
    assert calls
    return calls, deepest


def test_a_step_enters_few_functions_and_is_not_nested_deeply(profile):
    calls, deepest = profile
    assert len(calls) <= 45, f"{len(calls)} functions, {calls.total()} calls:{lines(sorted(calls))}"
    assert len(deepest) <= 10, f"{len(deepest)} deep:{lines(deepest)}"


# ---------------------------------------------------------------------------------------------- light doors


def loaded_by(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after a program."""
    program += "\nimport json, sys; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


def ours(modules: set[str]) -> list[str]:
    """Modules of the project."""
    return sorted(name for name in modules if name.split(".")[0] == "edm2")


@pytest.mark.parametrize(
    ("program", "most", "heavy"),
    [
        ("from edm2.training import EDM2Loss", 25, ("PIL", "edm2.training.data")),
        ("import edm2.post_hoc_ema", 16, ("PIL", "diffusers", "click")),
    ],
    ids=["loss", "post-hoc EMA"],
)
def test_doors_are_light(program: str, most: int, heavy: tuple[str, ...]):
    """Few modules of the project, neither images nor data, and no heavy library."""
    loaded = loaded_by(program)
    assert len(ours(loaded)) <= most, f"{len(ours(loaded))} modules:{lines(ours(loaded))}"
    found = sorted(name for name in loaded if name.startswith(heavy))
    assert not found, lines(found)


# ---------------------------------------------------------------------------------------------- folders, docstrings


def test_folders_are_small():
    counts = Counter(source.parent for source in TREES if source.name != "__init__.py")
    most = {Path("tools/commands"): 20}  # a file per command: `edm2 --help` is the index
    large = [f"{folder}: {count} files" for folder, count in counts.items() if count > most.get(folder, 16)]
    assert not large, lines(large)


def docstrings() -> Iterator[tuple[Path, int, str]]:
    """Source, line and docstring of every module, class and function that has one."""
    for source, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield source, getattr(node, "lineno", 1), text


def test_docstrings_stand_alone():
    found = list(docstrings())
    fragments = [
        f"{source}:{line}: {text.splitlines()[0]}"
        for source, line, text in found
        if text.split()[0].rstrip(":,.") in FRAGMENTS
    ]
    share = len(fragments) / len(found)
    assert share < 0.03, f"{len(fragments)} of {len(found)} ({share:.1%}) begin with a fragment:{lines(fragments)}"


# ---------------------------------------------------------------------------------------------- imports


def statements(node: ast.AST, nested: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; with `nested`, also those in functions and for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if nested or not (is_function or is_for_types):
            yield from statements(child, nested)


def imports(source: Path, nested: bool = False) -> set[str]:
    """Project names that a file imports: modules, or packages for the names that they hand out."""
    names: set[str] = set()
    for node in statements(TREES[source], nested):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES or full in ("edm2.__version__", "edm2.lazy_names") else node.module)
    return {name for name in names if name.split(".")[0] == "edm2"}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that cannot be put into an order in which each comes after those that it imports."""
    rest = dict(graph)
    while free := [name for name, needed in rest.items() if not needed & rest.keys() - {name}]:
        for name in free:
            del rest[name]
    while needless := [name for name in rest if not any(name in rest[other] for other in rest if other != name)]:
        for name in needless:  # they import from the circle, and are not in it
            del rest[name]
    return sorted(rest)


def test_no_modules_import_each_other():
    found = circle({name: imports(source) for name, source in MODULES.items()})
    assert not found, lines(f"{name} imports {sorted(imports(MODULES[name]) & set(found))}" for name in found)


def floor_name(module: str) -> str:
    """Folder of a module: edm2.networks.layers is in networks, edm2.sampling in edm2."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "edm2"


def test_no_folder_imports_from_above():
    upward = []
    for module, source in MODULES.items():
        here = floor_name(module)
        for name in imports(source, nested=True) - {"edm2.__version__", "edm2.lazy_names"}:
            there = floor_name(name)
            if here != there and FLOORS[there] >= FLOORS[here] and module != "edm2.__main__":
                upward.append(f"{source} imports {name}")
    assert not upward, lines(sorted(upward))


# ---------------------------------------------------------------------------------------------- side effects

ACTIONS = """
import importlib, json, os, signal, warnings
import click, numpy, PIL.Image, safetensors.torch, scipy.linalg, torch, tqdm
import diffusers.models.modeling_utils, diffusers.pipelines.pipeline_utils, diffusers.schedulers.scheduling_utils

def state():
    return {
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "matmul precision": torch.get_float32_matmul_precision(),
        "TF32": [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "default dtype": str(torch.get_default_dtype()),
        "random numbers": torch.get_rng_state().tolist(),
        "warning filters": list(map(str, warnings.filters)),
        "signal handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "environment": dict(os.environ),
    }

def changes(action):
    before = state()
    action()
    return [name for name, value in state().items() if value != before[name]]

found = {f"import {name}": changes(lambda: importlib.import_module(name)) for name in MODULES}

import edm2
from edm2.networks import build_network, fold
from edm2.training import EDM2Loss

def load():
    global net
    net = edm2.load("digits8")

found["load"] = changes(load)
image, one = torch.zeros(1, 1, 8, 8), torch.ones(1)
actions = {
    "fold": lambda: fold(net),
    "generate": lambda: list(edm2.generate(net, [0], [0], num_steps=2)),
    "EDM2Loss": lambda: EDM2Loss()(net, image, sigma=one, noise=image),
}
found |= {name: changes(action) for name, action in actions.items()}
found["build_network"] = [name for name in changes(lambda: build_network(net.config)) if name != "random numbers"]
print(json.dumps({name: names for name, names in found.items() if names}))
"""
"""Program that says which actions change which settings of the process. Other libraries are imported first: what they
change on import is not ours."""


def test_imports_and_library_calls_change_nothing_in_the_process():
    names = [name for name in MODULES if floor_name(name) != "tools" and name != "edm2.__main__"]
    program = f"MODULES = {names}\n{ACTIONS}"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    changed = json.loads(run.stdout.splitlines()[-1])
    assert not changed, lines(changed.items())
