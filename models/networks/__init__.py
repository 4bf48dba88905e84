"""Networks under the state-dict keys that published weights use."""

from __future__ import annotations

from models.networks.de_resnet import DeResNet
from models.networks.discriminators import FSDiscriminator, NLayerDiscriminator
from models.networks.rrdbnet import RRDBNet

__all__ = ["DeResNet", "FSDiscriminator", "NLayerDiscriminator", "RRDBNet"]
