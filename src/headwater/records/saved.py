"""Records that are shown and saved: strict JSON with a named and numbered schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from headwater.records.display import Displayed
from headwater.records.json_codec import decode, encode, read_document, write_document

__all__ = ["Saved"]


class Saved(Displayed):
    """Mixin: strict JSON out and in, for a frozen dataclass.

    Attributes:
        SCHEMA: name of the kind of record, the ``schema`` entry of its JSON.
        SCHEMA_VERSION: the newest version that this headwater writes and reads.
    """

    __slots__ = ()

    SCHEMA: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON values, with its schema's name and version."""
        return {"schema": self.SCHEMA, "schema_version": self.SCHEMA_VERSION, **encode(self)}

    def to_json(self, path: str | Path | None = None) -> str:
        """Strict JSON (no bare NaN), also written to ``path`` when one is given.

        Args:
            path: where to write; the file is replaced whole or not at all.

        Returns:
            The JSON text.
        """
        return write_document(self.to_dict(), path)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; raises ``RecordError`` when the mapping is something else."""
        return decode(cls, data, schema=cls.SCHEMA, version=cls.SCHEMA_VERSION)

    @classmethod
    def from_json(cls, source: str | Path) -> Self:
        """Read a record back.

        Args:
            source: a path, or the JSON text itself.

        Returns:
            An equal record.
        """
        return cls.from_dict(read_document(source))
