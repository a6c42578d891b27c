"""Layers with one fault each, and a healthy one; see test_planted_faults.py."""

import copy

import torch
from torch import Tensor, nn

from linnet import LinearMap
from linnet.core import conversion
from linnet.core.affine import affine


class Toy(LinearMap, catalogue=False):
    """A >= floor, by squares: healthy, and short enough to be broken in one place at a time."""

    promise = "A >= floor"

    def __init__(self, in_features, out_features, bias=True, *, floor=0.0, beings=None, device=None, dtype=None):
        super().__init__(in_features, out_features, bias, beings=beings, device=device, dtype=dtype)
        self.floor = floor
        self.root = nn.Parameter(torch.empty(*self.leading, out_features, in_features, device=device, dtype=dtype))
        self.more(device=device, dtype=dtype)
        self.reset_parameters()

    def more(self, **factory):
        """What a faulty layer holds besides."""

    @classmethod
    def examples(cls):
        return [{}, {"floor": 0.1}]

    def _weight(self, root):
        return root.square() + self.floor

    def _assign(self, weight):
        return {"root": (weight - self.floor).clamp_min(0).sqrt()}

    def _violation(self, weight):
        return (self.floor - weight).amax((-2, -1)).clamp_min(0)


# ---------------------------------------------------------------------------------------------- how a layer comes to be


class ScalarParameter(Toy, catalogue=False):
    def more(self, **factory):
        self.gain = nn.Parameter(torch.ones((), **factory))


class SwallowsKeywords(Toy, catalogue=False):
    def __init__(self, in_features, out_features, bias=True, *, floor=0.0, beings=None, device=None, dtype=None, **_):
        super().__init__(in_features, out_features, bias, floor=floor, beings=beings, device=device, dtype=dtype)


class SilentRepr(Toy, catalogue=False):
    def extra_repr(self):
        return ""


class DiesAtOne(Toy, catalogue=False):
    def _weight(self, root):
        return root.square() / (root.shape[-1] - 1) + self.floor


class ForgetsDtype(Toy, catalogue=False):
    def more(self, **factory):
        self.register_buffer("scale", torch.ones(3, device=factory["device"]))


class ForgetsDevice(Toy, catalogue=False):
    def more(self, **factory):
        self.register_buffer("scale", torch.ones(3, dtype=factory["dtype"], device="cpu"))


class BufferOnlyInInit(Toy, catalogue=False):
    def more(self, **factory):
        self.register_buffer("sign", torch.ones(1, **factory))

    def _build(self, raw):
        return super()._build(raw) * self.sign


class IgnoresTheSeed(Toy, catalogue=False):
    def _draw(self, raw, generator):
        raw["root"].normal_()


class DrawsAllBeingsFromOneSeed(Toy, catalogue=False):
    def reset_parameters(self, *, seeds=None):
        super().reset_parameters(seeds=seeds if seeds is None or self.beings is None else [*seeds[:1]] * len(seeds))


# ------------------------------------------------------------------------------------------------ what a layer computes


class BiasTwice(Toy, catalogue=False):
    def forward(self, input):
        y = super().forward(input)
        return y if self.bias is None else y + self.bias


class ForwardIgnoresFloor(Toy, catalogue=False):
    def forward(self, input):
        return super().forward(input) - self.floor * input.sum(-1, keepdim=True)


class ChangesItsInput(Toy, catalogue=False):
    def forward(self, input):
        return super().forward(input.clamp_(-2, 2))


class GuessesShapes(Toy, catalogue=False):
    def forward(self, input):
        if self.beings and input.dim() == 2 and input.shape[-1] == self.in_features and len(input) != self.beings:
            input = input.unsqueeze(1)
        return super().forward(input)


class SilentShapeError(Toy, catalogue=False):
    def forward(self, input):
        try:
            return super().forward(input)
        except ValueError:
            raise ValueError("wrong shape") from None


class RandomWeight(Toy, catalogue=False):
    def _weight(self, root):
        return root.square() + self.floor + 1e-3 * torch.rand_like(root)


