#!/bin/sh
# Builds MicroPython for an emulated Cortex-M3 board (ports/qemu, machine mps2-an385) from Debian's source package.
#
#     tools/board_micropython.sh FOLDER [SUITE]
#
# Everything is made in FOLDER; what counts is FOLDER/firmware.elf. The source comes through an apt of its own in there,
# with the archive of this system and its signatures checked: the system's apt stays as it is. Needs no root, but
# gcc-arm-none-eabi, libnewlib-arm-none-eabi, qemu-system-arm, dpkg-dev, make and gcc (`make board` asks for them).
set -eu

[ $# -ge 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
suite=${2:-trixie} # the first that has MicroPython's source; the compiler may be older

for tool in apt-get dpkg-source make gcc python3 arm-none-eabi-gcc qemu-system-arm; do
	command -v "$tool" >/dev/null || { echo "$tool is missing: make board asks for what it needs" >&2; exit 1; }
done

archive=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head -n 1)
[ -n "$archive" ] || archive=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\//) { print $i; exit } }' /etc/apt/sources.list)
[ -n "$archive" ] || { echo "apt on this system names no Debian archive" >&2; exit 1; }

apt=$folder/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
: >"$apt/status"
cat >"$apt/debian.sources" <<END
Types: deb-src
URIs: $archive
Suites: $suite
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
cat >"$apt/apt.conf" <<END
Dir::State "$apt"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/debian.sources"; Dir::Etc::sourceparts "$apt/parts"; Dir::Etc::preferencesparts "$apt/parts";
APT::Sandbox::User "$(id -un)";
END
APT_CONFIG=$apt/apt.conf
export APT_CONFIG

source=$folder/source
if [ ! -e "$source/.complete" ]; then
	rm -rf "$source"
	mkdir "$source"
	apt-get -qq update
	(cd "$source" && apt-get -qq source micropython)
	touch "$source/.complete"
fi

# Nothing is frozen into it: the modules are put on the board as they lie in the repository (tools/board.py).
: >"$folder/nothing.py"
cd "$source"/micropython-*/
make -s -C mpy-cross -j2
make -s -C ports/qemu -j2 FROZEN_MANIFEST="$folder/nothing.py"
cp ports/qemu/build-MPS2_AN385/firmware.elf "$folder/firmware.elf.part"
mv "$folder/firmware.elf.part" "$folder/firmware.elf"
echo "$folder/firmware.elf"
