"""Where clean samples come from: one kind of set a file, one line each here."""

from typing import Annotated

from pointillist.data.archive import ZipConfig
from pointillist.data.cifar10 import CIFAR10Config
from pointillist.data.emoji import EmojiConfig
from pointillist.data.field import FieldConfig
from pointillist.data.folder import FolderConfig
from pointillist.data.latent import LatentConfig
from pointillist.types import by_kind

Data = Annotated[
    EmojiConfig | CIFAR10Config | FolderConfig | ZipConfig | FieldConfig | LatentConfig, by_kind
]

KNOWN = {
    "emoji": "3,786 captioned emoji inside the package, 32 or 64 pixels, by category",
    "cifar10": "CIFAR-10 in its published binary form, 32 pixels, 10 classes",
    "folder": "your own pictures: class = sub-folder, caption = .txt beside or metadata.*",
    "zip": "pictures in a zip file with dataset.json (EDM's form), as `data pack` writes it",
    "field": "a measured field in a .npz file, its coordinates beside it, in 1 to 3 axes",
    "latent": "latents of a set of pictures by a frozen autoencoder, encoded once and kept",
}