class StaleWeight(Toy, catalogue=False):
    def _build(self, raw):
        key = {name: (tensor.data_ptr(), tensor._version, tensor.requires_grad) for name, tensor in raw.items()}
        if getattr(self, "key", None) != key or not torch.is_grad_enabled():
            self.key, self.kept = key, super()._build(raw)
        return self.kept


class DetachedForward(Toy, catalogue=False):
    def forward(self, input):
        return affine(input, self.weight.detach(), self.bias) + 0 * self.root.sum()


class UnusedParameter(Toy, catalogue=False):
    def more(self, **factory):
        self.spare = nn.Parameter(torch.ones(*self.leading, 2, **factory))


class HalfAGradient(Toy, catalogue=False):
    def _weight(self, root):
        return root * root.detach() + self.floor


class ColdAutocast(Toy, catalogue=False):
    def forward(self, input):
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input)


class LapackInHalf(Toy, catalogue=False):
    def _build(self, raw):
        q, r = torch.linalg.qr(raw["root"].mT)  # there is no bfloat16 kernel
        return (q @ r).mT.square() + self.floor


# ----------------------------------------------------------------------------------------------------------- the beings


class MixesBeings(Toy, catalogue=False):
    def forward(self, input):
        y = super().forward(input)
        return y if self.beings is None else y + 0.01 * y.mean(-2, keepdim=True)


class NormsOverBeings(Toy, catalogue=False):
    def _weight(self, root):
        return root.square() / root.square().max() + self.floor


class DeadView(Toy, catalogue=False):
    def get_single(self, index):
        return copy.deepcopy(self)._single(index)

    def _single(self, index):
        return super().get_single(index)


class WrapsAround(Toy, catalogue=False):
    def get_single(self, index):
        return super().get_single(index % self._population())


class CloneForgetsBias(Toy, catalogue=False):
    def clone_being(self, source, destination):
        bias = self.bias.detach().clone()
        super().clone_being(source, destination)
        self.bias.data.copy_(bias)


class ClonesOneByOne(Toy, catalogue=False):
    def clone_being(self, source, destination):
        if isinstance(source, list) and len(source) == len(destination) == len(set(destination)):
            for one, other in zip(source, destination, strict=True):
                super().clone_being(one, other)
        else:
            super().clone_being(source, destination)


class ClonesBehindAutograd(Toy, catalogue=False):
    def clone_being(self, source, destination):
        changed = copy.deepcopy(self)
        LinearMap.clone_being(changed, source, destination)
        for mine, its in zip(self.parameters(), changed.parameters(), strict=True):
            mine.data.copy_(its)


# ------------------------------------------------------------------------------------------------------------ the state


class KeepsAGraph(Toy, catalogue=False):
    def forward(self, input):
        self.last = super().forward(input)
        return self.last.clone()


class HoldsALambda(Toy, catalogue=False):
    def more(self, **factory):
        self.activation = lambda x: x


class PythonState(Toy, catalogue=False):
    gain = 1.0

    def _build(self, raw):
        return super()._build(raw) * self.gain

    def assign(self, weight):
        self.gain = 2.0
        return super().assign(weight)


class ExtraState(Toy, catalogue=False):
    def get_extra_state(self):
        return {"gain": 1}

    def set_extra_state(self, state):
        pass


class TwoNamesOneTensor(Toy, catalogue=False):
    def more(self, **factory):
        self.register_buffer("alias", self.root.detach())


class OwnHandle(Toy, catalogue=False):
    def more(self, **factory):
        self.handle = (self.root,)

    def _build(self, raw):
        return super()._build({"root": self.handle[0]})


class LooksAtNumbers(Toy, catalogue=False):
    def forward(self, input):
        return super().forward(input) if float(input.detach().sum()) < 1e9 else input


# ----------------------------------------------------------------------------------------------------------- the graphs


class BreaksTheGraph(Toy, catalogue=False):
    def forward(self, input):
        torch._dynamo.graph_break()
        return super().forward(input)


class CompiledOtherwise(Toy, catalogue=False):
    def forward(self, input):
        y = super().forward(input)
        return 2 * y if torch.compiler.is_dynamo_compiling() else y


class BranchesOnTheBatch(Toy, catalogue=False):
    def forward(self, input):
        y = super().forward(input)
        return y if input.shape[0] != 4 else y + 0


