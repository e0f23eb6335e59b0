"""Remote servers as upstreams: adapters for their wires, pools that fail over, and the state of each."""

from headrace.gateway.upstream.fleet import Fleet
from headrace.gateway.upstream.observed import Observed
from headrace.gateway.upstream.probing import UpstreamProbe, probe_all

__all__ = ["Fleet", "Observed", "UpstreamProbe", "probe_all"]
