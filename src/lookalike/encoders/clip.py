"""Encoders of photos and texts in one space, run by open_clip: CLIP, SigLIP and their kin (Radford et al. 2021,
https://arxiv.org/abs/2103.00020; Zhai et al. 2023, https://arxiv.org/abs/2303.15343).

A name is one of ``NAMES``, open_clip's own (``ViT-B-32``, ``ViT-B-32:laion2b_s34b_b79k`` with the tag of its weights),
``hf-hub:owner/name``, a directory as open_clip's hub has them (open_clip_config.json) or as transformers saves a ``CLIPModel``,
or NAME@PATH. Tokenizers are the tokenizers library's throughout, so that what is exported reads texts as torch did.
"""

from __future__ import annotations

import copy
import json
import unicodedata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from lookalike.encoders.torch import NAMES as TIMM
from lookalike.encoders.torch import Backbone, Place, Preprocess, digest_of, extra, fill, read_weights, safetensors_at
from lookalike.errors import InputError, UsageError

NAMES = {
    "clip-vit-b-32": ("timm/vit_base_patch32_clip_224.openai", "ViT-B-32-quickgelu", "MIT"),
    "fashion-clip": ("patrickjohncyh/fashion-clip", "", "MIT"),
    "fashion-siglip": ("Marqo/marqo-fashionSigLIP", "ViT-B-16-SigLIP", "Apache-2.0"),
    "marqo-fashion-clip": ("Marqo/marqo-fashionCLIP", "ViT-B-16", "Apache-2.0"),
}
"""Name → repository on the hub, open_clip's architecture ("" where the repository's config.json says it), licence."""

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")

_TRANSFORMERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""Parts of transformers' names → open_clip's."""


class TextNet(nn.Module):
    """Token ids int64 (n, length) → unit vectors (n, dim), as it is exported. ``model`` is open_clip's, both towers."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """As the class says."""
        read: Any = self.model.encode_text
        out: Tensor = nn.functional.normalize(read(ids).float(), dim=-1)
        return out


def is_clip(name: str) -> bool:
    """Whether this module, and not timm, knows what ``name`` is. Asks the hub for ids of it. Raises as ``backbone``."""
    if name.startswith("hf-hub:") or Path(name).is_dir():
        place = Place(name)
        return place.find(CONFIG) is not None or _is_transformers(place.get("config.json"))
    called = name.rpartition("@")[0] or name
    if called in NAMES:
        return True
    if called in TIMM or extra("timm").is_model(called.partition(".")[0]):
        return False
    return called.partition(":")[0] in extra("open_clip").list_models()


def backbone(name: str, size: tuple[int, int] | None = None) -> Backbone:
    """The two towers of this name: the photo's as ``net``, the text's as ``text``, with its tokenizer.

    Args:
        name: see the module's docstring.
        size: (height, width) of the photos, where they should not be as it was trained.

    Raises:
        UsageError: an extra is missing, or a tokenizer does what cannot be exported.
        InputError: files are missing or damaged, of another model or no safetensors, or cannot be fetched.
    """
    open_clip = extra("open_clip")
    called, at, path = ("", "", "") if name.startswith("hf-hub:") else name.rpartition("@")
    called = called if at else name
    architecture, licence, preprocess = "", "", {}
    if Path(name).is_dir() or name.startswith("hf-hub:"):
        place = Place(name)
        label = name.removeprefix("hf-hub:").partition("@")[0].rstrip("/").rpartition("/")[2]
    else:
        label = called.replace(":", "-")
        if called in NAMES:
            hub, architecture, licence = NAMES[called]
            tag = ""
        else:
            architecture, _, tag = called.partition(":")
            hub = ""
        tags = open_clip.list_pretrained_tags_by_model(architecture) if architecture else []
        if tag and tag not in tags:
            raise UsageError(f"{name}: {architecture} has no weights {tag!r}; there are {', '.join(tags) or 'none'}")
        known = open_clip.get_pretrained_cfg(architecture, tag or tags[0]) if tags else {}
        preprocess = {key: known[key] for key in ("mean", "std", "interpolation", "resize_mode") if known.get(key)}
        if at:
            local = Path(path).expanduser().resolve()
            if not local.exists():
                raise InputError(f"{local}: no such file or directory of weights")
            place = Place(str(local if local.is_dir() else local.parent))
        else:
            hub = hub or str(known.get("hf_hub", "")).rpartition("/")[0]
            if not hub:
                raise UsageError(f"{name}: open_clip has no weights of it on the hub; give a file: {called}@FILE")
            place = Place(f"hf-hub:{hub}", f"{called}@/path/to/the/directory")
    described = place.find(CONFIG) if (not architecture or called in NAMES) else None
    if described is not None:
        told = _json(described)
        config, preprocess = told.get("model_cfg"), told.get("preprocess_cfg") or preprocess
        if not isinstance(config, dict):
            raise InputError(f"{described}: names no model_cfg, so that the net cannot be built")
    elif architecture:
        config = open_clip.get_model_config(architecture)
        if not at and called not in NAMES:  # of a tag's weights; a file says nothing of them
            config["quick_gelu"] = bool(known.get("quick_gelu"))
    else:
        config = _from_transformers(place.get("config.json"))
    if at and Path(path).expanduser().is_file():
        weights = safetensors_at(Path(path).expanduser().resolve())
    elif place.directory is not None:
        weights = place.find(*WEIGHTS) or safetensors_at(place.directory)
    else:
        weights = place.get(*WEIGHTS)
    model = _model(open_clip, config, weights, size, name)
    tokenizer = _tokenizer(config["text_cfg"], place)
    sizes = model.visual.image_size
    own = (int(sizes), int(sizes)) if isinstance(sizes, int) else (int(sizes[0]), int(sizes[1]))
    settings = _preprocess(open_clip, preprocess, size or own)
    with torch.inference_mode():
        dim = model.eval().visual(torch.zeros(1, 3, *settings.size)).shape[-1]
    source = place.source if not at else {"file": str(weights)}
    source = source | ({"licence": licence} if licence and not at else {})
    return Backbone(model.visual, int(dim), settings, label, digest_of(weights), source, TextNet(model), tokenizer)


