"""``linnet train`` as its user meets it: runs, kills, mistakes."""

import gzip
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import linnet
from linnet.cli import main
from linnet.cli.data.data_sets import IDX_FILES
from linnet.cli.train import pictures, training
from support.commands import command as run
from support.commands import complains

DRAW = pictures.draw
TINY = ["--hidden", "16", "--depth", "3", "--epochs", "2", "--seeds", "1"]


pytestmark = pytest.mark.usefixtures("few_rounds", "undrawn")


def process(*arguments, **options):
    # a shell's background job, which the suite may be, passes on that Ctrl-C is to be ignored
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import sys; {heeding}; from linnet.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted((Path(folder) / "nets").iterdir())}


# ---------------------------------------------------------------------- train


def test_a_run_gives_a_table_numbers_and_pictures(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw", DRAW)
    out = tmp_path / "run"
    layers = ["linear", "symmetric", "right-stochastic", "sparse:sparsity=0.5", "wide:beings=2"]
    arguments = [part for layer in layers for part in ("--layer", layer)]
    code, text, err = run(capsys, "train", *arguments, *TINY, "--seeds", 2, "--out", out)
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "connectivity.png",
        "curves.png",
        "data.safetensors",
        "nets",
        "report.html",
        "results.json",
        "run.json",
        "spectra.png",
    ]
    table, _, legend = text.partition("in net      how many")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    results = json.loads((out / "results.json").read_text())
    assert [layer["layer"] for layer in results["layers"]] == layers
    rows = [next(line for line in lines if line.split()[:1] == [layer]) for layer in layers]
    for row, layer in zip(rows, results["layers"], strict=True):
        accuracy = layer["test_accuracy"]
        assert f"{layer['carriers']}/3" in row
        assert f"{layer['parameters']:,}" in row
        assert f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['std']:.1f}" in row
        assert f"×{layer['step_time']['ratio']:.2f}" in row
        assert row.split()[-1] == ("–" if layer["promise"] == "none" else "ok")
    assert "mean over them" in legend
    assert "standard deviation over 2 seeds" in legend
    assert len(weights(out)) == 2 * len(layers)
    assert err.count("\n") == 2 * len(layers)  # not a terminal: one line for each net

    # A finished run given again trains nothing and shows the same.
    monkeypatch.setattr(training, "training_step", None)
    monkeypatch.setattr(pictures, "draw", lambda run, fits: [])
    assert run(capsys, "train", "--resume", "--out", out)[0] == 0
    assert json.loads((out / "results.json").read_text())["layers"][0]["seeds"] == results["layers"][0]["seeds"]


def test_the_default_set(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, _ = run(capsys, "train", *TINY, "--epochs", 1)
    assert code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)
    found = json.loads((folder / "results.json").read_text())
    names = [layer["layer"] for layer in found["layers"]]
    assert names == ["linear", "symmetric", "orthogonal", "sparse:sparsity=0.9", "wide:beings=8"]
    assert all(re.search(rf"^ *{re.escape(name)} ", text, re.MULTILINE) for name in names)
    assert all(layer["violation"]["holds"] for layer in found["layers"])


def test_decoupled(capsys, tmp_path):
    code, text, _ = run(capsys, "train", "--decouple", "cdni", "--layer", "linear", *TINY, "--out", tmp_path / "run")
    assert code == 0
    assert "synthetic gradients conditioned on the label" in text
    assert json.loads((tmp_path / "run" / "results.json").read_text())["settings"]["decouple"] == "cdni"
    assert run(capsys, "train", "--resume", "--out", tmp_path / "run")[0] == 0


def wait_for(condition, running):
    """A process needs a while to import torch on a busy machine."""
    end = time.monotonic() + 180
    while not condition():
        if running.poll() is not None or time.monotonic() > end:
            running.kill()
            pytest.fail(f"not there yet, and exit code {running.poll()}: {running.communicate()}")
        time.sleep(0.005)


LONG = ["--layer", "linear", "--layer", "orthogonal:beings=2", "--hidden", "16", "--depth", "3", "--seeds", "1"]


