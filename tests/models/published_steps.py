"""What the authors' own programs computed in whole training steps, against the steps of this project, in fp64.

    python -m tests.models.published_steps CASE.npz

The last line printed is a JSON object of largest relative errors: of the `losses`, of gradients (`g_grad`, `d_grad`),
and of how far weights have moved (`g_moved`, `d_moved`). Those of a tensor are relative to the norm over all parameters
of its player: the gradient of a bias in front of an instance norm is rounding alone. A case of distance maps gives the
error of the `map`, relative to its largest value, and the share of differing places of `lr`. `published/README.md` says
what a case holds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from models.config import from_mapping, to_mapping
from models.dasr import build as dasr_build
from models.dasr import config as dasr
from models.dasr.maps import DistanceMap
from models.dasr.stages import cut_to, make_pair
from models.dasr.steps import DSNStep, SRNStep
from models.data.resize import bicubic
from models.networks import LPIPS, VGG19Features, load_weights, save_weights
from models.train.losses import squared_distance
from models.train.schedule import Rates, ScheduleConfig
from models.usrda import build as usrda_build
from models.usrda import config as usrda
from models.usrda.steps import USRDAStep

sys.path.insert(0, str(Path(__file__).with_name("published")))

import recipe

CPU = torch.device("cpu")
Array = NDArray[Any]
State = dict[str, Tensor]

# What the published programs call our options' values.
_VALUES = {
    "avg_pool": "average",
    "avgpool": "average",
    "gau": "gbfs",
    "wavelet": "haar",
    "FSD": "fsd",
    "nld_s1": "nlayer_s1",
    "nld_s2": "nlayer_s2",
}
# The networks of the unofficial USR-DA that make up our players, by the module of ours.
_USRDA = {
    "g": {"": ("model_Enc", "model_Dec_Id", "model_Dec_SR")},
    "d": {"f": ("model_Disc_feat",), "t": ("model_Disc_img_LR",), "y": ("model_Disc_img_HR",)},
}
_DASR = {"g": {"": ("G",)}, "d": {"": ("D",)}}
_FIELDS = {
    "dsn": {"hr": "hr", "lr": "real_lr"},
    "srn": {"hr": "hr", "other": "other_hr", "real": "real_lr", "fake": "fake_lr", "w": "weight"},
    "usr": {"hr": "hr", "lr": "real_lr", "source_lr": "source_lr"},
}
# Where the two orders of USR-DA's updates differ, losses are tenths apart.
_OTHER_ORDER = 1e-3


class Unavailable(Exception):
    """A case cannot be compared here; the message is one line that names it and says why."""


@dataclass(frozen=True)
class Case:
    """A file: its name, its JSON, its arrays."""

    name: str
    meta: Mapping[str, Any]
    arrays: Mapping[str, Array]

    @classmethod
    def read(cls, path: str | Path) -> Case:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return cls(Path(path).stem, json.loads(str(arrays.pop("meta"))), arrays)

    @property
    def kind(self) -> str:
        """`dsn`, `srn`, `usr` or `maps`."""
        return "maps" if any(key.endswith("/map") for key in self.arrays) else self.meta["kind"][:3]

    @property
    def steps(self) -> int:
        """How many steps ran; a loss that is logged once an epoch is known of fewer."""
        probes = [len(probe) for probe in self.under("probe/").values()]
        return max(probes + [len(values) for values in self.meta.get("losses", {}).values()])

    def under(self, prefix: str) -> dict[str, Array]:
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def state(self, network: str) -> State:
        """A network's weights: made up, unless the file holds them."""
        told, raw = self.meta["weights"][network], self.under(f"raw/{network}/")
        shapes = {key: shape for key, shape in told["shapes"].items() if key not in raw}
        made = {key: recipe.weight(key, shape, told["gain"], told["seed"]) for key, shape in shapes.items()}
        return {key: torch.from_numpy(np.array(value)) for key, value in {**made, **raw}.items()}

    def numbered(self, network: str, first: int = 0) -> State:
        """The form of `state`, but every tensor is filled with a number of its own, from `first` on."""
        shapes = {key: value.shape for key, value in self.under(f"raw/{network}/").items()}
        shapes = {**self.meta["weights"][network]["shapes"], **shapes}
        return {key: torch.full(tuple(shape), float(n)) for n, (key, shape) in enumerate(shapes.items(), first)}

    def batches(self) -> list[State]:
        """The batch of every step."""
        given = {ours: f"batch/{theirs}" for theirs, ours in _FIELDS[self.kind].items()}
        fields = {ours: _tensor(self.arrays[key]) for ours, key in given.items() if key in self.arrays}
        return [
            dict(zip(fields, parts, strict=True))
            for parts in zip(*(value.chunk(self.steps) for value in fields.values()), strict=True)
        ]

    def config(self, load_preset: Callable[[str], Any], stage: str = "") -> Any:
        """The preset with the changes that the file names, as `{"dsn": {"batch": 4}}` or `{"dsn.batch": 4}`.

        A name that is none of the method's own options is one of the stage's, or of the stage's discriminator's.
        """
        options = dict(self.meta.get("options", {}))
        preset = load_preset(options.pop("preset", "official-aim"))
        mapping = to_mapping(preset)
        for path, value in _flat(options):
            for within in ([], [stage], [stage, "discriminator"]):
                *parents, last = [*within, *path]
                place: Any = mapping
                for name in parents:
                    place = place.get(name) if isinstance(place, dict) else None
                if isinstance(place, dict) and last in place:
                    place[last] = _VALUES.get(value, value) if isinstance(value, str) else value
                    break
            else:
                raise Unavailable(f"{self.name}: there is no option {'.'.join(path)}")
        return from_mapping(type(preset), mapping, self.name)


