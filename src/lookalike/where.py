"""The filter language: ``gender = 'Women' and price < 50 and colour in ('Red', 'Maroon')``.

A text is parsed (never evaluated) into a small tree, and the tree is worked out over an Arrow table: one bool per row.

    comparisons   =  ==  !=  <>  <  <=  >  >=     column [not] in ('a', 'b')     column [not] between 1 and 2
                  column [not] like 'a%_'         column is [not] null           a true/false column by itself
    together      and  or  not  ( )               keywords in any case
    columns       bare, "double quoted" or `backticked` where the name has other characters
    values        'text' ('' is one quote), 12, -3.5, 1e3, true, false

Text is compared without regard to case (Unicode case folding): ``colour = 'red'`` finds Red; ``<`` and ``>`` go by the
code points of the folded text. In a ``like`` pattern ``%`` is any run of characters, ``_`` one, and a backslash takes
the next literally. As in SQL, a missing value (null, NaN) is neither true nor false: it matches no comparison and no
negation of one (``price != 5`` leaves out the products without a price); ``is null`` finds it.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import lark
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookalike.errors import UsageError

MAX_LENGTH = 4_000
"""The longest filter, in characters."""

MAX_NESTING = 50
"""How deep parentheses may go: bounds the recursion over the tree, whoever wrote the filter."""

# RE2, which works below Arrow's `like`, is linear in the text, but each _ behind a % doubles its states: with a score of
# them 44,000 titles took 5 s, with eight 10 ms. Patterns of thousands of characters are slow as well.
_MAX_BLANKS, _MAX_PATTERN = 8, 200

Literal: TypeAlias = "str | int | float | bool"
Mask: TypeAlias = "NDArray[np.bool_]"


@dataclass(frozen=True, slots=True)
class Condition:
    """A column and what is asked of it; ``operator``: ``in`` (= too), ``<``, ``<=``, ``>``, ``>=``, ``like``, ``null``."""

    column: str
    operator: str
    values: tuple[Literal, ...] = ()


@dataclass(frozen=True, slots=True)
class Not:
    """``not item``; the item is no ``Not`` itself."""

    item: Expr


@dataclass(frozen=True, slots=True)
class Group:
    """``items`` joined by ``word``, ``and`` or ``or``. None of them has the same word: long chains are flat."""

    word: str
    items: tuple[Expr, ...]


Expr: TypeAlias = "Condition | Not | Group"

# Text to tree ---------------------------------------------------------------------------------------------------------

_GRAMMAR = r"""
?start: either
?either: both (_OR both)*
?both: negated (_AND negated)*
?negated: _NOT negated -> negate | _OPEN either _CLOSE | test
?test: column -> holds | column _comparison -> holds | column _set -> holds | column _NOT _set -> holds_not
    | column _IS NULL -> holds | column _IS _NOT NULL -> holds_not