def test_kill_9_and_resume_ends_with_the_bytes_of_an_undisturbed_run(capsys, tmp_path):
    settings = [*LONG, "--epochs", "12"]
    running = process("train", *settings, "--out", tmp_path / "killed")
    wait_for(lambda: list(tmp_path.glob("killed/nets/01-*.safetensors")), running)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    before = weights(tmp_path / "killed")

    assert run(capsys, "train", *settings, "--out", tmp_path / "whole")[0] == 0
    assert before != weights(tmp_path / "whole")
    assert run(capsys, "train", "--resume", "--out", tmp_path / "killed")[0] == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    killed, whole = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("killed", "whole"))
    for mine, theirs in zip(killed["layers"], whole["layers"], strict=True):
        assert mine["seeds"] == theirs["seeds"]
        assert mine["test_accuracy"] == theirs["test_accuracy"]
        assert mine["peak_memory_bytes"] == theirs["peak_memory_bytes"]


@pytest.mark.slow
def test_kill_9_at_random_moments(capsys, tmp_path):
    settings = [*LONG, "--epochs", "60", "--out", tmp_path / "killed"]
    rng = np.random.default_rng(0)
    assert run(capsys, "train", *LONG, "--epochs", "60", "--out", tmp_path / "whole")[0] == 0
    kills, out = 0, tmp_path / "killed"
    for _ in range(40):
        resumed = ["--resume", "--out", out]
        before = weights(out) if (out / "nets").exists() else {}
        with process("train", *(resumed if (out / "run.json").exists() else settings)) as running:
            while running.poll() is None and (not (out / "nets").exists() or weights(out) == before):
                time.sleep(0.01)  # at least one epoch further
            try:
                running.wait(rng.uniform(0, 0.7))
                running.communicate()
                break
            except subprocess.TimeoutExpired:
                running.send_signal(signal.SIGKILL)
                running.communicate()
                kills += 1
    else:
        pytest.fail("the run never came to its end")
    assert kills >= 2
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_in_a_process_tells_how_to_go_on(tmp_path):
    out = tmp_path / "a folder"
    running = process("train", *LONG, "--epochs", "400", "--out", out)
    wait_for(lambda: list(out.glob("nets/00-*.safetensors")), running)
    running.send_signal(signal.SIGINT)
    text, err = running.communicate()
    assert running.returncode == 130
    assert text == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == f"linnet: stopped; resume with: linnet train --resume --out '{out}'"


def test_ctrl_c(capsys, tmp_path, monkeypatch):
    out = tmp_path / "a folder"
    real = training.training_step
    steps = iter(range(40))

    def interrupted(*arguments):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    arguments = ["train", "--layer", "linear", *TINY, "--epochs", 4, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "training_step", interrupted)
        code, text, err = run(capsys, *arguments, out)
    assert (code, text, err.count("\n")) == (130, "", 1)
    message, _, command = err.strip().partition("resume with: ")
    assert message == "linnet: stopped; "
    assert re.match("linnet train --resume --out '.*a folder'", command)
    assert run(capsys, *shlex.split(command)[1:])[0] == 0
    assert run(capsys, *arguments, tmp_path / "whole")[0] == 0
    assert weights(out) == weights(tmp_path / "whole")


