"""Words beside photos: rows of two halves from the source to the answer, and the sentence encoder that fills the second."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from conftest import COLOURS, draw, write_csv
from lookalike import encoders, images
from lookalike.encoders.base import Encoder, photo_dim
from lookalike.encoders.baselines import ColourHistogram
from lookalike.encoders.fake import FakeEncoder
from lookalike.encoders.onnx import OnnxEncoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import kagl
from lookalike.evaluation.catalog import evaluate as leave_one_out
from lookalike.indexes.lexical import words_of
from lookalike.indexing import description
from lookalike.search import Query
from lookalike.training.export import export_encoder
from lookalike.types import Product

pytestmark = pytest.mark.usefixtures("torchvision_operators")


class Beside(ColourHistogram):
    """Histograms of colours, and a bag of words beside them; it counts what it is asked."""

    name, id, reads_text = "beside", "beside-1", True
    photo_dim, dim = 128, 192

    def __init__(self) -> None:
        self.photos, self.texts = 0, []
        self.stop_at = 10**9

    def encode_photos(self, pixels: np.ndarray) -> np.ndarray:
        self.photos += len(pixels)
        if self.photos > self.stop_at:
            raise KeyboardInterrupt
        wide = np.zeros((len(pixels), 192), np.float32)
        histogram = ColourHistogram()
        wide[:, :128] = histogram.encode_photos(pixels)
        return wide

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        self.texts += texts
        return np.pad(bag(texts), ((0, 0), (128, 0)))


def bag(texts: list[str]) -> np.ndarray:
    out = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(out, texts, strict=True):
        for word in words_of(text):
            row[zlib.crc32(word.encode()) % 64] += 1
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture
def encoder() -> Beside:
    return Beside()


@pytest.fixture
def shop(tmp_path: Path, table: Path, encoder: Beside) -> lookalike.Catalog:
    made = lookalike.open(tmp_path / "two.catalog", encoder=encoder)
    made.index(table)
    return made


def retitle(table: Path, **of: str) -> None:
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["name"] = of.get(row["sku"], row["name"])
    write_csv(table, rows)


def halves(catalog: lookalike.Catalog, identity: str) -> tuple[np.ndarray, np.ndarray]:
    snapshot = catalog.snapshot()
    row = snapshot.vectors[snapshot.first[snapshot.product(identity)]]
    return row[:128], row[128:]


def test_rows_hold_the_photo_and_the_words_of_unit_length_each(shop: lookalike.Catalog, encoder: Beside):
    snapshot = shop.snapshot()
    assert snapshot.vectors.shape == (13, 192)
    assert np.allclose(np.linalg.norm(snapshot.photo_vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(np.linalg.norm(snapshot.vectors[:, 128:], axis=1), 1, atol=1e-5)
    expected = encoder.encode_texts([description("red shirt", {"colour": "Red", "gender": "Men"})])[0]
    assert np.allclose(halves(shop, "p00")[1], expected[128:])
    assert shop.verify()["damaged"] == []


def test_what_is_said_of_a_product():
    attributes = {
        "story": "A long tale of how it was made",
        "gender": "Women",
        "colour": "Red",
        "ean": "0012",
        "price": 3.5,
    }
    attributes["page"] = "https://shop.example/red"
    assert description(" Red dress ", attributes) == "Red dress. Red. Women. A long tale of how it was made"
    assert description("", {"gender": "Women"}) == "Women"
    assert description("", {"ean": "0012"}) == ""


def test_only_the_words_of_a_changed_title_are_encoded_again(shop: lookalike.Catalog, encoder: Beside, table: Path):
    before = halves(shop, "p03"), halves(shop, "p04")
    assert encoder.photos == 13
    encoder.texts.clear()
    shop.index(table)
    assert encoder.texts == []
    retitle(table, p03="velvet gown")
    report = shop.index(table)
    assert (report.updated, report.unchanged) == (1, 12)
    assert encoder.photos == 13
    assert encoder.texts == [description("velvet gown", shop.product("p03")["attributes"])]
    after = halves(shop, "p03"), halves(shop, "p04")
    assert np.array_equal(after[0][0], before[0][0])
    assert not np.allclose(after[0][1], before[0][1])
    assert np.array_equal(after[1][1], before[1][1])


def test_a_new_price_encodes_nothing(shop: lookalike.Catalog, encoder: Beside, table: Path):
    encoder.texts.clear()
    before = halves(shop, "p05")
    table.write_text(table.read_text().replace("37.5", "38.5"))
    assert shop.index(table).updated == 1
    assert (encoder.photos, encoder.texts) == (13, [])
    assert np.array_equal(halves(shop, "p05")[1], before[1])
    assert shop.product("p05")["attributes"]["price"] == 38.5


def test_a_changed_photo_keeps_the_words(shop: lookalike.Catalog, encoder: Beside, table: Path):
    before = halves(shop, "p05")
    encoder.texts.clear()
    draw(table.parent / "img" / "5.jpg", "green", "bag", 5)
    assert shop.index(table).updated == 1
    assert (encoder.photos, encoder.texts) == (14, [])
    after = halves(shop, "p05")
    assert not np.allclose(after[0], before[0])
    assert np.array_equal(after[1], before[1])


def test_one_photo_of_two_products_has_each_ones_words(tmp_path: Path, encoder: Beside):
    photo = draw(tmp_path / "a.png", "red", "shirt")
    catalog = lookalike.open(tmp_path / "c", encoder=encoder)
    catalog.index([Product("a", [photo], "red shirt")])
    catalog.index([Product("a", [photo], "red shirt"), Product("b", [photo], "blue gown"), Product("c", [photo])])
    assert encoder.photos == 1
    (pa, ta), (pb, tb), (_, tc) = (halves(catalog, i) for i in "abc")
    assert np.array_equal(pa, pb)
    assert np.allclose([ta, tb], bag(["red shirt", "blue gown"]))
    assert not tc.any()
    assert catalog.verify()["damaged"] == []


def test_an_interrupted_run_goes_on(tmp_path: Path, encoder: Beside, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lookalike.indexing.BATCH", 4)
    products = [
        Product(f"p{n}", [draw(tmp_path / f"{n}.png", list(COLOURS)[n % 4], "bag", n)], f"bag {n}") for n in range(12)
    ]
    whole = lookalike.open(tmp_path / "whole", encoder=Beside())
    whole.index(products)
    encoder.stop_at = 8
    catalog = lookalike.open(tmp_path / "c", encoder=encoder)
    with pytest.raises(KeyboardInterrupt):
        catalog.index(products)
    assert len(catalog.snapshot()) == 8
    encoder.stop_at = 10**9
    assert catalog.index(products).unchanged == 8
    assert np.array_equal(catalog.snapshot().vectors, whole.snapshot().vectors)


def test_products_that_are_put_have_words(shop: lookalike.Catalog, encoder: Beside, tmp_path: Path):
    photo = draw(tmp_path / "new.png", "black", "bag")
    shop.put([Product("new", [photo], "satin clutch")])
    assert np.allclose(halves(shop, "new")[1], bag(["satin clutch"])[0])
    shop.put([Product("new", [photo], "leather clutch")])
    assert np.allclose(halves(shop, "new")[1], bag(["leather clutch"])[0])
    assert shop.search("leather clutch")[0].id == "new"


def test_searches_score_by_the_half_that_was_asked(shop: lookalike.Catalog, encoder: Beside, table: Path):
    snapshot = shop.snapshot()
    photo = table.parent / "img" / "3.jpg"
    by_photo = shop.search(image=photo, k=13)
    vector = encoder.encode_photos(encoder.prepare(images.read(photo))[None])[0]
    assert [h.score for h in by_photo] == pytest.approx(
        sorted([max(snapshot.vectors[list(snapshot.rows(n))] @ vector) for n in range(12)], reverse=True), abs=1e-5
    )
    assert by_photo[0].score == pytest.approx(1, abs=1e-5)
    by_text = shop.search(description("black shirt", shop.product("p03")["attributes"]))
    assert (by_text[0].id, by_text[0].score) == ("p03", pytest.approx(1, abs=1e-5))
    like = shop.search(like="p03", k=12)
    assert [h.id for h in like] == [h.id for h in by_photo if h.id != "p03"]
    assert [h.id for h in shop.search(like="p03", pure=True, k=12)] == [h.id for h in like]


def test_mixed_queries_ask_both_halves_and_stay_cosines(shop: lookalike.Catalog, table: Path):
    photo = table.parent / "img" / "0.jpg"  # a red shirt
    for query in (
        Query(image=photo, text="bag", k=12),
        Query(text="bag", up=["p04"], down=["p01"], k=12),
        Query(image=photo, not_text=["shirt"], k=12),
        Query(like=["p00"], text="dress", not_like=["p05"], k=12),
    ):
        hits = shop.answer(query).hits
        assert len({h.id for h in hits}) == len(hits) > 0
        assert all(-1 <= h.score <= 1 for h in hits), query
        assert hits[0].score > hits[-1].score
    assert shop.search(image=photo, text="bag", weights={"text": 3})[0].id == "p08"  # the red bag
    assert shop.search(image=photo)[0].id == "p00"
    without = {h.id: h.score for h in shop.search(image=photo, not_text="shirt", k=12)}
    assert max(without, key=without.__getitem__) in ("p04", "p08")  # red, and no shirts


def test_duplicates_folding_and_tags_go_by_the_photo_alone(tmp_path: Path, encoder: Beside):
    photo, other = draw(tmp_path / "a.png", "red", "shirt"), draw(tmp_path / "b.png", "blue", "bag")
    catalog = lookalike.open(tmp_path / "c", encoder=encoder)
    catalog.index(
        [
            Product("a", [photo], "red shirt", {"kind": "shirt"}),
            Product("b", [photo], "the summer sale", {"kind": "shirt"}),
            Product("c", [other], "red shirt", {"kind": "bag"}),
        ]
    )
    groups = catalog.duplicates()
    assert [[p["id"] for p in g["products"]] for g in groups] == [["a", "b"]]
    assert groups[0]["score"] == pytest.approx(1, abs=1e-5)
    hits = catalog.search("red shirt", fold=True)
    assert {h.id: [f["id"] for f in h.folded] for h in hits} == {"a": ["b"], "c": []}
    tags = {t["column"]: t["values"][0]["value"] for t in catalog.tag(other)["tags"]}
    assert tags["kind"] == "bag"
    assert len(catalog.search("red shirt", diversity=0.5)) == 3


def test_verify_tells_a_half_that_is_no_vector(shop: lookalike.Catalog):
    assert json.loads((shop.store.directory / "catalog.json").read_text())["photo_dim"] == 128
    manifest = shop.store.manifest()
    assert manifest is not None
    broken = shop.store.rows().slice(0, 1)
    flat = broken["lk_vector"].combine_chunks().flatten().to_numpy().copy()
    flat[128:] *= 0.5
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 192)
    broken = broken.set_column(broken.column_names.index("lk_vector"), broken.schema.field("lk_vector"), column)
    with shop.store.writing():
        shop.store.commit(broken, replaces=True)
    assert len(shop.verify()["damaged"]) == 1
    assert "its vector has length 1.118" in shop.verify()["damaged"][0]


def test_leaving_one_out_is_about_the_photos(tmp_path: Path, encoder: Beside):
    products = [
        Product(
            f"p{n}", [draw(tmp_path / f"{n}.png", c, "bag", n)], f"word{n % 3}", {"colour": c, "word": f"word{n % 3}"}
        )
        for n, c in enumerate([*COLOURS] * 4)
    ]
    catalog = lookalike.open(tmp_path / "c", encoder=encoder)
    catalog.index(products)
    report = leave_one_out(catalog.snapshot(), encoder, ["word"], beside=[ColourHistogram()])
    rows = report["tables"][0]["rows"]
    assert rows["beside-1"] == rows["colour-histogram-1"]  # that the words name the answer is no merit of the photos


def test_kagl_leaves_out_what_such_words_cannot_be_asked(tmp_path: Path, encoder: Beside):
    rows = [
        {"id": n, "image": draw(tmp_path / f"{n}.png", c, "bag", n), "articleType": "Bag", "baseColour": c,
         "gender": "Women", "name": f"{c} bag {n}"}
        for n, c in enumerate([*COLOURS] * 4)
    ]  # fmt: skip
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "text-image.json").write_text(json.dumps({"red bag": {str(n): 1 for n in range(12)}}))
    red = {str(r["id"]): 1 for r in rows if r["baseColour"] == "red"}
    (truth / "baseColour-image+text.json").write_text(json.dumps({"red": red}))
    catalog = lookalike.open(tmp_path / "c", encoder=encoder)
    catalog.index(write_csv(tmp_path / "t.csv", rows))
    report = kagl.evaluate(catalog.snapshot(), encoder, truth)
    assert [t["name"] for t in report["tables"]] == ["colour", "photo → photo, held-out products"]
    assert "not with photos" in report["note"]
    plain = kagl.evaluate(catalog.snapshot(), encoder, truth, [ColourHistogram()])["tables"][1]["rows"]
    assert plain["beside-1"] == plain["colour-histogram-1"]  # the photos alone


# The sentence encoder


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory, torchvision_operators: None) -> Iterator[Path]:
    """A sentence-transformers model of MiniLM's layout: two layers, random weights, few words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    root = tmp_path_factory.mktemp("model")
    words = ["red", "blue", "green", "shirt", "dress", "bag", "for", "men", "women", "a", "."]
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters]))
    (root / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.2, **shape)
    BertModel(config).save_pretrained(root / "bert")
    BertTokenizerFast(str(root / "vocab.txt")).save_pretrained(root / "bert")
    net = Transformer(str(root / "bert"), max_seq_length=32)
    SentenceTransformer(modules=[net, Pooling(32)], device="cpu").save(str(root / "minilm"))
    yield root / "minilm"