_comparison: OPERATOR value
_set: IN _OPEN value (_COMMA value)* _CLOSE | LIKE value | BETWEEN value _AND value
column: NAME | QUOTED
value: TEXT | NUMBER | TRUE | FALSE
OPERATOR: /==|=|!=|<>|<=|<|>=|>/
TEXT: /'(?:[^']|'')*'/
NUMBER: /-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.])/
QUOTED: /"(?:[^"]|"")*"|`(?:[^`]|``)*`/
NAME: /[A-Za-z_][A-Za-z0-9_]*/
_OPEN: "("
_CLOSE: ")"
_COMMA: ","
%ignore /\s+/
""" + "\n".join(  # as whole words: `android` is no `and`
    rf"{word}.2: /{word.strip('_')}\b/i"
    for word in ("_AND", "_OR", "_NOT", "_IS", "IN", "LIKE", "BETWEEN", "NULL", "TRUE", "FALSE")
)

_EXPECTED = dict.fromkeys(("NAME", "QUOTED"), "a column")
_EXPECTED |= dict.fromkeys(("TEXT", "NUMBER", "TRUE", "FALSE"), "a value ('text' in single quotes, 5, true or false)")
_EXPECTED |= {"OPERATOR": "a comparison (=, !=, <, <=, >, >=, in, like, between, is null)"}
_EXPECTED |= {"_NOT": "'not'", "_AND": "'and'", "_OR": "'or'", "NULL": "'null'", "_COMMA": "','"}
_EXPECTED |= {"_OPEN": "'('", "_CLOSE": "')'", "$END": "the end of the filter"}
_HINTS = {
    **dict.fromkeys("'\"`", "; the quote that opens here is never closed"),
    **dict.fromkeys("‘’“”´", "; text goes in straight single quotes"),
    **dict.fromkeys("&|", "; write the words and, or"),
}


class _Build(lark.Transformer[Any, Expr]):
    """Tree nodes from grammar rules, called while parsing: no parse tree is built, and nothing recurses."""

    def either(self, items: list[Expr]) -> Expr:
        return self._group("or", items)

    def both(self, items: list[Expr]) -> Expr:
        return self._group("and", items)

    def _group(self, word: str, items: Sequence[Expr]) -> Expr:
        parts = ((i.items if isinstance(i, Group) and i.word == word else (i,)) for i in items)
        return Group(word, tuple(part for some in parts for part in some))

    def negate(self, items: list[Expr]) -> Expr:
        return items[0].item if isinstance(items[0], Not) else Not(items[0])  # of a thousand nots one stays, or none

    def holds(self, items: list[Any]) -> Expr:
        column, *tail = items
        if not tail:
            return Condition(column, "in", (True,))
        sign, values = tail[0].lower(), tuple(tail[1:])
        if sign == "between":
            return Group("and", (Condition(column, ">=", values[:1]), Condition(column, "<=", values[1:])))
        equal = Condition(column, "in" if sign in ("=", "==", "!=", "<>") else sign, values)
        return Not(equal) if sign in ("!=", "<>") else equal

    def holds_not(self, items: list[Any]) -> Expr:
        return Not(self.holds(items))

    def column(self, items: list[lark.Token]) -> str:
        return str(items[0]) if items[0].type == "NAME" else _unquoted(items[0])

    def value(self, items: list[lark.Token]) -> Literal:
        token = items[0]
        if token.type == "NUMBER":  # a longer whole number may not fit 64 bits
            return int(token) if re.fullmatch(r"-?[0-9]{1,18}", token) else float(token)
        return _unquoted(token) if token.type == "TEXT" else token.type == "TRUE"


def _unquoted(token: str) -> str:
    return token[1:-1].replace(token[0] * 2, token[0])


@functools.cache  # built on first use: some milliseconds that `--help` need not pay
def _parser() -> lark.Lark:
    return lark.Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=_Build())


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Expr:
    """The tree of a filter.

    Raises ``UsageError`` that names the position, shows the place and says what was expected; also for filters longer
    than ``MAX_LENGTH`` characters or with parentheses nested deeper than ``MAX_NESTING``.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the filter has {len(text):,} characters, the most is {MAX_LENGTH:,}: make it shorter")
    if not text.strip():
        raise UsageError("the filter is empty: write one, such as price < 50 and colour = 'red', or leave it out")
    if found := re.search("[\ud800-\udfff]", text):
        raise _syntax_error(text, found.start(), "half of a character (a lone surrogate): take it out")
    depth = 0
    for found in re.finditer(r"""'[^']*'|"[^"]*"|`[^`]*`|[()]""", text):
        depth += {"(": 1, ")": -1}.get(found[0], 0)
        if depth > MAX_NESTING:
            raise _syntax_error(text, found.start(), f"parentheses more than {MAX_NESTING} deep: write it flatter")
    try:
        return cast(Expr, _parser().parse(text))
    except lark.UnexpectedInput as error:
        accepted = cast(Any, error.interactive_parser).accepts()
        named = [words for key, words in _EXPECTED.items() if key in accepted]
        expected = ", ".join(dict.fromkeys(named)) or "in, like or between"  # which alone may follow `column not`
        at = len(text) if getattr(error, "token", "x") == "" else cast(int, error.pos_in_stream)
        raise _syntax_error(text, at, f"expected {expected}{_hint(text, at, error)}") from None


