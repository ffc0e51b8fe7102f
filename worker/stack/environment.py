"""The environment that a child inherits: without our settings, and with paths that mean the same from its folder.

A worker runs in the home folder, and the command that it serves in another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROJECT_FOLDER = Path(__file__).resolve().parents[2]
_PREFIX = "ANTREAN_"
# Of requests, OpenSSL and libpq: all that a worker's calls and its database listen to.
_FILES = (
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "SSLKEYLOGFILE",
    "OPENSSL_CONF",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLCRL",
    "PGPASSFILE",
    "PGSERVICEFILE",
    "PGSYSCONFDIR",
)


def inherited_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without settings of ours (they hold secrets), with our modules found, and its paths absolute."""
    env = {name: value for name, value in environ.items() if not name.upper().startswith(_PREFIX)}
    for name in _FILES:
        if env.get(name) and env[name] != "system":  # PGSSLROOTCERT=system is no file
            env[name] = os.path.abspath(env[name])
    inherited = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    env["PYTHONPATH"] = os.pathsep.join([str(_PROJECT_FOLDER), *inherited])
    return env