@pytest.fixture(scope="module")
def both(minilm: Path) -> Encoder:
    return encoders.load(f"minilm@{minilm}+fake", threads=1)


def test_the_sentence_encoder_keeps_the_contract(both: Encoder, minilm: Path):
    assert isinstance(both, Encoder)
    assert (both.dim, photo_dim(both), both.reads_text) == (96, 64, True)
    assert both.name == f"minilm@{minilm}+fake"
    assert both.id.startswith("minilm-")
    assert both.id.endswith("+fake-1")
    texts = both.encode_texts(["red shirt", "", "🙂", "a dress " * 10_000, "red shirt"])
    assert not texts[:, :64].any()
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
    assert np.allclose(texts[0], texts[4], atol=1e-6)
    assert np.allclose(texts[0], both.encode_texts(["red shirt"])[0], atol=1e-5)  # alone, as beside longer ones
    photos = both.encode_photos(np.zeros((2, 16, 16, 3), np.uint8))
    assert np.array_equal(photos[:, :64], FakeEncoder().encode_photos(np.zeros((2, 16, 16, 3), np.uint8)))
    assert not photos[:, 64:].any()
    assert both.knows("dress")
    assert not both.knows("drress")


def test_it_says_what_sentence_transformers_says(both: Encoder, minilm: Path):
    from sentence_transformers import SentenceTransformer

    texts = ["red shirt for men", "a blue dress", "women"]
    told = SentenceTransformer(str(minilm), device="cpu").encode(texts, normalize_embeddings=True)
    assert np.allclose(both.encode_texts(texts)[:, 64:], told, atol=1e-5)