@dataclass
class Seen:
    """What the networks gave in one step."""

    made: list[Tensor] = field(default_factory=list)
    fake: dict[str, list[Tensor]] = field(default_factory=dict)
    real: dict[str, list[Tensor]] = field(default_factory=dict)

    def watch(self, generator: nn.Module, discriminators: Mapping[str, nn.Module]) -> None:
        generator.register_forward_hook(lambda module, given, output: self.made.append(output.detach()))
        for name, network in discriminators.items():
            network.register_forward_hook(partial(self._note, name))

    def _note(self, name: str, module: nn.Module, given: Sequence[Tensor], score: Tensor) -> None:
        # What the generator made has its graph.
        of = self.fake if given[0].requires_grad else self.real
        of.setdefault(name, []).append(score.detach())

    def clear(self) -> None:
        for each in (self.made, self.fake, self.real):
            each.clear()


# A step's losses under the names of the published programs, from its batch, its terms and what was seen.
Losses = Callable[[State, State, Seen], dict[str, Tensor | None]]


@dataclass(frozen=True)
class Subject:
    """Our step on the weights of a case."""

    step: DSNStep | SRNStep | USRDAStep
    players: Mapping[str, Mapping[str, Sequence[str]]]
    schedule: ScheduleConfig
    losses: Losses
    unused: tuple[str, ...] = ()
    """Fields of a case's batches that training would not read."""

    def module(self, player: str, name: str) -> nn.Module:
        whole = self.step.players.generator if player == "g" else self.step.players.discriminator
        return whole.get_submodule(name)


def compare(case: Case, **changes: Any) -> dict[str, float]:
    """The errors that the command prints; `changes` replace what the file's options say."""
    if case.kind == "maps":
        return _compare_maps(case)
    return _compare_steps(case, _build(case, changes))


def _build(case: Case, changes: Mapping[str, Any]) -> Subject:
    """The step as training builds it, on the weights and options of a case."""
    hr, lr = case.arrays["batch/hr"], case.arrays["batch/fake" if case.kind == "srn" else "batch/lr"]
    scale = hr.shape[1] // lr.shape[1]
    generator = load_weights(_content(case, next(iter(_players(case)["g"].values())), case.state))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_weights(generator, folder / "generator.pth")
        if case.kind == "usr":
            config = replace(case.config(usrda.load_preset), **generator.sizes, crop=hr.shape[1])
            config = replace(config, scale=scale, **changes)
            files = usrda_build.WeightFiles(generator=folder / "generator.pth", vgg=_vgg(config.perceptual, folder))
            subject = _of_usrda(usrda_build.build_step(config, files, CPU), config)
        else:
            config = replace(case.config(dasr.load_preset, case.kind), scale=scale, **changes)
            if case.kind == "dsn" and generator.scale != scale:  # the generator for bicubic input
                config = replace(config, dsn=replace(config.dsn, input="bicubic"))
            stage = getattr(config, case.kind)
            alex, lin = _lpips(stage.perceptual, folder, case.name)
            files = dasr_build.WeightFiles(vgg=_vgg(stage.perceptual, folder), lpips_alex=alex, lpips_lin=lin)
            files = replace(files, **{case.kind: folder / "generator.pth"})
            build = dasr_build.build_dsn_step if case.kind == "dsn" else dasr_build.build_srn_step
            subject = (_of_dsn if case.kind == "dsn" else _of_srn)(build(config, files, CPU), stage)
            subject = replace(subject, unused=() if config.weighted else ("weight",))
    for name, networks in subject.players["d"].items():
        subject.module("d", name).load_state_dict(load_weights(_content(case, networks, case.state)).state_dict())
    players = subject.step.players
    for network in (players.generator, players.discriminator, subject.step.features):
        if network is not None:
            network.double()
    return subject


