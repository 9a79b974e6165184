#!/bin/sh
# sh requirements/install.sh ENVIRONMENT LOCK      e.g. .venv requirements/serve.txt
#
# Makes a virtual environment from scratch and installs LOCK into it. The last step writes the stamp
# ENVIRONMENT/installed-NAME, a copy of the lock: without it the environment counts as unfinished, so a
# killed installation is never taken for a whole one. Starting from scratch also keeps onnxruntime and
# onnxruntime-gpu, which share a folder, from ever meeting. PYTHON names the interpreter to build on.
set -eu

environment=$1
lock=$2
stamp=$environment/installed-$(basename "$lock" .txt)
python_in_environment=$environment/bin/python

# A lock that only looks newer (a fresh checkout, another branch and back) costs no second download.
if cmp -s "$lock" "$stamp" && "$python_in_environment" -c ""; then
    touch "$stamp"
    exit 0
fi

fail() {
    echo "akin: $*" >&2
    exit 1
}

# Prints the first interpreter that ONNX Runtime has packages for.
find_python() {
    tried=
    for candidate in "$@"; do
        version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        case $version in
            3.11 | 3.12 | 3.13 | 3.14) echo "$candidate"; return ;;
        esac
        tried="$tried $candidate is $version;"
    done
    fail "needs Python 3.11 to 3.14 (ONNX Runtime has packages for no other), found:${tried:- none;}" \
        "install one, or name it: make PYTHON=/path/to/python3.12"
}

# Makes the environment and sets `install`, the command that installs into it. Debian and Ubuntu ship
# Pythons that can make no pip (no ensurepip); a pip outside, uv or virtualenv each stand in for it.
create_environment() {
    if "$python" -m venv "$environment" >"$log" 2>&1; then
        install="$python_in_environment -m pip install"
        return
    fi
    rm -rf "$environment"
    if "$python" -m pip --python "$python" --version >>"$log" 2>&1 &&
        "$python" -m venv --without-pip "$environment" >>"$log" 2>&1
    then
        install="$python -m pip --python $python_in_environment install"
    elif command -v uv >/dev/null && uv venv --quiet --python "$python" "$environment"; then
        install="uv pip install --python $python_in_environment"
    elif command -v virtualenv >/dev/null && virtualenv --quiet --python "$python" "$environment"; then
        install="$python_in_environment -m pip install"
    else
        cat "$log" >&2
        fail "$python cannot make a virtual environment with pip in it; install what is missing" \
            "(Debian, Ubuntu: apt-get install python3-venv) or put uv or virtualenv on the PATH"
    fi
}

if [ -n "${PYTHON:-}" ]; then
    python=$(find_python "$PYTHON")
else
    python=$(find_python python3.14 python3.13 python3.12 python3.11 python3)
fi
echo "akin: installing $lock into $environment with $python; this happens once"

rm -f "$environment"/installed-*
rm -rf "$environment"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
create_environment
$install --no-deps -r "$lock" || fail "could not install $lock; run make again once the cause above is gone"

cat >"$environment/bin/akin" <<'LAUNCHER'
#!/bin/sh
exec "${0%/*}/python" "${0%/*}/../../akin.py" "$@"
LAUNCHER
chmod +x "$environment/bin/akin"

cp "$lock" "$environment/stamp.partial"
mv "$environment/stamp.partial" "$stamp"