def test_a_catalog_finds_by_words_what_no_photo_says(tmp_path: Path, table: Path, minilm: Path):
    catalog = lookalike.open(tmp_path / "c", encoder=f"minilm@{minilm}+colour-histogram")
    catalog.index(table)
    told = description("blue dress", catalog.product("p05")["attributes"])
    again = lookalike.open(tmp_path / "c")  # by the name that the catalog keeps
    assert again.search(told)[0].id == "p05"
    assert again.encoder.id == catalog.encoder.id


def test_other_words_are_another_encoder(both: Encoder, minilm: Path, tmp_path: Path):
    other = shutil.copytree(minilm, tmp_path / "a+b")
    assert encoders.load(f"minilm@{other}+fake").id == both.id  # wherever it lies
    file = other / "sentence_bert_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_seq_length": 16}))
    assert encoders.load(f"minilm@{other}+fake").id != both.id


@pytest.mark.parametrize("kind", ["sentence_transformers.models.Dense", "mine.Transformer", "os.system"])
def test_a_model_with_parts_that_could_run_code_is_refused(minilm: Path, tmp_path: Path, kind: str):
    other = shutil.copytree(minilm, tmp_path / "other")
    parts = json.loads((other / "modules.json").read_text())
    parts.append({"idx": len(parts), "name": "9", "path": "9", "type": kind})
    (other / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(InputError, match=rf"modules\.json: has a part {kind}; .*others can run code"):
        encoders.load(f"minilm@{other}+fake")


def test_wrong_names_are_told(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="no such directory; give one that holds sentence-transformers/all-MiniLM"):
        encoders.load("minilm@/nowhere+fake")
    with pytest.raises(UsageError, match=r"which encoder for the photos\?"):
        encoders.load(f"minilm@{minilm}")
    with pytest.raises(UsageError, match="has titles beside its photos already"):
        encoders.load(f"minilm@{minilm}+minilm@{minilm}+fake")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"empty: holds 0 \.safetensors"):
        encoders.load(f"minilm@{empty}+fake")
    shutil.copy(minilm / "model.safetensors", empty)
    with pytest.raises(InputError, match="empty: not sentence-transformers/all-MiniLM-L6-v2, nor a model like it"):
        encoders.load(f"minilm@{empty}+fake")
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(InputError, match=r"use --encoder minilm@/path/to/the/directory\+colour-histogram"):
        encoders.load("minilm+colour-histogram")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'lookalike\[torch\]'"):
        encoders.load(f"minilm@{minilm}+fake")


