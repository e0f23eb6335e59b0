#!/bin/sh
# Stream an answer from a running server with nothing but curl: one JSON document per event, [DONE] at the end.
#
#     make serve                              # in another terminal
#     sh examples/stream_curl.sh [URL]
set -eu
url=${1:-http://127.0.0.1:8000}
curl --silent --show-error --no-buffer --fail-with-body "$url/v1/chat/completions" \
    --header 'Content-Type: application/json' --data '{
        "messages": [{"role": "user", "content": "Name the capital of France."}],
        "temperature": 0, "max_tokens": 32, "stream": true, "stream_options": {"include_usage": true}}'