def _players(case: Case) -> Mapping[str, Mapping[str, Sequence[str]]]:
    return _USRDA if case.kind == "usr" else _DASR


def _content(case: Case, networks: Sequence[str], state: Callable[[str], State]) -> Mapping[str, Any]:
    """Networks in the form of a published file."""
    return {name: state(name) for name in networks} if case.kind == "usr" else state(networks[0])


def _vgg(perceptual: Any, folder: Path) -> Path | None:
    return _made_up(VGG19Features(), "features.", folder / "vgg.pth") if perceptual.network == "vgg19" else None


def _lpips(perceptual: Any, folder: Path, name: str) -> tuple[Path | None, Path | None]:
    """AlexNet's weights, made up, and the linear heads of the package `lpips`."""
    if perceptual.network != "lpips":
        return None, None
    package = importlib.util.find_spec("lpips")
    if package is None or package.origin is None:
        raise Unavailable(f"{name} needs LPIPS's linear heads: pip install --no-deps lpips")
    lin = Path(package.origin).parent / "weights" / "v0.1" / "alex.pth"
    return _made_up(LPIPS(), "features.", folder / "alex.pth"), lin


def _made_up(network: nn.Module, prefix: str, path: Path) -> Path:
    shapes = {key: value.shape for key, value in network.state_dict().items() if key.startswith(prefix)}
    torch.save({key: torch.from_numpy(recipe.weight(key, shape, 1.0, 0)) for key, shape in shapes.items()}, path)
    return path


def _of_dsn(step: DSNStep, config: dasr.DSNConfig) -> Subject:
    def losses(batch: State, terms: State, seen: Seen) -> dict[str, Tensor | None]:
        (made,), (fake,), (real,) = seen.made, seen.fake[""], seen.real[""]
        given = bicubic(batch["hr"], 1 / step.scale).clamp(0, 1) if step.bicubic_input else batch["hr"]
        return {
            "loss/d_tex_loss": terms["discriminator"],
            "loss/perceptual_loss": terms.get("perceptual"),
            "loss/color_loss": terms["content"],
            "loss/g_tex_loss": terms["adversarial"],
            "loss/g_overall_loss": _total(step, terms),
            "loss/rgb_loss": (made.mean((2, 3)) - given.mean((2, 3))).abs().mean(),
            "loss/mean_loss": (made.mean((1, 2, 3)) - given.mean((1, 2, 3))).abs().mean(),
            "disc_score/real": real.sigmoid().mean(),
            "disc_score/fake": fake.sigmoid().mean(),
            "param/learning_rate": torch.tensor(step.players.optimizer_g.param_groups[0]["lr"]),
        }

    return Subject(step, _DASR, config.schedule, losses)


def _of_srn(step: SRNStep, config: dasr.SRNConfig) -> Subject:
    def losses(batch: State, terms: State, seen: Seen) -> dict[str, Tensor | None]:
        (fake,), (real,) = seen.fake[""], seen.real[""]
        # The program multiplies these two by their weight, logs them, and multiplies them once more.
        pixel = step.content**0.5 if "weight" in batch else 1.0
        target = step.adversarial**0.5 if step.gan.form == "relativistic" else 1.0
        found = {
            "loss/l_g_pix": pixel * terms["content"],
            "loss/l_g_LL_pix": terms.get("low_band"),
            "loss/l_g_fea": terms.get("perceptual"),
        }
        if step.domain_gap:
            return {
                **found,
                "loss/l_g_gan_target_Hf": target * terms["adversarial"],
                "loss/l_d_target_total": terms["discriminator"],
                "disc_Score/D_real_target_H": real.mean(),
                "disc_Score/D_fake_target_H": fake.mean(),
            }
        return {
            **found,
            "loss/l_g_gan_source_H": step.adversarial * terms["adversarial"],
            "loss/l_d_total": terms["discriminator"],
            "disc_Score/D_real_source_H": real.mean(),
            "disc_Score/D_fake_source_H": fake.mean(),
        }

    return Subject(step, _DASR, config.schedule, losses)


