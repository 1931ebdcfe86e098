"""The command line: thin commands over ``Catalog``. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, get_type_hints

import typer

from lookalike import __version__
from lookalike.errors import CatalogError, EncoderMismatch, InputError, LookalikeError, UsageError
from lookalike.training.options import RECIPES, Options
from lookalike.types import printable

if TYPE_CHECKING:
    from lookalike.catalog import Catalog
    from lookalike.feedback import Vote
    from lookalike.sources import Source

app = typer.Typer(
    help="Visual search for fashion catalogues: by photo, by words, or by both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"auto_envvar_prefix": "LOOKALIKE", "help_option_names": ["-h", "--help"]},
)

CatalogDir = Annotated[
    str,
    typer.Option(
        "--catalog",
        envvar="LOOKALIKE_CATALOG",
        help="The catalog: a directory, or s3://BUCKET/PREFIX.",
        show_default=True,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON instead of text.")]
EncoderName = Annotated[
    Optional[str],  # noqa: UP045 (typer reads it at run time)
    typer.Option(
        "--encoder", envvar="LOOKALIKE_ENCODER", help="A name (lookalike encoders lists them) or a directory."
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download", envvar="LOOKALIKE_DOWNLOAD", help="Fetch sources and photos that are given as addresses."
    ),
]
AllowHost = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(envvar="LOOKALIKE_ALLOW_HOST", help="HOST or HOST:PORT of your own that may have a private address."),
]
Cache = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(envvar="LOOKALIKE_CACHE", help="Where fetched photos are kept; by default in the catalog."),
]
HERE = "lookalike.catalog"


def main() -> None:
    """Entry point: our errors become one line and an exit code, anything else is a bug."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except LookalikeError as error:
        said = "\n".join(map(printable, str(error).split("\n")))
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `lookalike … | head`
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception:
        import traceback

        traceback.print_exc()
        print("error: this is a bug in lookalike; please report it with the lines above", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _open(directory: str | Path, encoder: str | None = None, must_exist: bool = True) -> Catalog:
    from lookalike.catalog import Catalog

    catalog = Catalog(directory, encoder)
    if must_exist and not catalog.store.exists:
        raise CatalogError(f"{directory}: no catalog there; make one: lookalike index SOURCE --catalog {directory}")
    return catalog


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"lookalike {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def _progress(what: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar with photos/s and the time left on a terminal, a line now and then elsewhere; on standard error."""
    if quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        start = last = time.monotonic()

        def line(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > 10:
                last = now
                typer.echo(f"{what}: {done} of {total}, {done / (now - start):.0f} photos/s", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None, speed="")
        start = time.monotonic()
        first: int | None = None

        def show(done: int, total: int) -> None:
            nonlocal first
            first = done if first is None else first
            speed = (done - first) / max(1e-6, time.monotonic() - start)
            bar.update(task, completed=done, total=total, speed=f"{speed:.0f} photos/s" if speed else "")

        yield show


def _roles(pairs: list[str]) -> dict[str, str]:
    out = {}
    for pair in ",".join(pairs).split(",") if pairs else []:
        role, equals, column = pair.partition("=")
        if not (role and equals and column):
            raise UsageError(f"--map {pair}: write it as role=column, for example --map image=photo_file,id=sku")
        out[role.strip()] = column.strip()
    return out


@app.command()
def index(
    source: Annotated[
        list[str],
        typer.Argument(help="Folders of photos, tables (.csv .tsv .jsonl .parquet), or a shop's export or feed."),
    ],
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    product_from: Annotated[str, typer.Option(help="What one product is in a folder: photo or folder.")] = "photo",
    prune: Annotated[bool, typer.Option("--prune", help="Remove what is no longer in the source.")] = False,
    download: Download = False,
    allow_host: AllowHost = None,
    cache: Cache = None,
    ray: Annotated[
        str, typer.Option(help="A Ray cluster that does the work: HOST:PORT, auto, ray://HOST:PORT or local.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Bring the catalog in step with product photos: adds, updates, skips what is unchanged."""
    from lookalike.indexing import Report
    from lookalike.sources import open_source

    opened = _open(catalog, encoder, must_exist=False)
    total = Report()
    roles = _roles(map_ or [])
    try:
        with _progress("Downloading", as_json or not download) as progress:
            web = opened.web(allow_host or (), cache, progress) if download else None
            sources = [
                open_source(s, roles, product_from, web) for s in source
            ]  # wrong in any of them: nothing changes
    except KeyboardInterrupt:
        typer.echo("interrupted; what was fetched is kept, run the same command to go on", err=True)
        raise typer.Exit(130) from None
    for one in sources:
        try:
            with _progress("Indexing", as_json) as progress:
                report = opened.index(
                    one, prune=prune, progress=progress, download=web or False, stages=_stages(as_json), ray=ray
                )
        except KeyboardInterrupt:
            typer.echo("interrupted; what was encoded is kept, run the same command to go on", err=True)
            raise typer.Exit(130) from None
        for field in ("added", "updated", "unchanged", "removed", "quarantined", "seconds"):
            setattr(total, field, getattr(total, field) + getattr(report, field))
    if as_json:
        typer.echo(json.dumps(total.to_json()))
        return
    done = f"{total.added} added, {total.updated} updated, {total.unchanged} unchanged, {total.removed} removed"
    fresh = total.added + total.updated
    speed = f" ({fresh / total.seconds:.0f} photos/s)" if fresh and total.seconds else ""
    typer.echo(f"{done}, {total.quarantined} quarantined in {total.seconds:.1f} s{speed}")
    if left := sum(one.left for one in sources):
        typer.echo(f"{left} other files are no photos and were left alone")
    if hidden := sum(one.hidden for one in sources):
        typer.echo(f"{hidden} products that the shop does not show (drafts, hidden, archived) were left out")
    if total.quarantined:
        typer.echo(f"what could not be used, and why: lookalike quarantine --catalog {catalog}")


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="Words.")] = "",
    image: Annotated[Optional[Path], typer.Option(help="A photo's file.")] = None,  # noqa: UP045
    like: Annotated[Optional[list[str]], typer.Option(help="A product's id; may be repeated.")] = None,  # noqa: UP045
    not_: Annotated[Optional[list[str]], typer.Option("--not", help="Words for what is not wanted.")] = None,  # noqa: UP045
    where: Annotated[str, typer.Option(help="A filter: gender = 'Women' and price < 50")] = "",
    k: Annotated[int, typer.Option("-k", help="How many products, 1 to 1000.")] = 12,
    colour: Annotated[str, typer.Option(help="What the garment should have, #rrggbb.")] = "",
    lexical: Annotated[float, typer.Option(help="Share of word matching over titles and attributes, 0 to 1.")] = 0.0,
    fold: Annotated[bool, typer.Option("--fold", help="Near-duplicates under the first of them.")] = False,
    diversity: Annotated[float, typer.Option(help="Keeps hits apart, 0 to 1.")] = 0.0,
    sort: Annotated[str, typer.Option(help="A column to order the best 200 by; -COLUMN: largest first.")] = "",
    offset: Annotated[int, typer.Option(help="Hits to skip.")] = 0,
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Find look-alikes by words, by photo, by "like product X", or by several at once."""
    from lookalike.types import Query

    query = Query(
        image, text, like or (), not_ or (), where=where, k=k, colour=colour, lexical=lexical, fold=fold,
        diversity=diversity, sort=sort, offset=offset,
    )  # fmt: skip
    answer = _open(catalog, encoder).answer(query)
    if as_json:
        hits = [h.to_json(paths=True) for h in answer.hits]
        found = {
            "hits": hits,
            "total": answer.total,
            "more": answer.more,
            "no_good_match": answer.no_good_match,
            "corrected": dict(answer.corrected),
            "took_ms": round(answer.took_ms, 2),
        }
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    if not answer.hits:
        typer.echo("no product passes the filter" if where else "the catalog is empty")
        return
    _table(
        ["score", "alike", "id", "title", "attributes", "photo"],
        [
            [
                f"{h.score:.3f}",
                "" if h.alike is None else f"{h.alike:.0f}",
                h.id,
                h.title,
                ", ".join(str(v) for v in h.attributes.values()),
                h.path,
            ]
            for h in answer.hits
        ],
    )
    for word, better in answer.corrected.items():
        typer.echo(f"no title has {word!r}; matched {better!r} instead")
    if answer.no_good_match:
        typer.echo("nothing here is much like that; these come closest")
    typer.echo(f"{len(answer.hits)} of {answer.total} products, {answer.took_ms:.1f} ms")


@app.command()
def tag(
    image: Annotated[Path, typer.Argument(help="A photo's file.")],
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    as_json: Json = False,
) -> None:
    """Attributes of any photo, as the products most like it have them, with the share of their votes; and its colours."""
    found = _open(catalog, encoder).tag(image)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    rows = [
        [t["column"], *[f"{v['value']} {v['confidence']:.0%}" for v in t["values"][:3]], *[""] * (3 - len(t["values"]))]
        for t in found["tags"]
    ]
    _table(["column", "value", "or", "or"], rows)
    typer.echo("colours: " + ", ".join(f"{c['hex']} {c['share']:.0%}" for c in found["colours"]))


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help="A photo's file.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    encoder: EncoderName = None,
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """How alike two photos are, by any encoder; by default the catalog's, or builtin where there is none."""
    from lookalike.encoders import load
    from lookalike.insights import similarity

    made = load(encoder) if encoder else _open(catalog, must_exist=False).encoder
    found = similarity(made, one, other)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"cosine {found['cosine']:.4f}, Euclidean distance {found['distance']:.4f} (by {found['encoder']})")
    if "alike" in found:
        typer.echo(f"alike: {found['alike']} of 100")


@app.command()
def duplicates(
    threshold: Annotated[Optional[float], typer.Option(help="Cosine of two photos, 0.9 to 1; by default 0.99.")] = None,  # noqa: UP045
    where: Annotated[str, typer.Option(help="A filter: gender = 'Women' and price < 50")] = "",
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """Groups of products whose photos show the same."""
    with _progress("photos", as_json) as progress:
        groups = _open(catalog).duplicates(threshold, where=where, progress=progress)
    if as_json:
        typer.echo(json.dumps({"groups": groups, "total": len(groups)}, ensure_ascii=False))
        return
    rows = [
        [f"{g['score']:.3f}", str(n + 1) if not m else "", p["id"], p["title"]]
        for n, g in enumerate(groups)
        for m, p in enumerate(g["products"])
    ]
    _table(["score", "group", "id", "title"], rows)
    typer.echo(f"{len(groups)} groups of {len(rows)} products")


@app.command()
def status(catalog: CatalogDir = HERE, as_json: Json = False) -> None:
    """What the catalog holds and which encoder made it."""
    found = _open(catalog).status()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    encoder = found["encoder"]
    typer.echo(f"{found['catalog']}: {found['products']} products, {found['photos']} photos")
    origin = ", ".join(f"{key} {value}" for key, value in encoder["source"].items())
    made = f"{encoder['id']}, {encoder['dim']} dimensions" + (f" ({origin})" if origin else "")
    typer.echo(f"encoder: {made}; quarantined: {found['quarantined']}")
    index = found["index"]
    newer = f"; {index['newer']} newer photos beside it" if index["newer"] else ""
    typer.echo(f"index: {index['kind']} ({index['why']}){_recall(index.get('settings', {}))}{newer}")
    for column in found["columns"]:
        role = f", the {column['role']}" if column["role"] and column["role"] != column["name"] else ""
        typer.echo(f"  {column['name']} ({column['kind']}{role})")


@app.command()
def quarantine(catalog: CatalogDir = HERE, as_json: Json = False) -> None:
    """List the inputs that could not be used, with the reasons."""
    entries = _open(catalog).quarantine()
    if as_json:
        typer.echo(json.dumps([{"item": e.item, "reason": e.reason} for e in entries], ensure_ascii=False))
        return
    for entry in entries:
        typer.echo(printable(f"{entry.item}: {entry.reason}"))
    if not entries:
        typer.echo("nothing is in quarantine")


@app.command()
def remove(ids: Annotated[list[str], typer.Argument(help="Product ids.")], catalog: CatalogDir = HERE) -> None:
    """Remove products from the catalog (not their files)."""
    count = _open(catalog).remove(*ids)
    typer.echo(f"removed {len(set(ids))} products, {count} photos")


@app.command()
def export(
    file: Annotated[Path, typer.Argument(help=".csv, .jsonl or .parquet")],
    catalog: CatalogDir = HERE,
    vectors: Annotated[bool, typer.Option("--vectors", help="Also the vectors (.jsonl, .parquet).")] = False,
) -> None:
    """Write one row per photo, with digest and columns, in a stable order."""
    rows = _open(catalog).export(file, vectors=vectors)
    typer.echo(f"{rows} rows written to {file}")


@app.command()
def verify(catalog: CatalogDir = HERE, as_json: Json = False) -> None:
    """Check rows, vectors and files against each other; exit code 4 where the catalog is damaged."""
    with _progress("Verifying", as_json) as progress:
        found = _open(catalog).verify(progress)
    _verified(found, as_json)


def _verified(found: dict[str, Any], as_json: bool) -> None:
    """Say what ``verify`` found; exit code 4 where rows are damaged."""
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        for kind, mend in (
            ("damaged", "restore the catalog from a backup, or index again"),
            ("changed", "run index again"),
            ("missing", "bring the file back, or run index --prune"),
        ):
            for line in found[kind][:20]:
                typer.echo(printable(f"{kind}: {line} ({mend})"))
            if len(found[kind]) > 20:
                typer.echo(f"{kind}: {len(found[kind]) - 20} more")
        counts = ", ".join(f"{len(found[kind])} {kind}" for kind in ("damaged", "changed", "missing"))
        typer.echo(f"{found['photos']} photos checked: {counts}")
    if found["damaged"]:
        raise typer.Exit(4)


@app.command()
def doctor(
    catalog: Annotated[
        str,
        typer.Option("--catalog", envvar="LOOKALIKE_CATALOG", help=f"Look at this catalog, too; by default {HERE}."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check the installation, the machine and a catalog, and say how to mend what is wrong; exit code 1 where something is."""
    from lookalike import doctor

    if not doctor.main(catalog or HERE, bool(catalog), as_json, typer.echo):
        raise typer.Exit(1)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="To write; a zip.")],
    catalog: CatalogDir = HERE,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Put it in the place of a file that is there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the catalog to one file, also while it is being written to; photos of a source stay where they are."""
    try:
        with _progress("Backing up", as_json) as progress:
            told = _open(catalog).backup(file, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(json.dumps({"file": str(file), **told}, ensure_ascii=False))
        return
    for gone in told["missing"]:
        typer.echo(f"missing: {gone} (a writer replaced it meanwhile, or it was removed)")
    own = f" and {told['files']} files of the catalog's own photos" if told["files"] else ""
    typer.echo(f"{told['photos']} photos' rows{own} in {file}, {told['bytes'] / 1e6:.1f} MB")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="What backup wrote.")],
    catalog: CatalogDir = HERE,
    photos: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="OLD=NEW: photos in the folder OLD are in NEW on this machine; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new catalog from a backup, and look whether its photos are there."""
    from lookalike import backup

    moved = {}
    for pair in photos or ():
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise UsageError(f"--photos {pair}: write it as OLD=NEW, for example --photos /old/photos=/new/photos")
        moved[old] = new
    try:
        with _progress("Restoring", as_json) as progress:
            found = backup.restore(file, catalog, photos=moved, progress=progress)
    except KeyboardInterrupt:
        typer.echo("interrupted; nothing was made, unless photos were being looked at: then lookalike verify", err=True)
        raise typer.Exit(130) from None
    _verified(found, as_json)


@app.command()
def compact(catalog: CatalogDir = HERE) -> None:
    """Merge small files; indexing does it by itself."""
    _open(catalog).compact()
    typer.echo("compacted")


@app.command()
def reindex(
    kind: Annotated[
        str,
        typer.Option("--index", help="auto (by size and memory), exact, int8, lsh, hnsw or ivf; by default as before."),
    ] = "",
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """Make the index of a large catalog anew; searches go on meanwhile. Indexing does it by itself."""
    found = _open(catalog).reindex(kind, _stages(as_json))
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{found['kind']} ({found['why']}), {found['seconds']} s{_recall(found['settings'])}")


def _stages(quiet: bool) -> Callable[[str, int, int], None]:
    """Lines about long work in stages, on standard error."""
    told: dict[str, float] = {}

    def tell(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not quiet and (now - told.get(stage, -10) >= 10 or (done == total and total)):
            told[stage] = now
            typer.echo(f"index, {stage}: {done / max(1, total):.0%}", err=True)

    return tell


def _recall(settings: dict[str, Any]) -> str:
    found = settings.get("recall")
    if not found:
        return ""
    measured = ", ".join(f"{share:.1%} for {name}" for name, share in found.items() if name != "k")
    return f"; of the {found['k']} nearest it finds {measured}"


@app.command()
def serve(
    source: Annotated[Optional[str], typer.Argument(help="Index this, too: in the background, while serving.")] = None,  # noqa: UP045
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    host: Annotated[str, typer.Option(help="Address to listen at; any but loopback needs an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        str, typer.Option(envvar="LOOKALIKE_API_KEY", help="A secret that may do everything; see also: keys.")
    ] = "",
    cors_origin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            envvar="LOOKALIKE_CORS", help="An origin whose pages may call, https://shop.example; may be repeated."
        ),
    ] = None,
    rate_limit: Annotated[
        str, typer.Option(help="Of each client: 20/s, 600/m, off; by default off on loopback, else 20/s.")
    ] = "",
    queue: Annotated[int, typer.Option(help="Requests at work or waiting; more get 503.", min=1)] = 256,
    download: Download = False,
    allow_host: AllowHost = None,
    cache: Cache = None,
    log_format: Annotated[str, typer.Option(help="json or text; by default text on a terminal.")] = "",
) -> None:
    """Serve the search page and the HTTP interface."""
    # One thread for each search's product: at 64 clients, numpy's own threads waiting for one another answered 43 requests a
    # second where this answers 190. Read when numpy is loaded, which has not happened yet.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from lookalike.server import listen, run
    from lookalike.server.keys import Keys

    keys = Keys(catalog, api_key)
    keys.refresh()
    with listen(host, port, keys) as socket:
        if source is not None and "://" in source and not download:  # the rest is found out in the background
            raise InputError(f"{source}: an address; downloading is off, start with --download")
        if source is not None and "://" not in source and not Path(source).expanduser().exists():
            raise InputError(f"{source}: no such file or folder")
        opened = _open(catalog, encoder, must_exist=source is None)
        run(
            opened, socket, api_key, cors=cors_origin or (), rate=rate_limit, queue=queue, source=source,
            downloads=(tuple(allow_host or ()), cache) if download else None, log_format=log_format,
        )  # fmt: skip


keys_app = typer.Typer(help="API keys of a catalog's server.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Who it is for; it stands in the log.")],
    scope: Annotated[str, typer.Option(help="search; write (and search); or metrics.")],
    catalog: CatalogDir = HERE,
) -> None:
    """Make a key and print its secret, this once; only its hash is kept."""
    from lookalike.server import keys

    _open(catalog, must_exist=False)  # the directory is a catalog's, or can become one
    typer.echo(keys.add(catalog, name, scope))
    typer.echo("that is the secret; it is not kept and cannot be shown again", err=True)


@keys_app.command("list")
def keys_list(catalog: CatalogDir = HERE, as_json: Json = False) -> None:
    """The keys that there are, without their secrets."""
    from lookalike.server import keys

    found = keys.read(catalog)
    if as_json:
        typer.echo(json.dumps([{"name": k.name, "scope": k.scope, "since": k.since} for k in found]))
    elif found:
        _table(["name", "scope", "since"], [[k.name, k.scope, k.since] for k in found])
    else:
        typer.echo("no keys; make one: lookalike keys add NAME --scope search")


@keys_app.command("remove")
def keys_remove(name: str, catalog: CatalogDir = HERE) -> None:
    """Take a key away; a running server refuses it at once."""
    from lookalike.server import keys

    keys.remove(catalog, name)
    typer.echo(f"removed the key {name}")


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where drawings and catalog go.")] = Path("demo"),
    products: Annotated[int, typer.Option(help="How many garments to draw.", min=1, max=5000)] = 300,
    encoder: EncoderName = None,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    serve_: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the page at the end.")] = True,
) -> None:
    """Draw a small catalog of garments (drawings, no photos), index it and serve it."""
    from lookalike.demo import draw
    from lookalike.server import listen, run

    with listen(host, port, "") if serve_ else contextlib.nullcontext() as socket:
        typer.echo(f"drawing {products} garments into {directory} (drawings, not photos of real products)")
        with _progress("Drawing", False) as progress:
            table = draw(directory, products, progress=progress)
        place = directory / "lookalike.catalog"
        try:
            catalog = _open(place, encoder, must_exist=False)
            catalog.encoder  # noqa: B018 (loading it checks that it is the catalog's)
        except EncoderMismatch:
            if encoder is not None:
                raise
            # Of a version of Lookalike with another model. Votes may be in it, so that it is kept.
            kept = place.with_name(f"{place.name}-{int(time.time())}")
            place.rename(kept)
            typer.echo(f"the catalog here was made by another model; it is kept as {kept}", err=True)
            catalog = _open(place, encoder, must_exist=False)
        with _progress("Indexing", False) as progress:
            report = catalog.index(table, drawn=True, prune=True, progress=progress)
        typer.echo(f"{report.added} drawings added, {report.unchanged} unchanged, in {report.seconds:.1f} s")
        if socket is not None:
            run(catalog, socket, "")


@app.command()
def encoders(as_json: Json = False) -> None:
    """List the encoders: what can be used here, what each costs, and how to get it."""
    from lookalike.encoders import known

    rows = known()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    _table(
        ["name", "reads", "dim", "input", "MB", "licence", "ready", "to get it"],
        [
            [
                r["name"],
                r["reads"],
                str(r["dim"]),
                f"{r['size'][1]}×{r['size'][0]}",
                str(r["megabytes"]),
                r["licence"],
                "yes" if r["ready"] else "no",
                r["get"],
            ]
            for r in rows
        ],
    )
    typer.echo(
        "and any network of timm or open_clip by its name there, or hf-hub:OWNER/NAME; NAME@PATH with weights of your"
    )
    typer.echo("own (.safetensors); directories that were exported or trained here; .tflite files of photo features")


@app.command("export-encoder")
def export_encoder(
    name: Annotated[str, typer.Argument(help="The encoder, as for --encoder.")],
    directory: Annotated[Path, typer.Argument(help="Where it goes; new or empty.")],
    as_json: Json = False,
) -> None:
    """Write an encoder as ONNX files, after which it runs without torch; refused where they compute anything else."""
    try:
        from lookalike.training import export
    except ImportError as error:
        raise UsageError(f"exporting wants {error.name}: pip install 'lookalike[torch]'") from error
    made = export.export_encoder(name, directory)
    if as_json:
        typer.echo(json.dumps(made))
        return
    if made["copied"]:
        typer.echo(f"{name} is ONNX files already; they were copied to {directory}")
    else:
        cosines = ", ".join(f"{what} {made[what]:.6f}" for what in ("photos", "texts") if what in made)
        beside = f"; least cosine beside torch: {cosines}" if cosines else ""
        typer.echo(f"{made['bytes'] / 1e6:.0f} MB written to {directory}{beside}")
    typer.echo(f"use it: --encoder {directory}")


train_app = typer.Typer(help="Train an encoder (extra: train).", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train_app, name="train")
evaluate_app = typer.Typer(help="Measure retrieval quality.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")
bench_app = typer.Typer(help="Measure speed on your own data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")


@train_app.callback()
@evaluate_app.callback()
@bench_app.callback()
def _group() -> None:
    pass


@train_app.command("builtin")
def train_builtin(
    data: Annotated[Path, typer.Option(help="Kaggle's Fashion Product Images: styles.csv and images/.")],
    ground_truth: Annotated[Path, typer.Option(help="KAGL's text-image.json: its products are held out.")],
    mobilenet: Annotated[Path, typer.Option(help="mobilenet_v1_1.0_224_quant….tflite: the photo tower's start.")],
    out: Annotated[Path, typer.Option(help="Where the encoder's directory is written.")],
    large: Annotated[Optional[Path], typer.Option(help="The larger edition of some of the photos.")] = None,  # noqa: UP045
    street: Annotated[Optional[Path], typer.Option(help="The clothing dataset: photos that people took.")] = None,  # noqa: UP045
    minilm: Annotated[
        str, typer.Option(help="Hub id or directory of MiniLM.")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    start: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="final.safetensors or encoder of an earlier run, to begin with; of several, their mean."),
    ] = None,
    work: Annotated[Path, typer.Option(help="Packed photos, checkpoint, log; a second run goes on from here.")] = Path(
        "work"
    ),
    set_: Annotated[Optional[list[str]], typer.Option("--set", help="A hyper-parameter, name=value.")] = None,  # noqa: UP045
    quantise: Annotated[bool, typer.Option("--quantise/--float", help="8-bit convolutions.")] = True,
) -> None:
    """Train the built-in model again, from the raw data to the files that ship."""
    try:
        from lookalike.training import builtin
    except ImportError as error:
        raise UsageError(f"training wants {error.name}: pip install 'lookalike[train]'") from error
    builtin.main(
        data,
        large,
        street,
        ground_truth,
        mobilenet,
        minilm,
        start or [],
        work,
        out,
        builtin.options_from(set_ or []),
        quantise,
        typer.echo,
    )


@train_app.command("adapt")
def train_adapt(
    source: Annotated[str, typer.Argument(help="Your catalogue: a folder or a table, as for index.")],
    out: Annotated[Path, typer.Option(help="Where the new encoder's directory is written, if it is better.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help="builtin, or the directory of one that was trained here.")
    ] = "builtin",
    work: Annotated[Path, typer.Option(help="Checkpoint; a second run goes on from here.")] = Path("work"),
    epochs: Annotated[float, typer.Option(help="Times through the photos.", min=0.01)] = 6.0,
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Learn from the votes that the catalog's visitors gave, too.")
    ] = False,
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """Fine-tune the built-in model on your own catalogue; the old one stays where the new one is not better."""
    from lookalike.encoders import load
    from lookalike.encoders.onnx import OnnxEncoder

    try:
        from lookalike.training import adapt
    except ImportError as error:
        raise UsageError(f"training wants {error.name}: pip install 'lookalike[train]'") from error
    base = load(encoder)
    if not isinstance(base, OnnxEncoder):
        raise UsageError(f"--encoder {encoder}: only builtin and exported directories can be adapted")
    opened = _local(source, _roles(map_ or []))
    options = adapt.Options(epochs=epochs)
    votes = _votes(catalog) if feedback else []
    with _going_on():
        found = adapt.main(opened, base.directory, out, work, options, _note, votes=votes)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    typer.echo(_before_and_after(found, "products"))
    if found["better"]:
        typer.echo(f"better: written to {out}; use it: lookalike index {source} --encoder {out} --catalog NEW")
    else:
        typer.echo("not clearly better: nothing was written, keep the model that you have")


def _note(line: str) -> None:
    """What a training tells on its way: beside the results."""
    typer.echo(line, err=True)


def _before_and_after(found: dict[str, Any], counted: str) -> str:
    """The figures of a training on what was held out, and their mean gain."""
    lines = [f"{found['held_out']} of {found[counted]} {counted} held out; mean [95% interval], before → after"]
    for name, before in found["before"].items():
        cells = [f"{v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for v in (before, found["after"][name])]
        lines.append(f"  {name}: {' → '.join(cells)}")
    gain = found["gain"]
    return "\n".join([*lines, f"mean gain {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"])


def _local(source: str | Path, roles: dict[str, str]) -> Source:
    """A source whose photos lie here. Raises InputError where they are addresses."""
    from lookalike.sources import open_source

    try:
        return open_source(source, roles)
    except InputError as error:
        if "add --download" not in str(error):
            raise
        said = str(error).partition(" Nothing is fetched")[0]
        raise InputError(
            f"{said} But training and measuring read photos that lie here: save them as files, and name those in the table"
        ) from None


def _recipe(name: str, kind: type[Options]) -> None:
    """A command of ``train`` whose options are the fields of ``kind``."""
    import inspect
    from dataclasses import fields

    def command(**given: Any) -> None:
        from lookalike.training.options import checked

        source, out, work, map_, as_json = (given.pop(n) for n in ("source", "out", "work", "map_", "as_json"))
        for file in ("start", "hold_out"):  # config.json must hold in any working directory
            if given[file] and Path(given[file]).exists():
                given[file] = str(Path(given[file]).resolve())
        options, roles = checked(kind(**given)), _roles(map_ or [])
        _trained(name, _local(source, roles), out, work, options, roles, as_json)

    hints = get_type_hints(_common, include_extras=True)
    parameters = {n: p.replace(annotation=hints[n]) for n, p in inspect.signature(_common).parameters.items()}
    as_json = parameters.pop("as_json")
    for f in fields(kind):
        default = ", ".join(f.metadata["among"])
        text = f.metadata["help"] + (f" One of: {default}." if default else "")
        flags = [f"--{f.name}/--no-{f.name}"] if isinstance(f.default, bool) else [f"--{f.name.replace('_', '-')}"]
        parameters[f.name] = inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default,
            annotation=Annotated[type(f.default), typer.Option(*flags, help=text)],
        )  # fmt: skip
    parameters["as_json"] = as_json
    signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters.values()])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    train_app.command(name, help=f"{(kind.__doc__ or '').strip()} See docs/training.md.")(command)


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Ctrl-C while training is no failure."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; run the same command to go on", err=True)
        raise typer.Exit(130) from None