def _model(open_clip: Any, config: dict[str, Any], weights: Path, size: tuple[int, int] | None, name: str) -> Any:
    """The net of ``config`` with ``weights`` in it."""
    config = copy.deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    custom = config.pop("custom_text", False) or "hf_model_name" in text
    by_timm = "timm_model_name" in vision
    if by_timm:
        vision["timm_model_pretrained"] = False
    elif size is not None:
        vision["image_size"] = size
    text |= {"hf_model_pretrained": False} if "hf_model_name" in text else {}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        model = kind(**config)
    except Exception as error:  # whatever its parts raise
        raise InputError(
            f"{name}: open_clip cannot build it ({str(error)[:300]}); a newer open_clip_torch may"
        ) from error
    state = read_weights(weights)
    if any(key.startswith("vision_model.") for key in state):
        fill(model, from_transformers(state), weights)
    elif all(key.startswith("model.") for key in state):  # wrapped for transformers
        fill(model, {key.removeprefix("model."): value for key, value in state.items()}, weights)
    else:
        try:
            open_clip.load_checkpoint(model, str(weights))  # strict; knows open_clip's older spellings
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{weights}: of another net ({reason}); name the one that it was trained as") from error
    if by_timm and size is not None:
        model.visual.set_input_size(size)
    return model


def _preprocess(open_clip: Any, told: dict[str, Any], size: tuple[int, int]) -> Preprocess:
    """open_clip's ``PreprocessCfg`` in our words."""
    mean, std = told.get("mean") or open_clip.OPENAI_DATASET_MEAN, told.get("std") or open_clip.OPENAI_DATASET_STD
    filter_ = "bilinear" if told.get("interpolation") == "bilinear" else "bicubic"
    edge = "pad-white" if told.get("fill_color") == 255 else "pad-black"
    mode = {"squash": "squash", "longest": edge}.get(told.get("resize_mode") or "", "crop")
    return Preprocess(size, tuple(mean), tuple(std), f"{mode}-{filter_}")


def _is_transformers(file: Path) -> bool:
    return _json(file).get("model_type") == "clip"


