"""No code of a stranger runs: every use of what could run it is listed here, with the reason why it is safe.

Found in the syntax trees of all sources, so that neither an alias of a module nor a line break hides one. A use that is
new fails this test until somebody has written down why it is safe; a reason without a use fails it too.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("edm2", "networks", "training", "post_hoc_ema", "tools")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

MODULES = (
    *("pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("subprocess", "pty", "ctypes", "runpy", "imp", "code", "codeop"),
)
"""Whose import alone is worth a look."""

CALLS = (
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "importlib.import_module"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "torch.export.load", "torch.package.PackageImporter"),
    *("numpy.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "safetensors.torch.load_model"),
    *("sys.setrecursionlimit", "shutil.unpack_archive"),
)
PREFIXES = ("os.exec", "os.spawn", "os.posix_spawn", "subprocess.", "pickle.", "marshal.", "shelve.")
METHODS = ("extractall", "extract", "from_pretrained", "run_module")
"""Called on anything."""

WORDS = {"allow_pickle": False, "shell": False, "weights_only": True, "trust_remote_code": False}
"""Arguments that may have no other value, wherever they are."""

SAFE: dict[tuple[str, str], str] = {
    ("training/run/checkpoint_index.py", "import pickle"): "for the unpickler below",
    ("training/run/checkpoint_index.py", "pickle.Unpickler"): "imports and calls nothing but the names of a list",
    ("training/run/checkpoint_index.py", "pickle.UnpicklingError"): "an exception",
    ("edm2/io/published/inert_pickle.py", "import pickle"): "for the unpickler below",
    (
        "edm2/io/published/inert_pickle.py",
        "pickle._Unpickler",
    ): "imports and calls nothing: REDUCE, NEWOBJ and BUILD record, and no callable is ever on its stack",
    ("edm2/io/published/inert_pickle.py", "pickle._Unpickler.dispatch"): "harmless instructions are taken from it",
    ("edm2/io/published/inert_pickle.py", "pickle.UnpicklingError"): "an exception",
    ("training/settings.py", "compile"): "a field of this name, for torch.compile",
    ("training/distributed/strategies.py", "compile"): "a parameter of this name, for torch.compile",
    ("tools/process.py", "import ctypes"): "for mallopt of the C library",
    ("tools/bench/karras.py", "importlib.import_module"): "a package that the user installed, of a fixed name",
    ("tools/options/sampling.py", "compile"): "a field of this name, for torch.compile",
    ("tools/bench/workload.py", "compile"): "a field of this name, for torch.compile",
    ("tools/bench/device_suite.py", "import subprocess"): "for its own sections",
    ("tools/bench/device_suite.py", "subprocess.Popen"): "this very program, with a section's name and numbers",
    ("tools/bench/device_suite.py", "subprocess.PIPE"): "a constant",
    ("tools/bench/device_suite.py", "subprocess.TimeoutExpired"): "an exception",
    ("tools/bench/device_suite.py", "importlib.import_module"): "one of our own sections, from a table",
    ("tools/bench/device/real_run.py", "import subprocess"): "for commands of this package",
    ("tools/bench/device/real_run.py", "subprocess.run"): "edm2, with arguments from a table, and no shell",
    ("tools/bench/device/real_run.py", "subprocess.TimeoutExpired"): "an exception",
    ("post_hoc_ema/foreign/checkpoints.py", "torch.load"): "weights_only: tensors, and nothing that is called",
    ("edm2/metrics/efficientnet.py", "torch.load"): "weights_only: tensors, and nothing that is called",
    ("edm2/metrics/dinov2.py", "torch.load"): "weights_only: tensors, and nothing that is called",
    ("edm2/metrics/dinov2.py", "torch.hub.load"): "the program of one repository, if the user asks for this detector",
    ("edm2/metrics/pretrained.py", "torch.jit.load"): "a program of tensors, named by the user as a detector's weights",
    ("edm2/metrics/inception.py", "importlib.import_module"): "cleanfid, a package that the user installed",
    (
        "training/imports.py",
        "importlib.import_module",
    ): "a module that the user names; never one that a file names",
    ("post_hoc_ema/callbacks.py", "importlib.import_module"): "lightning or transformers, from the code",
    ("edm2/sampling/output.py", "numpy.load"): "allow_pickle=False",
    ("tools/options/conditions.py", "numpy.load"): "allow_pickle=False",
    ("edm2/__init__.py", "importlib.import_module"): "one of our own modules, from a table",
    ("training/loss/by_name.py", "importlib.import_module"): "a module of the registry of weightings",
    ("tools/cli.py", "importlib.import_module"): "one of our own commands, from a table",
    ("edm2/sampling/samplers/registry.py", "importlib.import_module"): "one of our own modules, from a table",
    ("edm2/io/onnx.py", "importlib.import_module"): "packages of an extra, of fixed names",
    ("edm2/pipeline/denoiser.py", "?.from_pretrained"): "use_safetensors, whatever the caller asks for",
    ("edm2/pipeline/storing.py", "?.from_pretrained"): "use_safetensors, whatever the caller asks for",
    ("training/data/vae.py", "diffusers.AutoencoderKL.from_pretrained"): "use_safetensors: weights, in no other form",
    ("edm2/io/text_encoder.py", "transformers.AutoModel.from_pretrained"): "use_safetensors, and no code from the hub",
    ("edm2/io/text_encoder.py", "transformers.AutoTokenizer.from_pretrained"): "text files, and no code from the hub",
}


def dotted(node: ast.expr, aliases: dict[str, str]) -> str:
    """ "np.linalg.norm" for that expression, by the real names of modules; "" for what is no name."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value, aliases)
        return f"{inner}.{node.attr}" if inner else f"?.{node.attr}"
    return ""


def imports(tree: ast.AST) -> dict[str, str]:
    """What the names mean that a file imports."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def uses(path: Path) -> Counter[str]:
    """Everything in a file that the lists above name, and how often."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases, found = imports(tree), Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found.update(f"import {name}" for name in modules if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Name | ast.Attribute):  # called, or handed to what calls it, or a base class
            name = dotted(node, aliases)
            found.update([name] if name in CALLS or name.startswith(PREFIXES) else [])
        if isinstance(node, ast.Call):
            name = dotted(node.func, aliases)
            found.update([name] if name.rpartition(".")[2] in METHODS else [])
            found.update(f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords if _is_unsafe(word))
    return found


def _is_unsafe(word: ast.keyword) -> bool:
    if word.arg not in WORDS:
        return False
    return not (isinstance(word.value, ast.Constant) and word.value.value is WORDS[word.arg])


def test_every_use_has_a_reason():
    found = {(path.relative_to(ROOT).as_posix(), use) for path in SOURCES for use in uses(path)}
    assert not found - SAFE.keys(), "write down why it is safe, or do without it"
    assert not SAFE.keys() - found, "a reason for what is not there any more"


@pytest.mark.slow
def test_what_is_loaded_by_torch_and_numpy_says_that_it_is_only_data():
    """The defaults of torch have changed once; these do not depend on them."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            name = dotted(node.func, imports(tree)) if isinstance(node, ast.Call) else ""
            words = {word.arg for word in node.keywords} if isinstance(node, ast.Call) else set()
            assert name != "torch.load" or "weights_only" in words, path
            assert name != "numpy.load" or "allow_pickle" in words, path
            assert not name.endswith("AutoencoderKL.from_pretrained") or "use_safetensors" in words, path
