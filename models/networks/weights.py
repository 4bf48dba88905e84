"""Weights files: any key family in use to a network, and a network to a file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from models.data.files import check_regular, write_whole
from models.networks.de_resnet import DeResNet
from models.networks.discriminators import PatchDiscriminator, VGGDiscriminator
from models.networks.dsn import DSN
from models.networks.lpips import LPIPS
from models.networks.rrdbnet import Decoder, RRDBNet
from models.networks.usrda import Encoder, USRDAGenerator
from models.networks.vgg import ORIGINS, VGG, VGG16Features, VGG19Features

State = Mapping[str, Tensor]
Config = Mapping[str, Any]
Rename = Callable[[str], str]  # key of our network to key in the file
Build = Callable[[State, Config], tuple[nn.Module, Rename]]

# RRDBNet's convolutions by family: those of the dense blocks, by number of block, RDB and convolution, and the others.
# Old-arch numbers the convolution after the blocks as if it were one more block, and the last two behind three layers
# of each doubling.
_RRDBNET = {
    "basicsr": (
        "body.{}.rdb{}.conv{}",
        ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
    ),
    "kair": (
        "RRDB_trunk.{}.RDB{}.conv{}",
        ("conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    ),
    "old-arch": (
        "model.1.sub.{}.RDB{}.conv{}.0",
        ("model.0", "model.1.sub.{blocks}", "model.3", "model.6", "model.{hr}", "model.{last}"),
    ),
}
_RRDBNET_SCALES = {3: 4, 12: 2, 48: 1}  # by input channels
_MOST_PIXEL_CHANNELS = 12  # but for those 48

# What the tensors of a network do not show, by attribute.
_UNTOLD = {
    DSN: ("scale", "bicubic_skip"),
    DeResNet: ("bicubic_skip",),
    RRDBNet: ("bicubic_skip",),
    USRDAGenerator: ("bicubic_skip",),
    PatchDiscriminator: ("kind", "norm", "frequency", "frequency_kernel", "frequency_contrast"),
    VGG16Features: ("layers", "input_norm", "origin"),
    VGG19Features: ("layers", "input_norm", "origin"),
    LPIPS: ("origin",),
}

_RECORD = "srkernels"
_SUFFIXES = (".pth", ".pt", ".tar")
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
_NESTED = 8  # wrappers in wrappers; a file may hold one in itself
_SHELLS = ("module", "_orig_mod")  # what DataParallel and torch.compile put before the keys of what they hold
# Files of several networks: the checkpoints of DASR's DSN, and those of the unofficial USR-DA.
_PARTS = {
    "generator": "model_g_state_dict",
    "discriminator": "models_d_state_dict",
    "decoder_sr": "model_Dec_SR",
    "decoder_t": "model_Dec_Id",
    "encoder": "model_Enc",
    "discriminator_f": "model_Disc_feat",
    "discriminator_t": "model_Disc_img_LR",
    "discriminator_y": "model_Disc_img_HR",
}
_USRDA_GENERATOR = {name: _PARTS[name] for name in ("encoder", "decoder_sr", "decoder_t")}
_SPECTRAL_WEIGHT = "parametrizations.weight.original"
_DSN_FILTERS = ("filter.", "DWT2.")
_DSN_KINDS = {"fsd": "fsd", "nld_s1": "nlayer_s1", "nld_s2": "nlayer_s2"}


def load_weights(source: str | Path | Mapping[str, Any], *, part: str | None = None) -> nn.Module:
    """The network whose weights a file or a state dict holds, on the CPU in fp32, its sizes read from the tensors.

    Known are `RRDBNet` by the keys of BasicSR, KAIR (also ESRGAN's own) and ESRGAN's old-arch files, `DSN` and
    `DeResNet` by those of DASR, `PatchDiscriminator` by ours and by those of DASR's two discriminators, `Encoder`,
    `Decoder` and `VGGDiscriminator` by those of the unofficial USR-DA, torchvision's vgg16 and vgg19 and our `LPIPS`.
    Files are `.safetensors`, or `.pth`, `.pt` and `.tar` read with `weights_only=True`; the wrappers `params_ema`,
    `params`, `state_dict` and `model`, in this order, and the prefixes of DataParallel and `torch.compile`, wherever
    they stand, are removed. `USRDAGenerator` is known by the keys of its parts, prefixed by `encoder.`, `decoder_sr.`
    and `decoder_t.`.

    What tensors do not show is read from what `save_weights` and DASR's DSN checkpoints record. Without a record there
    is no bicubic skip, a DSN has the scale 4, 4x4 discriminators have two strided layers, one without running
    statistics has instance norm, VGG gives its last convolution and was trained on ImageNet, and BasicSR's keys are an
    RRDBNet's where it takes 3, 12 or 48 channels. A discriminator that DASR trained with its DSN has the name of its
    filter in `frequency`.

    Args:
        source: a path, or what such a file holds.
        part: which network of a file that holds several: "generator" or "discriminator" of a DSN checkpoint;
            "generator" (encoder and both decoders), "decoder_sr", "decoder_t", "encoder", "discriminator_f",
            "discriminator_t" or "discriminator_y" of a USR-DA checkpoint. None is the first of these that it has.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, or a pickle with more in it than tensors and plain containers; it lacks that
            part; a tensor is sparse, has no data or claims more than the file holds; the weights are of no family
            known, or their keys and shapes are not exactly those of their family.
    """
    if part not in (None, *_PARTS):
        raise ValueError(f"load_weights: part must be one of {', '.join(_PARTS)} or None, got {part!r}")
    try:
        content = source if isinstance(source, Mapping) else _read(Path(source))
        return _build(*_unwrap(content, part))
    except ValueError as error:
        name = "state dict" if isinstance(source, Mapping) else source
        raise ValueError(f"{name}: {error}") from error


def save_weights(module: nn.Module, path: str | Path, *, family: str | None = None) -> None:
    """Writes the state dict of a network as contiguous CPU tensors; the file appears whole or not at all.

    A `.safetensors` file has the network's class and what its tensors do not show in its metadata, for `load_weights`;
    a `.pth` file has the weights under `params` and those two under `metadata`.

    Args:
        module: any module; `load_weights` knows those of this package.
        path: the suffix chooses the format.
        family: the keys of an `RRDBNet`: "basicsr" (its own, also if None), "kair" or "old-arch". Other programs read
            all three, but know of no `bicubic_skip`.

    Raises:
        OSError: the file cannot be written.
        ValueError: another suffix, an unknown family, or a family for something else than an RRDBNet.
    """
    path = Path(path)
    rename: Rename = str
    if family is not None:
        if not isinstance(module, RRDBNet) or family not in _RRDBNET:
            known = ", ".join(_RRDBNET)
            got = f"{family!r} for {type(module).__name__}"
            raise ValueError(f"save_weights: family must be one of {known}, for an RRDBNet, got {got}")
        rename = _rrdbnet_rename(family, len(module.body), module.doublings)
    state = {rename(key): value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    config = {name: getattr(module, name) for name in _UNTOLD.get(type(module), ())}
    # One entry: safetensors writes several in random order, and equal weights should give equal files.
    record = {_RECORD: json.dumps({"network": type(module).__name__, **config})}
    if path.suffix == ".safetensors":
        # Not by save_file, whose own temporary file tells nobody which process a kill left it from.
        write_whole(path, lambda temporary: temporary.write_bytes(save(state, metadata=record)))
    elif path.suffix == ".pth":
        try:
            write_whole(path, lambda temporary: torch.save({"params": state, "metadata": record}, temporary))
        except RuntimeError as error:  # the same of torch's writer
            raise OSError(f"cannot write {path}: {error}") from error
    else:
        raise ValueError(f"save_weights: path must end in .safetensors or .pth, got {path}")


def load_state(path: Path) -> State:
    """The tensors of a file, without wrappers and prefixes. Raises OSError and ValueError as `load_weights` does."""
    return _unwrap(_read(path), None)[0]


def _read(path: Path) -> Mapping[str, Any]:
    """What a file holds; a safetensors file in the form of our `.pth` files."""
    if path.suffix not in (".safetensors", *_SUFFIXES):
        raise ValueError(f"weights files end in {', '.join(('.safetensors', *_SUFFIXES))}")
    check_regular(path)
    with path.open("rb"):  # the readers' own errors for a file that cannot be opened differ, and are those of a bad one
        pass
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return {"params": state, "metadata": file.metadata()}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it pickles a {found[1]} beside its tensors" if found else "damaged, or a pickle of more than tensors"
        if isinstance(error, SafetensorError):
            what = str(error)[:200]
        raise ValueError(f"no weights can be read: {what}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"holds a {type(content).__name__}, not a state dict")
    return content


def _unwrap(content: Mapping[str, Any], part: str | None) -> tuple[State, Config]:
    """The state dict inside its wrappers, and what the file says about its network."""
    config = _config(content.get("metadata"))
    if content.keys() >= set(_USRDA_GENERATOR.values()) and part in (None, "generator"):
        parts_of = {name: _unwrap({key: content[key]}, name)[0] for name, key in _USRDA_GENERATOR.items()}
        return {f"{name}.{key}": value for name, state in parts_of.items() for key, value in state.items()}, config
    if parts := [name for name, key in _PARTS.items() if key in content]:
        part = part or parts[0]
        if part not in parts:
            raise ValueError(f"has no part {part!r}, only {', '.join(parts)}")
        if part == "discriminator":
            config = _dsn_discriminator_config(content)
        content = content[_PARTS[part]]
        if not isinstance(content, Mapping):
            raise ValueError(f"{_PARTS[part]} holds a {type(content).__name__}, not a state dict")
        if part in ("decoder_sr", "decoder_t"):
            config = {**config, "network": Decoder.__name__}
    for _ in range(_NESTED):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        content = content if wrapper is None else content[wrapper]
    state = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"entry {key!r} is not a tensor but a {type(value).__name__}")
        _check_tensor(key, value)
        name = ".".join(part for part in key.split(".") if part not in _SHELLS)
        if name in state:
            raise ValueError(f"two entries are named {name}, one of them {key}")
        state[name] = value
    return state, config


def _check_tensor(key: str, value: Tensor) -> None:
    """Raises ValueError unless the tensor can be copied into a network, and the file holds all that it claims."""
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise ValueError(f"entry {key!r} is no plain tensor of real numbers: {value.layout}, {value.dtype}")
    if value.is_meta:
        raise ValueError(f"entry {key!r} is a meta tensor, without data")
    held = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > held:
        raise ValueError(f"entry {key!r} claims to be {tuple(value.shape)}, but only {held} bytes of it are there")


def _config(metadata: Any) -> Config:
    """What `save_weights` wrote; nothing from the metadata of other programs."""
    if not isinstance(metadata, Mapping) or _RECORD not in metadata:
        return {}
    try:
        config = json.loads(str(metadata[_RECORD]))
    except RecursionError as error:
        raise ValueError(f"metadata: {_RECORD} is nested too deeply") from error
    if not isinstance(config, dict):
        raise ValueError(f"metadata: {_RECORD} must be a JSON object, got {config!r}")
    return config


def _dsn_discriminator_config(checkpoint: Mapping[str, Any]) -> Config:
    """What a checkpoint of DASR's DSN says about its discriminator (those of 2020 nothing)."""
    found = {
        "kind": _DSN_KINDS.get(str(checkpoint.get("D_type")).lower()),
        "frequency_kernel": checkpoint.get("fs_kernel_size"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _build(state: State, config: Config) -> nn.Module:
    family = next((each for each in _FAMILIES if each.mark in state and each.fits(state, config)), None)
    if family is None:
        names = ", ".join(family.name for family in _FAMILIES)
        raise ValueError(f"keys of no network known ({names}): {_some(state)}")
    try:
        with torch.device("meta"):  # no memory for shapes that the file only claims
            network, rename = family.build(state, config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        first, *_ = str(error).splitlines() or [""]
        raise ValueError(f"{family.name}: no network has these shapes and this record ({first})") from error
    expected = {rename(key): value.shape for key, value in network.state_dict().items()}
    found = {key: value.shape for key, value in state.items() if not key.startswith(family.ignored)}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        raise ValueError(f"{family.name}: keys that are missing, unknown or of another shape: {_some(wrong)}")
    network, rename = family.build(state, config)
    network.load_state_dict({key: state[rename(key)] for key in network.state_dict()})
    return network


def _some(keys: Any, most: int = 5) -> str:
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(key[:80] for key in keys[:most]) + more if keys else "none at all"


def _weight(state: State, layer: str, dim: int) -> Tensor:
    weight = state.get(f"{layer}.weight", state.get(f"{layer}.{_SPECTRAL_WEIGHT}"))
    if weight is None or weight.dim() != dim:
        raise ValueError(f"{layer}.weight is missing or not of {dim} dimensions")
    return weight


def _conv_shape(state: State, conv: str) -> tuple[int, int, int]:
    """(channels out, channels in, kernel)."""
    shape = _weight(state, conv, 4).shape
    return shape[0], shape[1], shape[3]


def _depth(state: State, conv: str) -> int:
    """The number of blocks n = 0, 1, ... of which the file has this convolution."""
    return next(n for n in count() if f"{conv}.weight".format(n, 1, 1) not in state)


def _rrdbnet_convs(family: str, num_block: int, doublings: int) -> list[str]:
    block, others = _RRDBNET[family]
    dense = [block.format(n, rdb, conv) for n in range(num_block) for rdb in (1, 2, 3) for conv in range(1, 6)]
    numbers = {"blocks": num_block, "hr": 2 + 3 * doublings, "last": 4 + 3 * doublings}
    return dense + [other.format(**numbers) for other in others]


def _rrdbnet_rename(family: str, num_block: int, doublings: int) -> Rename:
    ours, theirs = (_rrdbnet_convs(each, num_block, doublings) for each in ("basicsr", family))
    names = dict(zip(ours, theirs, strict=True))

    def rename(key: str) -> str:
        conv, _, kind = key.rpartition(".")
        return f"{names[conv]}.{kind}"

    return rename


def _rrdbnet(family: str) -> Build:
    block, (first, _, *ups, _, _) = _RRDBNET[family]

    def build(state: State, config: Config) -> tuple[nn.Module, Rename]:
        num_feat, in_channels, _ = _conv_shape(state, first)
        num_grow_ch, _, _ = _conv_shape(state, block.format(0, 1, 1))
        num_block = _depth(state, block)
        if in_channels not in _RRDBNET_SCALES:
            raise ValueError(f"RRDBNet takes 3 (x4), 12 (x2) or 48 (x1) channels, {first} takes {in_channels}")
        unshuffle = in_channels != 3
        network = RRDBNet(
            num_feat,
            num_block,
            num_grow_ch,
            scale=_RRDBNET_SCALES[in_channels] if unshuffle else 2 ** _doublings(state, ups),
            unshuffle=unshuffle,
            bicubic_skip=config.get("bicubic_skip", False),
        )
        return network, _rrdbnet_rename(family, num_block, network.doublings)

    return build


def _doublings(state: State, ups: Iterable[str], prefix: str = "") -> int:
    return sum(f"{prefix}{up}.weight" in state for up in ups)


def _decoder_sizes(state: State, prefix: str = "") -> tuple[int, int, int, int]:
    """(features, blocks, growth, scale)."""
    block, (first, _, *ups, _, _) = _RRDBNET["basicsr"]
    num_feat, _, _ = _conv_shape(state, prefix + first)
    num_grow_ch, _, _ = _conv_shape(state, prefix + block.format(0, 1, 1))
    return num_feat, _depth(state, prefix + block), num_grow_ch, 2 ** _doublings(state, ups, prefix)


def _decoder(state: State, config: Config) -> tuple[nn.Module, Rename]:
    *sizes, scale = _decoder_sizes(state)
    return Decoder(*sizes, scale=scale, in_channels=_conv_shape(state, "conv_first")[1]), str


def _is_decoder(state: State, config: Config) -> bool:
    """Whether a trunk takes features: as many as it has itself, or more than pixels have.

    RRDBNet's 3, 12 or 48 channels may be features, too, which only a record or the name of a part tells.
    """
    num_feat, in_channels, _ = _conv_shape(state, "conv_first")
    if config.get("network") == Decoder.__name__:
        return True
    return in_channels not in _RRDBNET_SCALES and (in_channels == num_feat or in_channels > _MOST_PIXEL_CHANNELS)


def _encoder_sizes(state: State, prefix: str = "") -> tuple[int, int]:
    """(features, convolutions)."""
    convs = [key for key in state if key.startswith(f"{prefix}conv_featmap.") and key.endswith(".weight")]
    return _conv_shape(state, f"{prefix}conv_featmap.0")[0], len(convs)


def _encoder(state: State, config: Config) -> tuple[nn.Module, Rename]:
    return Encoder(*_encoder_sizes(state)), str


def _usrda_generator(state: State, config: Config) -> tuple[nn.Module, Rename]:
    num_feat, num_conv = _encoder_sizes(state, "encoder.")
    decoder_feat, num_block, num_grow_ch, scale = _decoder_sizes(state, "decoder_sr.")
    _, num_block_t, _, _ = _decoder_sizes(state, "decoder_t.")
    return USRDAGenerator(
        num_feat,
        num_conv,
        num_block,
        num_block_t,
        num_grow_ch,
        scale=scale,
        bicubic_skip=config.get("bicubic_skip", False),
        decoder_feat=decoder_feat if decoder_feat != num_feat else None,
    ), str


def _dsn(state: State, config: Config) -> tuple[nn.Module, Rename]:
    num_feat, _, _ = _conv_shape(state, "model.0")
    scale, bicubic_skip = config.get("scale", 4), config.get("bicubic_skip", False)
    return DSN(num_feat, _depth(state, "model.1.sub.{}.res.0"), scale=scale, bicubic_skip=bicubic_skip), str


def _de_resnet(state: State, config: Config) -> tuple[nn.Module, Rename]:
    num_feat, _, _ = _conv_shape(state, "block_input.0")
    halvings = sum(f"down_sample.{n}.weight" in state for n in (0, 2))
    num_block, bicubic_skip = _depth(state, "res_blocks.{}.conv1"), config.get("bicubic_skip", False)
    return DeResNet(num_feat, num_block, scale=2**halvings, bicubic_skip=bicubic_skip), str


def _discriminator(prefix: str) -> Build:
    def build(state: State, config: Config) -> tuple[nn.Module, Rename]:
        num_feat, in_channels, kernel = _conv_shape(state, f"{prefix}0")
        network = PatchDiscriminator(
            in_channels,
            num_feat,
            kind=config.get("kind", {3: "paper", 5: "fsd"}.get(kernel, "nlayer_s2")),
            norm=config.get("norm", _norm(state, prefix)),
            bias=f"{prefix}2.bias" in state,
        )
        frequency, frequency_kernel = _dsn_filter(state, in_channels) if prefix != "model." else (None, 5)
        network.frequency = config.get("frequency", frequency)
        network.frequency_kernel = config.get("frequency_kernel", frequency_kernel)
        if network.frequency_kernel not in range(1, 256):
            raise ValueError(f"frequency_kernel must be from 1 to 255, got {network.frequency_kernel!r}")
        network.frequency_contrast = config.get("frequency_contrast", 0.0)
        if not isinstance(network.frequency_contrast, float) or not 0 <= network.frequency_contrast <= 1000:
            raise ValueError(f"frequency_contrast must be from 0.0 to 1000.0, got {network.frequency_contrast!r}")
        return network, lambda key: prefix + key.removeprefix("model.")

    return build


def _vgg_discriminator(state: State, config: Config) -> tuple[nn.Module, Rename]:
    num_feat, in_channels, _ = _conv_shape(state, "features.0")
    norm = _norm(state, "features.")
    if norm == "instance" and "features.2.bias" in state:
        norm = "none"
    positions = _weight(state, "classifier.0", 2).shape[1] // (8 * num_feat)
    return VGGDiscriminator(in_channels, 32 * math.isqrt(positions), num_feat, norm=norm), str


def _norm(state: State, prefix: str) -> str:
    """The norm of a discriminator; "instance" may be "none", which has no tensors either."""
    if f"{prefix}0.{_SPECTRAL_WEIGHT}" in state:
        return "spectral"
    return "batch" if f"{prefix}3.running_mean" in state else "instance"


def _dsn_filter(state: State, in_channels: int) -> tuple[str | None, int]:
    """Name and kernel size of the filter in front of a discriminator of DASR's DSN; the average leaves no key."""
    if any(key.startswith("DWT2.") for key in state):
        return "haar" if in_channels == 9 else "haar_sum", 5
    for key, value in state.items():
        if key.endswith("gaussian_filter.weight"):
            return "gbfs", value.shape[-1]
    return "average" if in_channels == 3 else None, 5


def _vgg(name: str) -> Build:
    def build(state: State, config: Config) -> tuple[nn.Module, Rename]:
        network = VGG[name](config.get("layers"), input_norm=config.get("input_norm", True))
        network.origin = _origin(config)
        return network, str

    return build


def _lpips(state: State, config: Config) -> tuple[nn.Module, Rename]:
    return LPIPS("vgg16" if "features.28.weight" in state else "alex", _origin(config)), str


def _origin(config: Config) -> str:
    """What a VGG was trained on."""
    origin = config.get("origin", ORIGINS[0])
    if origin not in ORIGINS:
        raise ValueError(f"origin must be one of {', '.join(ORIGINS)}, got {origin!r}")
    return origin


class _Family(NamedTuple):
    name: str
    mark: str  # a key that files of this family have and those of later families do not
    build: Build
    ignored: tuple[str, ...] = ()  # prefixes of entries that are not our weights
    fits: Callable[[State, Config], bool] = lambda state, config: True  # where the mark alone does not decide


_FAMILIES = (
    _Family("USRDAGenerator", "encoder.conv_featmap.0.weight", _usrda_generator),
    _Family("Decoder", "body.0.rdb1.conv1.weight", _decoder, fits=_is_decoder),
    *(
        _Family(f"RRDBNet ({family})", f"{block.format(0, 1, 1)}.weight", _rrdbnet(family))
        for family, (block, _) in _RRDBNET.items()
    ),
    _Family("DSN", "model.1.sub.0.res.0.weight", _dsn),
    _Family("DeResNet", "res_blocks.0.conv1.weight", _de_resnet),
    *(
        _Family(f"PatchDiscriminator ({kind} of DASR's DSN)", f"{prefix}0.weight", _discriminator(prefix), _DSN_FILTERS)
        for kind, prefix in (("FSD", "net.net."), ("NLayer", "net.model."))
    ),
    _Family("PatchDiscriminator", "model.5.weight", _discriminator("model.")),
    _Family("PatchDiscriminator (spectral norm)", f"model.5.{_SPECTRAL_WEIGHT}", _discriminator("model.")),
    _Family("VGGDiscriminator", "classifier.2.bias", _vgg_discriminator),
    _Family("Encoder", "conv_featmap.0.weight", _encoder),
    _Family("VGG19Features", "features.34.weight", _vgg("vgg19"), ("classifier.",)),
    _Family("LPIPS", "lin0.model.1.weight", _lpips),
    _Family("VGG16Features", "features.26.weight", _vgg("vgg16"), ("classifier.",)),
)
