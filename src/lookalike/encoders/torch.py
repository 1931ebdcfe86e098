"""Encoders that run in torch (extra ``torch``): timm's backbones, and what they share with training and export.

A name is timm's own (``resnet50``), one of ``NAMES``, ``hf-hub:owner/name[@revision]``, a directory as timm's hub has them
(config.json beside model.safetensors), or NAME@PATH: that architecture with the weights of a local .safetensors file, or of the
directory that holds one. Weights are safetensors only: other formats can run code when they are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor, nn

from lookalike import images
from lookalike.encoders.base import Vectors
from lookalike.errors import InputError, UsageError

NAMES = {
    "inception-v3": "inception_v3",
    "xception": "legacy_xception",  # Chollet's own, https://arxiv.org/abs/1610.02357
    "mobilenetv3": "mobilenetv3_large_100",
}
"""Names of the field that timm spells otherwise."""

WEIGHTS = "model.safetensors"
BATCH = 32
"""Photos that go through a net at once: more only takes memory."""


@dataclass(frozen=True)
class Preprocess:
    """How an upright image becomes what a net takes; travels with the weights.

    ``size`` (height, width); ``mean`` and ``std`` of the channels, of values 0–1; ``fit`` as ``images.fit`` understands it.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fit: str = "pad-white-bicubic"


@dataclass(frozen=True)
class Backbone:
    """A photo net without its classifier.

    ``net(x)``: normalised float (n, 3, height, width) → pooled features (n, ``dim``); ``net.forward_features(x)`` → maps
    (n, c, h, w), of a transformer its tokens (n, t, c). ``digest`` is of the weights; ``source`` says where they came from:
    ``hub`` and ``revision``, or ``file``, and ``licence`` where known. Of a CLIP model, ``text``: token ids int64 (n, length) →
    unit vectors (n, ``dim``), and ``tokenizer``, of the tokenizers library, makes those ids.
    """

    net: nn.Module
    dim: int
    preprocess: Preprocess
    name: str
    digest: str
    source: dict[str, str] = field(default_factory=dict)
    text: nn.Module | None = None
    tokenizer: Any = None


class PhotoNet(nn.Module):
    """Pixels uint8 (n, height, width, 3) → unit vectors (n, dim): a net with its normalisation, as it is exported."""

    def __init__(self, net: nn.Module, preprocess: Preprocess):
        super().__init__()
        self.net = net
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    def scaled(self, photos: Tensor) -> Tensor:
        """Photos as floats 0–255 (n, 3, height, width) → what the net takes, of the same shape."""
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.std, Tensor)
        return (photos - self.mean) / self.std

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 (n, height, width, 3) → what the net takes, float (n, 3, height, width)."""
        return self.scaled(pixels.permute(0, 3, 1, 2).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors (n, dim)."""
        out: Tensor = F.normalize(self.net(self.normalised(pixels)).float(), dim=-1)
        return out


