"""The primitives for a copy into another engine, in SQL: outlines, tallies, whole rows placed as they are; the floor.

Called through the classes in `session.py`, which inherit them by `statements.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mycelia_storage.engines.engine import Tally
from mycelia_storage.engines.postgres import created
from mycelia_storage.engines.postgres.arrays import Numbers, Texts
from mycelia_storage.engines.postgres.documents import forms_of
from mycelia_storage.engines.postgres.failures import TakenError
from mycelia_storage.keys import without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import NamespaceRow, Newer, Outline, Row
    from mycelia_storage.engines.postgres.connections import Cursor
    from mycelia_storage.engines.postgres.statements import Runner, Wording
    from mycelia_storage.keys import KeyRange

_IS_LIVE: Final = "(expires_at IS NULL OR expires_at > {now_ms}::bigint)"

_BYTES: Final = "octet_length(value) + coalesce(octet_length(metadata), 0)"

SQL: Final[dict[str, str]] = {
    "outline": f"""
SELECT key, version, {_BYTES} FROM {{s}}.entries
WHERE namespace = $1 AND key >= $2 AND {_IS_LIVE.format(now_ms="$3")}""",
    "newer": f"""
SELECT namespace, key, version, bytes FROM (
  SELECT namespace, key, version, {_BYTES} AS bytes FROM {{s}}.entries
  WHERE version > $1::bigint AND {_IS_LIVE.format(now_ms="$2")} LIMIT $3::bigint) AS newer
ORDER BY namespace, key""",
    # The index alone has the number of keys, where a vacuum has been; the few that have expired come by their own.
    "counts": """
SELECT (SELECT count(*) FROM {s}.entries WHERE namespace = $1 AND key >= b.low AND key < b.high)
FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS b(low, high, number) ORDER BY number""",
    "count_from": "SELECT count(*) FROM {s}.entries WHERE namespace = $1 AND key >= $2",
    "keys_in": """
SELECT ARRAY(SELECT key FROM {s}.entries WHERE namespace = $1 AND key >= b.low AND key < b.high)
FROM unnest($2::text[], $3::text[]) AS b(low, high)""",
    "keys_from": "SELECT ARRAY(SELECT key FROM {s}.entries WHERE namespace = $1 AND key >= $2)",
    "expired_keys": "SELECT key FROM {s}.entries WHERE expires_at <= $1::bigint AND namespace = $2",
    "tally": f"""
SELECT count(*) FILTER (WHERE namespace = ANY($2::text[]) AND {_IS_LIVE.format(now_ms="$1")}),
  coalesce(sum(version & 4294967295) FILTER (
    WHERE namespace = ANY($2::text[]) AND {_IS_LIVE.format(now_ms="$1")}), 0)::bigint,
  coalesce(max(version), 0), (SELECT floor FROM {{s}}.state)
FROM {{s}}.entries""",
    # Less the few that have expired: looking at each would take a quarter longer.
    "tally_of_all": """
SELECT count(*) - (SELECT count(*) FROM {s}.entries WHERE expires_at <= $1::bigint),
  (coalesce(sum(version & 4294967295), 0)
    - coalesce((SELECT sum(version & 4294967295) FROM {s}.entries WHERE expires_at <= $1::bigint), 0))::bigint,
  coalesce(max(version), 0), (SELECT floor FROM {s}.state)
FROM {s}.entries""",
    "place": """
INSERT INTO {s}.entries
  (namespace, key, version, created_at, updated_at, expires_at, metadata, meta, value, doc)
SELECT $1, r.key, r.version, r.created_at, r.updated_at, r.expires_at, r.metadata,
  coalesce(r.meta, r.metadata)::jsonb, r.value, coalesce(r.form, r.value)::jsonb
FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::text[], $9::text[],
  $10::text[]) AS r(key, version, created_at, updated_at, expires_at, metadata, value, meta, form)
ON CONFLICT (namespace, key) DO UPDATE SET
  version = excluded.version, created_at = excluded.created_at, updated_at = excluded.updated_at,
  expires_at = excluded.expires_at, metadata = excluded.metadata, meta = excluded.meta,
  value = excluded.value, doc = excluded.doc""",
    "place_namespace": """
