"""The built-in model's recipe: the split rule, the parts by hand, and a whole tiny run, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import COLOURS, KINDS, draw

pytest.importorskip("torch", reason="needs torch: pip install torch==2.13.0, then the extra train")

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from lookalike import encoders
from lookalike.errors import InputError, UsageError
from lookalike.training import builtin, data, polish, pretrained
from lookalike.training.towers import PhotoTower, TextTower

WORDS = ["[PAD]", "[UNK]", *COLOURS, *KINDS, "women", "men", "##s", "s", "the"]
TINY = builtin.Options(height=64, width=32, dim=32, frozen=1, epochs=3, batch=16, trunk_width=0.125, warmup=2, polish=4)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kaggle")
    lines = ["id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"]
    for n in range(96):
        colour, kind = list(COLOURS)[n % 4], KINDS[n % 3]
        draw(root / "images" / f"{n}.jpg", colour, kind, n // 12)
        lines.append(
            f"{n},{('Men', 'Women')[n % 2]},Apparel,{kind},{kind},{colour},Summer,2012,Casual,the {colour} {kind}"
        )
    (root / "images" / "95.jpg").write_bytes(
        (root / "images" / "0.jpg").read_bytes()
    )  # byte-identical to a held-out one
    (root / "styles.csv").write_text("\n".join(lines) + "\n")
    (root / "text-image.json").write_text(json.dumps({"the red shirt": {"0": 1}, "the blue dress": {"1": 1, "5": 1}}))
    return root


@pytest.fixture(scope="module")
def packed(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> data.FashionData:
    return data.load(shop, None, shop / "text-image.json", tmp_path_factory.mktemp("work"), (64, 32))


def test_held_out_products_and_their_byte_identical_twins_are_never_trained_on(packed: data.FashionData):
    held = {i for i, s in zip(packed.ids, packed.split, strict=True) if s == 2}
    assert held == {"0", "1", "5", "95"}
    trained = {int(r) for _, rows in builtin.batches(packed, TINY, 0) for r in rows}
    assert trained
    assert all(packed.split[r] == 0 for r in trained)
    by_digest: dict[str, set[int]] = {}
    for digest, part in zip(packed.digests, packed.split, strict=True):
        by_digest.setdefault(digest, set()).add(int(part))
    assert all(len(parts) == 1 for parts in by_digest.values())  # twins stay on one side


def test_the_split_of_the_real_data(data: Path):
    """2,774 products are named by the ground truth, 37 more are byte-identical to one of those."""
    import zipfile

    from lookalike import images

    archive = zipfile.ZipFile(data / "fashion-product-images-small.zip")
    photos = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
    ids = [Path(n).stem for n in photos]
    digests = [images.digest(archive.read(n)) for n in photos]
    from lookalike.training.data import split_of

    split = split_of(ids, digests, data / "kagl-ground-truth" / "text-image.json")
    assert len(ids) == 44441
    assert (split == 2).sum() == 2774 + 37
    held = {d for d, s in zip(digests, split, strict=True) if s == 2}
    assert not held & {d for d, s in zip(digests, split, strict=True) if s != 2}


def test_contrast_by_hand():
    """Two of three texts are equal: each of their photos may answer either."""
    a = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    logits = (10 * a @ a.T).numpy()
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = same.numpy() / same.numpy().sum(1, keepdims=True)
    by_hand = -(target * log).sum(1).mean()
    keys, scale = torch.tensor([4, 4, 9]), torch.tensor(10.0)
    assert builtin.contrast(a, a, keys, scale).item() == pytest.approx(by_hand, rel=1e-5)


def test_pulling_like_photos_together_by_hand():
    """Of four photos two are alike; the others have no pair and are no query."""
    v = normalize(torch.tensor([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), dim=-1)
    sims = (v @ v.T / 0.1).double().numpy()
    by_hand = 0.0
    for a, b in ((0, 1), (1, 0)):
        others = [sims[a, n] for n in range(4) if n != a]
        by_hand -= (sims[a, b] - np.log(np.exp(others).sum())) / 2
    assert builtin.pull(v, torch.tensor([7, 7, 1, 2])).item() == pytest.approx(by_hand, rel=1e-4)
    alone = builtin.pull(v.requires_grad_(), torch.tensor([1, 2, 3, 4]))
    alone.backward()  # a batch without pairs teaches nothing, and is no error
    assert alone.item() == 0


def test_strong_augmentation_hides_a_part_and_keeps_colours():
    grey = torch.full((64, 32, 32, 3), 100, dtype=torch.uint8)
    mild, strong = (builtin.augment(grey, (32, 32), torch.Generator().manual_seed(3), s) for s in (1.0, 1.6))
    inner = slice(8, 24)  # beyond it, warps let the white border in
    assert (mild[:, :, inner, inner] < 0.0).all()
    hidden = (strong[:, :, inner, inner] > 0.5).flatten(1).float().mean(1)
    assert 0.2 < (hidden > 0.01).float().mean() < 0.6  # about half of the photos, if the rectangle falls on the middle
    assert hidden.max() < 0.9
    assert (strong[..., 16, 16].sub(mild[..., 16, 16]).abs()[hidden == 0] < 0.3).all()


def test_a_run_may_begin_with_the_weights_of_another(packed: data.FashionData, tmp_path: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    first = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, TINY)
    first.begin(None)
    torch.nn.init.normal_(first.average.photo.project.weight)
    file = tmp_path / "final.safetensors"
    save_file({k: v.contiguous() for k, v in first.average.state_dict().items()}, file)
    second = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, TINY)
    second.begin(None)
    second.start_from([file])
    for net in (second.model, second.average):
        assert torch.equal(net.photo.project.weight, first.average.photo.project.weight)
    other = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, builtin.Options(**{**vars(TINY), "dim": 8}))
    other.begin(None)
    with pytest.raises(InputError, match="not the weights of such a run"):
        other.start_from([file])


def test_a_run_may_begin_with_the_mean_of_others(packed: data.FashionData, tmp_path: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    tokenizer = pretrained.tokenizer_of(WORDS)
    starts = []
    for seed in (1, 2):
        run = builtin.Run(packed, tokenizer, table, builtin.Options(**{**vars(TINY), "seed": seed}))
        run.begin(None)
        run.average.photo.layers[-1].norm.running_mean.fill_(seed)
        starts.append(tmp_path / f"{seed}.safetensors")
        save_file({k: v.contiguous() for k, v in run.average.state_dict().items()}, starts[-1])
    first, second = (load_file(start) for start in starts)
    soup = builtin.Run(packed, tokenizer, table, TINY)
    soup.begin(None)
    soup.start_from(starts)
    for net in (soup.model, soup.average):
        for name in ("photo.project.weight", "photo.layers.9.conv.weight", "text.qkv.weight", "heads.gender.bias"):
            assert torch.allclose(net.state_dict()[name], (first[name] + second[name]) / 2)
        assert (net.photo.layers[-1].norm.running_mean == 1.5).all()
    none = builtin.Run(packed, tokenizer, table, builtin.Options(**{**vars(TINY), "epochs": 0}))
    kept = load_file(builtin.train(none, tmp_path, earlier=starts))
    assert torch.equal(kept["average.photo.project.weight"], soup.average.photo.project.weight)  # no step was taken
    (tmp_path / "encoder").mkdir()
    with pytest.raises(InputError, match="files or directories, not both"):
        soup.start_from([starts[0], tmp_path / "encoder"])


def test_a_run_may_begin_with_an_exported_encoder(packed: data.FashionData, tmp_path: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    tokenizer = pretrained.tokenizer_of(WORDS)
    run = builtin.Run(packed, tokenizer, table, builtin.Options(**{**vars(TINY), "epochs": 12}))
    file = builtin.train(run, tmp_path)
    builtin.ship(run, file, tmp_path / "out", tokenizer, quantise=False)
    again = builtin.Run(packed, tokenizer, table, TINY)
    again.begin(None)
    for name in ("photo.onnx", "text.onnx"):  # no file of the machine that made it
        exported = (tmp_path / "out" / name).read_bytes()
        assert b"site-packages" not in exported and b"lookalike/training" not in exported and b".py" not in exported
    again.start_from([tmp_path / "out"])
    rows = np.flatnonzero(packed.split == 0)
    apart = (run.vectors(rows) * again.vectors(rows)).sum(1)
    assert apart.min() > 0.999
    said = builtin.padded([[2, 3, 4]])
    assert torch.allclose(again.average.text(said), run.average.text(said), atol=0.02)
    assert torch.equal(again.model.text.table, run.model.text.table)


def test_the_bank_is_every_product_of_the_training_split(packed: data.FashionData, tmp_path: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    options = builtin.Options(**{**vars(TINY), "bank_weight": 0.5, "epochs": 9})
    run = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, options)
    run.begin(None)
    per_epoch = len(run.train_rows) // options.batch
    parts = [run.advance(rows) for _, rows in builtin.batches(packed, options, 0)]
    assert ["bank" in p for p in parts] == [step >= 2 * per_epoch for step in range(len(parts))]
    assert torch.allclose(run.bank.titles.norm(dim=1), torch.ones(len(run.train_rows)), atol=1e-4)
    # By hand, for two photos among all titles and two titles among all photos.
    rows = run.train_rows[:2]
    run.step += per_epoch - run.step % per_epoch + 1  # not a step that renews the titles
    photos, titles = run.bank.photos[:2].clone() * 1.0, run.bank.titles[:2].clone()
    found = run._among_all(rows, photos, titles, torch.tensor(20.0))["bank"].item()
    total = 0.0
    for asked, among in ((photos, run.bank.titles), (titles, run.bank.photos)):
        logits = (20 * asked @ among.T).double()
        for n, row in enumerate(rows):
            right = torch.from_numpy((run.titles[run.train_rows] == run.titles[row]).astype(float))
            right *= among.any(1)
            logits[n, ~among.any(1)] = -1e4
            total -= float((logits[n].log_softmax(0) * right / right.sum()).sum()) / 2
    assert found == pytest.approx(total / 2 * 0.5, rel=1e-3)
    # A run that begins with another's weights knows all products from its first step on.
    file = tmp_path / "final.safetensors"
    save_file({k: v.contiguous() for k, v in run.average.state_dict().items()}, file)
    again = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, options)
    again.begin(None)
    again.start_from([file])
    assert torch.equal(again.bank.photos, run.vectors(run.train_rows))
    assert "bank" in again.advance(run.train_rows[: options.batch])


def test_calibration_keeps_what_the_folded_weights_computed():
    torch.manual_seed(0)
    tower = PhotoTower(16, 0, 0.125).eval()
    pixels = torch.rand(32, 3, 64, 32) * 2 - 1
    folded = PhotoTower(16, len(tower.layers), 0.125).eval()  # all frozen: no normalisation anywhere
    with torch.no_grad():
        for mine, theirs in zip(tower.layers, folded.layers, strict=True):
            bias = torch.randn(mine.conv.weight.shape[0]) * 0.1
            theirs.conv.weight.copy_(mine.conv.weight)
            theirs.conv.bias.copy_(bias)
            mine.norm.bias.copy_(bias)
        tower.calibrate(pixels)
        assert torch.allclose(tower.pooled(pixels), folded.pooled(pixels), atol=1e-3)


def test_text_tower_ignores_padding_and_drops_its_learnt_part_only_in_training():
    torch.manual_seed(0)
    tower = TextTower(torch.randn(10, 8), dim=4, width=16).eval()
    short, padded = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 0, 0, 0]])
    assert torch.allclose(tower(short), tower(padded), atol=1e-6)
    with torch.no_grad():
        tower.delta.fill_(1.0)
    tower.drop_delta = 1.0
    kept = tower.words(short)
    assert not torch.allclose(kept, tower.train().words(short))


def test_word_pieces_of_a_small_sentence_model_on_disk(tmp_path: Path):
    """The real loading code, on a randomly initialised BERT saved as sentence-transformers saves it."""
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="needs the extra train")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[unused0]",
        "red",
        "dress",
        "##es",
        "платье",
        "blue",
        "café",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(tmp_path / "bert"))
    sentence_transformers.SentenceTransformer(modules=[words, Pooling(16)], device="cpu").save(str(tmp_path / "model"))
    table, pieces = pretrained.word_piece_table(str(tmp_path / "model"), size=4)
    assert pieces == ["[PAD]", "[UNK]", "red", "dress", "##es", "blue", "café"]
    assert table.shape == (7, 4)
    assert not table[:2].any()
    assert np.isfinite(table).all()
    assert pretrained.tokenizer_of(pieces).encode("Dresses RED", add_special_tokens=False).ids == [3, 4, 2]


def test_singular():
    assert [builtin.singular(w) for w in ("Dresses", "Watches", "Shirts", "Jeans", "Dress", "Bag")] == [
        "Dress", "Watch", "Shirt", "Jean", "Dress", "Bag",
    ]  # fmt: skip


def test_polishing_changes_the_text_tower_alone(packed: data.FashionData):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    options = builtin.Options(**{**vars(TINY), "polish": 200, "polish_rate": 3e-3})
    run = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, options)
    run.begin(None)
    rows = np.flatnonzero(packed.split == 0)
    before = run.vectors(rows)
    lines: list[str] = []
    polish.polish(run, lines.append)
    assert torch.equal(before, run.vectors(rows))
    assert not run.average.text.training
    losses = [float(line.split("attributes ")[1].split()[0]) for line in lines if line.startswith("polish")]
    assert losses == sorted(losses, reverse=True)
    untouched = run.average.text.state_dict()
    polish.polish(
        builtin.Run(packed, run.texts.tokenizer, table, builtin.Options(**{**vars(options), "polish": 0})), print
    )
    assert all(
        torch.equal(a, b) for a, b in zip(untouched.values(), run.average.text.state_dict().values(), strict=True)
    )


def test_people_speak_in_sentences_and_slip(packed: data.FashionData):
    texts = builtin.Texts(packed, pretrained.tokenizer_of(WORDS))
    rng = np.random.default_rng(0)
    said = [texts.spoken("red dress", rng) for _ in range(300)]
    assert 0.4 < said.count("red dress") / 300 < 0.8
    assert "looking for red dress" in said
    slips = [s for s in said if "red dress" not in s]
    assert slips
    assert all(abs(len(s.split()[-1]) - len("dress")) < 20 for s in slips)


def test_options_from_text():
    assert builtin.options_from(["epochs=2", "batch=8"]) == builtin.Options(epochs=2.0, batch=8)
    with pytest.raises(UsageError, match="no such hyper-parameter"):
        builtin.options_from(["speed=1"])
    with pytest.raises(UsageError, match="a number is wanted, like 384"):
        builtin.options_from(["batch=many"])


def test_a_run_learns_is_resumed_where_it_was_and_ships(packed: data.FashionData, tmp_path: Path):
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    tokenizer = pretrained.tokenizer_of(WORDS)

    def fresh() -> builtin.Run:
        return builtin.Run(packed, tokenizer, table, TINY)

    whole_dir, broken_dir = tmp_path / "whole", tmp_path / "broken"
    whole_dir.mkdir()
    broken_dir.mkdir()
    lines: list[str] = []
    builtin.train(fresh(), whole_dir, log=lines.append)
    log = [json.loads(line) for line in (whole_dir / "log.jsonl").read_text().splitlines()]
    assert log[-1]["losses"]["heads"] < log[0]["losses"]["heads"]

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Stop

    with pytest.raises(Stop):
        builtin.train(fresh(), broken_dir, save_every=0, log=stop)
    again: list[str] = []
    builtin.train(fresh(), broken_dir, log=again.append)
    assert again[0].startswith("going on at step")
    assert not again[0].startswith("going on at step 0 ")

    other = builtin.Run(packed, tokenizer, table, builtin.Options(**{**vars(TINY), "epochs": 9}))
    other.begin(None)
    with pytest.raises(InputError, match="other options"):
        other.resume(whole_dir / "checkpoint.safetensors")

    run = fresh()
    builtin.ship(run, whole_dir / "checkpoint.safetensors", tmp_path / "float", tokenizer, quantise=False)
    shipped = encoders.load(str(tmp_path / "float"))
    pixels = np.array(packed.photos[:40])
    with torch.no_grad():
        known = run.average.photo(torch.from_numpy(pixels)).numpy()
        ids = builtin.padded([[t for w in run.texts.words("the red dress") for t in w]])
        text = run.average.text(ids).numpy()
    assert (shipped.encode_photos(pixels) * known).sum(1).min() > 0.9999
    assert (shipped.encode_texts(["the red dress"]) * text).sum() > 0.999  # its word table has 8 bits
    builtin.ship(fresh(), whole_dir / "checkpoint.safetensors", tmp_path / "int8", tokenizer)
    small = encoders.load(str(tmp_path / "int8"))
    assert (small.encode_photos(pixels) * known).sum(1).mean() > 0.97
    assert (tmp_path / "int8" / "photo.onnx").stat().st_size < (tmp_path / "float" / "photo.onnx").stat().st_size


def test_mobilenet_starts_as_the_tflite_file_computes(data: Path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="needs ai-edge-litert (extra train)")
    file = data / "weights" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
    rng = np.random.default_rng(0)
    photo = np.kron(rng.integers(0, 255, (1, 14, 14, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8)
    theirs = interpreter.Interpreter(str(file))
    theirs.allocate_tensors()
    theirs.set_tensor(theirs.get_input_details()[0]["index"], photo)
    theirs.invoke()
    known = theirs.get_tensor(theirs.get_output_details()[0]["index"]).ravel().astype(np.float32)
    tower = PhotoTower(8, frozen=13).eval()
    pretrained.load_mobilenet(tower, file)
    mine = tower.pooled((torch.from_numpy(photo).permute(0, 3, 1, 2).float() - 128) / 128)[0, :1024].numpy()
    assert np.corrcoef(known, mine)[0, 1] > 0.97  # 8-bit activations there, float here
    with pytest.raises(InputError, match="no such file"):
        pretrained.load_mobilenet(tower, file.with_name("nope.tflite"))


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Forty photos by ten people, in the layout of the clothing dataset."""
    lines = ["image,sender_id,label,kids"]
    for n in range(40):
        kind = ("T-Shirt", "Dress", "Not sure")[n % 3]
        draw(tmp_path / "clothing" / "images" / f"s{n}.jpg", list(COLOURS)[n % 4], KINDS[n % 2])
        lines.append(f"s{n},{n // 4},{kind},False")
    (tmp_path / "clothing" / "images.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "clothing"


def test_photos_by_people_are_split_by_sender_and_the_test_ones_never_trained_on(
    shop: Path, street: Path, tmp_path: Path
):
    packed = data.load(shop, None, shop / "text-image.json", tmp_path / "work", (64, 32), street)
    assert packed.street is not None
    assert packed.street.names == ["Dress", "T-Shirt"]
    assert 0 < packed.street.test.sum() < len(packed.street.test)
    senders = [int(f.stem[1:]) // 4 for f in packed.street.files]
    by_sender = {s: {bool(t) for t, o in zip(packed.street.test, senders, strict=True) if o == s} for s in senders}
    assert all(len(sides) == 1 for sides in by_sender.values())
    table = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    run = builtin.Run(packed, pretrained.tokenizer_of(WORDS), table, builtin.Options(**{**vars(TINY), "street": 6}))
    drawn = np.concatenate([run._street_rows(np.random.default_rng(n)) for n in range(50)])
    assert len(set(drawn)) > 10
    assert not packed.street.test[drawn].any()
    run.begin(None)
    _, rows = next(iter(builtin.batches(packed, run.options, 0)))
    assert "street" in run.advance(rows)
    with pytest.raises(InputError, match=r"no images\.csv here"):
        data.load(shop, None, shop / "text-image.json", tmp_path / "work", (64, 32), tmp_path)


def test_the_thesaurus_speaks_of_values_that_there_are():
    words = data.thesaurus()
    assert len(words) > 150
    assert all(others and all(o == o.strip() != "" for o in others) for others in words.values())
    assert "jumper" in words["Sweaters"]
    assert "crimson" in words["Red"]


def test_words_are_sometimes_said_otherwise(packed: data.FashionData):
    texts = builtin.Texts(packed, pretrained.tokenizer_of(WORDS), synonyms=0.5)
    texts.others = {"dress": ("frock", "gown")}
    rng = np.random.default_rng(0)
    assert {texts.word("dress", rng) for _ in range(100)} == {"dress", "frock", "gown"}
    texts.synonyms = 0.0
    assert {texts.word("dress", rng) for _ in range(100)} == {"dress"}
