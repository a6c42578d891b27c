"""The house: each folder imports only lower floors, no file imports itself in a circle, nothing lies loose at the top.

An import counts wherever it stands: at the top, inside a function, or under TYPE_CHECKING.
"""

import ast
from pathlib import Path

import pytest

import linnet

PACKAGE = Path(linnet.__file__).parent
FLOORS = (
    {"_version"},
    {"core", "distributed"},
    {"maps", "sparse", "wide"},
    {"evolve", "modules"},
    {"checkpoint"},
    {"decoupled"},
    {"convert", "inspection", "compat"},
    {"cli"},
    {"testing"},
)
LARGEST = 400
"""Lines of a file beyond which it is two."""


def modules(package=PACKAGE):
    """Every module of linnet by its dotted name, and its text."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = ("linnet", *path.relative_to(package).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


def imports(name, text, known):
    """The modules of linnet that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            whole = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            found |= whole or {node.module}
    return found - {name}


def graph(texts):
    return {name: imports(name, text, texts) for name, text in texts.items()}


def floor_of(name):
    """The floor of a module; the face of the package and its entry stand above all."""
    folder = name.split(".")[1] if "." in name else ""
    for number, folders in enumerate(FLOORS):
        if folder in folders:
            return number
    return len(FLOORS)


def upward(arrows):
    """Imports from a lower floor to a higher one, or between two folders of one floor."""
    return [
        f"{source} -> {target}"
        for source, targets in arrows.items()
        for target in targets
        if floor_of(target) > floor_of(source)
        or (floor_of(target) == floor_of(source) < len(FLOORS) and target.split(".")[1] != source.split(".")[1])
    ]


def circle(arrows):
    """A path of modules that import each other in a circle, if there is one; faces that hand names on do not count."""
    inner = {name: targets for name, targets in arrows.items() if not any(o.startswith(name + ".") for o in arrows)}
    state = {}

    def visit(name, path):
        state[name] = "open"
        for target in sorted(inner[name] & inner.keys()):
            if state.get(target) == "open":
                return [*path[path.index(target) :], target]
            if target not in state and (found := visit(target, [*path, target])):
                return found
        state[name] = "done"
        return None

    for name in inner:
        if name not in state and (found := visit(name, [name])):
            return found
    return None


@pytest.fixture(scope="module")
def texts():
    return modules()


def test_every_import_goes_down(texts):
    assert not upward(graph(texts))


def test_no_file_imports_itself_in_a_circle(texts):
    assert circle(graph(texts)) is None


def test_nothing_lies_loose_at_the_top():
    loose = {path.name for path in PACKAGE.iterdir() if path.is_file() and path.suffix == ".py"}
    assert loose == {"__init__.py", "__main__.py", "_version.py"}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set().union(*FLOORS) - {"_version"}


def test_no_file_is_two(texts):
    assert not {name: text.count("\n") for name, text in texts.items() if text.count("\n") > LARGEST}


def test_planted_faults_are_noticed(texts):
    planted = texts | {
        "linnet.core.affine": texts["linnet.core.affine"] + "\ndef f():\n    from linnet.maps import orthogonal\n"
    }
    assert upward(graph(planted)) == ["linnet.core.affine -> linnet.maps.orthogonal"]
    planted = texts | {"linnet.maps.psd": texts["linnet.maps.psd"] + "\nfrom linnet.sparse import csr\n"}
    assert upward(graph(planted)) == ["linnet.maps.psd -> linnet.sparse.csr"]
    planted = texts | {"linnet.core.dense": texts["linnet.core.dense"] + "\nimport linnet.core.affine\n"}
    planted["linnet.core.affine"] += "\nfrom linnet.core.dense import dense\n"
    assert set(circle(graph(planted))) == {"linnet.core.dense", "linnet.core.affine"}
