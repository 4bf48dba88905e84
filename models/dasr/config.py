"""Options of the demo. The command line is made from these classes, and the run keeps a copy as YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class DSNOptions:
    """Stage 1, the down-sampling network (published size: 64 features, 8 blocks)."""

    steps: int = 180
    """Number of updates."""
    batch: int = 4
    """Patches of each domain per update."""
    patch: int = 32
    """Side of an LR patch in pixels, a multiple of 2; HR patches are 4 times that."""
    lr: float = 1e-3
    """Adam learning rate of the network, betas (0.5, 0.999)."""
    lr_discriminator: float = 5e-4
    """Adam learning rate of the discriminator."""
    content_weight: float = 2.0
    """Weight of the low-pass L1 to the bicubic LR picture (published: 1)."""
    gan_weight: float = 1.0
    """Weight of the adversarial loss (published: 0.005, over more than 100,000 updates)."""
    num_feat: int = 16
    """Features of the network."""
    num_block: int = 2
    """Residual blocks of the network."""
    num_feat_discriminator: int = 32
    """Features of the discriminator's first layer."""


@dataclass(frozen=True)
class SRNOptions:
    """Stage 3, the SR network (published size: 64 features, 23 blocks, growth 32)."""

    steps: int = 500
    """Number of updates."""
    batch: int = 4
    """Pairs of generated LR and HR per update, and as many real LR patches."""
    patch: int = 24
    """Side of an LR patch in pixels, a multiple of 2, at least 8; HR patches are 4 times that."""
    lr: float = 1e-3
    """Adam learning rate of the network, betas (0.9, 0.999)."""
    lr_discriminator: float = 2e-4
    """Adam learning rate of the discriminator."""
    pixel_weight: float = 1.0
    """Weight of the L1 that is weighted with the domain-distance map."""
    gan_weight: float = 1e-4
    """Weight of the adversarial loss on the target domain (1e-4 in DASR's RealSR preset)."""
    num_feat: int = 16
    """Features of the network."""
    num_block: int = 2
    """RRDB blocks of the network."""
    num_grow_ch: int = 16
    """Growth of the dense blocks."""
    num_feat_discriminator: int = 32
    """Features of the discriminator's first layer."""


@dataclass(frozen=True)
class DemoOptions:
    """Trains DASR in miniature on real photographs and leaves pictures, curves, numbers and weights behind.

    Without folders of your own it uses photographs from scikit-image's wheel and a simulated camera.
    """

    name: str = "demo"
    """The run's folder is <root>/<name>; an earlier run of that name is kept under another."""
    root: Path = Path("experiments")
    """Where runs are kept."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""
    hr_dir: Path | None = None
    """Your clean HR pictures, instead of the bundled ones."""
    lr_dir: Path | None = None
    """Your real LR pictures, used as they are. Needs both test folders."""
    test_hr_dir: Path | None = None
    """Held-out HR pictures. Without --test-lr-dir their LR pictures come from the simulated camera."""
    test_lr_dir: Path | None = None
    """Held-out LR pictures, x1/4, with the names of those in --test-hr-dir."""
    timing_pairs: int = 12
    """Interleaved pairs of steps (reference ops, automatic choice) in the timing table; 0 leaves the table out."""
    dsn: DSNOptions = field(default_factory=DSNOptions)
    srn: SRNOptions = field(default_factory=SRNOptions)
