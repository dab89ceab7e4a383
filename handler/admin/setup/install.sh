usage() {
	cat <<END
curl -fsS '$source' | sh [-s -- OPTION...]

  --dry-run     say what would be done, and do nothing
  --undo        remove larder's files, and put back what they have replaced
  --root DIR    for a system whose / is DIR
  --help        this
END
}

say() { printf '%s\n' "$*"; }

die() {
	printf 'larder: %s\n' "$*" >&2
	exit 1
}

ours() { [ -f "$1" ] && head -n 1 "$1" | grep -q "^$mark"; }

exists() { [ -e "$1" ] || [ -L "$1" ]; }

# writable DIR: it is, or the first above it that there is.
writable() {
	above=$1
	while ! exists "$above"; do above=$(dirname "$above"); done
	[ -d "$above" ] && [ -w "$above" ]
}

# put NAME FILE: it has all of the new content, or all of the old.
put() {
	mkdir -p "$(dirname "$2")" || die "can't make the directory of $2"
	beside=$2.new.$$
	(umask 022 && content "$1" >"$beside") && chmod 644 "$beside" && mv -f "$beside" "$2" && beside= && return
	rm -f "$beside"
	die "can't write $2"
}

# install_file NAME keeps what it replaces: another's file for --undo, an older one
# of larder's, which somebody may have edited, beside it.
install_file() {
	file=$dir/$1
	if [ -f "$file" ] && [ "$(cat "$file")" = "$(content "$1")" ]; then
		say "as it should be: $file"
		return
	fi
	changed=$((changed + 1))
	if exists "$file"; then
		backup=$file.before-larder
		if ours "$file"; then
			backup=$file.previous
		elif exists "$backup"; then
			die "$file is not larder's, and $backup keeps another that was not: move one of them away"
		fi
		say "kept as it was:  $backup"
		[ "$dry" ] || { rm -f "$backup" && cp -pP "$file" "$backup"; } || die "can't write $backup"
	fi
	say "written:         $file"
	if [ "$dry" ]; then
		content "$1" | sed 's/^/    /'
	else
		put "$1" "$file"
	fi
}

# undo_file FILE
undo_file() {
	changed=$((changed + 1))
	if exists "$1.before-larder"; then
		say "put back: $1"
		[ "$dry" ] || mv -f "$1.before-larder" "$1" || die "can't write $1"
	else
		say "removed:  $1"
		[ "$dry" ] || rm -f "$1" || die "can't remove $1"
	fi
	[ "$dry" ] || rm -f "$1.previous"
	case $1 in
	*/hosts.toml) [ "$dry" ] || rmdir "$(dirname "$1")" 2>/dev/null || : ;; # if it is empty
	esac
}

undo() {
	set +f
	for file in "$dir"/*/hosts.toml "$dir"/larder.conf; do
		ours "$file" && undo_file "$file"
	done
	set -f
	[ "$changed" != 0 ] || say "nothing to undo: larder has no file in $dir"
}

# find_config_path sets path to what containerd's config.toml says, or to nothing.
find_config_path() {
	config=$root/etc/containerd/config.toml
	path=
	[ -r "$config" ] || return 0
	path=$(sed -n "s/^[[:space:]]*config_path[[:space:]]*=[[:space:]]*[\"']\([^\"':]\{1,\}\).*/\1/p" "$config" | head -n 1)
}

# tell_config_path says what containerd's config.toml lacks.
tell_config_path() {
	[ -z "$path" ] || return 0
	version=2 table='io.containerd.grpc.v1.cri'
	if grep -q '^[[:space:]]*version[[:space:]]*=[[:space:]]*3' "$config" 2>/dev/null ||
		{ ! exists "$config" && containerd --version 2>/dev/null | grep -q ' v\{0,1\}2\.'; }; then
		version=3 table='io.containerd.cri.v1.images'
	fi
	cat <<END

For Kubernetes (CRI), containerd does not read these files yet: $config
has no config_path. Write there, or into that table if there is one, and restart containerd:

END
	# A second one at its end would be part of another table, or a mistake.
	grep -q '^[[:space:]]*version[[:space:]]*=' "$config" 2>/dev/null || say "    version = $version   # at its top"
	cat <<END
    [plugins."$table".registry]
      config_path = "${dir#"$root"}"
END
	if grep -q '^[[:space:]]*\[.*registry\.mirrors' "$config" 2>/dev/null; then
		say "
and remove its tables registry.mirrors: with both, containerd does not start its CRI."
	fi
}

main() {
	set -euf
	dry='' undo='' root='' changed=0 beside=''
	while [ $# -gt 0 ]; do
		case $1 in
		--dry-run) dry=yes ;;
		--undo) undo=yes ;;
		--root)
			{ [ $# -gt 1 ] && [ -d "$2" ]; } || die "--root needs a directory that there is"
			root=${2%/}
			shift
			;;
		--help | -h)
			usage
			exit
			;;
		*)
			usage >&2
			die "unknown option: $1"
			;;
		esac
		shift
	done
	trap '[ -z "$beside" ] || rm -f "$beside"' EXIT
	trap 'exit 1' HUP INT TERM
	if [ "$client" = containerd ]; then
		find_config_path
		dir=${path:-$dir}
	fi
	dir=$root$dir
	[ "$dry" ] || writable "$dir" ||
		die "$dir can't be written. As root: curl -fsS '$source' | sudo sh${undo:+ -s -- --undo}"
	[ -z "$dry" ] || say "Nothing is done; this is what would be:"
	if [ "$undo" ]; then
		undo
		return
	fi
	for name in $names; do install_file "$name"; done
	[ "$changed" != 0 ] || say "nothing to do: all is as it should be"
	[ "$client" != containerd ] || tell_config_path
}

main "$@"
