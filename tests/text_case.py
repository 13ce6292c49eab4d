"""Small text encoders of random weights, of the real classes, and a network that reads captions."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pointillist.types import Prediction, Takes, config

WIDTH, EOS = 16, 3
# The tokens that each kind adds to a caption.
TEMPLATES = {
    "qwen3": "$A", "gemma2": "<bos> $A", "t5": "$A <eos>", "clip": "<bos> $A <eos>",
    "bert": "<bos> $A <eos>",
}  # fmt: skip


def tokenizer(folder: Path, template: str) -> None:
    """One token a byte, and those of the template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<unk>", "<eos>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*special, *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if template != "$A":
        made.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(word, vocabulary[word]) for word in special]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def encoder(folder: Path, kind: str, seed: int = 0, **more: Any) -> Path:
    """A model of that kind as `save_pretrained` writes it, with its tokenizer."""
    import transformers as hf

    torch.manual_seed(seed)
    d = more.pop("width", WIDTH)
    ids = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS}
    decoder = {"hidden_size": d, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8,
               "num_attention_heads": 2, "num_key_value_heads": 1, **ids}  # fmt: skip
    tower = {"hidden_size": d, "intermediate_size": 24, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    made: Any = None
    if kind == "qwen3":
        made = hf.Qwen3Model(hf.Qwen3Config(**decoder, **more))
    elif kind == "gemma2":
        made = hf.Gemma2Model(hf.Gemma2Config(**decoder, **more))
    elif kind == "t5":
        made = hf.T5EncoderModel(
            hf.T5Config(d_model=d, d_kv=8, d_ff=24, num_layers=2, num_heads=2, **ids, **more)
        )
    elif kind == "clip":
        made = hf.CLIPTextModel(
            hf.CLIPTextConfig(**tower, max_position_embeddings=77, **ids, **more)
        )
    elif kind == "bert":
        made = hf.BertModel(hf.BertConfig(**tower, **ids, **more))
    made.save_pretrained(folder)
    tokenizer(folder, TEMPLATES[kind])
    return folder


@config
class ReaderConfig:
    """A network that answers with a colour for every caption, and little else."""

    kind: Literal["reader"] = "reader"

    def build(self, spec: Any) -> nn.Module:
        return ReadingModel(self, spec)


class ReadingModel(nn.Module):
    takes = Takes(axes=(1, 2, 3), text=True)

    def __init__(self, config: ReaderConfig, spec: Any) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.tokens = nn.Linear(spec.words.width, spec.channels)
        self.pooled = nn.Linear(spec.words.width, spec.channels)
        self.state = nn.Linear(spec.channels + 1, spec.channels)

    def condition(self, given: Any, size: Any) -> Any:
        mask = given.text_mask[:, :, None].float()
        mean = (self.tokens(given.text) * mask).sum(1) / mask.sum(1)
        return mean + self.pooled(given.pooled)

    def forward(self, xt: Any, t: Any, given: Any, context: Any = None) -> Prediction:
        context = self.condition(given, xt.shape[2:]) if context is None else context
        time = t.view(-1, 1, 1, 1).expand_as(xt[:, :1])
        own = self.state(torch.cat((xt, time), 1).movedim(1, -1)).movedim(-1, 1)
        return Prediction(own + context[:, :, None, None])
