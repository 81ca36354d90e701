"""The project's own shape: light imports, layers without cycles, what ships in the wheel."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest
from shared import ROOT

LAYERS = [
    ["version", "errors", "wording"],
    ["cores", "failpoints", "forking", "interruption", "png", "side_by_side"],
    ["names", "devices", "optional", "shipped"],
    ["model"],
    ["pictures", "checks"],
    ["metadata"],
    ["records"],
    ["filters"],
    ["storage"],
    ["html_pages", "vae"],
    ["encoders"],
    ["states"],
    ["transforms"],
    ["indexing"],
    ["reading"],
    ["searching"],
    ["storing"],
    ["vector"],
    ["space"],
    ["deriving", "tables"],
    ["asking", "changing", "exporting", "ingesting", "latent", "maintenance", "making_spaces", "plots", "building"],
    ["probing"],
    ["collection"],
    ["store"],
    ["cli"],
]
HEAVY = ("torch", "transformers", "sentence_transformers", "faiss", "onnxruntime", "pandas", "sqlalchemy", "pyarrow")


def imports_of(path):
    """The parts of embedstore that a module imports when it is itself imported."""

    class Finder(ast.NodeVisitor):
        def __init__(self):
            self.found = set()

        def visit_FunctionDef(self, node):  # noqa: N802 - imports inside functions happen later
            pass

        def visit_If(self, node):  # noqa: N802
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_ImportFrom(self, node):  # noqa: N802
            if node.module and node.module.startswith("embedstore"):
                parts = node.module.split(".")
                self.found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}

    finder = Finder()
    finder.visit(ast.parse(path.read_text()))
    return finder.found


def test_a_module_imports_only_from_layers_below_it():
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    package = ROOT / "embedstore"
    for path in package.rglob("*.py"):
        own = path.relative_to(package).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__", "sample"):
            continue
        for other in imports_of(path):
            assert other == own or level[other] < level[own], f"{path} imports {other}"


@pytest.mark.parametrize(
    "code",
    [
        "import embedstore",
        "from embedstore.cli import main; main(['--help'])",
        "import embedstore; embedstore.open('x')",
    ],
)
def test_starting_loads_nothing_heavy(code):
    script = f"import sys\ntry:\n    exec({code!r})\nfinally:\n    print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_search_with_a_vector_loads_no_sqlalchemy_and_no_model(tmp_path):
    script = (
        "import embedstore, sys\n"
        "s = embedstore.open(sys.argv[1])\n"
        "if sys.argv[2] == 'write':\n"
        "    s.collection('c', encoder='none').add([{'key': 'a', 'vector': [1.0], 'x': 1}])\n"
        "else:\n"
        "    s.collection('c').search([1.0], where='x = 1')\n"
        f"    print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    for step in ("write", "read"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "s"), step], capture_output=True, text=True, check=True
        )
    assert done.stdout == "[]\n"


def test_the_wheel_has_recipes_migrations_and_the_sample(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "_shipped/indexes/flat.toml",
        "_shipped/migrations/env.py",
        "_shipped/migrations/versions/0001_first_tables.py",
        "sample/things.jsonl",
        "filters/where.lark",
        "py.typed",
    ):
        assert f"embedstore/{name}" in names
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True)
    script = "import embedstore.shipped as s; print(s.shipped_folder('indexes'), s.sample_file().is_file())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {script}"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/site/embedstore/_shipped/indexes True\n"


def test_constraints_pin_public_versions_only():
    lines = [one for one in (ROOT / "constraints.txt").read_text().splitlines() if one and not one.startswith("#")]
    assert all(line.count("==") == 1 and "+" not in line and "/" not in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [
        *project["dependencies"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["cpu"],
    ]
    for one in needed:
        name = one.split(">")[0].split("=")[0].split("[")[0].lower()
        assert name in pinned or name == "embedstore", name


def test_two_builds_of_faiss_are_named_with_the_repair(monkeypatch):
    from embedstore import MissingDependency, optional

    monkeypatch.setattr(optional, "load_faiss", optional.load_faiss.__wrapped__)  # what was loaded before is kept
    monkeypatch.setattr(optional, "faiss_distributions", lambda: ["faiss-cpu", "faiss-gpu"])
    with pytest.raises(
        MissingDependency, match="faiss-cpu and faiss-gpu are both installed.*--force-reinstall --no-deps faiss-gpu"
    ):
        optional.load_faiss()
    monkeypatch.setattr(optional, "faiss_distributions", list)
    monkeypatch.setattr(optional.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install faiss-cpu"):
        optional.load_faiss()


def test_a_build_of_faiss_that_lacks_a_library_says_so_in_one_line(tmp_path):
    from embedstore.optional import faiss_distributions

    (tmp_path / "faiss").mkdir()
    words = "faiss-gpu installed but nvidia-cuda-runtime-cu12 is missing"
    (tmp_path / "faiss" / "__init__.py").write_text(f"raise RuntimeError({words!r} '\\nand more')\n")
    code = "from embedstore.optional import load_faiss\nload_faiss()"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    (installed,) = faiss_distributions()
    assert f"MissingDependency: {installed} cannot be imported: {words}\n" in done.stderr
    command = [sys.executable, "-m", "embedstore", "doctor"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and words in done.stdout and "Traceback" not in done.stderr


def test_every_error_is_in_the_tree_and_is_a_builtin_too():
    from embedstore import errors

    kinds = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.EmbedstoreError)]
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
        assert str(kind("a message")) == "a message"
        assert kind.exit_code in (1, 2, 3, 4)


def test_no_property_takes_a_lock_that_a_fork_would_leave_held():
    for path in (ROOT / "embedstore").rglob("*.py"):
        text = path.read_text()
        assert "import cached_property" not in text and "@functools.cached_property" not in text, path