def _hint(text: str, at: int, error: lark.UnexpectedInput) -> str:
    """What most likely went wrong at this place, to add to a message."""
    if text[at - 1 : at] == "'" and text[at : at + 1].isalnum():
        return "; a quote within text is written twice: 'Men''s'"
    if not isinstance(error, lark.UnexpectedCharacters):
        return ""
    if text[at - 1 : at].isalnum() and (text[at] in ".-" or text[at].isalpha()):
        return "; a column whose name has such characters goes in double quotes"
    return _HINTS.get(text[at], "")


def _syntax_error(text: str, at: int, problem: str) -> UsageError:
    """``problem``, with a window of ``text`` and a caret under the character ``at`` (counted from 0)."""
    start = max(0, at - 30)
    shown = "".join(c if c.isprintable() else " " for c in text[start : at + 30])  # one for one: the caret stays right
    return UsageError(f"filter, character {at + 1}: {problem}\n  {shown}\n  {' ' * (at - start)}^")


def columns(expr: Expr) -> set[str]:
    """The columns that a filter speaks of, as it spells them."""
    if isinstance(expr, Condition):
        return {expr.column}
    return columns(expr.item) if isinstance(expr, Not) else set().union(*map(columns, expr.items))


def without(expr: Expr | None, column: str) -> Expr | None:
    """The filter less those of its top-level ``and`` parts that speak of ``column`` alone (in any case).

    ``None`` where nothing is left. For facets: counts per colour must not be narrowed by the colour already chosen.
    """
    if expr is None:
        return None
    parts = expr.items if isinstance(expr, Group) and expr.word == "and" else (expr,)
    kept = tuple(part for part in parts if {name.casefold() for name in columns(part)} != {column.casefold()})
    return kept[0] if len(kept) == 1 else Group("and", kept) if kept else None


# Tree to mask ---------------------------------------------------------------------------------------------------------

_ORDER: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {  # of NumPy numbers, of Arrow texts
    "<": (operator.lt, pc.less),
    "<=": (operator.le, pc.less_equal),
    ">": (operator.gt, pc.greater),
    ">=": (operator.ge, pc.greater_equal),
}


def mask(expr: Expr, table: pa.Table) -> Mask:
    """Which rows of ``table`` pass: bool, (rows,).

    Text columns may be plain or dictionary encoded (much faster: each different text is compared once). Raises
    ``UsageError`` for a column that is not there and for a comparison that its kind does not have.
    """
    return _truth(expr, table)[0]


def _truth(expr: Expr, table: pa.Table) -> tuple[Mask, Mask]:
    """Where ``expr`` is true and where it is false, each (rows,); it is neither where a value is missing."""
    if isinstance(expr, Not):
        true, false = _truth(expr.item, table)
        return false, true
    if isinstance(expr, Condition):
        return _test(expr, table)
    both, either = (np.logical_and, np.logical_or) if expr.word == "and" else (np.logical_or, np.logical_and)
    true, false = _truth(expr.items[0], table)
    for item in expr.items[1:]:
        more_true, more_false = _truth(item, table)
        true, false = both(true, more_true), either(false, more_false)
    return true, false


def _test(one: Condition, table: pa.Table) -> tuple[Mask, Mask]:
    """``_truth`` of a single condition."""
    name = resolve(one.column, table.column_names)
    column = table.column(table.column_names.index(name))
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_dictionary(array.type) and not _is_text(array.type.value_type):
        array = array.dictionary_decode()
    if _is_text(array.type) or pa.types.is_dictionary(array.type):
        hit, known = _test_text(one, name, array)
    elif one.operator == "null" or pa.types.is_null(array.type):  # of nothing at all, any comparison may be asked
        hit = known = ~pc.is_null(array, nan_is_null=True).to_numpy(zero_copy_only=False)
    else:
        hit, known = _test_plain(one, name, array)
    return (~known, known) if one.operator == "null" else (hit & known, known & ~hit)