def test_a_layer_of_a_third_party(tmp_path):
    (tmp_path / "toypackage").mkdir()
    (tmp_path / "toypackage" / "__init__.py").write_text("")
    (tmp_path / "toypackage" / "layers.py").write_text(
        textwrap.dedent(
            '''
            import torch
            from torch import nn
            from linnet import LinearMap

            class ToyLinear(LinearMap):
                """A = g B."""

                promise = "A is toy"

                def __init__(self, in_features, out_features, bias=True, *, gain: float = 2.0, beings=None, device=None,
                             dtype=None):
                    super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
                    self.gain = gain
                    shape = (*self.leading, out_features, in_features)
                    self.raw = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.reset_parameters()

                def _weight(self, raw):
                    return self.gain * raw

                def _assign(self, weight):
                    return {"raw": weight / self.gain}
            '''
        )
    )
    script = """
        import sys
        from linnet.cli import main
        from linnet.cli.train import pictures
        pictures.draw = lambda run, fits: []
        code = main(["train", "--layer", "toypackage.layers:ToyLinear:gain=1.5", *sys.argv[1:]])
        sys.exit(code or main(["layers"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *TINY, "--out", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())["layers"][0]
    assert found["class"] == "toypackage.layers.ToyLinear"
    assert found["options"] == {"gain": 1.5}
    assert re.search(r"^ *toy +A is toy +gain=2.0 +4,160", done.stdout, re.MULTILINE)


# ---------------------------------------------------------------------- mistakes of the user


def idx(array):
    head = struct.pack(">BBBB", 0, 0, {"u": 8, "f": 0x0D}[array.dtype.kind], array.ndim)
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in IDX_FILES:
        images = rng.integers(0, 256, (40, 3, 3), dtype=np.uint8)
        content = images if "images" in name else rng.integers(0, 10, 40, dtype=np.uint8)
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(content)))
    return folder


MISTAKES = {
    "unknown layer": (r"unknown layer 'ortogonal'; did you mean 'orthogonal'", "--layer", "ortogonal"),
    "unknown class": ("cannot import layer 'nowhere", "--layer", "nowhere.at.all:Class"),
    "unknown option": (
        "unknown option 'reflectrs' of layer 'orthogonal'; its options are beings, bias, reflectors",
        "--layer",
        "orthogonal:reflectrs=3",
    ),
    "ill-typed value": ("must be an integer or none, got 'x'", "--layer", "orthogonal:reflectors=x"),
    "wrong value": ("layer orthogonal:reflectors=999: reflectors must", "--layer", "orthogonal:reflectors=999"),
    "sparsity": ("sparsity", "--layer", "sparse:sparsity=1.5"),
    "no value": ("option=value", "--layer", "linear:beings"),
    "twice": ("--layer must not repeat a layer, got linear twice", "--layer", "linear", "--layer", "linear"),
    "square": ("depth must be at least 3", "--layer", "orthogonal", "--depth", "2"),
    "no data": ("--data must be one of digits", "--data", "cifar"),
    "mnist": ("--data-dir", "--data", "mnist"),
    "mnist elsewhere": ("cannot find mnist in /nowhere; give --data-dir", "--data", "mnist", "--data-dir", "/nowhere"),
    "digits elsewhere": ("--data-dir applies to fashion-mnist and mnist only", "--data-dir", "/nowhere"),
    "epochs": ("--epochs must be a positive integer up to 2147483647, got 0", "--epochs", "0"),
    "epochs text": ("'--epochs'.* integer", "--epochs", "many"),
    "seeds": ("--seeds must be a positive integer", "--seeds", "-1"),
    "seed": ("--seed must be an integer from 0 to", "--seed", "-1"),
    "hidden": ("--hidden must be a positive integer", "--hidden", "0"),
    "depth": ("--depth must be a positive integer", "--depth", "0"),
    "batch": ("--batch-size must be a positive integer", "--batch-size", "0"),
    "lr": ("--lr must be positive", "--lr", "0"),
    "lr nan": ("--lr must be positive", "--lr", "nan"),
    "threads": ("--threads must be a positive integer", "--threads", "0"),
    "device": ("--device must be one of cpu", "--device", "tpu"),
    "device missing": ("--device must be one of cpu", "--device", "cuda:77"),
    "resume what": ("--resume needs --out FOLDER", "--resume"),
    "unknown flag": ("No such option", "--nonsense"),
    "missing value": ("(?i)--epochs.*argument", "--epochs"),
    "stray": ("unexpected extra argument", "linear"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line(capsys, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    match, *arguments = MISTAKES[name]
    complains(capsys, match, "train", *arguments)
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_output_folders_that_cannot_be(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    train = ["train", "--layer", "linear", *TINY, "--out"]
    complains(capsys, "cannot write to .*file/run: Not a directory", *train, tmp_path / "file" / "run")
    complains(capsys, "must be new or empty", *train, tmp_path / "file")
    complains(capsys, "cannot write to /proc/nothing/run", *train, "/proc/nothing/run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    complains(capsys, "must be new or empty", *train, tmp_path / "full")
    complains(
        capsys, "no run to resume in .*full: run.json: No such file", "train", "--resume", "--out", tmp_path / "full"
    )
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(capsys, tmp_path):
    tmp_path.chmod(0o500)
    complains(capsys, "cannot write to .*denied", "train", "--layer", "linear", "--out", tmp_path / "run")


def test_resume_refuses_other_settings(capsys, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train = ["train", "--layer", "linear", *TINY, "--out", out]
    assert run(capsys, *train)[0] == 0
    complains(capsys, "must be new or empty", *train)
    assert run(capsys, *train, "--resume")[0] == 0
    complains(capsys, "cannot resume .* with other settings: --epochs was 2, got 5", *train, "--resume", "--epochs", 5)
    complains(capsys, "--layer was linear, got linear, orthogonal", *train, "--resume", "--layer", "orthogonal")
    complains(capsys, "--lr was 0.002, got 0.5", "train", "--resume", "--out", out, "--lr", 0.5)
    (path,) = (out / "nets").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    complains(capsys, "truncated or altered", "train", "--resume", "--out", out)
    path.write_bytes(whole)
    (out / "run.json").write_text("{")
    complains(capsys, "cannot resume .*: run.json is damaged", "train", "--resume", "--out", out)


def test_damaged_data(capsys, tmp_path, mnist):
    train = ["train", "--data", "mnist", "--data-dir", mnist, "--layer", "linear", *TINY, "--out"]
    assert run(capsys, *train, tmp_path / "good")[0] == 0
    images, labels = mnist / f"{IDX_FILES[0]}.gz", mnist / f"{IDX_FILES[1]}.gz"
    whole, plain = images.read_bytes(), gzip.decompress(images.read_bytes())
    nan = np.full((40, 3, 3), np.nan, np.float32)
    for content, match in (
        (whole[:-9], "the .gz file is damaged"),
        (gzip.compress(plain[:-1]), "must hold 360 bytes .* got 359"),
        (gzip.compress(plain + b"x"), "must hold 360 bytes .* got more"),
        (gzip.compress(idx(nan)), "NaN"),
        (gzip.compress(idx(np.zeros((0, 3, 3), np.uint8))), "empty"),
        (gzip.compress(idx(np.zeros((39, 3, 3), np.uint8))), "one label for each sample"),
        (b"", "must begin with|damaged"),
    ):
        images.write_bytes(content)
        complains(capsys, match, *train, tmp_path / "bad")
        complains(capsys, str(images), *train, tmp_path / "bad")
    images.write_bytes(whole)
    labels.write_bytes(gzip.compress(idx(np.full(40, 200, np.uint8))))
    complains(capsys, "0..9", *train, tmp_path / "bad")
    complains(capsys, "0..9", "train", "--resume", "--out", tmp_path / "good")
    labels.write_bytes(gzip.compress(idx(np.arange(40, dtype=np.uint8) % 10)))
    complains(
        capsys, "cannot resume .*good on other data: mnist has changed", "train", "--resume", "--out", tmp_path / "good"
    )
    assert not (tmp_path / "bad").exists()


def test_our_own_mistakes_keep_their_traceback(tmp_path, monkeypatch):
    def broken(*arguments):
        raise ValueError("a bug of ours")

    monkeypatch.setattr(training, "training_step", broken)
    with pytest.raises(ValueError, match="a bug of ours"):
        main(["train", "--layer", "linear", *TINY, "--out", str(tmp_path / "run")])


def test_what_does_not_fit_into_memory_is_one_line(capsys, tmp_path, monkeypatch):
    def too_large(*arguments):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127]. DefaultCPUAllocator: can't allocate memory\nframe #0")

    monkeypatch.setattr(training, "training_step", too_large)
    arguments = ["train", "--layer", "linear", *TINY, "--out", tmp_path / "run"]
    complains(capsys, "there is not enough memory", *arguments)


def test_weights_can_be_loaded_as_the_readme_says(capsys, tmp_path):
    out = tmp_path / "run"
    assert run(capsys, "train", "--layer", "orthogonal", *TINY, "--out", out)[0] == 0
    (path,) = (out / "nets").iterdir()
    net = linnet.MLP(64, 16, 10, depth=3, layer="orthogonal")
    found = linnet.checkpoint.load(path, into=net, rng=False)
    assert found.extra["test_accuracy"] > 0
    assert torch.equal(safetensors.torch.load_file(path)["model.0.weight"], net[0].weight)
