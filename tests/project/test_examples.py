"""The notebooks in examples/: executed as they lie there, and executable."""

import json
import os
import re
import runpy
from pathlib import Path

import pytest
import torch

from linnet.cli.data.data_sets import load_data
from support.paths import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def test_there_is_a_notebook_and_the_page_names_it():
    page = (EXAMPLES / "README.md").read_text()
    assert NOTEBOOKS and all(f"({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_was_executed_from_top_to_bottom(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not any(output["output_type"] == "error" for output in outputs)
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not re.search(r"/(home|root|work|tmp)/", path.read_text()) and path.stat().st_size < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    if not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)")
    for name, value in {"EPOCHS": "1", "SEEDS": "2", "SAMPLES": "1000", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    assert "static connections are within 1 point" in notebook.cells[-2]["outputs"][0]["text"]


def test_the_example_of_synthetic_gradients(tmp_path):
    example = runpy.run_path(str(EXAMPLES / "synthetic_gradients.py"))
    path, data, methods = tmp_path / "found.jsonl", load_data("digits"), ["no backprop", "cDNI", "DNI (Adam)"]
    for _ in range(2):  # the second time there is nothing left to do
        results = example["Results"](path)
        example["experiment"](data, results, [3], methods, [0, 1], 16)
        example["on_digits"](results, [0, 1], 2)
    rows = example["read"](path)
    runs = [row for row in rows if row["kind"] == "run"]
    assert len(rows) - len(runs) == 3 * 4 and len(runs) == 3 * 2 + 2 * 3 * 2
    text = example["table"](rows)
    errors = [row["test_error"] for row in runs if row["method"] == "cDNI"]
    assert (
        f"| digits | 3 | cDNI | {sum(errors) / 2:.2f} ± " in text
        and "| digits, no norm layers | 2 | backprop |" in text
    )
    assert text.count("\n") == 1 + 3 + 6
    assert len(re.findall(r"-?\d\.\d\d", example["cosines"](rows).splitlines()[2])) == 3  # a cut for each hidden layer
    example["picture"](rows, tmp_path / "found.png")
    assert (tmp_path / "found.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        example["main"]([])


def test_the_bare_loop_trains(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import trainers

    torch.manual_seed(0)
    data = load_data("digits")
    model = trainers.loop(data, epochs=4)
    assert trainers.accuracy(model, data) > 0.9 and model.network[0].steps == 4 * 17


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_what_the_bare_loop_does(monkeypatch, torchvision):
    pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import trainers

    data, states = load_data("digits"), []
    for trainer in (trainers.loop, trainers.lightning):
        torch.manual_seed(0)
        states.append(trainer(data, epochs=2).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
