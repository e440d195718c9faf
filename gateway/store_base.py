"""An open store file: one connection, transactions that are all or nothing, and the reserve for a full disk."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gateway import store_file, store_schema, store_space
from gateway.store_file import RESERVE_BYTES, StoreDamaged, StoreError, is_full, translated, translated_when_opening

log = logging.getLogger(__name__)
T = TypeVar("T")


class StoreBase:
    """The file, opened and checked; what lies in it is the business of the classes above."""

    def __init__(
        self, path: Path, *, new_epoch: str = "", read_only: bool = False, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Open the file, or make it, with `new_epoch` as its epoch.

        Raises StoreDamaged for a file that is not a sound store, StoreError where it cannot be opened at all.
        """
        self.path = path
        self._reserve = store_file.Reserve(path, size_bytes=reserve_bytes)
        try:
            self._open(new_epoch, read_only=read_only)
        except StoreError as error:
            if read_only or not is_full(error.__cause__, opening=True) or not self._reserve.give_up():
                raise
            self._say_full(error)
            self._open(new_epoch, read_only=read_only)
        if not read_only and not self._reserve.hold():
            log.warning("disk_nearly_full path=%s: no room for the reserve of %d bytes", path, reserve_bytes)
            self._claim_space()

    def _open(self, new_epoch: str, *, read_only: bool) -> None:
        with translated_when_opening(self.path):
            self._db = store_file.connect(self.path, read_only=read_only)
            try:
                if read_only:
                    store_schema.require_newest(self._db)
                else:
                    store_file.configure(self._db, self.path)
                    store_schema.upgrade(self._db)
                    if new_epoch:
                        store_schema.give_epoch(self._db, new_epoch)
                    store_schema.check(self._db)
                self.epoch: str = self._scalar("select value from meta where key = 'epoch'")
                self._opened(read_only=read_only)
            except StoreError as error:
                self._db.close()
                raise type(error)(f"{self.path}: {error}") from error
            except BaseException:
                self._db.close()
                raise

    def _opened(self, *, read_only: bool) -> None:
        """Look at what is in the file that was just opened. May raise StoreError or sqlite3.Error."""

    def close(self) -> None:
        """Close the file; SQLite copies the WAL back."""
        self._db.close()

    def _write(self, what: str, work: Callable[[], T]) -> T:
        """Return what `work` returns; all that it writes is on the disk then, or nothing is and StoreError is raised.

        On a full disk the reserve is given up and `work` called once more.
        """
        with translated(what):
            try:
                with self._db.atomic():
                    return work()
            except sqlite3.OperationalError as error:
                if not is_full(error) or not self._reserve.give_up():
                    raise
                self._say_full(error)
            self._claim_space()
            with self._db.atomic():
                return work()

    def _say_full(self, error: Exception) -> None:
        log.error(
            "disk_full path=%s: %s; the reserve of %d bytes is given up and work goes on. Make room: df, du",
            self.path,
            error,
            self._reserve.size_bytes,
        )

    def _claim_space(self) -> None:
        try:
            store_space.claim(self._db, self._reserve.size_bytes // 4)
        except sqlite3.Error as error:
            log.warning("disk_full path=%s: no space could be claimed for the store: %s", self.path, error)

    def _read(self, sql: str, *parameters: Any) -> tuple[Any, ...]:
        with translated("the store cannot be read"):
            row: tuple[Any, ...] = self._db.execute(sql, parameters).fetchone()
            return row

    def _scalar(self, sql: str, *parameters: Any) -> Any:
        row = self._db.execute(sql, parameters).fetchone()
        if row is None:
            raise StoreDamaged(f"a row is gone: {sql}")
        return row[0]
