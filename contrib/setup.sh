#!/usr/bin/env bash
# Set up a checkout: install missing Debian packages, and make .venv with backyfs installed in it.
#
#   contrib/setup.sh          what a user needs: `make venv` and `make demo` run this
#   contrib/setup.sh tests    also what the tests need, servers included: `make test` runs this
#
# Missing packages are installed by root, or by sudo if it needs no password. Otherwise the script prints the command for
# the administrator and continues without them. It fails only if it cannot make .venv. It uses the mirrors and proxies
# of the environment.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
candidates=${PYTHON:-python3 python3.13 python3.12 python3.11}
early_log=$(mktemp)  # until there is a .venv to keep it in
log=$early_log
trap 'rm -f "$early_log"' EXIT

packages=(
    gcc libc6-dev libfuse3-dev pkg-config  # pyfuse3 is compiled here
    fuse3                                  # to mount without being root
    e2fsprogs mount util-linux             # the demo's image, and loop mounts
)
test_packages=(
    make zstd                              # zstd: the benchmarks compare with it
    fdisk gdisk parted                     # partition tables
    xfsprogs btrfs-progs dosfstools ntfs-3g squashfs-tools erofs-utils lvm2 cryptsetup-bin  # content of images
    attr systemd                           # getfattr; systemd-analyze checks the units
    qemu-utils                             # locks images in the same way as virtual machines
    zsh fish                               # shells that complete commands
    # The tests start separate servers from these and do not touch the cluster that Debian makes.
    postgresql mariadb-server-core mariadb-client-core
    ceph-mon ceph-osd ceph-common radosgw  # radosgw is an object store, and needs the rest of Ceph
)

case ${1:-} in
    "") requirements=requirements/run.txt ready=$venv/.ready ;;
    tests)
        requirements=requirements/dev.txt ready=$venv/.ready-tests
        packages+=("${test_packages[@]}")
        ;;
    *)
        printf 'usage: contrib/setup.sh [tests]\n' >&2
        exit 2
        ;;
esac

# Each line shows how long the set-up has taken so far.
say() {
    printf 'setup: %s (%d s)\n' "$*" "$SECONDS"
}

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

is_suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in $candidates; do
        if is_suitable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local package
    for package in "$@"; do
        # shellcheck disable=SC2016 # the field is dpkg's
        if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            printf '%s\n' "$package"
        fi
    done
}

# Run a command with its output in the log. If it fails, show the end of the log.
quietly() {
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        return 1
    fi
}

# sudo drops the proxies from the environment, so pass them by name.
as_root() {
    local kept=(DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8) name
    for name in http_proxy https_proxy ftp_proxy no_proxy; do
        if [ -n "${!name:-}" ]; then
            kept+=("$name=${!name}")
        fi
    done
    if [ "$(id -u)" -eq 0 ]; then
        env "${kept[@]}" "$@"
    else
        sudo -n env "${kept[@]}" "$@"
    fi
}

install_packages() {
    local apt=(apt-get -q -y -o DPkg::Lock::Timeout=120)
    if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
        say "these packages are missing: $*"
        say "only an administrator can install them: sudo apt-get install --no-install-recommends $*"
        return
    fi
    say "installing Debian packages, which takes up to a few minutes: $*"
    quietly as_root "${apt[@]}" update || say "the package lists could not be updated"
    quietly as_root "${apt[@]}" install --no-install-recommends "$@" ||
        say "not all packages could be installed; try: apt-get install --no-install-recommends $*"
}

set_up_packages() {
    local wanted=("${packages[@]}") missing python
    if ! python=$(find_python); then
        wanted+=(python3-venv python3-dev)
    elif ! has_headers "$python"; then
        wanted+=(python3-dev)
    fi
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "this is not Debian; make sure that you have the content of these packages: ${wanted[*]}"
        return
    fi
    mapfile -t missing < <(missing_packages "${wanted[@]}")
    if [ "${#missing[@]}" -eq 0 ]; then
        say "no packages are missing"
    else
        install_packages "${missing[@]}"
    fi
}

# Keep an environment that works: packages are added to it, and none are removed.
make_environment() {
    local python
    if "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "$venv exists"
        return
    fi
    python=$(find_python) || fail "no Python 3.11 or later that can make a virtual environment" \
        "(tried: $candidates); choose one: make venv PYTHON=/path/to/python3.12"
    say "making $venv with $("$python" -c 'import sys; print("Python", sys.version.split()[0])')"
    quietly "$python" -m venv --clear "$venv" || fail "$python cannot make $venv; the reason is above"
}

# Install exactly the files listed by hash in requirements/*.txt (see contrib/lock.sh). Build tools come first, and builds
# take them from this environment: an isolated build would fetch the newest releases.
install_python() {
    local pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check --no-input)
    quietly "${pip[@]}" --require-hashes --only-binary :all: -r requirements/build.txt &&
        quietly "${pip[@]}" --require-hashes --no-build-isolation -r "$requirements" &&
        quietly "${pip[@]}" --no-deps --no-build-isolation -e .
}

main() {
    set_up_packages
    make_environment
    rm -f "$ready"
    log=$venv/setup.log
    cp "$early_log" "$log"
    say "installing backyfs and the packages of $requirements into $venv, which takes about a minute"
    install_python ||
        fail "pip could not install backyfs; the reason is above, and the full log is $log"
    touch "$ready"
    if [ "${1:-}" = tests ]; then  # this includes everything that a user needs
        touch "$venv/.ready"
    fi
    say "done"
}

main "$@"
