# Sourced by the other scripts: puts a Python with mcr installed first on PATH and goes to the
# repository's root. Without an active virtual environment, .venv is made here and installed into.
# An active environment is checked and never changed, unless it is that .venv.
# `extras`, if set before, names the extras of setup.py that are needed, with commas; `venv` is another
# folder than .venv, for extras that need other versions of what .venv holds.

cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${extras:-}"
venv="${venv:-.venv}"

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    if [ ! -x "$venv/bin/python" ]; then
        for python in python3 python3.13 python3.12 python3.11 python3.10; do
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break
            python=""
        done
        if [ -z "$python" ]; then
            echo "error: Python 3.10 or newer is needed; install it and run this again" >&2
            exit 2
        fi
        echo "making a virtual environment in $venv ($("$python" --version))"
        "$python" -m venv "$venv" || { echo "error: python's venv module is missing" >&2; exit 2; }
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
fi

if ! command -v python >/dev/null; then
    echo "error: the active environment, ${VIRTUAL_ENV:-$CONDA_PREFIX}, has no python on PATH" >&2
    exit 2
fi
prefix="$(python -c 'import sys; print(sys.prefix)')"
if ! python -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: Python 3.10 or newer is needed, but $prefix has $(python --version)" >&2
    exit 2
fi
if [ ! "$prefix" -ef "$venv" ]; then
    # shellcheck disable=SC2086
    python scripts/check_environment.py ${extras//,/ } || exit 2
else
    # One .venv serves all scripts, so the extra that the tests need is always installed.
    case ",$extras," in *,dev,*) ;; *) extras="dev${extras:+,$extras}" ;; esac
    # Installing takes minutes (torch brings its CUDA libraries), so only when setup.py has changed.
    stamp="$prefix/.mcr-$extras-$(cksum <setup.py | tr -d ' ')-$(pwd | cksum | tr -d ' ')"
    if [ ! -e "$stamp" ]; then
        if [[ "$extras" == *robomimic* ]] && ! command -v cmake >/dev/null; then
            echo "error: robomimic's egl_probe is built with cmake: apt-get install cmake g++" >&2
            exit 2
        fi
        echo "installing mcr and what it needs; the first time this takes a few minutes"
        python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
        touch "$stamp"
    fi
fi
