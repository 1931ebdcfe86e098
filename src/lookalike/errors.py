"""The one exception tree.

    LookalikeError              exit code  HTTP status
    ├── UsageError                  2          400      wrong options, a broken filter, k = 0
    ├── InputError                  3          422      the input as a whole is refused, nothing was changed
    │   ├── ImageError              3          422      one image cannot be used (quarantined while indexing)
    │   │   ├── ImageEmpty                              zero bytes
    │   │   ├── NotAnImage                              not one of the formats that are read
    │   │   ├── ImageTruncated                          begins like an image, cannot be decoded to its end
    │   │   └── ImageTooLarge                  413      too many bytes or pixels; refused before decoding
    │   ├── FetchError              3          422      an address that may not be fetched, or does not answer
    │   └── EncoderMismatch         3          409      vectors of another encoder
    ├── NotFound                    3          404      no such product or photo
    └── CatalogError                4          503      the catalog cannot be opened, written or trusted
        └── CatalogLocked           4          503      another process is writing

Every message says what is wrong, in which file, row or field, and how to mend it.
"""

from __future__ import annotations


class LookalikeError(Exception):
    """Root of everything that Lookalike raises on purpose."""

    exit_code = 1
    status = 500


class UsageError(LookalikeError):
    """Asked in a way that cannot be answered: wrong options, a broken filter."""

    exit_code = 2
    status = 400


class InputError(LookalikeError):
    """An input as a whole is refused; nothing was changed."""

    exit_code = 3
    status = 422


class ImageError(InputError):
    """One image cannot be used."""


class ImageEmpty(ImageError):
    """The file has no bytes."""


class NotAnImage(ImageError):
    """The bytes are not one of the formats that are read."""


class ImageTruncated(ImageError):
    """The bytes begin like an image but cannot be decoded to the end."""


class ImageTooLarge(ImageError):
    """Too many bytes or pixels; refused before it is decoded."""

    status = 413


class FetchError(InputError):
    """An address that may not be fetched, or does not give what it should."""


class EncoderMismatch(InputError):
    """The catalog's vectors were made by another encoder."""

    status = 409


class NotFound(LookalikeError):
    """No product or photo with this id."""

    exit_code = 3
    status = 404


class CatalogError(LookalikeError):
    """The catalog cannot be opened, written or trusted."""

    exit_code = 4
    status = 503


class CatalogLocked(CatalogError):
    """Another process is writing to the catalog."""
