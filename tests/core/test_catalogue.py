"""The catalogue, and what every public name and every layer in it must have."""

import importlib
import inspect
import pkgutil
import re
import sys
import types

import pytest

import linnet
from linnet import Linear, LinearMap, OrthogonalLinear, SymmetricLinear, catalogue, find_layer
from linnet.core import registry
from linnet.core.registry import layer_name, register
from linnet.testing import check_constructor, check_copy, check_forward, check_layer
from support.paths import ROOT


@pytest.fixture
def own_catalogue():
    before = dict(registry.REGISTRY)
    yield
    registry.REGISTRY.clear()
    registry.REGISTRY.update(before)


def define(name, **options):
    """A new layer class called ``name``, with a ``_weight`` of its own."""

    def fill(body):
        body["_weight"] = lambda self, weight: weight

    return types.new_class(name, (Linear,), options, fill)


def test_a_class_with_a_weight_of_its_own_enters_the_catalogue(own_catalogue):
    before = list(catalogue())
    assert define("TwirledLinear") is find_layer("twirled")
    assert [*before, "twirled"] == list(catalogue())
    define("HiddenLinear", catalogue=False)
    type("FSDPTwirledLinear", (find_layer("twirled"),), {})
    assert [*before, "twirled"] == list(catalogue())
    with pytest.raises(TypeError):
        catalogue()["new"] = Linear


def test_a_name_can_be_taken_once_but_a_notebook_cell_can_run_twice(own_catalogue):
    first = define("TwirledLinear")
    again = define("TwirledLinear")
    assert first is not again and find_layer("twirled") is again
    other = define("TwirledLinear", catalogue=False)
    other.__module__ = "elsewhere"
    with pytest.raises(TypeError, match=r"'twirled' is taken by .*TwirledLinear; rename .*catalogue=False"):
        register(other)


@pytest.mark.parametrize(
    ("class_name", "short"),
    [
        ("Linear", "linear"),
        ("OrthogonalLinear", "orthogonal"),
        ("SVDLinear", "svd"),
        ("SVDLinearLearnBounds", "svd-learn-bounds"),
        ("SymmetricSVDLinear", "symmetric-svd"),
        ("LassoLinearRELU", "lasso-relu"),
        ("L0Linear", "l0"),
        ("PSDLinear", "psd"),
        ("DampedSkewSymmetricLinear", "damped-skew-symmetric"),
        ("Butterfly", "butterfly"),
    ],
)
def test_short_names(class_name, short):
    assert layer_name(class_name) == short


def test_find_layer_takes_names_and_places():
    assert find_layer("orthogonal") is OrthogonalLinear
    assert find_layer("linnet.maps:SymmetricLinear") is SymmetricLinear


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("orthogonl", "unknown layer 'orthogonl'; did you mean 'orthogonal'?"),
        ("Orthogonal", "did you mean 'orthogonal'?"),
        ("xyzzy", "unknown layer 'xyzzy'; use package.module:Class or one of linear, "),
        ("", "use package.module:Class or one of linear, "),
        ("no.such.module:Layer", "No module named 'no'"),
        ("linnet:NoSuchLinear", "NoSuchLinear"),
        ("linnet:Spread", "must be a subclass of LinearMap"),
        ("linnet:penalty", "must be a subclass of LinearMap"),
        ("torch.nn:Linear", "must be a subclass of LinearMap"),
        (":Linear", "cannot import layer"),
        ("linnet:", "cannot import layer"),
    ],
)
def test_find_layer_explains_what_is_wrong(name, says):
    with pytest.raises(ValueError, match=r"^(unknown |cannot import )?layer '") as caught:
        find_layer(name)
    assert says in str(caught.value) and repr(name) in str(caught.value)


def test_a_layer_of_a_third_party_is_found_and_checked(tmp_path, monkeypatch, own_catalogue):
    source = (
        "from linnet import Linear\nclass Twirled(Linear):\n    def _weight(self, weight):\n        return weight\n"
    )
    (tmp_path / "outsider.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    cls = find_layer("outsider:Twirled")
    assert cls.__name__ == "Twirled" and catalogue()["twirled"] is cls
    check_layer(cls, checks=[check_constructor, check_forward, check_copy])
    monkeypatch.delitem(sys.modules, "outsider")


# ----------------------------------------------------------------------------------------- public names

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(linnet.__path__, "linnet.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_name_without_an_underscore_exists_and_is_documented(module):
    assert module.__doc__, "a module says what it is about"
    assert all(hasattr(module, name) for name in getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        defined_here = getattr(value, "__module__", None) == module.__name__
        if defined_here and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            assert (value.__doc__ or "").strip(), f"{name} needs a docstring, or an underscore if it is private"


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_layer_documents_its_arguments_shapes_example_and_source(name):
    cls = find_layer(name)
    if not cls.__module__.startswith("linnet."):
        return
    sections = ["Args:", "Shape:", "Example:"] + ["Reference:"] * (cls is not Linear)
    missing = [section for section in sections if section not in cls.__dict__["__doc__"]]
    assert not missing, f"the docstring of {cls.__name__} lacks {missing}"
    options = set(inspect.signature(cls).parameters) - set(inspect.signature(LinearMap).parameters)
    assert all(f"{option}:" in cls.__doc__ for option in options), "every option is explained"


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_shipped_layer_names_the_page_that_describes_it(name):
    cls = find_layer(name)
    if cls.__module__.startswith("linnet."):
        page = ROOT / "docs" / "maps" / f"{cls.family}.md"
        assert re.search(rf"^## {cls.__name__}$", page.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_shipped_layer_stands_in_the_public_lists(name):
    cls = find_layer(name)
    if not cls.__module__.startswith("linnet."):
        return
    package = cls.__module__.rpartition(".")[0]
    for module in {package, "linnet"} - {"linnet.core"}:  # core has no list of its own
        assert cls.__name__ in sys.modules[module].__all__, f"{cls.__name__} is missing from {module}.__all__"
    assert getattr(linnet, cls.__name__) is cls, f"{cls.__name__} is missing from linnet/__init__.py"


def test_the_table_of_contents_lists_what_it_imports():
    source = inspect.getsource(linnet)
    imported = re.findall(r" as (\w+)$", source, re.M)
    handed_on = re.findall(r"^from (linnet\.\w+) import \*$", source, re.M)
    listed = [name for package in handed_on for name in importlib.import_module(package).__all__]
    assert sorted(imported + listed) == sorted(linnet.__all__), "each name once, and none that is not imported"
    assert set(handed_on) == {"linnet.maps", "linnet.sparse", "linnet.wide", "linnet.decoupled"}