class TorchEncoder:
    """A photo net in torch as an ``Encoder``. Calls may come from several threads at once."""

    def __init__(self, backbone: Backbone, name: str = "", threads: int = 0, device: str = ""):
        """Wrap ``backbone``.

        Args:
            backbone: its net is put into evaluation mode, and onto the device.
            name: what the user typed, by default the backbone's name.
            threads: cores, 0 for all; torch has one such setting for the whole process.
            device: ``cpu``, ``cuda`` …; by default cuda where there is one.
        """
        if threads:
            torch.set_num_threads(threads)
        self.backbone, self.name = backbone, name or backbone.name
        self.preprocess, self.dim, self.size = backbone.preprocess, backbone.dim, backbone.preprocess.size
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.photo = PhotoNet(backbone.net, backbone.preprocess).eval().to(self.device)
        self.reads_text, self.source = backbone.text is not None, backbone.source
        if backbone.text is not None:
            backbone.text.eval().to(self.device)
        self.id = f"{backbone.name}-{identity(backbone.digest, backbone.preprocess)}"

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``."""
        return images.fit(image, *self.size, self.preprocess.fit)

    @torch.inference_mode()
    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for at in range(0, len(pixels), BATCH):
            batch = torch.from_numpy(np.ascontiguousarray(pixels[at : at + BATCH])).to(self.device)
            out[at : at + BATCH] = self.photo(batch).cpu().numpy()
        return out

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """As ``Encoder.encode_texts``; a text is cut after as many word pieces as the net was trained on."""
        if self.backbone.text is None:
            raise UsageError(f"the encoder {self.name} reads photos only; search by photo, or use another --encoder")
        out = np.empty((len(texts), self.dim), np.float32)
        for at in range(0, len(texts), BATCH):
            # What is cut off anyway need not be tokenized: a megabyte of text costs no more than a line.
            read = self.backbone.tokenizer.encode_batch([t[:2000] for t in texts[at : at + BATCH]])
            ids = torch.tensor([one.ids for one in read], dtype=torch.long, device=self.device)
            out[at : at + BATCH] = self.backbone.text(ids).cpu().numpy()
        return out

    def knows(self, word: str) -> bool:
        """Whether the vocabulary has the word whole."""
        if self.backbone.text is None:
            return False
        mask: list[int] = self.backbone.tokenizer.encode(word, add_special_tokens=False).attention_mask
        return sum(mask) == 1


def by_name(name: str, threads: int = 0) -> TorchEncoder:
    """The encoder of this name; raises as ``backbone``."""
    found = backbone(name)
    called, at, _ = ("", "", "") if name.startswith("hf-hub:") else name.rpartition("@")
    if "file" in found.source:  # what a catalog remembers must hold in any working directory
        name = f"{called}@{found.source['file']}" if at else found.source["file"]
    return TorchEncoder(found, name, threads)


def identity(digest: str, preprocess: Preprocess) -> str:
    """12 hex characters of weights and preprocessing together."""
    return hashlib.sha256(json.dumps([digest, asdict(preprocess)]).encode()).hexdigest()[:12]


def backbone(name: str, size: tuple[int, int] | None = None) -> Backbone:
    """The net of this name, without its classifier and with its own preprocessing.

    Args:
        name: see the docstrings of this module and of ``encoders.clip``.
        size: (height, width) of the photos, where they should not be as the net was evaluated.

    Raises:
        UsageError: no such net, or the extra is missing, or it takes no other size.
        InputError: the weights cannot be fetched, are damaged, of another net or no safetensors.
    """
    try:
        timm = extra("timm")
    except UsageError as error:  # it may also be that nothing has this name
        raise UsageError(f"no encoder {name!r} as things are: {error}") from error
    from lookalike.encoders import clip

    if clip.is_clip(name):
        return clip.backbone(name, size)
    called, at, path = ("", "", "") if name.startswith("hf-hub:") else name.rpartition("@")
    local = Path(path).expanduser().resolve() if at else None
    arguments: dict[str, Any] = {}
    config: dict[str, Any] | None = None
    if Path(name).is_dir() or name.startswith("hf-hub:"):
        place = Place(name)
        described, weights, source = place.get("config.json"), place.get(WEIGHTS), place.source
        try:
            told = json.loads(described.read_text("utf-8"))
            architecture, arguments = str(told["architecture"]), told.get("model_args") or {}
            config = dict(told.get("pretrained_cfg") or {})
        except (KeyError, ValueError, AttributeError) as error:
            raise InputError(f"{described}: not as timm's hub has it ({error!r}); it names no architecture") from error
        label = (
            name.partition(":")[2].partition("@")[0].rpartition("/")[2] if ":" in name else Path(name).resolve().name
        )
    else:
        label = called if at else name
        architecture = NAMES.get(label, label)
        known = timm.models.get_pretrained_cfg(architecture) if timm.is_model(architecture.partition(".")[0]) else None
        if known is None:
            raise UsageError(f"no encoder {name!r}: neither timm nor open_clip knows {label!r}; see lookalike encoders")
        hub = known.hf_hub_id or f"timm/{known.architecture}.{known.tag}"
        if local is not None:
            weights, source = safetensors_at(local), {"file": str(local)}
        else:
            place = Place(f"hf-hub:{hub}", f"{label}@/path/to/{WEIGHTS}")
            weights, source = place.get(WEIGHTS), place.source
        source |= {"licence": known.license} if known.license and local is None else {}
    if not timm.is_model(architecture.partition(".")[0]):
        raise InputError(f"{name}: timm {timm.__version__} has no architecture {architecture!r}; a newer one may")
    if config is not None:
        config.setdefault("classifier", getattr(timm.models.get_pretrained_cfg(architecture), "classifier", None))
    net = timm.create_model(architecture, pretrained=False, pretrained_cfg=config, num_classes=0, **arguments)
    _without_classifier(net, weights)
    if hasattr(net, "pre_logits"):  # VGG's two wide layers are its classifier, too
        net.pre_logits = nn.Identity()
        net.num_features = net.head_hidden_size = net.feature_info[-1]["num_chs"]
    told = timm.data.resolve_model_data_config(net)
    mode = {"squash": "squash"}.get(told["crop_mode"], "crop")
    fit = f"{mode}-{told['interpolation']}" + (f"-{told['crop_pct']:g}" if mode == "crop" else "")
    own = (int(told["input_size"][1]), int(told["input_size"][2]))
    if size is not None and size != own and hasattr(net, "set_input_size"):  # transformers; others take any
        net.set_input_size(size)
    preprocess = Preprocess(size or own, tuple(told["mean"]), tuple(told["std"]), fit)
    try:
        with torch.inference_mode():
            dim = net.eval()(torch.zeros(1, 3, *preprocess.size)).shape[-1]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{name}: takes no photos of {preprocess.size[1]}×{preprocess.size[0]} ({error})") from error
    return Backbone(net, int(dim), preprocess, label, digest_of(weights), source)


def extra(module: str) -> Any:
    """Import what the extra ``torch`` brings. Raises UsageError where it is missing or cannot be loaded."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"this encoder wants {error.name or module}: pip install 'lookalike[torch]'") from error
    except RuntimeError as error:  # torchvision, when it was built for another torch
        raise UsageError(
            f"{module} cannot be loaded ({str(error)[:200]}); install torch and torchvision of one release: "
            "pip install --force-reinstall torch torchvision"
        ) from error


