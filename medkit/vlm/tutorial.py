"""A small image-text model that learns in half a minute on a core: LLaVA with a conv stem for eyes.

A picture of 64 x 64 becomes 16 tokens by four convolutions with stride 2 (BatchNorm, GELU), then an
MLP leads them to a Llama of two layers. It is an ordinary Hugging Face model otherwise, so packing,
adapters, generation and groups go through the same code as a real one's.

Of what was tried: without a norm in the stem it never leaves chance; with ReLU it reads all fields
but the density; a Q-Former of eight queries stays blind for 1,200 steps while its JSON is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medkit.data.pictures import read_picture
from medkit.vlm.extra import require

_hf = require("transformers")

SPECIAL = ("<pad>", "<bos>", "<eos>", "<image>", "<user>", "<assistant>", "<system>")
TOKENS_PER_IMAGE = 16
_SIDE = 64
_TEMPLATE = (
    "<bos>{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class ConvStemConfig(_hf.PretrainedConfig):  # type: ignore[name-defined]
    """Settings of :class:`ConvStem`.

    Args:
        channels: Of the convolutions; the last is the width of a token.
        image_size: Pixels along a side.
        **kwargs: Hugging Face's own.
    """

    model_type = "medkit_conv_stem"

    def __init__(
        self, channels: Sequence[int] = (16, 32, 64, 128), image_size: int = _SIDE, **kwargs: Any
    ) -> None:
        self.channels = list(channels)
        self.hidden_size = self.channels[-1]
        self.image_size = image_size
        self.patch_size = 2 ** len(self.channels)
        super().__init__(**kwargs)


class ConvStem(_hf.PreTrainedModel):  # type: ignore[name-defined]
    """Convolutions with stride 2: ``(B, 1, H, W)`` to a token for each 16 x 16 pixels."""

    config_class = ConvStemConfig
    main_input_name = "pixel_values"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # it has no attention

    def __init__(self, config: ConvStemConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        before = 1
        for after in config.channels:
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.GELU()]
            before = after
        self.layers = nn.Sequential(*layers)
        tokens = (config.image_size // config.patch_size) ** 2
        self.place = nn.Parameter(0.02 * torch.randn(tokens, config.hidden_size))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave torch's own initial weights."""

    def forward(self, pixel_values: Tensor, **_: Any) -> Any:
        """Return tokens, ``(B, tokens, width)``, as Hugging Face's outputs."""
        tokens = self.layers(pixel_values).flatten(2).transpose(1, 2) + self.place
        return _hf.modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=tokens, hidden_states=(tokens,)
        )


_hf.AutoConfig.register(ConvStemConfig.model_type, ConvStemConfig)
_hf.AutoModel.register(ConvStemConfig, ConvStem)


def tutorial_model(
    *, vocabulary: int, hidden: int = 128, layers: int = 2, longest: int = 256
) -> nn.Module:
    """Return the model with fresh weights: 0.5 million, most of them in the language model.

    Args:
        vocabulary: Tokens of :func:`tutorial_tokenizer`.
        hidden: Width.
        layers: Of the language model.
        longest: Tokens of a conversation, pictures among them.
    """
    text = _hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=8 * (hidden // 3),
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=longest,
        **{f"{name}_token_id": SPECIAL.index(f"<{name}>") for name in ("pad", "bos", "eos")},
        tie_word_embeddings=False,
    )
    config = _hf.LlavaConfig(
        vision_config=ConvStemConfig((hidden // 8, hidden // 4, hidden // 2, hidden)),
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=TOKENS_PER_IMAGE,
    )
    model: nn.Module = _hf.LlavaForConditionalGeneration(config)
    return model


def tutorial_tokenizer(texts: Iterable[str], *, pieces: Sequence[str] = (), size: int = 400) -> Any:
    """Return a tokenizer trained on texts, with a chat template, offline and in a moment.

    Args:
        texts: Such as the training rows' answers.
        pieces: Each becomes one token (:meth:`ReportSchema.pieces`).
        size: Tokens at most, besides the pieces.
    """
    of = require("tokenizers")
    whole = of.Tokenizer(of.models.BPE())
    whole.pre_tokenizer = of.pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = of.decoders.ByteLevel()
    trainer = of.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(of.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    whole.train_from_iterator(texts, trainer)
    whole.add_tokens([of.AddedToken(piece, normalized=False) for piece in pieces])
    special = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos")}
    tokenizer = _hf.PreTrainedTokenizerFast(tokenizer_object=whole, **special)
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def tutorial_pictures(files: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Return pictures for :class:`~medkit.data.chat.ChatEncoder`: ``(K, 1, 64, 64)``.

    Raises:
        ValueError: For a picture of another size.
    """
    pictures = [read_picture(file) for file in files]
    for file, one in zip(files, pictures, strict=True):
        if one.shape != (_SIDE, _SIDE):
            raise ValueError(
                f"the tutorial model sees pictures of {_SIDE} x {_SIDE} pixels; {file} has "
                f"{one.shape}. Resample it, or take a model with an image processor of its own."
            )
    pixels = torch.from_numpy(np.stack(pictures))[:, None]
    return {"pixel_values": pixels}, ["<image>" * TOKENS_PER_IMAGE] * len(files)
