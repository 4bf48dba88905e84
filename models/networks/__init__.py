"""Networks under the state-dict keys that published weights use, and the files that hold such weights."""

from __future__ import annotations

from models.networks.de_resnet import DeResNet
from models.networks.discriminators import PatchDiscriminator, VGGDiscriminator
from models.networks.dsn import DSN
from models.networks.lpips import LPIPS
from models.networks.rrdbnet import Decoder, RRDBNet
from models.networks.usrda import Encoder, USRDAGenerator
from models.networks.vgg import VGG16Features, VGG19Features, VGGFeatures
from models.networks.weights import load_weights, save_weights

__all__ = [
    "DSN",
    "LPIPS",
    "DeResNet",
    "Decoder",
    "Encoder",
    "PatchDiscriminator",
    "RRDBNet",
    "USRDAGenerator",
    "VGG16Features",
    "VGG19Features",
    "VGGDiscriminator",
    "VGGFeatures",
    "load_weights",
    "save_weights",
]