@contextlib.contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Without a library's warnings in its log, but with its bars."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Place:
    """Where a model's files lie: a directory, or a repository on the hub (``hf-hub:owner/name[@revision]``).

    ``source`` says so in an exported encoder's file; the revision is the commit that was read.
    """

    def __init__(self, name: str, instead: str = "/path/to/the/directory"):
        """``instead`` is the ``--encoder`` that works once the files were copied here."""
        self.name, self.instead = name, instead
        self.directory = None if name.startswith("hf-hub:") else Path(name).resolve()
        self.repository, _, self.revision = name.removeprefix("hf-hub:").partition("@")
        self.source = {"file": str(self.directory)} if self.directory else {"hub": self.repository}

    def find(self, *files: str) -> Path | None:
        """The first of ``files`` that there is. Raises InputError where the hub refuses."""
        try:
            return self.get(*files)
        except _Missing:
            return None

    def get(self, *files: str) -> Path:
        """The first of ``files`` that there is. Raises InputError, saying how to come by them, where there is none."""
        if self.directory is not None:
            found = next((self.directory / file for file in files if (self.directory / file).is_file()), None)
            if found is not None:
                return found
            if WEIGHTS in files:
                safetensors_at(self.directory)  # says what there is instead
            raise _Missing(f"{self.directory}: has no {' or '.join(files)}; copy it there")
        hub = extra("huggingface_hub")
        reason: Exception = LookupError()
        for file in files:
            try:
                with _quiet("huggingface_hub"):  # it tells each of its tries
                    found = Path(hub.hf_hub_download(self.repository, file, revision=self.revision or None))
            except Exception as error:  # its own errors, those of its HTTP client, the disk's
                reason = error
                continue
            if found.parent.parent.name == "snapshots":  # …/snapshots/COMMIT/FILE
                self.source["revision"] = found.parent.name
            return found
        page, wanted = f"https://huggingface.co/{self.repository}", " or ".join(files)
        if isinstance(reason, hub.errors.EntryNotFoundError) and not isinstance(reason, FileNotFoundError):
            hint = f"; other formats can run code when they are read: {CONVERT}" if WEIGHTS in files else ""
            raise _Missing(f"{page} has no {wanted}{hint}") from reason
        if isinstance(reason, (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError)):
            raise InputError(f"{self.name}: {page} does not exist, or only for those who log in there") from reason
        raise _Missing(
            f"{self.name}: {wanted} could not be fetched ({type(reason).__name__}); download all but the .bin and .pt files of "
            f"{page} on a machine that reaches it, copy them here, and use --encoder {self.instead}"
        ) from reason


