"""The tables of the durable store, and how an older file gets them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from retire_cluster.broker.store.base import StoreError

#: Schema changes in order; `user_version` counts those applied.
MIGRATIONS: Final = (
    """
    create table meta(name text primary key, value) without rowid;
    create table tasks(
        number integer primary key, created_ms int, type text, priority int,
        timeout_seconds int, max_retries int, document blob, payload blob, crc int);
    create table outcomes(
        task integer primary key, status text, device text, attempt int, assigned_ms int,
        started_ms int, completed_ms int, seconds real, cause text, error text, retries int,
        result blob, details blob, crc int);
    create table attempts(
        task int, number int, device text, outcome text, cause text, error text, assigned_ms int,
        started_ms int, ended_ms int, seconds real, result blob, details blob,
        primary key(task, number)) without rowid;
    create table live(
        task integer primary key, attempt int, retries int, stored_retries int,
        not_before_ms int, excluded text, killers text);
    create table dispatches(
        number integer primary key, epoch int, token int, device text, at_ms int, attempts blob);
    create table devices(
        device text primary key, registered_ms int, removed_ms int, document blob) without rowid;
    create table submissions(
        owner text, key text, fingerprint text, first int, count int, at_ms int,
        primary key(owner, key)) without rowid;
    create table config(section text primary key, document text) without rowid;
    """,
    """
    create table if not exists access(
        kind text, name text, document blob, primary key(kind, name)) without rowid;
    """,
    # When things ended or came, on the cluster's age, which begins here: what is there is new.
    """
    alter table outcomes add column ended_s int not null default 0;
    alter table submissions add column at_s int not null default 0;
    delete from access where kind = 'token';
    """,
    # Devices where an attempt of a task did not end well: others come first.
    "alter table live add column tried text not null default '[]'",
    # Attempts that a device gave back: counted, and kept as few rows. What devices said of single
    # tasks has their words from here on; without it they are only asked once more.
    """
    update live set excluded = '[]';
    alter table live add column given_back text not null default '[]';
    alter table attempts add column times int not null default 1;
    """,
    # Events that are kept apart, those of denials by themselves.
    """
    create table audit(
        id int, denial int, type text, at_ms int, device text, data text, crc int,
        primary key(denial, id)) without rowid;
    """,
)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the newest schema. Raises `StoreError` for one of a newer version."""
    (version,) = db.execute("pragma user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the store {path} was made by a newer version (schema {version}, this one knows"
            f" {len(MIGRATIONS)}): update retire-cluster or use another --data-dir"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        try:
            db.executescript(f"begin immediate; {script}; pragma user_version={number}; commit;")
        except BaseException:
            # Left open, it would be what the next try fails by, and not the cause.
            db.rollback()
            raise
