"""The console: it looks, and acts only through the platform's verbs."""

from django.contrib import admin

from core.admin import keys, people, tasks, tenants, usage

__all__ = ["keys", "people", "tasks", "tenants", "usage"]

admin.site.index_template = "core/admin/dashboard.html"
