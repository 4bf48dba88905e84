"""Networks under the state-dict keys that published weights use."""

from __future__ import annotations

from models.networks.de_resnet import DeResNet
from models.networks.discriminators import FSDiscriminator, NLayerDiscriminator
from models.networks.rrdbnet import RRDBNet
from models.networks.vgg import VGG19

__all__ = ["VGG19", "DeResNet", "FSDiscriminator", "NLayerDiscriminator", "RRDBNet"]
