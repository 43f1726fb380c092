"""The names of the variables: of each setting, of what else is read, and what a misspelt one meant."""

from __future__ import annotations

import difflib
import re

from pydantic.fields import FieldInfo

from service.config.settings import TOPICS, Settings

PREFIX = "SIGNIN_"
FILE_SUFFIX = "_FILE"
# Read elsewhere than in the settings: who reads each, for the README.
OTHERS = {
    "SIGNIN_URL": "Address of the service that the command line calls",
    "SIGNIN_API_KEY": "API key that the command line sends; secret",
    "SIGNIN_API_KEY_FILE": "File with that key",
    "SIGNIN_SERVERLESS_TOKEN": "Google's identity token that the command line sends to Cloud Run beside the "
    "key, as `X-Serverless-Authorization`; secret",
    "SIGNIN_SERVERLESS_TOKEN_FILE": "File with that token",
    "SIGNIN_SERVICE_IMAGE": "Image of the service in compose.yaml",
    "SIGNIN_LOCAL_IMAGE": "Image of the local stack in compose.yaml",
    "SIGNIN_PUBLISHED_ON": "Port of this machine at which compose.yaml answers",
    "SIGNIN_SECRETS": "Directory of the secret files of compose.yaml",
    "SIGNIN_JOB_ID": "Set by the local Dataflow for each job that it runs",
}
# Kubernetes gives every pod variables for each Service of its namespace: one named `signin-db` must not
# keep ours from starting. https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_SERVICE_LINK = re.compile(r"SIGNIN_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?))")
_LEAST_LIKENESS = 0.7
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def variable_name(field: str) -> str:
    """The environment variable of a setting."""
    return field.upper() if field.lower().endswith("_emulator_host") else f"{PREFIX}{field.upper()}"


def is_secret(field: FieldInfo) -> bool:
    """Whether the value must never be shown: pydantic leaves it out of what it prints, and so do we."""
    return not field.repr


SETTINGS = {variable_name(name): name for name in Settings.model_fields}
SECRETS = {variable: name for variable, name in SETTINGS.items() if is_secret(Settings.model_fields[name])}
KNOWN = SETTINGS.keys() | OTHERS.keys() | {variable + FILE_SUFFIX for variable in SECRETS}


def topic_of(name: str) -> str:
    """The heading under which the setting stands."""
    for topic in TOPICS:
        if name in topic.model_fields:
            assert topic.__doc__
            return topic.__doc__.splitlines()[0].rstrip(".")
    raise KeyError(name)


def is_foreign(variable: str, value: str) -> bool:
    """Whether Kubernetes made the variable for a Service whose name begins with `signin`."""
    if variable in SETTINGS:
        return False
    return bool(_SERVICE_LINK.fullmatch(variable)) or bool(
        variable.endswith("_PORT") and _LINK_ADDRESS.match(value)
    )


def is_link_address(value: object) -> bool:
    """Whether it is what Kubernetes puts into SIGNIN_PORT for a Service that is named `signin`."""
    return isinstance(value, str) and bool(_LINK_ADDRESS.match(value))


def complaint(variable: str) -> str:
    """What to say of a variable that is none of ours."""
    plain = variable.removesuffix(FILE_SUFFIX)
    if plain != variable and plain in SETTINGS:
        return f"{variable}: only secrets are read from a file. Set {plain}."
    longer = sorted((known for known in KNOWN if known.startswith(f"{variable}_")), key=len)
    unprefixed = [known for known in KNOWN if known == variable.removeprefix(PREFIX)]
    near = unprefixed or longer[:1] or _nearest(variable)
    hint = f" Did you mean {near[0]}?" if near else " `signin config show` lists all there are."
    return f"{variable}: there is no such setting.{hint}"


def _nearest(variable: str) -> list[str]:
    """The known variable that is most like it, compared without what all of them begin with."""
    names = {known.removeprefix(PREFIX): known for known in sorted(KNOWN)}
    found = difflib.get_close_matches(variable.removeprefix(PREFIX), names, 1, _LEAST_LIKENESS)
    return [names[name] for name in found]
