"""Where specs are kept: a bucket of Cloud Storage, or a directory. What was published is never changed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from service.flex_templates import TemplateError

CALL_SECONDS = 30.0
ATTEMPTS = 5
PAUSE_SECONDS = 0.5  # after the first failure, doubled after each further one
MAX_SPEC_BYTES = 1 << 20
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


def publish(path: str, content: bytes) -> bool:
    """Writes a spec where there is none yet; False where exactly this one is there already.

    Raises TemplateError where another one is, or where the place cannot be used.
    """
    created = _create_object(path, content) if path.startswith("gs://") else _create_file(Path(path), content)
    if not created and read(path) != content:
        raise TemplateError(f"{path} is another spec already, and what is published is never changed.")
    return created


def read(path: str) -> bytes:
    """The bytes of a spec. Raises TemplateError."""
    if not path.startswith("gs://"):
        try:
            with Path(path).open("rb") as file:
                return file.read(MAX_SPEC_BYTES)
        except OSError as error:
            raise TemplateError(f"{path}: {error.strerror}") from error
    bucket, name = _split(path)
    answer = _call("GET", f"/storage/v1/b/{quote(bucket)}/o/{quote(name, safe='')}", {"alt": "media"})
    if answer.status_code != httpx.codes.OK:
        raise _refusal(path, answer)
    return answer.content


def _create_file(path: Path, content: bytes) -> bool:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
        try:
            os.link(draft, path)  # appears whole, and fails where there is a file
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise TemplateError(f"{path}: {error.strerror}") from error
    return True


def _create_object(path: str, content: bytes) -> bool:
    bucket, name = _split(path)
    # Generation 0 is that of an object that does not exist: a second upload is refused, whoever makes it.
    query = {"uploadType": "media", "name": name, "ifGenerationMatch": "0"}
    answer = _call("POST", f"/upload/storage/v1/b/{quote(bucket)}/o", query, content)
    if answer.status_code == httpx.codes.PRECONDITION_FAILED:
        return False
    if answer.status_code != httpx.codes.OK:
        raise _refusal(path, answer)
    return True


def _call(method: str, path: str, query: dict[str, str], content: bytes | None = None) -> httpx.Response:
    """One call, tried again while it fails in passing. Raises TemplateError where nothing answers."""
    emulator = os.environ.get("STORAGE_EMULATOR_HOST", "")
    base = emulator if "://" in emulator else f"http://{emulator}"
    base, headers = (base, {}) if emulator else ("https://storage.googleapis.com", _authorization())
    if content is not None:
        headers["content-type"] = "application/json"
    cause = ""
    for failures in range(ATTEMPTS):
        if failures:
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))
        try:
            answer = httpx.request(
                method,
                base.rstrip("/") + path,
                params=query,
                content=content,
                headers=headers,
                timeout=CALL_SECONDS,
            )
        except httpx.TransportError as error:
            cause = f"{type(error).__name__}: {error}"
            continue
        if answer.status_code not in _TRANSIENT:
            return answer
        cause = f"status {answer.status_code}"
    raise TemplateError(f"Cloud Storage cannot be reached ({cause}).")


def _authorization() -> dict[str, str]:
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials: Any
        credentials, _ = google.auth.default(scopes=_SCOPES)
        credentials.refresh(Request())
    except GoogleAuthError as error:
        raise TemplateError(
            f"There are no usable Google Cloud credentials ({error}). "
            "Run `gcloud auth application-default login`."
        ) from error
    return {"authorization": f"Bearer {credentials.token}"}


def _split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    if not bucket or not name:
        raise TemplateError(f"{path!r} must look like gs://BUCKET/NAME.")
    return bucket, name


def _refusal(path: str, answer: httpx.Response) -> TemplateError:
    try:
        cause = str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        cause = answer.text[:200]
    return TemplateError(f"{path}: Cloud Storage said {answer.status_code} {cause}".rstrip())