def _of_usrda(step: USRDAStep, config: usrda.USRDAConfig) -> Subject:
    def losses(batch: State, terms: State, seen: Seen) -> dict[str, Tensor | None]:
        half = 0.5 if step.halve else 1.0
        of_d = {name: half * terms[name] for name in ("d_f", "d_t", "d_y") if name in terms}
        # D_y sees y_ss first, then y_sts.
        fakes = dict(zip(("rec", "cyc"), seen.fake.get("y", ()), strict=False))
        of_y = {
            name: half * (squared_distance(fake, 0.0) + squared_distance(seen.real["y"][0], 1.0))
            for name, fake in fakes.items()
        }
        return {
            "L_align_E": terms.get("align"),
            "L_rec_G_SR": terms["rec"],
            "L_res_G_t": terms.get("res"),
            "L_sty_G_t": terms.get("sty"),
            "L_idt_G_t": terms.get("idt"),
            "L_cyc_G_t_G_SR": terms.get("cyc"),
            "loss_Disc_feat_align": of_d.get("d_f"),
            "loss_Disc_img_rec": of_y.get("rec"),
            "loss_Disc_img_sty": of_d.get("d_t"),
            "loss_Disc_img_cyc": of_y.get("cyc"),
            "loss_D_total": torch.stack(list(of_d.values())).sum() if of_d else None,
            "loss_G_total": _total(step.weights, terms),
        }

    return Subject(step, _USRDA, config.schedule, losses)


def _total(weights: object, terms: State) -> Tensor:
    """The generator's loss: the terms that have a weight, each multiplied by it."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items() if hasattr(weights, name)]).sum()


def _compare_steps(case: Case, subject: Subject) -> dict[str, float]:
    step, seen = subject.step, Seen()
    players = step.players
    seen.watch(players.generator, {name: subject.module("d", name) for name in subject.players["d"]})
    parameters = {player: _parameters(case, subject, player) for player in "gd"}
    start = {p: p.detach().clone() for player in "gd" for p in parameters[player].values()}
    pretrain = getattr(subject.schedule, "pretrain", 0)
    rates = Rates([players.optimizer_g, players.optimizer_d], subject.schedule.factor)
    errors: dict[str, list[float]] = {"losses": [], "g_grad": [], "d_grad": [], "g_moved": [], "d_moved": []}
    unknown = set()
    for number, given in enumerate(case.batches()):
        batch = {name: value for name, value in given.items() if name not in subject.unused}
        rates.set(pretrain + number)
        seen.clear()
        found = subject.losses(batch, step(batch), seen)
        for name, values in case.meta.get("losses", {}).items():
            ours = found.get(name)
            if ours is None:
                unknown.add(name)
            elif number < len(values):
                errors["losses"].append(_relative(abs(float(ours) - values[number]), abs(values[number])))
        for player in "gd":
            for what, error in _of_player(case, player, number, parameters[player], start).items():
                errors[f"{player}_{what}"].append(error)
    for name in sorted(unknown):
        print(f"{case.name}: not compared: {name}")
    for name in (name for name, found in errors.items() if not found):
        print(f"{case.name}: the file holds nothing to compare {name} with")
    return {name: float(np.max(found, initial=0.0)) for name, found in errors.items()}


def _parameters(case: Case, subject: Subject, player: str) -> dict[str, nn.Parameter]:
    """A player's parameters by their published names, found by loading numbers instead of weights."""
    found: dict[str, nn.Parameter] = {}
    for module, networks in subject.players[player].items():
        names: list[str] = []
        numbered = {}
        for network in networks:
            numbered[network] = case.numbered(network, len(names))
            names += [f"{network}.{key}" if case.kind == "usr" else key for key in numbered[network]]
        places = load_weights(_content(case, networks, numbered.__getitem__)).state_dict()
        for ours, parameter in subject.module(player, module).named_parameters():
            found[names[int(places[ours].flatten()[0])]] = parameter
    return found


def _of_player(
    case: Case, player: str, number: int, parameters: Mapping[str, nn.Parameter], start: Mapping[nn.Parameter, Tensor]
) -> dict[str, float]:
    """Largest errors of a player's gradients (`grad`) and of how far its weights have moved (`moved`), in one step."""
    ours: dict[str, dict[str, Array]] = {"grad": {}, "moved": {}}
    for name, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        ours["grad"][name] = gradient.numpy()
        ours["moved"][name] = (parameter.detach() - start[parameter]).numpy()
    norms = {what: float(np.linalg.norm([np.linalg.norm(x) for x in values.values()])) for what, values in ours.items()}
    found: dict[str, list[float]] = {}
    if f"probe/{player}" in case.arrays:
        names, probe = case.meta[f"names_{player}"], case.arrays[f"probe/{player}"][number]
        told = {"grad": probe[:, :2], "moved": probe[:, 2:]}
        norms = {what: float(np.linalg.norm(each[:, 0])) for what, each in told.items()}
        ours_of = {name: _projected(name, [values.get(name) for values in ours.values()]) for name in names}
        for k, what in enumerate(told):
            errors = np.abs([ours_of[name][k] for name in names] - told[what])
            found[what] = [_relative(float(np.max(errors)), norms[what])]
    for name, whole in case.under(f"grad/{player}/{number}/").items():
        # Less what rounding to the type that the file keeps it in can explain.
        error = np.maximum(np.abs(ours["grad"][name] - whole) - np.spacing(np.abs(whole)) / 2, 0)
        found.setdefault("grad", []).append(_relative(float(np.linalg.norm(error)), norms["grad"]))
    return {what: float(np.max(errors)) for what, errors in found.items()}