# Exported


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory, torchvision_operators: None) -> str:
    """timm's smallest residual net with random weights, as a name."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("resnet") / "model.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    return f"test_resnet@{file}"


def red(encoder: Encoder) -> np.ndarray:
    return encoder.prepare(Image.new("RGB", (60, 80), "red"))[None]


@pytest.mark.parametrize("photo", ["builtin", "timm"])
def test_exported_it_is_the_same_encoder_without_torch(photo: str, minilm: Path, resnet: str, tmp_path: Path):
    name = f"minilm@{minilm}+{resnet if photo == 'timm' else photo}"
    made = export_encoder(name, tmp_path / "out")
    assert made["texts"] >= 0.9999
    before, after = encoders.load(name), encoders.load(str(tmp_path / "out"))
    assert isinstance(after, OnnxEncoder)
    assert (after.id, after.dim, photo_dim(after)) == (before.id, before.dim, photo_dim(before))
    texts = ["red shirt for men", "", "a dress " * 1000]
    assert np.allclose(after.encode_texts(texts), before.encode_texts(texts), atol=1e-4)
    assert np.allclose(after.encode_photos(red(after)), before.encode_photos(red(before)), atol=1e-3)
    assert after.knows("dress")
    assert not after.knows("drress")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sentence_transformers'] = None\n"
        f"import lookalike; c = lookalike.open({str(tmp_path / 'c')!r}, encoder={str(tmp_path / 'out')!r})\n"
        f"c.index({str(draw_two(tmp_path))!r}); print(c.search('blue bag')[0].id, c.search('red shirt')[0].id)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["b", "a"]
    catalog = lookalike.open(tmp_path / "c", encoder=name)  # made by the one, opened by the other
    assert catalog.search("blue bag")[0].id == "b"


def draw_two(folder: Path) -> Path:
    rows = [
        {"id": "a", "name": "red shirt", "image": draw(folder / "a.png", "red", "shirt")},
        {"id": "b", "name": "blue bag", "image": draw(folder / "b.png", "blue", "bag")},
    ]
    return write_csv(folder / "two.csv", rows)


def test_what_cannot_be_exported_is_told(minilm: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="colour-histogram: is no single ONNX file"):
        export_encoder(f"minilm@{minilm}+colour-histogram", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_ensemble_of_nets_in_torch_is_exported_with_them(resnet: str, tmp_path: Path):
    name = f"ensemble:colour-histogram+{resnet}"
    export_encoder(name, tmp_path / "out")
    before, after = encoders.load(name), encoders.load(str(tmp_path / "out"))
    assert np.allclose(after.encode_photos(red(after)), before.encode_photos(red(before)), atol=1e-3)
    assert (tmp_path / "out" / "member-2" / "photo.onnx").is_file()