def _test_text(one: Condition, name: str, array: pa.Array) -> tuple[Mask, Mask]:
    """Where a text column passes (anything where missing), and where it is not missing: each (rows,)."""
    words, codes, whole = array, cast(Any, slice(len(array))), not array.null_count
    if pa.types.is_dictionary(array.type):  # each different text is compared once, and the rows look up the outcome
        words = array.dictionary
        whole = whole and not words.null_count
        indices = array.indices.cast(pa.int32()).fill_null(len(words)) if array.indices.null_count else array.indices
        codes = indices.to_numpy().astype(np.intp)  # one word more stands for missing
    known = (
        np.ones(len(array), np.bool_)
        if whole
        else np.append(words.is_valid().to_numpy(zero_copy_only=False), False)[codes]
    )
    if one.operator == "null":
        return known, known
    _check(one, name, "text")
    foreign = pc.invert(pc.string_is_ascii(words))  # Arrow folds ASCII in no time; Python folds the rest rightly
    lower = pc.ascii_lower(words)
    if foreign.true_count:
        folded = pa.array([word.casefold() for word in words.filter(foreign).to_pylist()], words.type)
        lower = pc.replace_with_mask(lower, foreign, folded)
    words = lower
    values = pa.array([cast(str, value).casefold() for value in one.values], words.type)
    if one.operator == "in":
        hits = pc.is_in(words, values)
    elif one.operator == "like":
        pattern = values[0].as_py()
        if len(pattern) > _MAX_PATTERN:
            raise UsageError(f"the pattern after {name} like is longer than {_MAX_PATTERN} characters: make it shorter")
        if re.sub(r"\\.", "", pattern).partition("%")[2].count("_") > _MAX_BLANKS:
            raise UsageError(f"the pattern after {name} like has more than {_MAX_BLANKS} _ behind a %: use fewer, or %")
        hits = pc.match_like(words, pattern)
    else:
        hits = _ORDER[one.operator][1](words, values[0])
    return np.append(hits.fill_null(False).to_numpy(zero_copy_only=False), False)[codes], known


def _test_plain(one: Condition, name: str, array: pa.Array) -> tuple[Mask, Mask]:
    """The same for a column of numbers, or of true and false."""
    known = ~pc.is_null(array, nan_is_null=True).to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(array.type):
        _check(one, name, "true/false")
        values = array.fill_null(False).to_numpy(zero_copy_only=False)
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        _check(one, name, "numbers")
        whole = pa.types.is_integer(array.type) and not pa.types.is_uint64(array.type)
        values = array.cast(pa.int64() if whole else pa.float64()).fill_null(0).to_numpy()
    else:
        raise UsageError(f"column {name!r} holds {array.type}, which filters cannot compare: only is null asks it")
    if one.operator == "in":
        return np.isin(values, np.array(one.values)), known
    return cast(Mask, _ORDER[one.operator][0](values, one.values[0])), known


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _check(one: Condition, name: str, kind: str) -> None:
    """Raise ``UsageError`` where a column of this ``kind`` has no such comparison."""
    mend = {
        "text": f"compare it with text in single quotes, {name} = 'red'",
        "numbers": f"compare it with a number without quotes, {name} < 50",
        "true/false": f"write {name}, not {name}, or {name} = true",
    }[kind]
    for value in one.values:
        given = "text" if isinstance(value, str) else "true/false" if isinstance(value, bool) else "numbers"
        if given != kind:
            raise UsageError(f"column {name!r} holds {kind}, not {given}: {mend}")
    if kind == "true/false" and one.operator != "in":
        raise UsageError(f"column {name!r} holds {kind}, which {one.operator} does not compare: {mend}")


def resolve(name: str, names: Sequence[str]) -> str:
    """The column meant by ``name``: the exact one, else the only one that differs in case alone."""
    alike = [name] if name in names else [other for other in names if other.casefold() == name.casefold()]
    if len(alike) == 1:
        return alike[0]
    asked = name if len(name) <= 60 else name[:60] + "…"
    if alike:
        raise UsageError(f"column {asked!r} may be {' or '.join(map(repr, alike))}: write it exactly")
    folded = {other.casefold(): other for other in names}
    closest = [folded[key] for key in difflib.get_close_matches(asked.casefold(), folded, 1)]
    guess = f"; did you mean {closest[0]!r}?" if closest else ";"
    raise UsageError(f"no column {asked!r}{guess} columns: {', '.join(names)}")
