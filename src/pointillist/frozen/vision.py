"""Teachers: frozen networks that turn pictures into tokens, all behind one signature.

    teacher(x, grid)        x: b 3 h w in [-1, 1]   ->   b d gh gw on the grid asked for

Each resizes (bicubic, without aliasing, not cut: a non-square picture stays non-square) to the size
at which it has that grid, and normalises as it was trained:

    alexnet         16 g + 15 pixels for g tokens; LPIPS's shift and scale; the fifth layer, d = 256
    a ViT           p g pixels for g tokens of patch p; mean and deviation of its own
                    preprocessor_config.json, or its kind's where that is known;
                    its `last_hidden_state` (CLIP's alone is that before its last norm) without
                    the class and register tokens that it begins with

AlexNet pads its first layers unevenly: its token k is centred on pixel 16 k + 15 of 16 g + 15,
which is up to .47 of a cell off its place, towards the far borders.

A ViT is any of `transformers` (DINOv2, DINOv3, ViT, DeiT, I-JEPA, CLIP, SigLIP, ...), by folder or
hub id, that answers a picture with one token a patch, which it is asked for when it is loaded. Only
safetensors are opened, and no code that comes with a model is run.
"""

import functools
import importlib
import inspect
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pointillist.frozen.alexnet import CONVOLUTIONS, SHIPPED_SHA256, WIDTHS, shipped
from pointillist.frozen.pretrained import digest, expanded, may_be_hub_id, told, version
from pointillist.types import InputError

Grid = tuple[int, int]
INSTALL = "pip install 'pointillist[teachers]'"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# Mean and deviation of the kinds that are often stored without a preprocessor's file. There is no
# "vit" among them: Google's have 1/2, and the first DINO, of the same kind, ImageNet's.
NORMALISATIONS = {
    "dinov2": IMAGENET, "dinov2_with_registers": IMAGENET, "dinov3_vit": IMAGENET,
    "siglip_vision_model": HALF, "clip_vision_model": CLIP,
}  # fmt: skip
PREPROCESSOR = "preprocessor_config.json"
# Weights that no token passes: a file may lack them.
UNUSED = {"pooler", "head", "mask_token"}


@runtime_checkable
class Teacher(Protocol):
    """A frozen network: its width d, the step of its tokens in pixels that it sees, and a digest
    of all that its answers come from.
    """

    width: int
    patch: int
    digest: str

    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]: ...


class Promise(NamedTuple):
    """What a teacher will be, told without opening its weights."""

    width: int
    parameters: int


def resized(x: Float[Tensor, "b 3 h w"], size: Grid) -> Float[Tensor, "b 3 h2 w2"]:
    """Bicubic, with a wider kernel where the picture shrinks."""
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x.float(), size, mode="bicubic", align_corners=False, antialias=True)


class AlexNet:
    """The features behind LPIPS as a teacher; the one whose weights come with the package."""

    width, patch, digest = WIDTHS[-1], 16, SHIPPED_SHA256[:32]

    def __init__(self, device: torch.device) -> None:
        self.features = shipped(device).features

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]:
        return self.features(resized(x, (16 * grid[0] + 15, 16 * grid[1] + 15)))[-1]


class VisionTransformer:
    """A ViT of `transformers`, by folder or hub id."""

    def __init__(self, name: str, device: torch.device) -> None:
        transformers, name = _transformers(), expanded(name)
        config = _vision_config(name)
        self.width, self.patch = _width(name, config), _patch(name, config)
        (mean, deviation), self.name = _normalisation(name, config), name
        self.mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self.deviation = torch.tensor(deviation, device=device).view(3, 1, 1)
        transformers.utils.logging.disable_progress_bar()
        with _told(name):
            model, found = transformers.AutoModel.from_pretrained(
                name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        # Two-tower models keep their eyes in a part of their own.
        model = getattr(model, "vision_model", model)
        ours = dict(model.named_parameters())
        for key in sorted(found["missing_keys"]):
            bare = key.removeprefix("vision_model.")
            if bare in ours and not UNUSED & set(bare.split(".")):
                raise InputError(
                    f"loss.align.teacher {name} lacks the weight {key}, which would be filled with "
                    f"random numbers; give the whole model as save_pretrained wrote it"
                )
        self.digest = _digest(model, self.mean, self.deviation)
        self.model = model.to(device).eval().requires_grad_(False)
        # Learnt places of one grid are interpolated to others where the model is asked to.
        asks = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.options = {"interpolate_pos_encoding": True} if asks else {}
        self.extra = self._extra(device)

    def _extra(self, device: torch.device) -> int:
        """How many tokens stand before those of the patches: two grids are tried."""
        found = []
        for grid in ((2, 3), (3, 4)):
            with _told(self.name):
                tokens = self._tokens(torch.zeros(1, 3, *grid, device=device), grid)
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else None
            if shape is None or len(shape) != 3 or shape[2] != self.width:
                raise InputError(
                    f"loss.align.teacher {self.name} answers a picture of {grid[0]} x {grid[1]} "
                    f"patches with shape {shape}, which are no tokens of width {self.width}; "
                    f"choose another ViT"
                )
            found.append(shape[1] - math.prod(grid))
        if found[0] != found[1] or found[0] < 0:
            raise InputError(
                f"loss.align.teacher {self.name} answers 6 and 12 patches with {found[0] + 6} and "
                f"{found[1] + 12} tokens, which is not one a patch; choose another ViT"
            )
        return found[0]

    def _tokens(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Any:
        x = resized(x, (grid[0] * self.patch, grid[1] * self.patch))
        x = (x * 0.5 + 0.5 - self.mean) / self.deviation
        return self.model(pixel_values=x, **self.options).last_hidden_state

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "b 3 h w"], grid: Grid) -> Float[Tensor, "b d gh gw"]:
        return self._tokens(x, grid)[:, self.extra :].mT.unflatten(2, grid)


