"""The documentation of pytorch-dni as tests, sentence by sentence, in its order.

Every test of a sentence runs on linnet's classes ("native") and on those of linnet.compat.dni ("compat").
"""

import copy
import functools
import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import linnet
import linnet.compat.dni as dni
from linnet.decoupled.sources.synthetic import Synthetic

NATIVE, COMPAT = "native", "compat"
both = pytest.mark.parametrize("kind", [NATIVE, COMPAT])
DNI = {NATIVE: linnet.DNI, COMPAT: dni.DNI}
FAST = functools.partial(torch.optim.Adam, lr=0.01)


def two_layers_without_activation(input_size, hidden_size, output_size):
    return linnet.LowRankSynthesizer(input_size, hidden_size, output_size)


def whatever_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Whatever(nn.Module):
    """Anything extending nn.Module, with an argument beside the input."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(self, input, scale):
        return self.second(torch.tanh(self.first(input)) * scale)


def task(samples=96, seed=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def trained(net, opt, steps, *args, data=None):
    input, target_output = data or task()
    criterion = nn.CrossEntropyLoss()
    for _ in range(steps):
        opt.zero_grad()
        output = net(input, *args)
        loss = criterion(output, target_output)
        loss.backward()
        opt.step()
    return loss.item()


# ---------------------------------------------------------------------- signatures and import


@pytest.mark.parametrize(
    "name, parameters",
    [
        (  # behind gpu_id: the keywords of the later, unreleased code
            "DNI",
            "network, dni_network=None, optim=None, grad_optim=adam, grad_lr=0.001, hidden_size=None, gpu_id=-1, "
            "dni_params={}, λ=None, recursive=True, skip_last_layer=True, format_fn=None",
        ),
        ("DNI_Network", "input_size, hidden_size, output_size"),
        (
            "RNN_DNI",
            "input_size, hidden_size, output_size, num_layers=1, batch_first=True, dropout=0, bias=True, kind=lstm",
        ),
        ("Linear_DNI", "input_size, hidden_size, output_size, bias=True"),
        ("Linear_Sigmoid_DNI", "input_size, hidden_size, output_size, bias=True"),
        ("LinearDNI", "input_size, hidden_size, output_size, num_layers=2, bias=True"),
        ("LinearBatchNormDNI", "input_size, hidden_size, output_size, num_layers=2, bias=True"),
        ("LinearSigmoidDNI", "input_size, hidden_size, output_size, num_layers=3, bias=True"),
        (
            "Conv2dDNI",
            "input_size, hidden_size, output_size, convolutions=16, kernel_size=2, stride=1, padding=0, dilation=1, "
            "num_layers=2, bias=True",
        ),
    ],
)
def test_the_signatures_are_those_of_pytorch_dni(name, parameters):
    signature = inspect.signature(getattr(dni, name))
    shown = [p.name + ("" if p.default is p.empty else f"={p.default}") for p in signature.parameters.values()]
    assert ", ".join(shown) == parameters
    assert dni.DNINetwork is dni.DNI_Network and dni.RNNDNI is dni.RNN_DNI


def test_importing_writes_no_file_and_touches_no_logger(tmp_path):
    code = (
        "import logging; root = logging.getLogger(); before = (root.level, list(root.handlers)); "
        "import linnet.compat.dni; assert (root.level, list(root.handlers)) == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- the page, in its order


@both
def test_this_is_an_implementation_of_decoupled_neural_interfaces_using_synthetic_gradients(kind):
    """Weights below the cuts get gradients that do not depend on the loss, from gradient networks that learn."""
    net = whatever_network()
    model = DNI[kind](net, optim=optim.Adam(net.parameters()))
    x, y = task()
    for _ in range(3):
        F.cross_entropy(model(x), y).backward()
    other = copy.deepcopy(model)
    for one, loss in ((model, F.cross_entropy), (other, lambda o, t: (o * o).sum())):
        one.zero_grad()
        loss(one(x), y).backward()
    first, second = (list(one.network[:4].parameters()) for one in (model, other))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(first, second, strict=True))
    assert any(a.grad.abs().max() > 0 for a in first)
    assert all(source.rms > 0 for source in model.cuts.values())


@both
def test_usage_custom_network_can_be_anything_extending_nn_module(kind):
    torch.manual_seed(0)
    net = Whatever()
    opt = optim.Adam(net.parameters(), lr=0.001)
    net = DNI[kind](net, optim=opt)
    before = copy.deepcopy(net.network.state_dict())
    trained(net, opt, 4, 2.0)
    assert net.at == ("first",)
    assert all(not torch.equal(before[name], value) for name, value in net.network.state_dict().items())


@both
def test_after_that_we_go_about_our_business_as_usual(kind):
    """The training loop of the documentation trains far better than the last layer alone."""
    options = {"grad_lr": 0.1} if kind == COMPAT else {}
    net = whatever_network()
    opt = optim.Adam(net.parameters(), lr=0.01)
    net = DNI[kind](net, optim=opt, **options)
    loss = trained(net, opt, 300)
    alone = whatever_network()
    alone[:4].requires_grad_(False)
    assert loss < 0.8 * trained(alone, optim.Adam(alone[4].parameters(), lr=0.01), 300)


@both
@pytest.mark.parametrize("recurrent", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("layers", [1, 2])
def test_rnn_dni_stacked_lstms_grus_or_rnns(kind, recurrent, layers):
    if kind == COMPAT:
        net = dni.RNN_DNI(5, 7, 3, num_layers=layers, kind=recurrent)
    else:
        net = linnet.RecurrentSynthesizer(5, 7, 3, kind=recurrent, layers=layers)
    assert type(net.rnn) is {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[recurrent]
    assert net.rnn.num_layers == layers
    x = torch.randn(4, 6, 5)
    gradient, hidden = net(x, None)
    assert gradient.shape == (4, 6, 3)
    again, _ = net(x[:, 0], None)  # one step is a sequence of one
    torch.testing.assert_close(again, gradient[:, 0])
    onwards, _ = net(x[:, 1], net(x[:, 0], None)[1])
    torch.testing.assert_close(onwards, gradient[:, 1])
    assert hidden is not None


@both
def test_linear_dni_2_layer_linear_modules(kind):
    make = dni.Linear_DNI if kind == COMPAT else two_layers_without_activation
    net = make(5, 7, 3)
    assert [type(module) for module in net.modules() if not list(module.children())] == [nn.Linear, nn.Linear]
    for p in net.parameters():
        nn.init.normal_(p)
    x = torch.randn(4, 5)
    a, b = [module for module in net.modules() if isinstance(module, nn.Linear)]
    inner = x @ a.weight.mT + (0 if a.bias is None else a.bias)
    torch.testing.assert_close(net(x, None)[0], inner @ b.weight.mT + b.bias)


@both
def test_linear_sigmoid_dni_2_layer_linear_followed_by_sigmoid(kind):
    net = dni.Linear_Sigmoid_DNI(5, 7, 3) if kind == COMPAT else linnet.SigmoidSynthesizer(5, 7, 3)
    x = torch.randn(4, 5)
    a, b = [module for module in net.modules() if isinstance(module, nn.Linear)]
    inner = torch.sigmoid((x @ a.weight.mT + a.bias) @ b.weight.mT + b.bias)
    if kind == COMPAT:
        torch.testing.assert_close(net(x, None)[0], inner)
    else:  # a learned affine of it, so that it can be zero at the start and of both signs
        with torch.no_grad():
            assert bool((net(x, None)[0] == 0).all())
            net.scale.fill_(-3.0)
            net.shift.fill_(0.5)
        torch.testing.assert_close(net(x, None)[0], 0.5 - 3 * inner)


@both
def test_custom_dni_nets_can_be_created_using_the_dni_network_interface(kind):
    base = dni.DNI_Network if kind == COMPAT else linnet.Synthesizer

    class MyDNI(base):
        def __init__(self, input_size, hidden_size, output_size, **kwargs):
            super(MyDNI, self).__init__(input_size, hidden_size, output_size)  # noqa: UP008 - as on the page

            self.net = nn.Sequential(nn.Linear(input_size, 9), nn.Tanh(), nn.Linear(9, output_size))

        def forward(self, input, hidden):
            return self.net(input), None  # return (output, hidden), hidden can be None

    net = whatever_network()
    opt = optim.Adam(net.parameters(), lr=0.01)
    if kind == COMPAT:
        net = dni.DNI(net, dni_network=MyDNI, optim=opt)
    else:
        net = linnet.DNI(net, optim=opt, gradient=Synthetic(MyDNI, optim=FAST))
    trained(net, opt, 1)
    sources = [copy.deepcopy(source.synthesizer) for source in net.cuts.values()]
    assert all(isinstance(source, MyDNI) for source in sources)
    trained(net, opt, 5)
    for before, source in zip(sources, net.cuts.values(), strict=True):  # they are used, and they are trained
        assert not torch.equal(before.net[0].weight, source.synthesizer.net[0].weight)


@both
def test_a_recurrent_or_convolutional_network_predicts_inside_dni(kind):
    sequences = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    opt = optim.Adam(sequences.parameters(), lr=0.01)
    if kind == COMPAT:
        net = dni.DNI(sequences, dni.RNN_DNI, opt, hidden_size=8)
    else:
        net = linnet.DNI(sequences, opt, gradient=Synthetic(linnet.RecurrentSynthesizer, 8, FAST))
    for _ in range(4):
        opt.zero_grad()
        net(torch.randn(5, 7, 4)).square().mean().backward()
        opt.step()
    assert sequences[0].weight.grad.abs().max() > 0
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    opt = optim.Adam(images.parameters(), lr=0.01)
    if kind == COMPAT:
        net = dni.DNI(images, dni.Conv2dDNI, opt)
    else:
        net = linnet.DNI(images, opt, gradient=Synthetic(linnet.ConvSynthesizer, optim=FAST))
    for _ in range(4):
        opt.zero_grad()
        net(torch.randn(5, 1, 8, 8)).square().mean().backward()
        opt.step()
    assert images[0].weight.grad.abs().max() > 0


def fitted(synthesizer, gradient_of, steps=1500):
    """The mean squared error of the predicted gradient, in units of its mean square."""
    source = Synthetic(synthesizer, None, functools.partial(torch.optim.Adam, lr=0.02)).double()
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(steps):
        h = torch.randn(64, 6, generator=generator, dtype=torch.float64)
        _, memory = source.predict(h, None)
        source.learn(memory, gradient_of(h) / 64)
        errors.append(float(source.measured()["loss"]))
    return sum(errors[-50:]) / 50


def quadratic(h):
    """Of ½ ‖h A − c‖²."""
    a = torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3)
    return (h @ a - 1) @ a.mT


def log_loss(h):
    """Of Σ log(1 + exp 3 h_i), element by element."""
    return torch.sigmoid(3 * h)


def test_using_a_linear_sg_module_makes_the_implicit_assumption_that_loss_is_a_quadratic_function_of_the_activations():
    assert fitted(linnet.LinearSynthesizer, quadratic) < 5e-3
    assert fitted(linnet.LinearSynthesizer, log_loss) > 0.02


def test_for_log_loss_one_should_use_architectures_including_a_sigmoid_applied_pointwise_to_a_linear_sg():
    assert fitted(linnet.SigmoidSynthesizer, log_loss) < 0.2 * fitted(linnet.LinearSynthesizer, log_loss)


# ---------------------------------------------------------------------- what its code did instead (research, section 1)


def test_any_optimizer_keeps_its_settings():
    """pytorch-dni copied only lr, and AdamW raised an UnboundLocalError."""
    net = whatever_network()
    opt = optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.5, betas=(0.5, 0.6))
    model = dni.DNI(net, optim=opt)
    schedule = optim.lr_scheduler.StepLR(opt, 1, 0.5)
    trained(model, opt, 2)
    schedule.step()
    assert opt.param_groups[0]["lr"] == 0.005 and opt.param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("name", ["adam", "adamax", "rmsprop", "sgd", "adagrad", "adadelta"])
def test_every_optimizer_of_the_gradient_networks(name):
    net = whatever_network()
    opt = optim.SGD(net.parameters(), lr=0.01)
    model = dni.DNI(net, optim=opt, grad_optim=name)
    trained(model, opt, 3)
    assert model.cuts["3"].synthesizer.net[1].weight.abs().max() > 0


def test_without_an_optimizer_the_wrapper_steps_one_of_its_own():
    """One step for each backward, with the settings of grad_optim, in a training loop without a step."""
    x, y = task()
    alone = whatever_network()
    net = dni.DNI(copy.deepcopy(alone), grad_lr=0.01, λ=1)  # so that the gradients are those of backpropagation
    opt = optim.Adam(alone.parameters(), lr=0.01, eps=1e-9, betas=(0.9, 0.98))
    for _ in range(4):
        net(x)  # a forward without a backward changes nothing
        F.cross_entropy(net(x), y).backward()  # the loop calls neither zero_grad nor step
        opt.zero_grad()
        F.cross_entropy(alone(x), y).backward()
        opt.step()
        net.step_optimizers()
    for mine, other in zip(net.network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    kept = copy.deepcopy(net.network.state_dict())
    F.cross_entropy(net.network(x), y).backward()  # a backward that does not pass through the wrapper makes no step
    F.cross_entropy(net.eval()(x), y).backward()
    assert all(torch.equal(value, kept[name]) for name, value in net.network.state_dict().items())
    with pytest.raises(ValueError, match=r"grad_optim must be one of adam, .*got 'lion'"):
        dni.DNI(whatever_network(), grad_optim="lion")


def test_it_steps_once_for_a_loss_over_two_forwards():
    x, y = task()
    alone = whatever_network()
    net = dni.DNI(copy.deepcopy(alone), grad_optim="sgd", grad_lr=0.1, λ=1)
    (F.cross_entropy(net(x[:40]), y[:40]) + F.cross_entropy(net(x[40:]), y[40:])).backward()
    (F.cross_entropy(alone(x[:40]), y[:40]) + F.cross_entropy(alone(x[40:]), y[40:])).backward()
    for mine, other in zip(net.network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine, other - 0.1 * other.grad)


def test_what_cannot_be_is_refused():
    for λ in (-0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"λ must lie in \[0, 1\] or be -1, got "):
            dni.DNI(whatever_network(), λ=λ)
    with pytest.raises(ValueError, match=r"skip_last_layer must be True, .* got False"):
        dni.DNI(whatever_network(), skip_last_layer=False)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        dni.DNI(whatever_network()).nothing_of_the_kind  # noqa: B018


def test_the_gradient_networks_are_in_the_state_dict():
    net = whatever_network()
    opt = optim.Adam(net.parameters(), lr=0.01)
    model = dni.DNI(net, optim=opt)
    trained(model, opt, 3)
    other = dni.DNI(whatever_network())
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_images_keep_their_size():
    for kernel in (1, 2, 3, 4):
        assert dni.Conv2dDNI(3, 10, 5, kernel_size=kernel, dilation=2)(torch.zeros(2, 3, 8, 6), None)[0].shape == (
            2, 5, 8, 6,
        )  # fmt: skip
    for options in ({"stride": 2}, {"padding": 1}):
        with pytest.raises(ValueError, match="since the gradient has the size of the image, got "):
            dni.Conv2dDNI(3, 10, 3, **options)
