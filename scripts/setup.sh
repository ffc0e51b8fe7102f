# Sourced by the scripts beside it, which set `root`. `prepare_venv LOCKFILE` sets `venv` to a virtual environment
# that holds what LOCKFILE names: .venv of this checkout, or ANTREAN_VENV, or one in the user's cache where the
# checkout cannot be written. If it is ready, only `cmp` and `cat` are run.

prepare_venv() {
    venv=${ANTREAN_VENV:-$root/.venv}
    case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
    is_venv_ready "$1" && return
    if [ -z "${ANTREAN_VENV:-}" ] && [ ! -w "$root" ] && [ ! -w "$venv" ]; then
        venv=${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/antrean/venv-$(printf %s "$root" | cksum | cut -d ' ' -f 1)
        is_venv_ready "$1" && return
    fi
    find_python
    "$python" -I "$root/scripts/setup_venv.py" "$root" "$venv" "$1" || exit
}

# A finished setup leaves copies of the lock files that it was made from. It removes them when it begins.
is_venv_ready() {
    [ -x "$venv/bin/python" ] && cmp -s "$root/$1" "$venv/$1" &&
        [ "$(cat "$venv/antrean.root" 2>/dev/null)" = "$root" ]
}

find_python() {
    if [ -n "${ANTREAN_PYTHON:-}" ]; then
        set -- "$ANTREAN_PYTHON"
    else
        set -- python3 python3.14 python3.13 python3.12 python3.11
    fi
    for python; do # a name that is found may be a shim that does not run
        "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && return
    done
    if [ -n "${ANTREAN_PYTHON:-}" ]; then
        echo "antrean: ANTREAN_PYTHON=$ANTREAN_PYTHON is not a Python 3.11 or later that runs" >&2
    else
        echo "antrean: needs Python 3.11 or later: install it, or name one with ANTREAN_PYTHON" >&2
    fi
    exit 3
}
