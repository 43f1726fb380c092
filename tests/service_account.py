"""A service account whose tokens come from a server of the tests."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def write_service_account(path: Path, token_url: str) -> Path:
    """Writes the key file of an account that was made up, for GOOGLE_APPLICATION_CREDENTIALS."""
    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": "my-project",
        "client_email": "job@my-project.iam.gserviceaccount.com",
        "private_key": key.decode(),
        "token_uri": token_url,
    }
    path.write_text(json.dumps(account))
    return path
