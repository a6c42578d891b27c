"""Each check of the contract catches the fault that it is there for; a healthy layer passes them all."""

import pytest

from linnet.testing import CHECKS, ContractError, cases, check_layer
from support.planted import (
    AssignChangesBias,
    AssignLeavesTheSet,
    AssignTakesNaN,
    BiasTwice,
    BranchesOnTheBatch,
    BreaksTheGraph,
    BufferOnlyInInit,
    ChangesItsInput,
    CloneForgetsBias,
    ClonesBehindAutograd,
    ClonesOneByOne,
    ColdAutocast,
    CompiledOtherwise,
    DeadView,
    DetachedForward,
    DetachedPenalty,
    DiesAtOne,
    DrawsAllBeingsFromOneSeed,
    DrawsNumbersInConversion,
    ExportsAView,
    ExportsWithoutBias,
    ExtraState,
    ForgetsDevice,
    ForgetsDtype,
    ForgivesNaN,
    ForwardIgnoresFloor,
    FreeParameter,
    FreezesInConversion,
    GuessesShapes,
    HalfAGradient,
    HoldsALambda,
    IgnoresTheSeed,
    InexactAssign,
    JudgesItsParameters,
    KeepsAGraph,
    LapackInHalf,
    LenientViolation,
    LooksAtNumbers,
    LostByDecay,
    MixesBeings,
    NaNAtZero,
    NegativePenalty,
    NormsOverBeings,
    OwnHandle,
    PenaltyOfAHardPromise,
    PenaltyOfEachBeing,
    PythonState,
    RandomWeight,
    ScalarParameter,
    ShiftedEigenvalues,
    SilentRepr,
    SilentShapeError,
    SpectrumOfTheParameter,
    StaleWeight,
    SummedViolation,
    SwallowsKeywords,
    Toy,
    TwoNamesOneTensor,
    UnusedParameter,
    WrapsAround,
    WrongDistance,
)

# check -> the faults that it must see, and what its message must say
FAULTS = {
    "check_constructor": {
        ScalarParameter: "no Parameter may be 0-dim",
        SwallowsKeywords: "an unknown keyword must raise TypeError",
        SilentRepr: "repr must contain in_features=",
    },
    "check_sizes": {DiesAtOne: "forward 1 -> 1 differs"},
    "check_factory": {ForgetsDtype: "scale has dtype torch.float32", ForgetsDevice: "scale lies on cpu"},
    "check_meta": {BufferOnlyInInit: "sign is not rebuilt"},
    "check_seeds": {
        IgnoresTheSeed: "must leave torch's generator alone",
        DrawsAllBeingsFromOneSeed: "root of map 1, against a layer built after torch.manual_seed(7)",
    },
    "check_forward": {
        BiasTwice: "from the reference",
        ForwardIgnoresFloor: "from the reference",
        ChangesItsInput: "the input after",
    },
    "check_input_shapes": {
        GuessesShapes: "an input of shape (4, 5) must raise ValueError",
        SilentShapeError: "must name",
    },
    "check_weight": {RandomWeight: "weight, read twice", StaleWeight: "weight must follow its raw parameters"},
    "check_backward": {DetachedForward: "forward against weight", UnusedParameter: "spare gets no gradient"},
    "check_gradcheck": {HalfAGradient: "Jacobian mismatch"},
    "check_precision": {ColdAutocast: "under autocast a torch.float32 layer gives", LapackInHalf: "BFloat16"},
    "check_population": {MixesBeings: "against get_single(0)", NormsOverBeings: "against get_single(1)"},
    "check_get_single": {DeadView: "gets no gradient", WrapsAround: "get_single(3) must raise ValueError"},
    "check_clone_being": {
        CloneForgetsBias: "output of the clone",
        ClonesOneByOne: "exchanged",
        ClonesBehindAutograd: "cloned before backward",
    },
    "check_copy": {KeepsAGraph: "deepcopy", HoldsALambda: "pickle"},
    "check_state_dict": {PythonState: "output after load_state_dict", ExtraState: "not a tensor"},
    "check_safetensors": {TwoNamesOneTensor: "share memory"},
    "check_functional_call": {OwnHandle: "functional_call is not the same"},
    "check_vmap": {LooksAtNumbers: "vmap"},
    "check_guarantee": {
        FreeParameter: "with 3 steps of SGD",
        LostByDecay: "raw parameters of size 1e-30",
        NaNAtZero: "gradient of root",
    },
    "check_violation": {
        JudgesItsParameters: "no matrix breaks",
        ForgivesNaN: "must be infinite",
        LenientViolation: "no matrix breaks",
        SummedViolation: "only the first of these violations",
    },
    "check_assign": {
        WrongDistance: "the distance that assign returned",
        InexactAssign: "the layer's own matrix moved",
        AssignTakesNaN: "with nan must raise ValueError",
        AssignChangesBias: "after assign",
        AssignLeavesTheSet: "violation",
    },
    "check_penalty": {
        NegativePenalty: "penalty() is",
        PenaltyOfEachBeing: "penalty() is",
        PenaltyOfAHardPromise: "hard promise must be 0",
        DetachedPenalty: "must be differentiable",
    },
    "check_linear_doors": {
        ExportsAView: "to_linear must keep requires_grad=False",
        DrawsNumbersInConversion: "random state",
        FreezesInConversion: "requires_grad of weight and bias",
    },
    "check_spectra": {SpectrumOfTheParameter: "svdvals differs", ShiftedEigenvalues: "sum of the eigenvalues"},
    "check_compile": {BreaksTheGraph: "graph_break", CompiledOtherwise: "compiled forward differs"},
    "check_export": {BranchesOnTheBatch: "specialized"},
    "check_onnx": {ExportsWithoutBias: "onnxruntime's output"},
}
BY_NAME = {check.__name__: check for check in CHECKS}


@pytest.mark.parametrize(("name", "cls"), [(name, cls) for name, faulty in FAULTS.items() for cls in faulty])
def test_the_check_catches_the_fault(name, cls):
    faults = []
    for case in cases(cls, {} if name in ("check_onnx", "check_compile") else None):
        try:
            BY_NAME[name](case)
        except ContractError as fault:
            faults.append(str(fault))
    assert faults, f"{name} does not see {cls.__name__}"
    assert all(fault.startswith(f"{name}, {cls.__name__}(") for fault in faults), "the message names check and layer"
    assert all(FAULTS[name][cls] in fault for fault in faults), faults


def test_each_check_has_a_planted_fault():
    assert set(FAULTS) == set(BY_NAME)
    assert {cls for faulty in FAULTS.values() for cls in faulty} == set(Toy.__subclasses__())


def test_a_healthy_layer_passes_every_check():
    assert check_layer(Toy, {}, beings=(3,)) == [check.__name__ for check in CHECKS]
    check_layer(Toy, checks=[check for name, check in BY_NAME.items() if name not in ("check_compile", "check_onnx")])


def test_check_layer_stops_at_a_fault():
    with pytest.raises(AssertionError, match=r"check_sizes, BiasTwice\(7, 5\): forward 1 -> 1 differs by .* \(limit "):
        check_layer(BiasTwice)


def test_check_layer_takes_options_sizes_and_beings():
    check = BY_NAME["check_forward"]
    with pytest.raises(ContractError, match=r"ForwardIgnoresFloor\(3, 4, floor=0.5, beings=2\)"):
        check_layer(ForwardIgnoresFloor, {"floor": 0.5}, in_features=3, out_features=4, beings=(2,), checks=[check])
    check_layer(ForwardIgnoresFloor, {"floor": 0.0}, checks=[check])
