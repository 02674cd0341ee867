#!/usr/bin/env bash
# `make demo` runs this: back up a small ext4 image twice, mount both versions, and copy a file out of the older one.
# Exit status 0 means that every comparison found the same bytes.
#
# Everything is in one temporary directory, which is unmounted and removed however this ends. Without /dev/fuse the older
# version is restored instead of mounted. Without root, debugfs reads its file system instead of the kernel.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export PATH="$top/.venv/bin:$PATH:/usr/sbin:/sbin" LC_ALL=C.UTF-8
umask 022

bold='' green='' red='' off=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' off=$'\e[0m'
fi

heading() {
    printf '\n%s%s%s\n' "$bold" "$*" "$off"
}

# Show a command as you would type it, then run it.
run() {
    printf '%s$ %s%s\n' "$green" "$1" "$off"
    eval "$1"
}

fail() {
    printf '%s%s%s\n' "$red" "$*" "$off" >&2
    exit 1
}

# debugfs prints its version on stderr each time: drop that line and keep errors.
debugfs() {
    { command debugfs "$@" 2>&1 >&3 | sed -e '/^debugfs [0-9]/d' -e '/^$/d' >&2; } 3>&1
}

is_mounted() {
    findmnt -n --mountpoint "$1" >/dev/null
}

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    trap - EXIT
    cd /
    if [ -d "$dir/files" ]; then
        backyfs detach "$dir/files" >/dev/null || true
    fi
    if is_mounted "$dir/mnt"; then
        backyfs umount "$dir/mnt" || fusermount3 -u -z "$dir/mnt" || umount -l "$dir/mnt" || true
    fi
    if is_mounted "$dir/files/data" || is_mounted "$dir/mnt"; then
        printf 'still mounted and therefore not removed: %s\n' "$dir" >&2
    else
        rm -rf --one-file-system "$dir"
    fi
    exit "$status"
}

need() {
    local program
    for program in backyfs mkfs.ext4 debugfs findmnt cmp sha256sum; do
        command -v "$program" >/dev/null || fail "$program is missing: run \`make venv\`, which prints what to install"
    done
}

may_mount() {
    [ "$(id -u)" -eq 0 ] && (((0x$(awk '/^CapEff:/ {print $2}' /proc/self/status) >> 21) & 1))  # CAP_SYS_ADMIN
}

# Print why nothing can be mounted through FUSE, and what to do. Print nothing if it can.
fuse_obstacle() {
    if [ ! -e /dev/fuse ]; then
        echo "/dev/fuse is missing: load the module (modprobe fuse); start a container with" \
            "--device /dev/fuse --cap-add SYS_ADMIN"
    elif ! (exec 3<>/dev/fuse) 2>/dev/null; then
        echo "/dev/fuse cannot be opened by this user: run the demo as root, or allow it (chmod 666 /dev/fuse)"
    elif [ "$(id -u)" -eq 0 ] && ! may_mount; then
        echo "root is not allowed to mount here (no CAP_SYS_ADMIN): start the container with --cap-add SYS_ADMIN"
    elif [ "$(id -u)" -ne 0 ] && ! command -v fusermount3 >/dev/null; then
        echo "fusermount3 is missing: apt-get install fuse3"
    fi
}

loop_obstacle() {
    if ! may_mount; then
        echo "Only root can mount a file system from an image"
    elif [ ! -b "$(losetup -f 2>/dev/null)" ]; then
        echo "There is no free loop device"
    fi
}

# Print the uid of the only version.
only_uid() {
    backyfs -m ls | awk -F'|' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "uid") uid = i; next } { print $uid }'
}

make_image() {
    local file
    heading "A disk: an ext4 image of 64 MiB with some files from this machine"
    mkdir disk mnt
    for file in /usr/share/common-licenses/* /etc/os-release "$BASH"; do
        if [ -f "$file" ]; then
            cp -L "$file" disk/
        fi
    done
    run "echo 'Monday: all is well.' > disk/notes.txt"
    run "mkfs.ext4 -q -d disk disk.img 64M"
}

change_image() {
    heading "The disk changes: notes.txt in the image is overwritten (a copy of the image is kept for comparison)"
    run "cp disk.img before.img"
    run "echo 'Tuesday: somebody overwrote my notes.' > notes.txt"
    run "debugfs -w -R 'rm notes.txt' disk.img"
    run "debugfs -w -R 'write notes.txt notes.txt' disk.img >/dev/null"
    [ "$(debugfs -R 'cat notes.txt' disk.img)" = "$(<notes.txt)" ] || fail "debugfs could not change the image"
}

back_up() {
    heading "A repository: configuration, key, database and a directory for the blocks"
    run "backyfs init -c backyfs.cfg --data data --db backyfs.sqlite"
    export BACKYFS_CONFIG="$dir/backyfs.cfg"
    heading "First backup"
    run "backyfs backup disk.img demo-disk"
    older=$(only_uid)
    change_image
    heading "Second backup: only new blocks are stored"
    run "backyfs backup disk.img demo-disk"
    heading "Both versions"
    run "backyfs ls"
}

look_into_mount() {
    heading "All versions, mounted: nothing is copied; blocks are fetched when they are read"
    run "backyfs mount mnt"
    run "find mnt | sort"
    run "ls -l mnt/by_name/demo-disk/ mnt/by_version_uid/$older/"

    obstacle=$(loop_obstacle)
    if [ -z "$obstacle" ]; then
        heading "The file system in the older version, mounted read-only"
        run "backyfs attach $older files"
        run "ls -l files/data"
        run "cat files/data/notes.txt"
        run "cmp files/data/notes.txt disk/notes.txt"
    else
        heading "The file in the older version. $obstacle, so debugfs reads it"
        run "debugfs -R 'cat notes.txt' mnt/by_version_uid/$older/data | tee notes-before.txt"
        run "cmp notes-before.txt disk/notes.txt"
    fi
    heading "The same file on the disk now"
    run "debugfs -R 'cat notes.txt' disk.img"

    heading "The mounted images are the old and the new disk, byte for byte"
    run "sha256sum before.img mnt/by_version_uid/$older/data disk.img mnt/by_name/demo-disk/latest/data"
    run "cmp before.img mnt/by_version_uid/$older/data"
    run "cmp disk.img mnt/by_name/demo-disk/latest/data"

    heading "Unmount"
    if [ -d files ]; then
        run "backyfs detach files"
    fi
    run "backyfs umount mnt"
}

restore_instead() {
    heading "The versions cannot be mounted here, so the older one is restored"
    printf '%s\n' "$1"
    run "backyfs restore $older restored.img"
    run "debugfs -R 'cat notes.txt' restored.img"
    heading "The same file on the disk now"
    run "debugfs -R 'cat notes.txt' disk.img"
    heading "The restored image is the old disk, byte for byte"
    run "sha256sum before.img restored.img"
    run "cmp before.img restored.img"
}

need
dir=$(realpath "$(mktemp -d "${TMPDIR:-/tmp}/backyfs-demo.XXXXXXXX")")
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$dir"
printf 'Everything below happens in %s, which is removed at the end.\n' "$dir"

make_image
back_up
obstacle=$(fuse_obstacle)
if [ -z "$obstacle" ]; then
    look_into_mount
else
    restore_instead "$obstacle"
fi
heading "Every comparison found the same bytes."