def _common(
    source: Annotated[str, typer.Argument(help="Your catalogue: a folder, a table, a dataset's layout, as for index.")],
    out: Annotated[Path, typer.Option(help="Where the encoder's directory is written.")],
    work: Annotated[
        Path, typer.Option(help="Checkpoints, logs, plots, report; a second run goes on from here.")
    ] = Path("work"),
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """What every recipe's command has beside its hyper-parameters."""


def _trained(
    name: str, source: Source, out: Path, work: Path, options: Options, roles: dict[str, str], as_json: bool
) -> None:
    try:
        from lookalike.training import run
    except ImportError as error:
        raise UsageError(f"training wants {error.name}: pip install 'lookalike[train]'") from error
    with _going_on():
        found = run.main(name, source, out, work, options, roles, _note)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    better = "better than the start" if found["better"] else "NOT clearly better than the start"
    typer.echo(
        f"{_before_and_after(found, 'photos')}: {better}; {found['seconds']:.0f} s of training; report: {work / 'report.html'}"
    )
    typer.echo(f"written to {out}; use it: lookalike index SOURCE --encoder {out} --catalog NEW")


@train_app.command("again")
def train_again(
    config: Annotated[Path, typer.Argument(help="config.json of a run's --work.")],
    out: Annotated[Path, typer.Option(help="Where the encoder's directory is written.")],
    work: Annotated[Path, typer.Option(help="A new folder for checkpoints, logs, plots, report.")],
    source: Annotated[Optional[str], typer.Option(help="Where the photos lie now, if not there.")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """Run a recipe again, from the config.json that every run saves."""
    from lookalike.training.options import from_json

    name, place, roles, options = from_json(config)
    _trained(name, _local(source or place, roles), out, work, options, roles, as_json)


for _name, _kind in RECIPES.items():
    _recipe(_name, _kind)


@train_app.command("ensemble")
def train_ensemble(
    source: Annotated[str, typer.Argument(help="Your catalogue: a folder or a table, as for index.")],
    encoder: Annotated[str, typer.Option("--encoder", help="The members, ensemble:A+B: photo encoders of any kind.")],
    out: Annotated[Path, typer.Option(help="Where the new encoder's directory is written.")],
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Columns that neighbours should share, or roles: articleType,baseColour. By default category."
        ),
    ] = None,
    how: Annotated[
        str, typer.Option(help="average, concat or pca; by default what is best on the validation split.")
    ] = "",
    work: Annotated[Path, typer.Option(help="The members' features; a second run goes on from here.")] = Path("work"),
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    report: Annotated[Optional[Path], typer.Option("--report", help="Also write a page, .html.")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """Fit several photo encoders as one to your own catalogue, measured beside its members on products held out."""
    try:
        import sklearn  # noqa: F401 (what is missing is said before anything is read)

        from lookalike.training import ensemble
    except ImportError as error:
        raise UsageError(f"training wants {error.name}: pip install 'lookalike[train]'") from error
    opened = _local(source, _roles(map_ or []))
    with _going_on():
        found, made = ensemble.main(opened, encoder, _listed(label) or ["category"], out, work, how, seed, _note)
    _reported({**found, "written": made} if as_json else found, report, as_json)
    if not as_json:
        typer.echo(f"written to {out}; use it: lookalike index {source} --encoder {out} --catalog NEW")


def _votes(catalog: str) -> list[Vote]:
    """A catalog's votes. Raises InputError where there are none."""
    from lookalike.feedback import read

    found = read(_open(catalog).store.directory)
    if not found:
        raise InputError(f"{catalog}: nobody has voted there yet; leave --feedback out, or give its --catalog")
    return found


Beside = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--beside", help="Another encoder on the same photo queries, e.g. colour-histogram; may be repeated."),
]
Data = Annotated[Optional[Path], typer.Option(help="Index this into the catalog first.")]  # noqa: UP045
ReportFile = Annotated[Optional[Path], typer.Option("--report", help="Also write a page, .html.")]  # noqa: UP045


@evaluate_app.command("kagl")
def evaluate_kagl(
    ground_truth: Annotated[Path, typer.Option(help="Folder of KAGL's ground truth, TASK.json.")],
    data: Data = None,
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    beside: Beside = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """The KAGL benchmark, and photo to photo, over a catalog of Kaggle's Fashion Product Images."""
    from lookalike.encoders import load
    from lookalike.evaluation import kagl

    others = [load(name) for name in beside or []]
    opened = _measured(data, catalog, encoder, as_json)
    found = kagl.evaluate(opened.whole(), opened.encoder, ground_truth, others, _say)
    _reported(found, report, as_json)


@evaluate_app.command("everyday")
def evaluate_everyday(
    half: Annotated[str, typer.Option(help="Which half of the list: open, unseen (for the end), or all.")] = "open",
    data: Data = None,
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Words that no title holds, over a catalog of Kaggle's Fashion Product Images."""
    from lookalike.evaluation import everyday

    opened = _measured(data, catalog, encoder, as_json)
    _reported(everyday.evaluate(opened.whole(), opened.encoder, half, _say), report, as_json)


@evaluate_app.command("calibration")
def evaluate_calibration(
    ground_truth: Annotated[Path, typer.Option(help="Folder of KAGL's ground truth: its products are the queries.")],
    data: Data = None,
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """How far off "alike" is, and how often "no good match" is said wrongly."""
    from lookalike.evaluation import calibration, kagl

    opened = _measured(data, catalog, encoder, as_json)
    queries = kagl.held_out(ground_truth)
    _reported(calibration.evaluate(opened.whole(), opened.encoder, queries, _say), report, as_json)


@evaluate_app.command("street")
def evaluate_street(
    data: Annotated[Path, typer.Option(help="The unpacked clothing dataset: images.csv and images/.")],
    encoder: Annotated[
        str, typer.Option("--encoder", envvar="LOOKALIKE_ENCODER", help="What is measured.")
    ] = "builtin",
    beside: Beside = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Photos that people took: kind of garment by words alone, and photo to photo."""
    from lookalike.encoders import load
    from lookalike.evaluation import street

    found = street.evaluate(load(encoder), data, [load(name) for name in beside or []], _say)
    _reported(found, report, as_json)


@evaluate_app.command("in-shop")
def evaluate_in_shop(
    data: Annotated[Path, typer.Option(help="DeepFashion's In-Shop, unpacked: Eval/, Anno/ and img/.")],
    encoder: Annotated[
        str, typer.Option("--encoder", envvar="LOOKALIKE_ENCODER", help="What is measured.")
    ] = "builtin",
    beside: Beside = None,
    crop: Annotated[bool, typer.Option("--crop/--no-crop", help="Cut photos to their boxes.")] = True,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """DeepFashion's In-Shop: each query photo against the gallery, Recall@1, 10, 20 and 30."""
    from lookalike.encoders import load
    from lookalike.evaluation import inshop

    found = inshop.evaluate(load(encoder), data, [load(name) for name in beside or []], crop, _say)
    _reported(found, report, as_json)


@evaluate_app.command("catalog")
def evaluate_catalog(
    by: Annotated[Optional[list[str]], typer.Option(help="COLUMN or role, …; by default category,colour.")] = None,  # noqa: UP045
    queries: Annotated[Optional[Path], typer.Option(help="Ask for these products alone: ids, one a line.")] = None,  # noqa: UP045
    sample: Annotated[int, typer.Option(help="Otherwise for so many, by chance; 0 for all.", min=0)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the chance.", min=0)] = 0,
    data: Data = None,
    catalog: CatalogDir = HERE,
    encoder: EncoderName = None,
    beside: Beside = None,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Leave one out over your own catalog: do neighbours share category, colour, and both?"""
    from lookalike.encoders import load
    from lookalike.evaluation import catalog as protocol

    others = [load(name) for name in beside or []]
    opened = _measured(data, catalog, encoder, as_json)
    snapshot = opened.whole()
    asked = protocol.chosen(queries, snapshot.ids) if queries else None
    found = protocol.evaluate(snapshot, opened.encoder, _listed(by), asked, others, sample, seed, _say)
    _reported(found, report, as_json)


@evaluate_app.command("compare")
def evaluate_compare(
    encoder: Annotated[list[str], typer.Argument(help="Encoders: names, directories, .tflite files.")],
    data: Annotated[Optional[str], typer.Option(help="Photos to compare on: a source, as for index.")] = None,  # noqa: UP045
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="COLUMN or role, …, whose values tell what is right; by default category."),
    ] = None,
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    queries: Annotated[Optional[Path], typer.Option(help="Only these products: ids, one a line.")] = None,  # noqa: UP045
    products: Annotated[int, typer.Option(help="Otherwise so many of them, by chance; 0 for all.", min=0)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the chance.", min=0)] = 0,
    catalog: CatalogDir = HERE,
    report: ReportFile = None,
    as_json: Json = False,
) -> None:
    """Several encoders in one table and one plot: quality, time of training, photos/s, size; on --data or a catalog."""
    from lookalike.encoders import load
    from lookalike.evaluation import catalog as protocol
    from lookalike.evaluation import compare as together

    def some(ids: list[str]) -> Any:
        return protocol.chosen(queries, ids) if queries else protocol.sampled(len(ids), products, seed)

    known = None
    if data is None:
        snapshot = _open(catalog).whole()
        whole = protocol.of_snapshot(snapshot, _listed(label) or ["category"])
        shelf, rows = whole.some(some(list(snapshot.ids)))
        known = (snapshot.manifest.encoder_id if snapshot.manifest else "", snapshot.photo_vectors[rows])
        what = f" of {catalog.rstrip('/').rpartition('/')[2]}"
    else:
        source = _local(data, _roles(map_ or []))
        source.products = [source.products[n] for n in some([p.id for p in source.products])]
        shelf, unread = protocol.of_source(source, _listed(label))
        for line in unread[:20]:
            typer.echo(f"left out: {line}", err=True)
        what = f" of {Path(data).name}" + (f" ({len(unread)} photos cannot be read)" if unread else "")
    loaded = [load(name, threads=1) for name in encoder]
    _reported(together.evaluate(loaded, shelf, what, known, _say), report, as_json)


@bench_app.command("encode")
def bench_encode(
    encoder: Annotated[list[str], typer.Argument(help="Encoders: names, directories, .tflite files.")],
    data: Annotated[Optional[str], typer.Option(help="Photos: a source, as for index; else the catalog's.")] = None,  # noqa: UP045
    map_: Annotated[Optional[list[str]], typer.Option("--map", help="image=COLUMN,id=COLUMN,title=COLUMN …")] = None,  # noqa: UP045
    photos: Annotated[int, typer.Option(help="So many of them, by chance.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Of the chance.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="Cores, 0 for all.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Figures; a second run goes on from here.")] = Path("bench-encode"),
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """What encoders cost on your own photos: photos/s, ms for a photo and for a text, memory, disk."""
    from lookalike.evaluation import bench_encode as bench
    from lookalike.evaluation.catalog import sampled

    if data is None:
        rows = _open(catalog).store.rows(["lk_path", "lk_title"]).to_pylist()
        known = [(row["lk_path"], row["lk_title"] or "") for row in rows]
    else:
        known = [
            (str(p), product.title) for product in _local(data, _roles(map_ or [])).products for p in product.photos
        ]
    some = [known[n] for n in sampled(len(known), photos, seed)]
    texts = list(dict.fromkeys(title for _, title in some if title))
    found = bench.evaluate(encoder, [path for path, _ in some], texts, out, threads, _say)
    _reported(found, None, as_json)


@bench_app.command("index")
def bench_index(
    kinds: Annotated[str, typer.Option(help="What is measured; lsh-512 and lsh-itq, too.")] = "exact,int8,lsh,hnsw,ivf",
    sizes: Annotated[str, typer.Option(help="Numbers of vectors; more than there are are grown.")] = "",
    out: Annotated[Path, typer.Option(help="Vectors, figures, plot; a second run goes on from here.")] = Path(
        "bench-index"
    ),
    catalog: CatalogDir = HERE,
    as_json: Json = False,
) -> None:
    """Which index is best for your catalog: recall, time, memory of each, on its own vectors and on more of their kind."""
    from lookalike.evaluation import bench_index as bench

    opened = _open(catalog)
    snapshot = opened.whole()
    try:
        wanted = [int(size) for size in _listed([sizes])] or [len(snapshot.vectors)]
        if min(wanted) < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"--sizes {sizes!r}: whole numbers with commas between: 44000,200000,1000000") from None
    with _going_on():
        found = bench.evaluate(snapshot, opened.encoder, _listed([kinds]), wanted, out, _say)
    _reported(found, out / "index.html", as_json)


def _listed(names: list[str] | None) -> list[str]:
    return [name.strip() for name in ",".join(names or []).split(",") if name.strip()]


def _say(what: str) -> None:
    typer.echo(f"measuring {what} …", err=True)


def _measured(data: Path | None, directory: str, encoder: str | None, quiet: bool) -> Catalog:
    """The catalog that a protocol runs over, brought in step with ``data`` first."""
    opened = _open(directory, encoder, must_exist=data is None)
    if data is not None:
        others = set(opened.store.rows(["lk_source"])["lk_source"].to_pylist()) - {str(data.resolve())}
        if others:
            raise UsageError(f"{directory} holds {sorted(others)[0]}; measure in a catalog of its own: --catalog NEW")
        with _progress("Indexing", quiet) as progress:
            opened.index(data, progress=progress)
    return opened


def _reported(report: dict[str, Any], file: Path | None, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        _printed(report)
    if file is not None:  # after the figures: a file that cannot be written must not lose them
        from lookalike.evaluation.report import write

        write(report, file)
        typer.echo(f"written to {file}", err=True)


def _printed(report: dict[str, Any]) -> None:
    from lookalike.evaluation.protocol import heading

    typer.echo(f"{heading(report)}. {report['note']}")
    for table in report["tables"]:
        typer.echo(f"{table['name']} ({table['queries']} queries; mean [95% interval])")
        for name, figures in table["rows"].items():
            cells = [
                f"{k} {v.get('shown') or format(v['mean'], '.3f')}"
                + (f" [{v['low']:.3f}, {v['high']:.3f}]" if "low" in v else "")
                for k, v in figures.items()
            ]
            typer.echo(f"  {name}: {', '.join(cells)}")


def _table(columns: list[str], rows: list[list[str]]) -> None:
    """On a terminal a table that fits it; elsewhere tab-separated lines, so that nothing is cut. Titles may hold escapes."""
    rows = [[printable(re.sub(r"[\t\r\n]", " ", cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*[escape(cell) for cell in row])
    Console().print(table)


if __name__ == "__main__":
    main()
