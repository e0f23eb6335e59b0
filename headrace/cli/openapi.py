"""`headrace openapi`: print the document of the HTTP API, for programs that make clients, without a server.

Owns nothing; the documents are `api.openapi`'s and `gateway.admin`'s.
"""

from __future__ import annotations

import argparse

import headrace
from headrace.api.openapi import document
from headrace.cli.accounts import print_json
from headrace.gateway.admin.openapi import document as admin_document


def run(args: argparse.Namespace) -> int:
    """Print it as JSON."""
    print_json((admin_document if args.admin else document)(headrace.__version__, args.url))
    return 0