def _digest(model: torch.nn.Module, *more: Tensor) -> str:
    """Of every weight that is used, and of what the pictures are normalised with."""
    named = [*sorted(model.state_dict().items()), *(("", value) for value in more)]
    return digest("", ((name, v) for name, v in named if not UNUSED & set(name.split("."))))


def load_teacher(name: str, device: torch.device) -> Teacher:
    """`alexnet`, or a ViT by folder or hub id; InputError where it is not to be had or does not
    answer a picture with one token a patch.
    """
    return AlexNet(device) if name == "alexnet" else VisionTransformer(name, device)


def promise(name: str) -> Promise:
    """Width and number of parameters; InputError where there is no such teacher."""
    if name == "alexnet":
        parameters = sum(o * (i * kernel**2 + 1) for i, o, kernel, *_ in CONVOLUTIONS)
        return Promise(WIDTHS[-1], parameters)
    name = expanded(name)
    return _promise(name, version(name))


@functools.cache
def _promise(name: str, files: tuple[tuple[str, int], ...]) -> Promise:
    transformers, config = _transformers(), _vision_config(name)
    _patch(name, config)
    _normalisation(name, config)
    if Path(name).is_dir() and not list(Path(name).glob("*.safetensors")):
        raise InputError(
            f"loss.align.teacher {name} holds no .safetensors; give a folder that save_pretrained "
            f"wrote"
        )
    with _told(name), torch.device("meta"):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    return Promise(_width(name, config), sum(p.numel() for p in model.parameters()))


# What transformers says, in our words.


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"loss.align.teacher other than alexnet needs transformers, which is not installed; "
            f"{INSTALL} installs it"
        ) from None


def _told(name: str) -> told:
    return told(
        f"loss.align.teacher {name}",
        "give alexnet, the folder of a ViT that save_pretrained wrote, or a hub id that can be "
        "reached",
    )


def _vision_config(name: str) -> Any:
    if not may_be_hub_id(name) and not (name and Path(name).is_dir()):
        raise InputError(
            f"loss.align.teacher is {name!r}, which is neither alexnet, a folder, nor a hub id; "
            f"give one of them"
        )
    with _told(name):
        config = _transformers().AutoConfig.from_pretrained(name, trust_remote_code=False)
    return getattr(config, "vision_config", config)


def _patch(name: str, config: Any) -> int:
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or not isinstance(getattr(config, "hidden_size", None), int):
        raise InputError(
            f"loss.align.teacher {name} is a {config.model_type}, which has no square patches; "
            f"choose a ViT"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise InputError(
            f"loss.align.teacher {name} looks at {config.num_channels} channels; choose one of 3"
        )
    return patch


def _width(name: str, config: Any) -> int:
    _patch(name, config)
    return config.hidden_size


def _preprocessor(name: str) -> Path | None:
    """The file that says how pictures are normalised; None where the model comes without."""
    if Path(name).is_dir():
        path = Path(name) / PREPROCESSOR
        return path if path.is_file() else None
    hub = importlib.import_module("huggingface_hub")
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return Path(hub.hf_hub_download(name, PREPROCESSOR))
    except errors.LocalEntryNotFoundError:
        # Off line. The cache may know that there is none; that it knows nothing is no answer.
        if hub.try_to_load_from_cache(name, PREPROCESSOR) is None:
            raise
        return None
    except errors.EntryNotFoundError:
        return None


def _three_numbers(value: Any, positive: bool) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
        and all(math.isfinite(v) and (v > 0 or not positive) for v in value)
    )


def _normalisation(name: str, config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    with _told(name):
        path = _preprocessor(name)
        facts = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(facts, dict):
        raise InputError(
            f"{path} of loss.align.teacher {name} holds a {type(facts).__name__}; it must hold "
            f"image_mean and image_std by name"
        )
    if "image_mean" in facts and "image_std" in facts:
        if not facts.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        for field in ("image_mean", "image_std"):
            if not _three_numbers(facts[field], positive=field == "image_std"):
                above = " above 0" if field == "image_std" else ""
                raise InputError(
                    f"{path}: {field} is {facts[field]!r}; loss.align.teacher takes three finite "
                    f"numbers{above}"
                )
        return tuple(facts["image_mean"]), tuple(facts["image_std"])
    if config.model_type not in NORMALISATIONS:
        raise InputError(
            f"loss.align.teacher {name} has no {PREPROCESSOR}, and how a "
            f"{config.model_type} normalises is not known; put one with image_mean and image_std "
            f"beside its config.json"
        )
    return NORMALISATIONS[config.model_type]
