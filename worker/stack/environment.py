"""The environment that a child inherits: without antrean's settings, and with absolute paths.

Relative paths would change their meaning: a worker runs in the home folder, its command in another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_PROJECT_FOLDER = Path(__file__).resolve().parents[2]
_PREFIX = "ANTREAN_"
# Variables of requests, OpenSSL and libpq that hold paths and affect a worker's calls or its database.
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
    """`environ` without antrean's settings (they hold secrets), with antrean on PYTHONPATH, and with absolute paths."""
    env = {name: value for name, value in environ.items() if not name.upper().startswith(_PREFIX)}
    for name in _FILES:
        if env.get(name) and env[name] != "system":  # PGSSLROOTCERT=system names no file
            env[name] = os.path.abspath(env[name])
    inherited = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    env["PYTHONPATH"] = os.pathsep.join([str(_PROJECT_FOLDER), *inherited])
    return env
