#!/bin/sh
# Brings a MySQL 9 for the tests, once, into $MILLRACE_TEST_TOOLS/mysql-9 (or /var/tmp/…): Debian has one in `sid` only, so
# the packages are taken from the mirror of this machine's apt, with their libraries, and unpacked, nothing is installed.
# The program runs with the C library that came with it (`tests/e2e/servers.py`), so neither a chroot nor root is needed.
set -eu
tools="${MILLRACE_TEST_TOOLS:-/var/tmp/millrace-test-tools-$(id -u)}"
home="$tools/mysql-9"

say() { echo "mysql-server: $*" >&2; }

[ -e "$home/program" ] && exit 0
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "there is no apt here: the tests of MySQL are skipped"
    exit 1
fi
mkdir -p "$tools"
exec 9>"$tools/.mysql.lock"
flock 9
[ -e "$home/program" ] && exit 0
fresh="$tools/.fresh-mysql"
rm -rf "$fresh" "$home"
mkdir -p "$fresh/lists/partial" "$fresh/archives/partial" "$fresh/root"
chmod 755 "$tools" "$fresh" "$fresh/root"
trap 'rm -rf "$fresh"' EXIT

# The mirror that serves this machine's own release.
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk -v release="$release" '$1 == release { print $2; exit }')
mirror="${mirror:-http://deb.debian.org/debian/}"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
signed=""
[ -e $keyring ] && signed="[signed-by=$keyring]"
echo "deb $signed $mirror sid main" >"$fresh/sources.list"
: >"$fresh/status"

apt() { # apt-get with folders of its own: what this machine has installed is not looked at
    apt-get -qq -o Dir::State="$fresh" -o Dir::State::lists="$fresh/lists" -o Dir::State::status="$fresh/status" \
        -o Dir::Cache="$fresh" -o Dir::Cache::archives="$fresh/archives" -o Dir::Etc::sourcelist="$fresh/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null -o Dir::Etc::preferences=/dev/null \
        -o APT::Install-Recommends=false -o APT::Sandbox::User="$(id -un)" -o APT::Default-Release=sid \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 \
        -o Dpkg::Use-Pty=0 "$@" >&2
}
say "MySQL 9 from Debian's sid at $mirror into $home"
if ! apt update || ! apt install --yes --download-only mysql-server-core; then
    say "the packages could not be fetched from $mirror: the tests of MySQL are skipped"
    exit 1
fi
for package in "$fresh"/archives/*.deb; do
    case "${package##*/}" in perl* | libperl*) continue ;; esac
    dpkg-deb --extract "$package" "$fresh/root"
done
loader=$(find "$fresh/root" -name 'ld-linux*.so.*' -type f | head -n 1)
libraries="${loader%/*}"
program() { "$loader" --library-path "$libraries" "$fresh/root/usr/sbin/mysqld" "$@"; }
if ! version=$(program --no-defaults --basedir="$fresh/root/usr" --version); then
    say "the program does not run on this machine: the tests of MySQL are skipped"
    exit 1
fi
say "$version"
# What runs it: relative to the folder, which is about to move.
printf '%s\n' "${loader#"$fresh"/}" "${libraries#"$fresh"/}" >"$fresh/program"
rm -rf "$fresh/lists" "$fresh/archives" "$fresh/sources.list" "$fresh/status" "$fresh"/*.bin "$fresh/root/usr/share/doc"
chmod -R a+rX "$fresh"
mv "$fresh" "$home"
