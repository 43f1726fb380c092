"""The settings as they come from the variables that a test gives, and from nothing else."""

from __future__ import annotations

import os

import pytest

from service.config import load
from service.errors import ConfigError
from tests.running import clean_environment

URL = "postgresql://signin:hush-hush@db.example:5432/signin"


@pytest.fixture(name="variables")
def given_variables(monkeypatch, tmp_path):
    """Sets the environment to nothing but what is given; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)

    def give(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    give(SIGNIN_SECRETS_DIR=tmp_path / "secrets")
    return give


def complaints():
    with pytest.raises(ConfigError) as caught:
        load()
    return str(caught.value).splitlines()
