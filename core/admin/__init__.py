"""The console: it looks, and acts only through the platform's verbs."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from core.admin import audit, end_users, keys, people, prices, queues, tasks, tenants, usage, usage_report

__all__ = [
    "audit",
    "end_users",
    "keys",
    "people",
    "prices",
    "queues",
    "tasks",
    "tenants",
    "usage",
    "usage_report",
]

admin.site.index_template = "core/admin/dashboard.html"
admin.site.index_title = _("Overview")