class ExportsWithoutBias(Toy, catalogue=False):
    def to_linear(self):
        plain = super().to_linear()
        nn.init.zeros_(plain.bias)
        return plain

    def to_linears(self):
        return [self._bare(plain) for plain in super().to_linears()]

    @staticmethod
    def _bare(plain):
        nn.init.zeros_(plain.bias)
        return plain


# --------------------------------------------------------------------------------------------------------- the promises


class FreeParameter(Toy, catalogue=False):
    """Holds as drawn and as assigned; a step of any optimizer loses it."""

    def _weight(self, root):
        return root

    def _assign(self, weight):
        return {"root": weight.clamp_min(self.floor)}

    def _draw(self, raw, generator):
        raw["root"].uniform_(1, 2, generator=generator)


class LostByDecay(Toy, catalogue=False):
    """A >= floor only as long as the parameter is large: what weight decay undoes and nothing else."""

    def _weight(self, root):
        return (root.square() + self.floor) * (root.abs() > 1e-12) - 1e-3 * (root.abs() <= 1e-12)


class NaNAtZero(Toy, catalogue=False):
    def _weight(self, root):
        return root.square().sum((-2, -1), keepdim=True).sqrt().expand_as(root) + self.floor + root.square()


class JudgesItsParameters(Toy, catalogue=False):
    def _violation(self, weight):
        return (self.floor - self._weight(self.root.detach())).amax((-2, -1)).clamp_min(0).to(weight)


class ForgivesNaN(Toy, catalogue=False):
    def violation(self, weight=None):
        return self._violation(self._checked(self.weight if weight is None else weight)).nan_to_num(nan=0)


class LenientViolation(Toy, catalogue=False):
    def _violation(self, weight):
        return super()._violation(weight) * 1e-9


class SummedViolation(Toy, catalogue=False):
    def _violation(self, weight):
        each = super()._violation(weight)
        return each.sum().expand_as(each)


class WrongDistance(Toy, catalogue=False):
    def assign(self, weight):
        return super().assign(weight) / 2


class InexactAssign(Toy, catalogue=False):
    def _assign(self, weight):
        return {"root": (weight - self.floor).abs().sqrt() * 1.01}


class AssignTakesNaN(Toy, catalogue=False):
    def assign(self, weight):
        return super().assign(weight.nan_to_num() if isinstance(weight, Tensor) else weight)


class AssignChangesBias(Toy, catalogue=False):
    def assign(self, weight):
        moved = super().assign(weight)
        if self.bias is not None:
            self.bias.data.zero_()
        return moved


class AssignLeavesTheSet(Toy, catalogue=False):
    def _weight(self, root):
        return root

    def _assign(self, weight):
        return {"root": weight}


class NegativePenalty(Toy, catalogue=False):
    hard = False

    def penalty(self):
        return -self.root.square().sum()


class PenaltyOfEachBeing(Toy, catalogue=False):
    hard = False

    def penalty(self):
        return self.root.square().sum((-2, -1), keepdim=True)


class PenaltyOfAHardPromise(Toy, catalogue=False):
    def penalty(self):
        return self.root.square().sum()


class DetachedPenalty(Toy, catalogue=False):
    hard = False

    def penalty(self):
        return self.root.detach().square().sum()


# ---------------------------------------------------------------------------------------------------------- conversion


class ExportsAView(Toy, catalogue=False):
    def to_linear(self):
        plain = super().to_linear()
        plain.bias = nn.Parameter(self.bias.detach())
        return plain


class DrawsNumbersInConversion(Toy, catalogue=False):
    @classmethod
    def from_linear(cls, linear, **options):
        torch.rand(1)
        return super().from_linear(linear, **options)


class FreezesInConversion(Toy, catalogue=False):
    @torch.no_grad()
    def to_linear(self):
        return conversion.to_linear.__wrapped__(self)


class SpectrumOfTheParameter(Toy, catalogue=False):
    def svdvals(self):
        return torch.linalg.svdvals(self.root)


class ShiftedEigenvalues(Toy, catalogue=False):
    def eigvals(self):
        return super().eigvals() + 0.01
