"""What she knows about whom: memories and turns of each session in one SQL database.

Every statement names its session; nothing crosses from one person to another. A memory is a key and a value.
A new value of a key replaces the old one, which stays as a superseded row; keys that hold several values at
once gain a row instead. Embeddings are a cache: each row says which encoder made its own, and rows of another
one are embedded again when they are next recalled.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import (
    Connection,
    Engine,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool

from ohlora.memory.encoder import Embedder

MAX_SESSION = 128
MAX_KEY = 40
MAX_VALUE = 200
MAX_TURN = 4000


class MemoryFormatError(ValueError):
    """A memory is not of the form `키: 값`, or a session name cannot be used."""


@dataclass(frozen=True)
class Memory:
    """One thing known about a person."""

    id: int
    key: str
    value: str
    created_at: datetime
    updated_at: datetime
    active: bool

    @property
    def text(self) -> str:
        """`키: 값`."""
        return f"{self.key}: {self.value}"


@dataclass(frozen=True)
class Recalled:
    """A memory that fits a message."""

    memory: Memory
    score: float  # cosine

    @property
    def text(self) -> str:
        return self.memory.text


class _Base(DeclarativeBase):
    pass


class _MemoryRow(_Base):
    __tablename__ = "memories"
    __table_args__ = (Index("ix_memories_session_key", "session", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    session: Mapped[str] = mapped_column(String(MAX_SESSION))
    name: Mapped[str] = mapped_column(String(MAX_KEY))  # canonical key, what equality means
    key: Mapped[str] = mapped_column(String(MAX_KEY))
    value: Mapped[str] = mapped_column(String(MAX_VALUE))
    embedding: Mapped[bytes | None] = mapped_column(LargeBinary)  # float32 [d], L2-normalised
    encoder: Mapped[str] = mapped_column(String(64), default="")  # digest of the encoder that made it
    created_at: Mapped[datetime]  # UTC, naive: SQLite knows no zones
    updated_at: Mapped[datetime]
    active: Mapped[bool] = mapped_column(default=True)
    superseded_by: Mapped[int | None] = mapped_column(ForeignKey("memories.id", ondelete="SET NULL"))


class _TurnRow(_Base):
    __tablename__ = "turns"

    id: Mapped[int] = mapped_column(primary_key=True)
    session: Mapped[str] = mapped_column(String(MAX_SESSION), index=True)
    user: Mapped[str] = mapped_column(Text)
    reply: Mapped[str] = mapped_column(Text)
    expression: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime]


class MemoryStore:
    """Memories and turns, by session. Safe to share between threads."""

    def __init__(
        self,
        url: str = "sqlite://",
        encoder: Embedder | None = None,
        multi_valued: Collection[str] = (),
    ) -> None:
        """Open the database and create what is missing of its tables.

        Args:
            url: SQLAlchemy URL; `sqlite://` keeps everything in memory, `sqlite:///chat.db` in a file.
            encoder: embeds memories for `recall`; without one the store reads, writes and forgets only.
            multi_valued: keys that hold several values at once.
        """
        self.engine = _open(url)
        self.encoder = encoder
        self.multi_valued = {canonical(key)[:MAX_KEY] for key in multi_valued}
        self._writing = threading.Lock()  # SQLite has one writer; queueing here beats its busy timeout
        _Base.metadata.create_all(self.engine)

    def write(self, session: str, memory: str) -> Memory:
        """Keep `키: 값`.

        The same key and value again only renews the date. Another value of a key supersedes the old one,
        which is kept as inactive, unless the key is multi-valued.

        Raises:
            MemoryFormatError: no colon, or nothing on one of its sides.
        """
        session, (key, value) = _session(session), parse_memory(memory)
        name, now = canonical(key)[:MAX_KEY], _now()
        same_key = (_MemoryRow.session == session, _MemoryRow.name == name, _MemoryRow.active.is_(True))
        with self._write() as connection:
            # An UPDATE first, so that SQLite takes its write lock before anything is read.
            connection.execute(update(_MemoryRow).where(*same_key).values(name=name))
            known = connection.execute(select(_MemoryRow.__table__).where(*same_key)).mappings().all()
            equal = next((row for row in known if canonical(row["value"]) == canonical(value)), None)
            if equal is not None:
                connection.execute(
                    update(_MemoryRow).where(_MemoryRow.id == equal["id"]).values(updated_at=now)
                )
                return _memory({**equal, "updated_at": now})
            values: dict[str, Any] = {
                "session": session,
                "name": name,
                "key": key,
                "value": value,
                "encoder": "",
                "created_at": now,
                "updated_at": now,
                "active": True,
            }
            new_id = connection.scalars(insert(_MemoryRow).values(values).returning(_MemoryRow.id)).one()
            if name not in self.multi_valued:
                connection.execute(
                    update(_MemoryRow)
                    .where(*same_key, _MemoryRow.id != new_id)
                    .values(active=False, superseded_by=new_id, updated_at=now)
                )
        return _memory({**values, "id": new_id})

    def recall(
        self,
        session: str,
        message_embedding: npt.NDArray[np.float32],
        top_k: int,
        threshold: float,
    ) -> list[Recalled]:
        """The active memories nearest to a message, best first; the newer of two equal ones leads.

        Args:
            session: whose memories.
            message_embedding: float32 [d], L2-normalised, of the store's encoder.
            top_k: at most so many.
            threshold: least cosine.

        Raises:
            RuntimeError: the store was opened without an encoder.
        """
        rows, embeddings = self._embedded(_session(session))
        if not rows:
            return []
        scores = embeddings @ np.asarray(message_embedding, dtype=np.float32)
        order = sorted(
            (i for i in range(len(rows)) if scores[i] >= threshold),
            key=lambda i: (scores[i], rows[i]["updated_at"], rows[i]["id"]),
            reverse=True,
        )
        return [Recalled(_memory(rows[i]), float(scores[i])) for i in order[:top_k]]

    def all(self, session: str, superseded: bool = False) -> list[Memory]:
        """Memories of a session, oldest first; with `superseded` those that were replaced, too."""
        query = select(_MemoryRow.__table__).where(_MemoryRow.session == _session(session))
        if not superseded:
            query = query.where(_MemoryRow.active.is_(True))
        with self.engine.connect() as connection:
            return [_memory(row) for row in connection.execute(query.order_by(_MemoryRow.id)).mappings()]

    def forget(self, session: str, id: int) -> bool:
        """Delete a memory and the values it superseded, for good. False when there is none of this id."""
        mine = _MemoryRow.session == _session(session)
        with self._write() as connection:
            doomed = list(connection.scalars(select(_MemoryRow.id).where(mine, _MemoryRow.id == id)))
            newest = list(doomed)
            while newest:
                older = select(_MemoryRow.id).where(mine, _MemoryRow.superseded_by.in_(newest))
                newest = list(connection.scalars(older))
                doomed += newest
            connection.execute(delete(_MemoryRow).where(_MemoryRow.id.in_(doomed)))
        return bool(doomed)

    def forget_session(self, session: str) -> None:
        """Delete every memory and turn of a session."""
        session = _session(session)
        with self._write() as connection:
            connection.execute(delete(_MemoryRow).where(_MemoryRow.session == session))
            connection.execute(delete(_TurnRow).where(_TurnRow.session == session))

    def add_turn(self, session: str, user: str, reply: str, expression: str = "") -> None:
        """Append one exchange to the history."""
        values = {
            "session": _session(session),
            "user": clean(user)[:MAX_TURN],
            "reply": clean(reply)[:MAX_TURN],
            "expression": expression[:40],
            "created_at": _now(),
        }
        with self._write() as connection:
            connection.execute(insert(_TurnRow).values(values))

    def history(self, session: str, n: int) -> list[tuple[str, str]]:
        """The last `n` exchanges as (user, reply), oldest first."""
        if n <= 0:
            return []
        query = (
            select(_TurnRow.user, _TurnRow.reply)
            .where(_TurnRow.session == _session(session))
            .order_by(_TurnRow.id.desc())
            .limit(n)
        )
        with self.engine.connect() as connection:
            return [(user, reply) for user, reply in reversed(connection.execute(query).all())]

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def _write(self) -> AbstractContextManager[Connection]:
        return _Transaction(self.engine, self._writing)

    def _embedded(self, session: str) -> tuple[list[Any], npt.NDArray[np.float32]]:
        """Active rows of a session and their embeddings [n, d]; those of another encoder are made anew."""
        if self.encoder is None:
            raise RuntimeError("this MemoryStore was opened without an encoder and cannot recall")
        query = select(_MemoryRow.__table__).where(_MemoryRow.session == session, _MemoryRow.active.is_(True))
        with self.engine.connect() as connection:
            rows = list(connection.execute(query.order_by(_MemoryRow.id)).mappings())
        digest = self.encoder.digest
        stale = [row for row in rows if row["embedding"] is None or row["encoder"] != digest]
        fresh: dict[int, bytes] = {}
        if stale:
            texts = [f"{row['key']}: {row['value']}" for row in stale]
            vectors = self.encoder.embed(texts, kind="passage").astype("<f4")
            fresh = {row["id"]: vector.tobytes() for row, vector in zip(stale, vectors, strict=True)}
            with self._write() as connection:
                for row_id, vector in fresh.items():
                    connection.execute(
                        update(_MemoryRow)
                        .where(_MemoryRow.id == row_id)
                        .values(embedding=vector, encoder=digest)
                    )
        vectors_of_rows = [np.frombuffer(fresh.get(row["id"], row["embedding"]), "<f4") for row in rows]
        return rows, np.stack(vectors_of_rows) if rows else np.zeros((0, 0), dtype=np.float32)


class _Transaction(AbstractContextManager[Connection]):
    """One write transaction at a time in this process."""

    def __init__(self, engine: Engine, lock: threading.Lock) -> None:
        self._engine = engine
        self._lock = lock

    def __enter__(self) -> Connection:
        self._lock.acquire()
        try:
            self._begun = self._engine.begin()
            return self._begun.__enter__()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            self._begun.__exit__(*error)
        finally:
            self._lock.release()


def parse_memory(memory: str) -> tuple[str, str]:
    """`키: 값` as a cleaned key and value.

    Raises:
        MemoryFormatError: no colon, or nothing on one of its sides.
    """
    key, colon, value = clean(memory).partition(":")
    key, value = key.strip()[:MAX_KEY].strip(), value.strip()[:MAX_VALUE].strip()
    if not colon or not key or not value:
        raise MemoryFormatError(f"a memory must be of the form '키: 값', not {memory[:80]!r}")
    return key, value


def clean(text: str) -> str:
    """One line without control, format, surrogate or unassigned characters, composed (NFC)."""
    visible = (" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(unicodedata.normalize("NFC", "".join(visible)).split())


def canonical(text: str) -> str:
    """What two spellings of a key or a value have in common: case, width and spaces do not count."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _session(session: str) -> str:
    if not session or len(session) > MAX_SESSION or clean(session) != session:
        raise MemoryFormatError(
            f"a session name has 1 to {MAX_SESSION} printable characters, this has {len(session)}"
        )
    return session


def _memory(row: Any) -> Memory:
    return Memory(
        id=row["id"],
        key=row["key"],
        value=row["value"],
        created_at=row["created_at"].replace(tzinfo=UTC),
        updated_at=row["updated_at"].replace(tzinfo=UTC),
        active=row["active"],
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _open(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    in_memory = parsed.database in (None, "", ":memory:")
    pool: dict[str, Any] = {"poolclass": StaticPool} if in_memory else {}
    engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": 10}, **pool)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers do not wait for the writer
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine
