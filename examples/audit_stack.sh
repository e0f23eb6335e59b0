#!/bin/sh
# Serve a few requests, then ask what they cost and what would cost less.
#
#     sh examples/audit_stack.sh [PAGE]
set -eu
folder=$(mktemp -d)
page=${1:-$folder/stack.html}
export HEADRACE_DATABASE="sqlite:///$folder/accounts.db"
export HEADRACE_GATEWAY__USD_PER_HOUR=0.12

headrace serve --port 0 >"$folder/server" &
server=$!
trap 'kill $server 2>/dev/null || true' EXIT
until url=$(grep -o 'http://127.0.0.1:[0-9]*' "$folder/server" | head -n 1) && [ -n "$url" ]; do
    kill -0 $server  # ends the script with the server
    sleep 0.2
done
for place in France Italy Spain France; do
    curl --silent --show-error --fail-with-body "$url/v1/chat/completions" --header 'Content-Type: application/json' \
        --data '{"messages": [{"role": "user", "content": "Name the capital of '$place'."}],
                 "temperature": 0, "max_tokens": 24}' >/dev/null
done
kill $server
wait $server

headrace audit stack --against 0.10/0.40 --html "$page"
