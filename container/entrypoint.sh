#!/bin/sh
# The image's entrypoint, under tini:
#   IMAGE run NOTEBOOK -p NAME VALUE    the same as: IMAGE medkit run NOTEBOOK -p NAME VALUE
#   IMAGE lab                           JupyterLab (target `lab`), never without a token
#   IMAGE python ... | bash ... | /path another command
set -eu

refuse() {
    echo "medkit: $*" >&2
    exit 2
}

warn_of_small_shm() {
    kib=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $2 }') || kib=
    case "$kib" in '' | *[!0-9]*) kib=0 ;; esac
    if [ "$kib" -lt 1048576 ]; then
        echo "medkit: /dev/shm has $((kib / 1024)) MiB and should have 1024 or more: loader workers" \
            "hand batches over in it and die of a bus error when it is full." \
            "Start the container with --shm-size=2g or --ipc=host." >&2
    fi
}

# A token comes from JUPYTER_TOKEN or JUPYTER_TOKEN_FILE, or Jupyter draws a random one and shows it.
check_token() {
    for argument in "$@"; do
        case "$argument" in
            *[Tt]oken* | *[Pp]assword*)
                refuse "no token or password among the arguments, where every user of the machine" \
                    "can read it; got '${argument%%=*}'. Set JUPYTER_TOKEN_FILE or JUPYTER_TOKEN."
                ;;
        esac
    done
    if [ -n "${JUPYTER_TOKEN_FILE+set}" ]; then
        [ -r "$JUPYTER_TOKEN_FILE" ] ||
            refuse "JUPYTER_TOKEN_FILE must name a readable file, found '$JUPYTER_TOKEN_FILE'." \
                "Mount it into the container, or leave the variable out for a random token."
        [ -n "$(tr -d '[:space:]' <"$JUPYTER_TOKEN_FILE")" ] ||
            refuse "the token in JUPYTER_TOKEN_FILE must not be empty, and $JUPYTER_TOKEN_FILE is." \
                "Write one into it, or leave the variable out for a random token."
    fi
    if [ -n "${JUPYTER_TOKEN+set}" ]; then
        [ -n "$(printf '%s' "$JUPYTER_TOKEN" | tr -d '[:space:]')" ] ||
            refuse "JUPYTER_TOKEN must not be empty, and it is: anyone could run code in here." \
                "Give it a value, or leave it out for a random token."
    fi
}

case "${1:-}" in
    lab)
        shift
        check_token "$@"
        command -v jupyter-lab >/dev/null ||
            refuse "JupyterLab is not in this image, which is the target 'train'. Use the target 'lab'."
        warn_of_small_shm
        exec jupyter-lab "$@" # address and port: jupyter_server_config.json
        ;;
    jupyter | jupyter-*) check_token "$@" ;;
    medkit | python | python3 | bash | sh | /*) ;;
    *) set -- medkit "$@" ;;
esac
[ "$1" != medkit ] || warn_of_small_shm
exec "$@"
