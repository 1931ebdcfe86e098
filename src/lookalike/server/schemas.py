"""What the interface takes and gives, as its description at /openapi.json and /docs says it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lookalike.types import Value

MAX_PUT, MAX_PHOTOS = 100, 20
"""Products of one request, and photos of one product."""


Name = Annotated[str, Field(max_length=200)]
Words = Annotated[str, Field(max_length=20_000)]
"""A column's name and a value: as long as shops write them, not as a body may be."""


class Problem(BaseModel):
    """An error (RFC 9457): ``detail`` says what is wrong, where, and how to mend it."""

    type: str = "about:blank"
    title: str = Field(examples=["Bad Request"])
    status: int = Field(examples=[400])
    detail: str = Field(examples=["no column 'colur'; did you mean 'colour'?"])
    request_id: str = Field("", description="As in the header X-Request-Id and in the server's log.")


class Why(BaseModel):
    """One column in which a hit agrees or differs with what was asked."""

    column: str
    role: str | None
    asked: Any
    has: Any
    agrees: bool


class Folded(BaseModel):
    """A near-duplicate."""

    id: str
    photo: str
    title: str


class Hit(BaseModel):
    """A product in the answer."""

    id: str = Field(examples=["15970"])
    score: float = Field(description="The cosine, −1 … 1.", examples=[0.8312])
    alike: int | None = Field(None, description="The same from 0 to 100, where the encoder is calibrated.")
    photo: str = Field(description="Id of the best photo, for /api/photos/.", examples=["3f0b9c1de27d4a5f8a6e1b2c"])
    title: str = Field(examples=["Turtle Check Men Navy Blue Shirt"])
    attributes: dict[str, Value] = Field(examples=[{"baseColour": "Navy Blue", "price": 49}])
    photos: list[str] = Field([], description="All photos of the product, the best first.")
    folded: list[Folded] = Field([], description="Near-duplicates, with fold.")
    colours: list[str] = Field([], description="The garment's main colours, most first.")
    why: list[Why] = []


class FacetValue(BaseModel):
    """A value and how many products have it."""

    value: Value
    count: int


class Bin(BaseModel):
    """A part of a number column's range and how many products lie in it."""

    model_config = ConfigDict(populate_by_name=True)
    from_: float = Field(alias="from")
    to: float
    count: int


class Facet(BaseModel):
    """A column's values (kind ``values``) or range (kind ``range``) among the products that pass the filter."""

    column: str = Field(examples=["colour"])
    kind: str = Field(examples=["values"])
    values: list[FacetValue] | None = None
    min: float | None = None
    max: float | None = None
    bins: list[Bin] | None = None


class SearchAnswer(BaseModel):
    """Hits in order, and what a page needs beside them."""

    hits: list[Hit]
    total: int = Field(description="Products that pass the filter.")
    more: bool = Field(False, description="Whether a larger offset finds more.")
    facets: list[Facet]
    no_good_match: bool = Field(description="Nothing here is much like what was asked.")
    corrected: dict[str, str] = Field({}, description="Words that were read as other words.")
    took_ms: float


class TagValue(BaseModel):
    """A value and how sure it is, 0 … 1."""

    value: Value
    confidence: float


class Tag(BaseModel):
    """What a column would say of the photo, the likeliest value first."""

    column: str
    role: str | None
    values: list[TagValue]


class Colour(BaseModel):
    """A colour of the garment and its share."""

    hex: str = Field(examples=["#1f2a44"])
    share: float


class TagAnswer(BaseModel):
    """What can be said of a photo."""

    tags: list[Tag]
    box: list[float] | None = Field(description="Where the garment is, [x0, y0, x1, y1] in fractions; null if unclear.")
    colours: list[Colour]


class Duplicates(BaseModel):
    """Products whose photos show the same; ``score`` is their cosine."""

    score: float
    products: list[Folded]


class DuplicatesAnswer(BaseModel):
    """Groups of near-duplicates."""

    groups: list[Duplicates]
    total: int


class FacetsAnswer(BaseModel):
    """Counts."""

    products: int
    facets: list[Facet]


