#!/bin/sh
# The audit log, sealed with a key: what is done leaves a row, and what is changed behind its back is found.
set -eu
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
export HEADRACE_DATABASE="sqlite:///$folder/gateway.db"

headrace audit key new "$folder/audit.key"
export HEADRACE_AUDIT__KEY="file:$folder/audit.key"

headrace tenants create acme
headrace keys create acme --name ci >"$folder/api.key"
headrace audit show
headrace audit verify

# Somebody who can write to the database lets the key look like another tenant's.
python3 - "$folder/gateway.db" <<'PYTHON'
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("UPDATE audit_rows SET body = REPLACE(body, 'acme', 'evil')")
connection.commit()
connection.close()
PYTHON
headrace audit verify || echo "the change was found"
