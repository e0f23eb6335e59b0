"""Administration over HTTP: tenants, keys, limits and budgets under /admin/v1, with its OpenAPI document."""

from headrace.gateway.admin.routes import AdminRoutes, admin_routes

__all__ = ["AdminRoutes", "admin_routes"]
