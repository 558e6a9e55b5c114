"""The console: it looks, and acts only through the platform's verbs."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from core.admin import audit, keys, people, queues, tasks, tenants, usage

__all__ = ["audit", "keys", "people", "queues", "tasks", "tenants", "usage"]

admin.site.index_template = "core/admin/dashboard.html"
admin.site.index_title = _("Overview")
