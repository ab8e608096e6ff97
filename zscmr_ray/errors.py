"""Every error a user or their data can cause, as one small tree.

    ZscmrError            exit 1   base of all
      TrainingError       exit 1   training cannot go on (NaN loss, lost workers)
      ServingError        exit 1   the service cannot start or answer
      MissingPackageError exit 1   an optional package is not installed
      ConfigError         exit 2   a setting, flag or combination of them is wrong
      DataError           exit 3   the data are missing, unreadable or break a contract
        StorageError      exit 3   the place itself: it does not answer, is full or may not be used
          UnsavedStateError        a training's resumable state could not be written there
      RefusedError        exit 4   another fingerprint, configuration or lease owns what was asked for

A message has three parts: what was got, what was expected, and the remedy. Our own mistakes are assertions, not these.
"""

from __future__ import annotations


class ZscmrError(Exception):
    """Base class: a message plus optional got, expected and remedy; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        self.message = message
        self.got = got
        self.expected = expected
        self.remedy = remedy
        parts = [message]
        if got is not None:
            parts.append(f"got: {got}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if remedy is not None:
            parts.append(f"remedy: {remedy}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries exceptions between processes; the default reduce would lose the keyword-only parts.
        return (_rebuild, (type(self), self.message, self.got, self.expected, self.remedy))


def _rebuild(
    kind: type[ZscmrError], message: str, got: object, expected: object, remedy: str | None
) -> ZscmrError:
    return kind(message, got=got, expected=expected, remedy=remedy)


class TrainingError(ZscmrError):
    """Training cannot go on: a NaN loss, a lost worker group."""


class ServingError(ZscmrError):
    """The service cannot start, or a request cannot be answered."""


class MissingPackageError(ZscmrError):
    """A package that this choice of backbone or format needs is not installed."""


class ConfigError(ZscmrError):
    """A setting, a flag or a combination of them is wrong."""

    exit_code = 2


class DataError(ZscmrError):
    """The data are missing, unreadable or break a contract."""

    exit_code = 3


class StorageError(DataError):
    """The place is at fault and no object in it: it does not answer, is full, or may not be read or written."""


class UnsavedStateError(StorageError):
    """A training's resumable state could not be written; every rank raises it alike."""


class RefusedError(ZscmrError):
    """What was asked for belongs to another fingerprint, configuration or lease."""

    exit_code = 4