def _json(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(told, dict):
        raise InputError(f"{file}: is no JSON object; download it again")
    return told


def _from_transformers(file: Path) -> dict[str, Any]:
    """open_clip's configuration of the ``CLIPModel`` that transformers' config.json describes; what it omits is OpenAI's."""
    if not _is_transformers(file):
        raise InputError(f"{file}: describes no CLIP model; of others the files of open_clip are wanted ({CONFIG})")
    told = _json(file)
    photo, text = told.get("vision_config") or {}, told.get("text_config") or {}
    width, wide = photo.get("hidden_size", 768), text.get("hidden_size", 512)
    return {
        "embed_dim": told.get("projection_dim", 512),
        "quick_gelu": photo.get("hidden_act", "quick_gelu") == "quick_gelu",
        "vision_cfg": {
            "image_size": photo.get("image_size", 224),
            "layers": photo.get("num_hidden_layers", 12),
            "width": width,
            "head_width": width // photo.get("num_attention_heads", 12),
            "mlp_ratio": photo.get("intermediate_size", 3072) / width,
            "patch_size": photo.get("patch_size", 32),
        },
        "text_cfg": {
            "context_length": text.get("max_position_embeddings", 77),
            "vocab_size": text.get("vocab_size", 49408),
            "width": wide,
            "heads": text.get("num_attention_heads", 8),
            "layers": text.get("num_hidden_layers", 12),
            "mlp_ratio": text.get("intermediate_size", 2048) / wide,
        },
    }


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ``CLIPModel`` under open_clip's names."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("position_ids"):
            continue
        name = key
        for theirs, ours in _TRANSFORMERS.items():
            name = name.replace(theirs, ours)
        if ".self_attn.q_proj." in name:  # query, key and value are one matrix here
            parts = [state[key.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            out[name.replace(".self_attn.q_proj.", ".attn.in_proj_")] = torch.cat(parts)
        elif ".self_attn." not in name:
            out[name] = value.T.contiguous() if key.endswith("_projection.weight") else value
    return out


# Tokenizers


def _tokenizer(config: dict[str, Any], place: Place) -> Tokenizer:
    """The tokenizer of open_clip's ``text_cfg``, which cuts and pads to its context length."""
    length, settings = int(config.get("context_length", 77)), dict(config.get("tokenizer_kwargs") or {})
    clean = settings.pop("clean", "")
    if config.get("tokenizer_mode") or any(settings.values()):
        raise UsageError(f"a tokenizer with {config.get('tokenizer_mode') or settings} is not supported")
    if not config.get("hf_tokenizer_name"):
        return clip_tokenizer(length, clean or "lower")
    files = ("tokenizer.json", "tokenizer_config.json")
    if any(place.find(file) is None for file in files):  # then it is another model's
        place = Place(f"hf-hub:{config['hf_tokenizer_name']}", "DIRECTORY with these beside the weights")
    described, told = place.get(files[0]), _json(place.get(files[1]))
    try:
        tokenizer = Tokenizer.from_file(str(described))
    except Exception as error:  # it raises bare ones
        raise InputError(f"{described}: damaged ({error}); download it again") from error
    pad = told.get("pad_token")
    pad = str(pad["content"] if isinstance(pad, dict) else pad)
    number = tokenizer.token_to_id(pad)
    if number is None:
        raise InputError(f"{described}: has no padding token {pad!r}, which tokenizer_config.json names")
    own = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
    tokenizer.normalizer = normalizers.Sequence([*_cleaned(clean or "whitespace"), *own])
    tokenizer.enable_truncation(length)
    side = "left" if told.get("padding_side") == "left" else "right"
    tokenizer.enable_padding(length=length, pad_id=number, pad_token=pad, direction=side)
    return tokenizer


def clip_tokenizer(length: int = 77, clean: str = "lower") -> Tokenizer:
    """CLIP's byte pairs, from the vocabulary that open_clip brings: start, pieces, end, zeros up to ``length``.

    Like open_clip's own but for two things: text in a broken encoding is not repaired, and the names of the two special pieces,
    typed out, are words like others.
    """
    source = extra("open_clip").SimpleTokenizer()
    bpe = models.BPE(vocab=source.encoder, merges=list(source.bpe_ranks), end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(_cleaned(clean))
    pattern = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    words = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    first, last = "<start_of_text>", "<end_of_text>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, source.sot_token_id), (last, source.eot_token_id)]
    )
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=0, pad_token=source.decoder[0])
    return tokenizer


def _cleaned(how: str) -> list[Any]:
    """What open_clip does to a text before its tokenizer, ``how`` being lower, whitespace or canonicalize."""
    if how not in ("lower", "whitespace", "canonicalize"):
        raise UsageError(f"a tokenizer that cleans texts by {how!r} is not supported")
    plain = {"&amp;": "&", "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "}
    steps: list[Any] = [normalizers.Replace(entity, "&") for entity in ("&amp;",) * 2]
    steps += [normalizers.Replace(entity, sign) for entity, sign in plain.items()]
    steps += [
        normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
    ]
    ligatures = (chr(n) for n in range(0xFB00, 0xFB07))
    steps += [normalizers.Replace(sign, unicodedata.normalize("NFKC", sign)) for sign in ligatures]
    steps += [normalizers.NFC(), normalizers.Replace(Regex(r"[\x00-\x08\x0b\x0e-\x1f\x7f]"), "")]
    if how == "canonicalize":
        steps += [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    return steps if how == "whitespace" else [*steps, normalizers.Lowercase()]
