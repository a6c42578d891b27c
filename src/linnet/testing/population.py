"""Checks of the beings axis: a population is the loop over its beings."""

from dataclasses import replace

import torch

from linnet.testing.case import Case, array, check, close, expect, gradient, refused, same, train
from linnet.testing.values import oracle


@check
def check_population(case: Case) -> None:
    """The output for being i is that of being i alone, and no being sees another's input."""
    if case.beings is None:
        layer = case.layer()
        refused("get_single of one map", ValueError, layer.get_single, 0)
        refused("clone_being of one map", ValueError, layer.clone_being, 0, 0)
        return
    for dtype in case.dtypes:
        layer = train(case, case.layer(dtype=dtype))
        for shape in case.input_shapes():
            x = case.randn(*shape, dtype=dtype)
            y = layer(x)
            wide = x if x.dim() == 1 else x.expand(*shape[:-2], case.beings, shape[-1])
            for i in range(case.beings):
                own = wide if x.dim() == 1 else wide[..., i, :]
                close(f"output {i} for input {shape}, against get_single({i}),", y[..., i, :], layer.get_single(i)(own))
        x = case.input(dtype=dtype)
        y, changed = layer(x), x.clone()
        changed[:, 0] += 1
        same("the output of the others after a change of the input of being 0", layer(changed)[:, 1:], y[:, 1:])
        x = x.requires_grad_()
        layer(x)[:, 0].sum().backward()
        expect(
            not gradient("the input", x)[:, 1:].any(),
            "the output of being 0 must not depend on the input of the others",
        )
    alone = replace(case, beings=1)
    layer, x = alone.layer(), alone.input()
    close("forward of a population of one", layer(x), oracle(x, layer.weight, layer.bias))


@check
def check_get_single(case: Case) -> None:
    """``get_single(i)`` is a live view: it owns nothing, and backward through it fills row i alone."""
    if case.beings is None:
        return
    layer = train(case, case.layer())
    for i in range(case.beings):
        being = layer.get_single(i)
        expect(not list(being.parameters()) and not being.state_dict(), "a view must own no parameter")
        close(f"weight of get_single({i})", being.weight, array(layer.weight)[i])
        x = case.randn(4, case.in_features, seed=i)
        close(f"forward of get_single({i})", being(x), oracle(x, being.weight, being.bias))
        layer.zero_grad()
        being(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            others = [j for j in range(case.beings) if j != i]
            expect(
                not gradient(name, parameter)[others].any(),
                f"backward through get_single({i}) must fill row {i} of {name} only",
            )
        plain = being.to_linear()
        close(f"get_single({i}).to_linear()", plain(x), being(x))
    same("get_single(-1)", layer.get_single(-1)(x), layer.get_single(case.beings - 1)(x))
    for index in (case.beings, -case.beings - 1):
        refused(f"get_single({index})", ValueError, layer.get_single, index)
    being = layer.get_single(0)
    before = being(x)
    layer.get_single(0)
    layer.clone_being(1, 0)
    expect(not torch.equal(before, being(x)), "a view must be live")


@check
def check_clone_being(case: Case) -> None:
    """``clone_being`` copies all at once; in the middle of a backward it never gives a wrong gradient silently."""
    if case.beings is None:
        return
    last, x = case.beings - 1, case.input()[:, :1]
    for source, destination in ((0, last), ([0], [last]), (torch.tensor([0]), torch.tensor([last])), (0, -1)):
        layer = train(case, case.layer())
        before = layer(x)
        layer.clone_being(source, destination)
        after = layer(x)
        same("the output of the clone", after[:, last], layer(x)[:, last])
        close("the output of the clone", after[:, last], before[:, 0])
        same("the output of the others", after[:, :last], before[:, :last])
    layer = train(case, case.layer())
    before = layer(x)
    layer.clone_being([0, last], [last, 0])
    close("beings 0 and last, exchanged,", layer(x)[:, [last, 0]], before[:, [0, last]])
    for wrong in ((0, case.beings), (-case.beings - 1, 0), ([0, 1], [0]), ([0, 1], [2, 2])):
        refused(f"clone_being{wrong}", ValueError, layer.clone_being, *wrong)
    layer.zero_grad()
    layer(x).square().sum().backward()
    expected = {name: gradient(name, parameter) for name, parameter in layer.named_parameters()}
    layer.zero_grad()
    loss = layer(x).square().sum()
    layer.clone_being(0, last)
    try:
        loss.backward()
    except RuntimeError as error:
        expect("modified by an inplace operation" in str(error), f"backward after clone_being: {error}")
        return
    for name, parameter in layer.named_parameters():
        found = gradient(name, parameter)
        close(f"gradient of {name} when a being is cloned before backward", found, expected[name])
