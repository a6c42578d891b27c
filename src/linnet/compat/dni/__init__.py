"""The API of pytorch-dni, name for name: change ``from dni`` to ``from linnet.compat.dni``.

Where the code and the documentation of pytorch-dni disagree, linnet follows the documentation (docs/compat-dni.md):
synthetic gradients reach the weights, and the networks that predict them are trained. Importing writes no file.
"""

from linnet.compat.dni.networks import RNN_DNI as RNN_DNI
from linnet.compat.dni.networks import RNNDNI as RNNDNI
from linnet.compat.dni.networks import Conv2dDNI as Conv2dDNI
from linnet.compat.dni.networks import DNI_Network as DNI_Network
from linnet.compat.dni.networks import DNINetwork as DNINetwork
from linnet.compat.dni.networks import Linear_DNI as Linear_DNI
from linnet.compat.dni.networks import Linear_Sigmoid_DNI as Linear_Sigmoid_DNI
from linnet.compat.dni.networks import LinearBatchNormDNI as LinearBatchNormDNI
from linnet.compat.dni.networks import LinearDNI as LinearDNI
from linnet.compat.dni.networks import LinearSigmoidDNI as LinearSigmoidDNI
from linnet.compat.dni.wrapper import DNI as DNI
from linnet.compat.dni.wrapper import detach_all as detach_all
from linnet.compat.dni.wrapper import get_padding as get_padding

_DNI = DNI  # the tasks of pytorch-dni import this name without using it

__all__ = [
    "DNI",
    "RNNDNI",
    "RNN_DNI",
    "Conv2dDNI",
    "DNINetwork",
    "DNI_Network",
    "LinearBatchNormDNI",
    "LinearDNI",
    "LinearSigmoidDNI",
    "Linear_DNI",
    "Linear_Sigmoid_DNI",
    "detach_all",
    "get_padding",
]
