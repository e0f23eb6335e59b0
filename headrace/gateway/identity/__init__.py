"""Who asks: tenants, their keys, what each key may do."""

from headrace.gateway.identity.directory import Directory
from headrace.gateway.identity.records import Key, Role, Tenant
from headrace.gateway.identity.registry import IssuedKey, Registry
from headrace.gateway.identity.secrets import Pepper

__all__ = ["Directory", "IssuedKey", "Key", "Pepper", "Registry", "Role", "Tenant"]