class ProductAnswer(BaseModel):
    """A product; ``photos`` are ids for /api/photos/."""

    id: str = Field(examples=["15970"])
    title: str
    photos: list[str]
    attributes: dict[str, Value]


class ProductsAnswer(BaseModel):
    """Some products."""

    products: list[ProductAnswer]


class EncoderAnswer(BaseModel):
    """The model that makes the vectors."""

    name: str = Field(examples=["builtin"])
    id: str
    dim: int
    text: bool = Field(description="Whether it reads words.")


class Column(BaseModel):
    """An attribute column; ``kind`` is text, number or flag."""

    name: str
    kind: str
    role: str | None


class IndexAnswer(BaseModel):
    """What answers searches."""

    kind: str = Field(examples=["exact"])
    why: str
    photos: int = Field(description="Photos that it holds.")
    newer: int = Field(description="Photos written since, which are scanned.")
    version: int
    settings: dict[str, Any] = Field({}, description="How it was built and tuned, and what it finds.")


class StatusAnswer(BaseModel):
    """What the catalog holds, and what this caller may do."""

    name: str = "lookalike"
    version: str
    products: int
    photos: int
    quarantined: int
    catalog_version: int
    drawn: bool = Field(description="Drawings, not photos.")
    encoder: EncoderAnswer
    index: IndexAnswer
    columns: list[Column]
    feedback: bool = Field(False, description="Whether votes are kept.")
    colours: bool = Field(False, description="Whether the catalog knows its garments' colours.")
    scopes: list[str] = Field(examples=[["search"]])


class Health(BaseModel):
    """All is well, or searches are answered though something is wrong (``degraded``)."""

    status: str = Field(examples=["ok"])
    reasons: list[str] = Field([], description="What is wrong; the server's log has more.")


class ProductFields(BaseModel):
    """A product as it is put."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field("", max_length=2000)
    attributes: dict[Name, Words | int | float | bool | list[Words] | None] = Field(
        {}, max_length=500, examples=[{"colour": "Red", "price": 49}]
    )
    photos: list[str] | None = Field(
        None,
        max_length=MAX_PHOTOS,
        description="Each a photo's bytes in base64, or its http(s) address (where downloading is on). "
        "Left out: a product that is there keeps its photos.",
        examples=[["https://shop.example/red-dress.jpg"]],
    )


class ProductPut(ProductFields):
    """A product of a batch."""

    id: str = Field(min_length=1, max_length=512, examples=["p05"])


class ProductsPut(BaseModel):
    """A batch."""

    model_config = ConfigDict(extra="forbid")
    products: list[ProductPut] = Field(min_length=1, max_length=MAX_PUT)


class ProblemEntry(BaseModel):
    """A product or photo that could not be used, and why; it is in the quarantine, too."""

    item: str = Field(examples=["upload, id p05, photo 2"])
    reason: str = Field(examples=["is empty (0 bytes); copy or download it again"])


class ReportAnswer(BaseModel):
    """What a run did, counted in photos."""

    added: int
    updated: int
    unchanged: int
    removed: int
    quarantined: int
    seconds: float


class PutAnswer(ReportAnswer):
    """The same, with what could not be used."""

    problems: list[ProblemEntry]


class QuarantineItem(ProblemEntry):
    """An entry of the quarantine."""

    n: int = Field(description="For /api/quarantine/{n}/picture.")
    source: str = Field(description="The name of the folder or table that it came from, or uploads.")
    picture: bool = Field(description="Whether there may be something to show.")


class QuarantineAnswer(BaseModel):
    """A page of the quarantine."""

    items: list[QuarantineItem]
    total: int


class IndexingAnswer(BaseModel):
    """How far the sync with SOURCE is."""

    running: bool
    done: int = Field(description="Photos looked at, the unchanged ones included.")
    total: int
    photos_per_second: float | None
    seconds_left: float | None
    report: ReportAnswer | None = Field(description="Of the last run that came to its end.")
    error: str | None = Field(None, description="Why the last run did not.")