def _projected(name: str, values: Sequence[Array | None]) -> list[tuple[float, float]]:
    """(norm, part along the probe's direction) of each; 0 for a parameter that we do not have: a frozen filter's."""
    if values[0] is None:
        return [(0.0, 0.0) for _ in values]
    direction = recipe.probe(name, values[0].shape)
    return [(float(np.linalg.norm(value)), float(np.vdot(value, direction))) for value in values]


def _relative(error: float, size: float) -> float:
    return error / size if size else (float("inf") if error else 0.0)


def _compare_maps(case: Case) -> dict[str, float]:
    """LR pictures and distance maps of whole pictures, made as stage maps makes them, before anything is rounded."""
    config = case.config(dasr.load_preset, "dsn")
    generator = load_weights(case.state("G")).double()
    # Strides leave no trace in weights.
    told = json.dumps({name: value for name, value in case.meta.items() if name != "weights"})
    published = {
        "models_d_state_dict": case.state("D"),
        "D_type": "nld_s1" if re.search("(nld|nlayer)_s1", told) else None,
    }
    judge = load_weights(published, part="discriminator").double()
    view = case.meta.get("view", config.dsn.discriminator.frequency)
    options = replace(
        config.dsn.discriminator, frequency=_VALUES.get(view, view), frequency_kernel=judge.frequency_kernel
    )
    if judge.kind != "fsd":  # whose last layer alone is declared larger than it is
        config = replace(config, maps=replace(config.maps, box=0))
    distance = DistanceMap(judge.eval(), dasr_build.build_filter(options), config.maps)
    maps, places = [], []
    for picture in sorted({key.split("/")[0] for key in case.arrays if key.endswith("/hr")}):
        hr = _tensor(cut_to(case.arrays[f"{picture}/hr"], generator.scale)[None])[0]
        with torch.inference_mode():
            lr, weight = make_pair(generator.eval(), distance, hr)
        assert weight is not None
        wanted, truncated = case.arrays[f"{picture}/map"].squeeze(), case.arrays[f"{picture}/lr_truncated"]
        if weight.shape != wanted.shape or lr.shape[1:] != truncated.shape[:2]:
            maps.append(float("inf"))
            places.append(1.0)
            continue
        maps.append(float(np.abs(weight.numpy() - wanted).max() / np.abs(wanted).max()))
        places.append(float(((255 * lr.clamp(0, 1)).byte().permute(1, 2, 0).numpy() != truncated).mean()))
    return {"map": float(np.max(maps)), "lr": float(np.max(places))}


def _in_either_order(case: Case) -> dict[str, float]:
    """`compare` in the order of updates that ran, which a file's title tells in words and its losses for certain."""
    behind = any(word in case.meta.get("title", "") for word in ("behind", "held back"))
    found = []
    for first in (not behind, behind):
        errors = compare(case, discriminator_first=first)
        order = "D's step came first" if first else "D's step was held back"
        found.append((errors["losses"], order, errors))
        if errors["losses"] < _OTHER_ORDER:
            break
    _, order, errors = min(found, key=lambda each: each[0])
    print(f"{case.name}: {order}")
    return errors


def _flat(options: Mapping[str, Any], parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every option's path and value; strings are read as YAML is."""
    for name, value in options.items():
        path = (*parents, *name.lstrip("-").replace("-", "_").split("."))
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        else:
            yield path, yaml.safe_load(value) if isinstance(value, str) else value


def _tensor(array: Array) -> Tensor:
    """uint8 pictures (N, H, W, C) as (N, C, H, W) in [0, 1]; floats as they are."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array).permute(0, 3, 1, 2).double() / 255
    return torch.from_numpy(array).double()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.models.published_steps", description=__doc__)
    parser.add_argument("case", type=Path, help="an .npz file")
    case = Case.read(parser.parse_args(arguments).case)
    try:
        errors = _in_either_order(case) if case.kind == "usr" else compare(case)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(errors))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
