"""Secrets from files, as Docker and Kubernetes mount them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_BYTES = 64 * 1024


class SecretFileError(Exception):
    """The file gives no secret; the message says why, and nothing of what is in it."""


def read(path: Path) -> str:
    """The text of the file without the line end that editors and `echo` leave. Raises SecretFileError."""
    try:
        # Not to wait for the other end of a pipe: what is no file is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SecretFileError(f"names {path}, and there is no such file") from None
    except OSError as error:
        raise SecretFileError(f"names {path}, which cannot be opened ({error.strerror})") from None
    except ValueError:
        raise SecretFileError("names no path") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SecretFileError(f"names {path}, which is no regular file")
        content = os.read(descriptor, MOST_BYTES + 1)  # whole: files are not read in pieces
    except OSError as error:
        raise SecretFileError(f"names {path}, which cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)
    if len(content) > MOST_BYTES:
        raise SecretFileError(f"names {path}, which has more than {MOST_BYTES} bytes and is no secret")
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretFileError(f"names {path}, which is not UTF-8") from None
    if not text:
        raise SecretFileError(f"names {path}, which is empty")
    return text


def find(directory: Path, variable: str) -> Path | None:
    """The file of that secret in a directory of mounted secrets; Docker's are named in small letters."""
    for name in (variable.lower(), variable):
        path = directory / name
        try:
            if path.is_file():
                return path
        except OSError:  # a directory that may not be looked into
            return None
    return None
