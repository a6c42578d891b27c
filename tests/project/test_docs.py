"""The documentation says what the code does: its Python runs, its links lead somewhere, its facts are the classes'."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from linnet import LinearMap, catalogue
from support.paths import ROOT

README = ROOT / "README.md"
MAPS = ROOT / "docs" / "maps"
FAMILIES = sorted(page for page in MAPS.glob("*.md") if page.name != "README.md")
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
SHIPPED = [cls for cls in catalogue().values() if cls.__module__.startswith("linnet.")]  # not those of other tests


def python(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)


def run(page: Path) -> None:
    """Every Python block of a page, in order, as one program."""
    namespace: dict = {}
    torch.manual_seed(0)
    for block in python(page):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_python_of_the_readme_runs(capsys):
    blocks = python(README)
    assert len(blocks) >= 2
    run(README)
    assert float(capsys.readouterr().out) < 1e-5
    swap = blocks[0].strip().splitlines()
    assert len([line for line in swap if line.strip()]) <= 13


def test_the_two_commands_stand_at_the_top():
    head = README.read_text().split("```python")[0]
    assert "make demo" in head and "make test" in head


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if python(page)], ids=lambda page: page.stem)
def test_the_python_of_the_docs_runs(page):
    run(page)


def anchors(page: Path) -> set[str]:
    """What a link into a page may name, by the rule of GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.relative_to(ROOT)} links to {target}"


# ---------------------------------------------------------------- the pages of the maps


def sections(page: Path) -> dict[str, str]:
    """Heading -> text of each section, with line breaks as spaces."""
    parts = re.split(r"^## (.*)$", page.read_text(), flags=re.M)[1:]
    return {heading: " ".join(text.split()) for heading, text in zip(parts[::2], parts[1::2], strict=True)}


DESCRIBED = {page: sections(page) for page in FAMILIES}


def entry(cls: type[LinearMap], label: str) -> str:
    """What the section of a class says under a label, up to the next one; empty if there is none."""
    text = next((described[cls.__name__] for described in DESCRIBED.values() if cls.__name__ in described), "")
    found = re.search(rf"\* \*\*{label}\*\* (.*?)(?= \* \*\*|$)", text)
    return found[1] if found else ""


def own_options(cls: type[LinearMap]) -> dict[str, object]:
    shared = inspect.signature(LinearMap.__init__).parameters
    given = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in given.items() if name not in shared}


def test_every_class_has_one_section_on_one_page():
    named = [heading for described in DESCRIBED.values() for heading in described]
    assert sorted(named) == sorted(cls.__name__ for cls in SHIPPED)


@pytest.mark.parametrize("cls", SHIPPED, ids=lambda cls: cls.__name__)
def test_the_page_says_what_the_class_says(cls):
    promise = entry(cls, "Promise")
    assert promise.startswith("none" if cls.promise == "none" else f"`{cls.promise}`")
    assert ("**soft**" in promise) == (not cls.hard)
    for label in ("Formula", "assign", "Use it", "Cost"):
        assert entry(cls, label), f"{cls.__name__} needs an entry {label}"
    for name in cls._raw_names:
        assert f"`{name}`" in entry(cls, "Parameters")
    options = dict(re.findall(r"`(\w+)=([^`]+)`", entry(cls, "Options")))
    assert {name: eval(value) for name, value in options.items()} == own_options(cls)
    decay = entry(cls, "Weight decay")
    safe = re.match(r"safe for ((?:`\w+`(?:, )?)+)", decay)
    assert decay and tuple(re.findall(r"`(\w+)`", safe[1]) if safe else ()) == cls.decays
    assert ("`inverse(y)`" in entry(cls, "Inverse")) == hasattr(cls, "inverse")


def stated_shapes(cls: type[LinearMap]) -> dict[str, str]:
    """Raw name -> the shape that the page gives right after it, as a Python expression."""
    found = {}
    for names, shape in re.findall(r"((?:`\w+`(?:, | and )?)+) \(((?:[^()]|\([^()]*\))*)\)", entry(cls, "Parameters")):
        text = shape.replace("−", "-").replace("·", "*").replace("₁", "1").replace("β", "blocks")
        text = re.sub(r"\bin\b", "fan_in", text)
        text = re.sub(r"⌈(\w+)/(\w+)⌉", r"-(-\1//\2)", re.sub(r"\b([nm])\(", r"\1*(", text))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), re.sub(r"(?<!/)/(?!/)", "//", text))
    return found


CHOSEN = {  # sizes that the defaults choose for 6 -> 10
    "BlockDiagonalLinear": {"blocks": 2},
    "KroneckerLinear": {"i1": 2, "o1": 2},
    "LowRankLinear": {"rank": 1},
    "MonarchLinear": {"blocks": 2},
    "SparseLinear": {"nnz": 6},
    "TrivialNullSpaceLinear": {"rank": 6},
}


@pytest.mark.parametrize("cls", [cls for cls in SHIPPED if stated_shapes(cls)], ids=lambda cls: cls.__name__)
def test_the_page_gives_the_shapes_of_the_parameters(cls):
    n, out = (10, 10) if cls.square else (6, 10)
    layer = cls(n, out, beings=3)
    known = {"n": max(n, out), "m": n // 2, "fan_in": n, "out": out, "r": min(n, out), "k": n}
    known |= dict.fromkeys(("n_U_reflectors", "n_V_reflectors", "n_reflectors"), n)
    known |= CHOSEN.get(cls.__name__, {})
    for name, shape in stated_shapes(cls).items():
        assert tuple(getattr(layer, name).shape) == (3, *eval(f"({shape.rstrip(',')},)", known)), name


@pytest.mark.parametrize("page", FAMILIES, ids=lambda page: page.stem)
def test_every_page_has_a_picture_and_an_example(page):
    assert f"]({page.stem}.png)" in page.read_text() and python(page)
    picture = MAPS / f"{page.stem}.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 150_000


def test_every_page_is_in_the_table_of_contents():
    table = (MAPS / "README.md").read_text()
    assert all(f"({page.name})" in table for page in FAMILIES)
    assert "(docs/maps/README.md)" in README.read_text()