class _Missing(InputError):
    """A file that is not there, or cannot be reached just now."""


def safetensors_at(path: Path) -> Path:
    """The file of weights that ``path`` is, or that the directory ``path`` holds.

    Raises InputError: there is none, or not as safetensors.
    """
    if path.is_dir():
        found = [path / WEIGHTS] if (path / WEIGHTS).is_file() else sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            others = [f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth")]
            if others and not found:
                raise InputError(f"{path / others[0]}: can run code when it is read, and is not; {CONVERT}")
            raise InputError(f"{path}: holds {len(found)} .safetensors files; give the path of one")
        return found[0]
    if not path.is_file():
        raise InputError(f"{path}: no such file or directory of weights")
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: no .safetensors, and other formats can run code when they are read; {CONVERT}")
    return path


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises InputError where it is damaged."""
    try:
        tensors: dict[str, Tensor] = extra("safetensors.torch").load_file(file)
    except UsageError:
        raise
    except Exception as error:  # safetensors raises its own bare ones
        raise InputError(f"{file}: damaged, or no safetensors ({str(error)[:200]}); download it again") from error
    return tensors


def digest_of(file: Path) -> str:
    """12 hex characters of the SHA-256 of a file."""
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def fill(net: nn.Module, state: dict[str, Tensor], file: Path, spare: Sequence[str] = ()) -> None:
    """Load ``state`` of ``file`` into ``net``, all of it but what begins with one of ``spare``.

    Raises InputError: it is of another net.
    """
    try:
        missing, unexpected = net.load_state_dict(state, strict=False)
    except RuntimeError as error:  # other shapes
        raise InputError(f"{file}: of another net ({str(error).splitlines()[1].strip()[:200]})") from error
    unexpected = [key for key in unexpected if not key.startswith(tuple(spare))]
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        what = f"has no {missing[0]}" if missing else f"has {unexpected[0]}, which is none of its parts"
        raise InputError(f"{file}: of another net ({what}); name the one that it was trained as")


def _without_classifier(net: Any, file: Path) -> None:
    """Load timm's weights, in today's or an older spelling, and leave out what classifies."""
    state = read_weights(file)
    config = net.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = [heads] if isinstance(heads, str) else list(heads)
    respell = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if respell is not None and not set(net.state_dict()) <= set(state):
        state = respell(state, net)
    fill(net, state, file, [*[f"{head}." for head in heads], "AuxLogits."])


CONVERT = (
    'convert it once, where you trust it: python -c "import sys; from torch import load; from safetensors.torch import '
    'save_file; save_file({k: v.contiguous() for k, v in load(sys.argv[1], weights_only=True).items()}, sys.argv[2])" '
    "OLD model.safetensors"
)
