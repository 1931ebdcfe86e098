"""Encoders that run in torch and their exports: one contract, true architectures with random weights, hubs, mistakes."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import lookalike
from conftest import COLOURS, KINDS, draw
from lookalike import encoders, images
from lookalike.encoders.base import Encoder
from lookalike.encoders.onnx import OnnxEncoder
from lookalike.errors import InputError, UsageError

torch = pytest.importorskip("torch")
if find_spec("timm") is None or find_spec("open_clip") is None:
    pytest.skip("the extra torch is not installed", allow_module_level=True)
pytestmark = [
    pytest.mark.usefixtures("torchvision_operators"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning"
    ),  # of timm, open_clip and torch's exporter, among themselves
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec:FutureWarning"),
]
TEXTS = [
    "red shirt", "", "  A  Blue\tDress\n with   dots ", "it’s “nice” & cheap", "it's we'll they're I'd don't 'S 'RE",
    "T-shirt 100% cotton, size 42/44!", "Übergröße Straße ÉCOLE naïve", "日本語 のドレス", "🙂👗 emoji 👩‍👧", "café cafe\u0301",
    "a" * 3000, "word " * 200, "&amp; &lt;b&gt; &quot;x&quot; &amp;amp; &#39;", "ﬁne oﬃce", "<b>html</b>", "snake_case_words",
    "#$%^&*()_+{}|:<>?", "İstanbul", "Привет платье", "مرحبا", "9,99€ ½ ²", "x\u200by zero\u00a0width", "....!!!???",
    "٣٤٥ numbers १२", "\x00\x07bell",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder_of_weights(tmp_path_factory: pytest.TempPathFactory, torchvision_operators: None) -> Path:
    torch.manual_seed(0)
    return tmp_path_factory.mktemp("weights")


def saved(file: Path, net: Any) -> Path:
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, file)
    return file


def timm_file(folder: Path, architecture: str) -> Path:
    import timm

    file = folder / f"{architecture}.safetensors"
    return file if file.is_file() else saved(file, timm.create_model(architecture, pretrained=False))


def clip_directory(folder: Path, config: dict[str, Any], preprocess: dict[str, Any]) -> Path:
    """As open_clip's hub has them; with a tokenizer of transformers' where the configuration names one."""
    import open_clip

    if not (folder / "open_clip_config.json").is_file():
        custom = config.get("custom_text")
        kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        settings = {key: value for key, value in config.items() if key != "custom_text"}
        saved(folder / "open_clip_model.safetensors", kind(**json.loads(json.dumps(settings))))
        if "hf_tokenizer_name" in config["text_cfg"]:
            unigrams(folder)
        told = {"model_cfg": config, "preprocess_cfg": preprocess}
        (folder / "open_clip_config.json").write_text(json.dumps(told))
    return folder


def unigrams(folder: Path) -> None:
    """A tokenizer like SigLIP's: SentencePiece unigrams that end in </s>, which also pads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [(f"▁{w}", -3.0) for w in ("red", "blue", "shirt", "dress", "with", "a", "dots")]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *words]
    made = Tokenizer(
        models.Unigram([*vocabulary, *[(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789é"]], unk_id=2)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="</s>", eos_token="</s>", unk_token="<unk>")
    whole.save_pretrained(folder)


CLIP = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
SIGLIP = {
    "embed_dim": 64,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 16, "vocab_size": 64, "hf_tokenizer_name": "nobody/nothing", "width": 64, "heads": 2, "layers": 1,
        "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    },
}  # fmt: skip
SQUASHED = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture(scope="module")
def small(folder_of_weights: Path) -> dict[str, str]:
    """A small encoder of each kind, by the name that a user would type."""
    return {
        "timm": f"test_resnet@{timm_file(folder_of_weights, 'test_resnet')}",
        "clip": str(clip_directory(folder_of_weights / "clip", CLIP, {})),
        "siglip": str(clip_directory(folder_of_weights / "siglip", SIGLIP, SQUASHED)),
    }


@pytest.fixture(scope="module")
def exported(small: dict[str, str], folder_of_weights: Path) -> dict[str, Path]:
    from lookalike.training.export import export_encoder

    out = {}
    for kind, name in small.items():
        out[kind] = folder_of_weights / f"exported-{kind}"
        found = export_encoder(name, out[kind])
        assert not found["copied"]
        assert min(found["photos"], found.get("texts", 1.0)) >= 0.9999
    return out


@pytest.fixture(scope="module", params=["timm", "clip", "siglip", "exported timm", "exported clip", "exported siglip"])
def encoder(request: pytest.FixtureRequest, small: dict[str, str]) -> Encoder:
    kind = request.param.rpartition(" ")[2]
    wanted = request.getfixturevalue("exported") if request.param.startswith("exported") else small
    return encoders.load(str(wanted[kind]), threads=1)


def drawn(folder: Path, encoder: Encoder) -> np.ndarray:
    files = [draw(folder / f"{c}-{k}.png", c, k) for k in KINDS for c in COLOURS]
    return np.stack([encoder.prepare(images.read(f)) for f in files])


def test_contract(encoder: Encoder, tmp_path: Path):
    assert isinstance(encoder, Encoder)
    pixels = drawn(tmp_path, encoder)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (*encoder.size, 3)
    vectors = encoder.encode_photos(pixels)
    assert vectors.shape == (len(pixels), encoder.dim)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    alone = np.vstack([encoder.encode_photos(p[None]) for p in pixels])
    assert np.allclose(vectors, alone, atol=1e-5)
    assert len(np.unique(vectors.round(4), axis=0)) == len(pixels)
    if not encoder.reads_text:
        with pytest.raises(UsageError, match="photos only"):
            encoder.encode_texts(["red"])
        return
    texts = encoder.encode_texts(["red shirt", "", "🙂", "x" * 100_000, "red shirt"])
    assert texts.shape == (5, encoder.dim)
    assert texts.dtype == np.float32
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
    assert np.array_equal(texts[0], texts[4])
    assert not np.allclose(texts[0], texts[1], atol=1e-3)
    assert np.allclose(encoder.encode_texts(["red shirt"])[0], texts[0], atol=1e-5)
    assert encoder.encode_texts([]).shape == (0, encoder.dim)
    assert encoder.knows("red")
    assert not encoder.knows("xqzvw")


def test_an_export_computes_the_same_and_takes_the_place_of_its_original(
    small: dict[str, str], exported: dict[str, Path], table: Path, tmp_path: Path
):
    for kind, name in small.items():
        torchs, ours = encoders.load(name, 1), encoders.load(str(exported[kind]), 1)
        assert isinstance(ours, OnnxEncoder)
        assert ours.id == torchs.id
        pixels = drawn(tmp_path / kind, torchs)
        assert np.array_equal(pixels, drawn(tmp_path / kind, ours))  # preprocessing travels, too
        assert np.allclose(torchs.encode_photos(pixels), ours.encode_photos(pixels), atol=1e-4)
        if torchs.reads_text:
            assert np.allclose(torchs.encode_texts(TEXTS), ours.encode_texts(TEXTS), atol=1e-4)
    made = lookalike.open(tmp_path / "c", encoder=small["clip"])
    made.index(table)
    assert made.status()["encoder"]["source"] == {"file": small["clip"]}
    served = lookalike.open(tmp_path / "c", encoder=str(exported["clip"]))
    theirs, ours = made.search("red shirt", k=3), served.search("red shirt", k=3)
    assert [hit.id for hit in ours] == [hit.id for hit in theirs]
    assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-4)
    config = json.loads((exported["clip"] / "encoder.json").read_text())
    assert config["fit"] == "crop-bicubic"
    assert config["source"] == {"file": "clip"}  # no path of the machine that made it


def test_an_export_that_was_changed_is_another_encoder(exported: dict[str, Path], tmp_path: Path):
    import shutil

    copy = shutil.copytree(exported["timm"], tmp_path / "copy")
    assert encoders.load(str(copy)).id == encoders.load(str(exported["timm"])).id
    config = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**config, "fit": "squash-bicubic"}))
    assert encoders.load(str(copy)).id != encoders.load(str(exported["timm"])).id


def test_an_export_that_computes_something_else_is_refused(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    import timm

    from lookalike.training import export

    other = saved(tmp_path / "other" / "weights.safetensors", timm.create_model("test_resnet"))
    monkeypatch.setattr(
        export, "_to_onnx", lambda net, x, name, file, axes: shutil.copy(exported["timm"] / "photo.onnx", file)
    )
    with pytest.raises(InputError, match=r"other vectors than in torch .*nothing was written"):
        export.export_encoder(f"test_resnet@{other}", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["other"]

    def broken(*_: Any) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export, "_to_onnx", broken)
    with pytest.raises(InputError, match=r"cannot be exported to ONNX \(RuntimeError: no such operator\)"):
        export.export_encoder(f"test_resnet@{other}", tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_export_copies_what_is_exported_and_refuses_what_cannot_be(tmp_path: Path):
    from lookalike.training.export import export_encoder

    assert export_encoder("builtin", tmp_path / "b")["copied"]
    assert encoders.load(str(tmp_path / "b")).id == encoders.load("builtin").id
    with pytest.raises(InputError, match="not an empty or new directory"):
        export_encoder("builtin", tmp_path / "b")
    with pytest.raises(UsageError, match="runs without torch as it is"):
        export_encoder("fake", tmp_path / "f")


# True architectures


@pytest.mark.parametrize(
    ("name", "architecture", "dim", "side", "maps", "fit"),
    [
        ("resnet50", "resnet50", 2048, 224, (2048, 7, 7), "crop-bicubic-0.95"),
        ("vgg16", "vgg16", 512, 224, (512, 7, 7), "crop-bilinear-0.875"),
        ("inception-v3", "inception_v3", 2048, 299, (2048, 8, 8), "crop-bicubic-0.875"),
        ("xception", "legacy_xception", 2048, 299, (2048, 10, 10), "crop-bicubic-0.8975"),
        ("mobilenetv3", "mobilenetv3_large_100", 1280, 224, (960, 7, 7), "crop-bicubic-0.875"),
    ],
)
def test_timm_families(
    folder_of_weights: Path, name: str, architecture: str, dim: int, side: int, maps: tuple[int, ...], fit: str
):
    file = timm_file(folder_of_weights, architecture)
    made = encoders.load(f"{name}@{file}", threads=1)
    assert (made.dim, made.size, made.prepare(Image.new("RGB", (60, 80))).shape) == (dim, (side, side), (side, side, 3))
    assert made.preprocess.fit == fit
    assert made.name == f"{name}@{file}"
    assert made.id.startswith(f"{name}-")
    pixels = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    vectors = made.encode_photos(pixels)
    assert vectors.shape == (2, dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    with torch.inference_mode():
        features = made.backbone.net.forward_features(made.photo.normalised(torch.from_numpy(pixels)))
        assert features.shape == (2, *maps)
        if name != "mobilenetv3":  # it has a layer behind the pooling
            pooled = torch.nn.functional.normalize(features.mean((2, 3)), dim=-1).numpy()
            assert np.allclose(pooled, vectors, atol=1e-5)
    file.unlink() if name != "resnet50" else None


def test_clip_vit_b_32(folder_of_weights: Path):
    """The vectors of open_clip itself, photo and text, through its own preprocessing and tokenizer."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    net = open_clip.CLIP(**config).eval()
    file = saved(folder_of_weights / "vit" / "weights.safetensors", net)
    made = encoders.load(f"clip-vit-b-32@{file}", threads=1)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)).resize((300, 400))
    with torch.inference_mode():
        pixels = image_transform_v2(PreprocessCfg(), is_train=False)(photo)[None]
        theirs = torch.nn.functional.normalize(net.encode_image(pixels), dim=-1).numpy()
        texts = torch.nn.functional.normalize(net.encode_text(open_clip.tokenize(TEXTS[:4])), dim=-1).numpy()
    assert (theirs[0] * made.encode_photos(made.prepare(photo)[None])[0]).sum() > 0.9999
    assert np.allclose(made.encode_texts(TEXTS[:4]), texts, atol=1e-5)
    assert (made.dim, made.size, made.reads_text) == (512, (224, 224), True)
    file.unlink()


@pytest.mark.slow
def test_fashion_siglip(folder_of_weights: Path):
    """A directory as Marqo's repository: SigLIP ViT-B-16, squashed photos, its own tokenizer."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    directory = clip_directory(folder_of_weights / "marqo-fashionSigLIP", config, SQUASHED)
    made = encoders.load(str(directory), threads=1)
    assert (made.dim, made.size, made.preprocess.fit) == (768, (224, 224), "squash-bicubic")
    assert made.preprocess.mean == (0.5, 0.5, 0.5)
    assert made.id.startswith("marqo-fashionSigLIP-")
    assert made.encode_photos(np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 768)
    assert made.encode_texts(["red dress"]).shape == (1, 768)
    (directory / "open_clip_model.safetensors").unlink()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_fashion_clip_from_transformers(folder_of_weights: Path, activation: str):
    from transformers import CLIPConfig, CLIPModel

    part = {
        "hidden_act": activation,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 128,
        "eos_token_id": 49407,
    }
    config = CLIPConfig(text_config=part, vision_config={**part, "image_size": 64}, projection_dim=24)
    net = CLIPModel(config).eval()
    directory = folder_of_weights / f"transformers-{activation}"
    net.save_pretrained(directory)
    made = encoders.load(f"fashion-clip@{directory}", threads=1)
    assert made.id.startswith("fashion-clip-")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    import open_clip

    with torch.inference_mode():
        theirs = net.get_image_features(pixel_values=made.photo.normalised(torch.from_numpy(pixels)))
        texts = net.get_text_features(input_ids=open_clip.tokenize(TEXTS[:4]))
    for ours, other in ((made.encode_photos(pixels), theirs), (made.encode_texts(TEXTS[:4]), texts)):
        other = getattr(other, "pooler_output", other)
        assert np.allclose(ours, torch.nn.functional.normalize(other, dim=-1).numpy(), atol=1e-5)
    (directory / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):  # which says the activation
        encoders.load(f"fashion-clip@{directory}")


def test_our_tokenizers_read_as_open_clips(folder_of_weights: Path, small: dict[str, str]):
    import open_clip
    from open_clip.tokenizer import HFTokenizer

    from lookalike.encoders.clip import clip_tokenizer

    for length in (77, 20):
        ours = [read.ids for read in clip_tokenizer(length).encode_batch(TEXTS)]
        assert ours == open_clip.SimpleTokenizer(context_length=length)(TEXTS).tolist()
    theirs = HFTokenizer(small["siglip"], context_length=16, clean="canonicalize")(TEXTS).tolist()
    tokenizer = encoders.load(small["siglip"]).backbone.tokenizer
    assert [read.ids for read in tokenizer.encode_batch(TEXTS)] == theirs


def test_photos_are_fitted_as_timm_does():
    import timm

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)).resize((450, 600))
    for how, settings in {
        "crop-bicubic-0.875": {"crop_pct": 0.875, "interpolation": "bicubic"},
        "crop-bilinear-0.95": {"crop_pct": 0.95, "interpolation": "bilinear"},
        "squash-bicubic": {"crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic"},
    }.items():
        transform = timm.data.create_transform((3, 224, 224), mean=(0, 0, 0), std=(1, 1, 1), **settings)
        theirs = transform(photo).numpy().transpose(1, 2, 0) * 255
        ours = images.fit(photo, 224, 224, how).astype(float)
        assert abs(theirs - ours).mean() < 0.6, how
        assert abs(theirs - images.fit(photo, 224, 224).astype(float)).mean() > 10


# Hubs and mistakes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub of local folders, owner/name/files, all at revision ``c0ffee``; what is not there is not found."""
    import huggingface_hub

    root = tmp_path / "hub"

    def download(repository: str, file: str, revision: str | None = None) -> str:
        assert revision in (None, "main")
        if not (root / repository).is_dir():
            raise refusal(huggingface_hub.errors.RepositoryNotFoundError)
        if not (root / repository / "snapshots" / "c0ffee" / file).is_file():
            raise refusal(huggingface_hub.errors.EntryNotFoundError)
        return str(root / repository / "snapshots" / "c0ffee" / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return root


def refusal(kind: type[Exception]) -> Exception:
    """As the hub's client raises it, without the answer of a server that it wants to be made of."""
    return kind.__new__(kind)


def test_weights_come_from_the_hub_with_their_revision(
    hub: Path, small: dict[str, str], folder_of_weights: Path, table: Path, tmp_path: Path
):
    import timm

    arch = "test_resnet"
    file = timm_file(folder_of_weights, arch)
    known = timm.models.get_pretrained_cfg(arch)
    for repository in (known.hf_hub_id, "me/mine"):
        at = hub / repository / "snapshots" / "c0ffee"
        at.mkdir(parents=True)
        (at / "model.safetensors").symlink_to(file)
        told = {
            "architecture": arch,
            "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0, 0, 0], "std": [1, 1, 1]},
        }
        (at / "config.json").write_text(json.dumps(told))
    made = encoders.load(arch, threads=1)
    assert made.source == {"hub": known.hf_hub_id, "revision": "c0ffee", "licence": known.license}
    assert made.id == encoders.load(f"{arch}@{file}").id
    mine = encoders.load("hf-hub:me/mine@main", threads=1)
    assert (mine.size, mine.preprocess.std, mine.name) == ((64, 64), (1, 1, 1), "hf-hub:me/mine@main")
    assert mine.id.startswith("mine-")
    assert encoders.load(str(hub / "me/mine/snapshots/c0ffee"), threads=1).size == (64, 64)
    (hub / "Marqo" / "marqo-fashionCLIP" / "snapshots").mkdir(parents=True)
    (hub / "Marqo" / "marqo-fashionCLIP" / "snapshots" / "c0ffee").symlink_to(small["clip"])
    fashion = encoders.load("marqo-fashion-clip", threads=1)
    assert fashion.source == {"hub": "Marqo/marqo-fashionCLIP", "revision": "c0ffee", "licence": "Apache-2.0"}
    assert encoders.load("hf-hub:Marqo/marqo-fashionCLIP", threads=1).dim == fashion.dim == 32
    catalog = lookalike.open(tmp_path / "c", encoder="marqo-fashion-clip")
    catalog.index(table)
    assert lookalike.open(tmp_path / "c").status()["encoder"]["source"]["revision"] == "c0ffee"


def test_a_repository_without_safetensors_is_refused(hub: Path):
    at = hub / "me" / "old" / "snapshots" / "c0ffee"
    at.mkdir(parents=True)
    (at / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    (at / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"me/old has no model\.safetensors; other formats can run code .*convert it once"
    ):
        encoders.load("hf-hub:me/old")
    with pytest.raises(InputError, match=r"huggingface\.co/me/none does not exist"):
        encoders.load("hf-hub:me/none")
    (at / "config.json").write_text("{}")
    (at / "model.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match="names no architecture"):
        encoders.load(str(at))


def test_an_unreachable_hub_says_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, page, instead in (
        ("resnet50", "timm/resnet50.a1_in1k", "resnet50@/path/to/model.safetensors"),
        ("clip-vit-b-32", "timm/vit_base_patch32_clip_224.openai", "clip-vit-b-32@/path/to/the/directory"),
        ("fashion-siglip", "Marqo/marqo-fashionSigLIP", "fashion-siglip@/path/to/the/directory"),
        ("fashion-clip", "patrickjohncyh/fashion-clip", "fashion-clip@/path/to/the/directory"),
        ("hf-hub:me/mine", "me/mine", "/path/to/the/directory"),
    ):
        with pytest.raises(InputError) as told:
            encoders.load(name)
        for part in ("could not be fetched", f"https://huggingface.co/{page}", f"--encoder {instead}"):
            assert part in str(told.value), name


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"wants timm: pip install 'lookalike\[torch\]'"):
        encoders.load("resnet50")
    monkeypatch.setitem(sys.modules, "lookalike.encoders.torch", None)
    with pytest.raises(UsageError, match=r"no encoder 'resnet50' without torch: pip install 'lookalike\[torch\]'"):
        encoders.load("resnet50")


def test_wrong_weights_are_told(folder_of_weights: Path, small: dict[str, str], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    file = timm_file(folder_of_weights, "test_resnet")
    with pytest.raises(InputError, match="of another net"):
        encoders.load(f"resnet18@{file}")
    with pytest.raises(InputError, match=r"of another net .*size mismatch"):
        encoders.load(f"resnet50@{timm_file(folder_of_weights, 'resnet18')}")
    state = load_file(file)
    gone = state.pop("conv1.0.weight")
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match=r"of another net \(has no conv1\.0\.weight\)"):
        encoders.load(f"test_resnet@{tmp_path / 'less.safetensors'}")
    save_file({**state, "conv1.0.weight": gone, "more.weight": gone.clone()}, tmp_path / "more.safetensors")
    with pytest.raises(InputError, match=r"has more\.weight, which is none of its parts"):
        encoders.load(f"test_resnet@{tmp_path / 'more.safetensors'}")
    with pytest.raises(InputError, match=r"holds 2 \.safetensors files"):
        encoders.load(f"test_resnet@{tmp_path}")
    with pytest.raises(InputError, match="of another net"):
        encoders.load(f"ViT-B-32@{file}")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="damaged, or no safetensors"):
        encoders.load(f"resnet18@{tmp_path / 'bad.safetensors'}")
    (tmp_path / "old.pth").write_bytes(b"x")
    with pytest.raises(InputError, match=r"old\.pth: no \.safetensors, and other formats can run code .*weights_only"):
        encoders.load(f"resnet18@{tmp_path / 'old.pth'}")
    with pytest.raises(InputError, match=r"old\.pth: no \.safetensors"):
        encoders.load(f"clip-vit-b-32@{tmp_path / 'old.pth'}")
    with pytest.raises(InputError, match="no such file or directory of weights"):
        encoders.load(f"resnet18@{tmp_path / 'nowhere.safetensors'}")
    with pytest.raises(UsageError, match=r"ViT-B-32 has no weights 'nope'; there are openai"):
        encoders.load("ViT-B-32:nope")
    with pytest.raises(UsageError, match="neither timm nor open_clip knows 'resnet5'"):
        encoders.load("resnet5")


def test_other_sizes(folder_of_weights: Path, small: dict[str, str]):
    from lookalike.encoders.torch import TorchEncoder, backbone

    for name in small.values():
        made = TorchEncoder(backbone(name, (96, 64)), threads=1)
        assert made.size == (96, 64)
        assert made.encode_photos(np.zeros((1, 96, 64, 3), np.uint8)).shape == (1, made.dim)
        assert made.id != encoders.load(name).id


# Lists, and where trainings begin


def test_the_list_agrees_with_the_libraries():
    import timm

    from lookalike.encoders import clip
    from lookalike.encoders.torch import NAMES

    for name, library, hub, _, side, _, licence in encoders.ON_HUB:
        if library == "open_clip":
            assert clip.NAMES[name][::2] == (hub, licence)
            continue
        known = timm.models.get_pretrained_cfg(NAMES.get(name, name))
        assert hub == (known.hf_hub_id or f"timm/{known.architecture}.{known.tag}")
        assert (known.input_size[1], known.license.lower()) == (side, licence.lower())


def test_trainings_begin_with_any_photo_net(small: dict[str, str], exported: dict[str, Path], tmp_path: Path):
    from lookalike.encoders.torch import PhotoNet, TorchEncoder
    from lookalike.training.adapt import load_towers
    from lookalike.training.export import write_encoder
    from lookalike.training.pretrained import start

    photos = torch.rand(4, 3, 128, 96) * 2 - 1
    own = start("builtin")
    tower = load_towers(Path(encoders.__file__).parent.parent / "builtin")[0]
    with torch.inference_mode():
        assert torch.equal(own.net(photos), tower.pooled(photos)[:, :1024])
    made = write_encoder(
        tmp_path / "out",
        "mine",
        PhotoNet(own.net, own.preprocess),
        own.preprocess,
        own.dim,
        training={"recipe": "none"},
    )
    again = start(str(tmp_path / "out"))
    assert made["id"] == encoders.load(str(tmp_path / "out")).id == f"mine-{again.digest}"
    assert encoders.load(str(tmp_path / "out")).training == {"recipe": "none"}
    with torch.inference_mode():
        assert torch.allclose(own.net(photos), again.net(photos), atol=1e-4)
    plain = start("simple-cnn", (64, 48))
    assert plain.net(photos).shape == (4, plain.dim)
    assert plain.net.forward_features(photos).shape == (4, 256, 8, 6)
    assert TorchEncoder(plain).size == (64, 48)
    assert start(small["timm"], (64, 48)).preprocess.size == (64, 48)
    with pytest.raises(InputError, match="its photo net is not the built-in's"):
        start(str(exported["timm"]))


def test_trainings_begin_with_mobilenets_file(data: Path, tmp_path: Path):
    from lookalike.encoders.torch import TorchEncoder
    from lookalike.training.pretrained import mobilenet, start
    from lookalike.training.towers import calibrate

    file = data / "weights" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    if not file.is_file():
        pytest.skip("the .tflite file is not among the data")
    mobile = start(str(file), (224, 224))
    theirs, ours = encoders.load(str(file)), TorchEncoder(mobile, threads=1)
    pixels = drawn(tmp_path, theirs)
    assert (theirs.encode_photos(pixels) * ours.encode_photos(pixels)).sum(1).min() > 0.98  # 8 bits against 32
    normed = mobilenet(file, norm=True)
    batch = ours.photo.normalised(torch.from_numpy(pixels))
    calibrate(normed.net.layers, batch)
    with torch.inference_mode():
        assert torch.allclose(normed.net.eval()(batch), mobile.net(batch), atol=0.02)


def test_commands(tmp_path: Path):
    from typer.testing import CliRunner

    from lookalike.cli import app

    done = CliRunner().invoke(app, ["export-encoder", "builtin", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "builtin is ONNX files already; they were copied" in done.stdout
    assert encoders.load(str(tmp_path / "out")).id == encoders.load("builtin").id
    listed = CliRunner().invoke(app, ["encoders", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["builtin"]["ready"]
    assert rows["resnet50"]["megabytes"] == 102
    assert {"vgg16", "inception-v3", "xception", "mobilenetv3", "fashion-siglip", "fashion-clip"} <= set(rows)
