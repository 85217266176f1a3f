# Sections in lanes that run side by side; .ci/run sources this file.
#
# The output of a section is printed when the section ends. The first section that fails stops both
# lanes: the log of the section that was running in the other lane is printed, and that of the
# failed section comes last.

mkdir "${work:?a folder that is removed at the end}"/{logs,ended}
# This variable identifies all processes that are started here, whatever their group or session.
export CI_MARK=$work

# section NAME FOLDER COMMAND...: runs a command or a function in a folder, as a section of this
# lane.
section() {
    local name=$1 folder=$2 lane=$BASHPID log="$work/logs/$1" code real user system minutes
    shift 2
    echo "$name" >"$work/now-$lane"
    TIMEFORMAT='%0R %0U %0S'
    set +e # with `||` instead, a function would continue after an error
    { time { (set -e && cd "$folder" && "$@") >"$log" 2>&1; }; } 2>"$work/time-$lane"
    code=$?
    set -e
    read -r real user system < <(tail -n 1 "$work/time-$lane")
    printf -v minutes '%d:%02d' $((real / 60)) $((real % 60))
    printf '%-44s %7s %11d\n' "$name" "$minutes" $((user + system)) >>"$work/table"
    if [[ $code != 0 ]]; then
        echo "$name" >>"$work/failed"
        exit 1
    fi
    {
        flock 9
        printf '\n=== %s: %s minutes, until %s\n' "$name" "$minutes" "$(date +%T)"
        cat "$log"
    } 9>"$work/lock"
    touch "$work/ended/$name"
}

# Waits until a section of the other lane has ended.
after() { until [[ -e $work/ended/$1 ]]; do sleep 1; done; }

# Stops all processes that were started here.
stop() {
    trap '' INT TERM HUP
    export -n CI_MARK
    local signal pid pids
    for signal in TERM KILL; do
        for pid in $(jobs -p); do kill -s "$signal" -- "-$pid" 2>/dev/null || true; done
        for _ in {1..20}; do
            mapfile -t pids < <(grep -lsxzF "CI_MARK=$work" /proc/[0-9]*/environ)
            ((${#pids[@]})) || break
            kill -s "$signal" "${pids[@]//[!0-9]/}" 2>/dev/null || true
            sleep 0.5
        done
    done
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Prints the whole logs of sections, each under its name and outcome.
logs_of() {
    local name
    while IFS= read -r name; do
        printf '\n=== %s: %s\n' "$name" "$1"
        cat "$work/logs/$name"
    done
}

# Waits for the two lanes, which are jobs of the shell, and prints the report. Exits with 1 if one
# failed.
report() {
    local code=0
    wait -n && wait -n || code=1
    stop
    touch "$work/failed"
    if [[ $code != 0 ]]; then
        { cat "$work"/now-* | grep -vxFf <(cat "$work/failed" && ls "$work/ended") || true; } | logs_of stopped
    fi
    printf '\n%-44s %7s %11s\n' section minutes CPU-seconds
    cat "$work/table"
    printf '%-44s %4d:%02d\n' all $((SECONDS / 60)) $((SECONDS % 60))
    logs_of FAILED <"$work/failed"
    [[ $code == 0 ]] || exit 1
}