INSERT INTO {s}.namespaces (name, metadata, created_at) VALUES ($1, $2, $3::bigint)
ON CONFLICT (name) DO UPDATE SET metadata = excluded.metadata, created_at = excluded.created_at""",
    "raise_floor": "UPDATE {s}.state SET floor = $1::bigint WHERE floor < $1::bigint",
}


class WholeRows:
    """These primitives, by a runner."""

    _texts: Wording
    _sql: dict[str, str]
    _run: Runner

    def _ranged(self, name: str, namespace: str, span: KeyRange, now: int) -> tuple[str, list[object]]:
        """A statement that ends with the condition on a range of keys, and what is bound in it; no order yet.

        An end may have U+0000 behind a key, which no key has, and so is the very next place behind that. PostgreSQL has
        no such text: the comparison says it.
        """
        text, low, high = self._sql[name], span.low, span.high
        if low.endswith("\0"):
            text, low = text.replace("key >= $2", "key > $2"), low[:-1]
        if high is None:
            return text, [namespace, low, now // 1000]
        sign, high = ("<=", high[:-1]) if high.endswith("\0") else ("<", high)
        return f"{text} AND key {sign} $4", [namespace, low, now // 1000, high]

    def outline(self, namespace: str, span: KeyRange, now: int, *, limit: int) -> list[Outline]:
        text, values = self._ranged("outline", namespace, span, now)
        values.append(limit)
        text += f" ORDER BY key LIMIT ${len(values)}::bigint"
        found: list[Any] = self._run.read(lambda cursor: cursor.execute(text, values).fetchall())
        return found

    def newer(self, version: int, now: int, *, limit: int) -> list[Newer]:
        text, bound = self._sql["newer"], (version, now // 1000, limit)
        found: list[Any] = self._run.read(lambda cursor: cursor.execute(text, bound).fetchall())
        return found

    def counts(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[int]:
        found: list[int] = self._of_each("counts", "count_from", namespace, spans)
        return without(found, spans, (key for (key,) in self._found("expired_keys", (now // 1000, namespace))))

    def keys_in(self, namespace: str, spans: Sequence[KeyRange], now: int) -> list[str]:
        found: list[list[str]] = self._of_each("keys_in", "keys_from", namespace, spans)
        expired = {key for (key,) in self._found("expired_keys", (now // 1000, namespace))}
        return sorted(key for keys in found for key in keys if key not in expired)

    def _of_each(self, name: str, name_of_last: str, namespace: str, spans: Sequence[KeyRange]) -> list[Any]:
        """What a statement finds for each range, and another one for the last, where that has no upper end."""
        ended = [span for span in spans if span.high is not None]
        found = []
        if ended:
            bound = (namespace, Texts([span.low for span in ended]), Texts([span.high for span in ended]))
            found += self._found(name, bound)
        if len(ended) < len(spans):
            found += self._found(name_of_last, (namespace, spans[-1].low))
        return [each for (each,) in found]

    def _found(self, name: str, bound: Sequence[object]) -> list[Any]:
        text = self._sql[name]
        return self._run.read(lambda cursor: cursor.execute(text, bound).fetchall())

    def tally(self, namespaces: Sequence[str] | None, now: int) -> Tally:
        text = self._sql["tally_of_all" if namespaces is None else "tally"]
        bound = (now // 1000,) if namespaces is None else (now // 1000, Texts(namespaces))
        (row,) = self._run.read(lambda cursor: cursor.execute(text, bound).fetchall())
        return Tally._make(row)

    def tally_and_newer(
        self, namespaces: Sequence[str] | None, version: int, now: int, *, limit: int
    ) -> tuple[Tally, list[Newer]]:
        return self.tally(namespaces, now), self.newer(version, now, limit=limit)

    def place(self, namespace: str, rows: Sequence[Row], now: int) -> None:
        if not rows:
            return
        keys, versions, created, updated, expiries, metadata, values = map(list, zip(*rows, strict=True))
        bound = (
            namespace, Texts(keys), Numbers(versions), Numbers(created), Numbers(updated), Numbers(expiries),
            Texts(metadata), Texts(values), Texts(forms_of(metadata)), Texts(forms_of(values)),
        )  # fmt: skip
        text = self._sql["place"]
        try:
            self._run.write(lambda cursor: cursor.execute(text, bound), namespace)
        except TakenError:
            self._place_again(namespace, rows, text, bound, now)

    def _place_again(self, namespace: str, rows: Sequence[Row], text: str, bound: tuple[object, ...], now: int) -> None:
        """Without what has expired."""

        def step(cursor: Cursor) -> None:
            cursor.execute(self._sql["purge_namespace"], (now, now // 1000, namespace))
            cursor.execute(text, bound)

        try:
            self._run.together(step)
        except TakenError as taken:
            constraint = taken.constraint
        else:
            return
        puts = [(row.key, row.value, row.metadata, row.expires_at) for row in rows]
        raise self._run.read(
            lambda cursor: created.refusal(cursor, self._texts.schema, constraint, namespace, puts, now)
        )

    def place_namespace(self, row: NamespaceRow) -> None:
        text = self._sql["place_namespace"]
        self._run.write(lambda cursor: cursor.execute(text, row))

    def raise_floor(self, version: int) -> None:
        text = self._sql["raise_floor"]
        self._run.write(lambda cursor: cursor.execute(text, (version,)))
