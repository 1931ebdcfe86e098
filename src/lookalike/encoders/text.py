"""Words for encoders that read photos only: a sentence encoder over titles and attributes, beside the photo's vector.

Reimers and Gurevych 2019 (https://arxiv.org/abs/1908.10084), by sentence-transformers (extra ``torch``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from lookalike.encoders.base import Encoder, Vectors, photo_dim
from lookalike.encoders.torch import WEIGHTS, Place, digest_of, extra
from lookalike.errors import InputError, UsageError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
FILES = (
    "modules.json", "config.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
)  # fmt: skip
"""What the hub has of it beside the weights, in the formats that are read here."""
PARTS = ("Transformer", "Pooling", "Normalize")
"""What a model may be made of: only the first has weights, which are read as safetensors."""


def by_name(name: str, threads: int = 0) -> TextBeside:
    """``minilm+NAME``, or ``minilm@DIR+NAME`` with the model in a directory, as the hub has it.

    Raises:
        UsageError: NAME is no encoder, or one that sets words beside its photos already; the extra is missing.
        InputError: the model is not there, cannot be fetched or read.
    """
    from lookalike import encoders

    if name.startswith("minilm+"):
        source, photo = "", name.removeprefix("minilm+")
    else:
        pieces = name.removeprefix("minilm@").split("+")
        parts = [("+".join(pieces[:n]), "+".join(pieces[n:])) for n in range(1, len(pieces))]
        if not parts:
            raise UsageError(
                f"{name}: which encoder for the photos? Write it as minilm@DIR+NAME, for example +resnet50"
            )
        source, photo = next((p for p in parts if Path(p[0]).is_dir()), parts[0])
    return TextBeside(encoders.load(photo, threads), Sentences(source, photo))


class TextNet(nn.Module):
    """Word pieces int64 (n, length), 0 where padded → unit vectors (n, dim): what is exported."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Unit vectors (n, dim)."""
        out: dict[str, Tensor] = self.model({"input_ids": ids, "attention_mask": (ids != 0).long()})
        return F.normalize(out["sentence_embedding"].float(), dim=-1)


class Sentences:
    """A sentence-transformers model; ``tokenizer`` cuts and pads as the model wants it. Safe to call from several threads."""

    def __init__(self, source: str = "", photo: str = "NAME"):
        """Load the model.

        Args:
            source: its directory; by default it comes from the hub.
            photo: the encoder that it goes beside, for messages.

        Raises:
            UsageError: the extra is missing.
            InputError: it is not there, cannot be fetched, is no such model or no safetensors.
        """
        if source and not Path(source).is_dir():
            raise InputError(f"{source}: no such directory; give one that holds {MINILM} as the hub has it")
        self.directory = str(Path(source).resolve()) if source else ""
        place = Place(source or f"hf-hub:{MINILM}", f"minilm@/path/to/the/directory+{photo}")
        weights = place.get(WEIGHTS)
        for file in FILES if not source else ():
            place.get(file)
        self.source = MINILM + (f"@{place.source['revision']}" if "revision" in place.source else "")
        models = extra("sentence_transformers")
        extra("transformers").utils.logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            _must_be_plain(weights.parent / "modules.json")
            model = models.SentenceTransformer(
                str(weights.parent),
                device=str(self.device),
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
            self.tokenizer: Any = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
            self.max_tokens = int(model.max_seq_length)
            self.tokenizer.enable_truncation(self.max_tokens)
            self.tokenizer.enable_padding(pad_id=0, pad_token=model.tokenizer.pad_token)
            if model.tokenizer.pad_token_id != 0:
                raise ValueError(f"pads with word piece {model.tokenizer.pad_token_id}, not with 0 as BERT does")
            self.net = TextNet(model).eval().requires_grad_(False)
            self.dim = int(self.net(torch.ones(1, 3, dtype=torch.long, device=self.device)).shape[1])
        except InputError:
            raise
        except Exception as error:  # transformers, tokenizers and safetensors raise bare ones
            why = str(error).split("\n")[0][:200]
            raise InputError(f"{weights.parent}: not {MINILM}, nor a model like it ({why}); fetch it again") from error
        parts = [digest_of(weights), sorted(self.tokenizer.get_vocab().items()), self.max_tokens]
        self.digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Texts → (n, dim)."""
        # What is cut off anyway need not be tokenized.
        ids = [e.ids for e in self.tokenizer.encode_batch([t[:2000] for t in texts])]
        with torch.inference_mode():
            out: Vectors = self.net(torch.tensor(ids, device=self.device)).cpu().numpy()
        return out


def _must_be_plain(file: Path) -> None:
    """Raise InputError where a model has a part whose weights could be pickled, or that runs code of its own."""
    for kind in (str(part["type"]) for part in json.loads(file.read_text("utf-8"))):
        if kind.partition(".")[0] != "sentence_transformers" or kind.rpartition(".")[2] not in PARTS:
            raise InputError(
                f"{file}: has a part {kind}; models of {', '.join(PARTS)} alone are read: others can run code"
            )


class TextBeside:
    """A photo encoder whose catalogs hold the vector of the product's words beside that of the photo."""

    reads_text = True

    def __init__(self, photo: Encoder, text: Sentences):
        """Both together.

        Raises:
            UsageError: ``photo`` sets words beside its photos already.
        """
        if photo_dim(photo) < photo.dim:
            raise UsageError(f"{photo.name}: has titles beside its photos already; use it without minilm")
        self.photo, self.text = photo, text
        at = f"@{text.directory}" if text.directory else ""
        self.name = f"minilm{at}+{photo.name}"
        self.id = f"minilm-{text.digest}+{photo.id}"
        self.photo_dim, self.dim = photo.dim, photo.dim + text.dim
        self.size = photo.size
        self.source = {**getattr(photo, "source", {}), "text": text.source}

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``."""
        return self.photo.prepare(image)

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``: the photo encoder's vectors, and zeros."""
        return np.pad(self.photo.encode_photos(pixels), ((0, 0), (0, self.text.dim)))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """As ``Encoder.encode_texts``: zeros, and the sentence encoder's vectors."""
        return np.pad(self.text.encode(texts), ((0, 0), (self.photo_dim, 0)))

    def knows(self, word: str) -> bool:
        """Whether the vocabulary has the word whole."""
        return int(sum(self.text.tokenizer.encode(word, add_special_tokens=False).attention_mask)) == 1
