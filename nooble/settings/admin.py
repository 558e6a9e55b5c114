"""The console's look (django-unfold)."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import reverse_lazy
from django.utils.translation import gettext_lazy as _


def _may_view(permission: str) -> Callable[[HttpRequest], bool]:
    return lambda request: request.user.has_perm(permission)


def _page(title: Any, icon: str, app: str, model: str) -> dict[str, Any]:
    return {
        "title": title,
        "icon": icon,
        "link": reverse_lazy(f"admin:{app}_{model}_changelist"),
        "permission": _may_view(f"{app}.view_{model}"),
    }


# For whoever opened the login's own address: Unfold's form has no `next` of its own.
LOGIN_REDIRECT_URL = "admin:index"

UNFOLD = {
    "SITE_TITLE": "Nooble",
    "SITE_HEADER": "Nooble",
    "SITE_SUBHEADER": _("Console"),
    "SITE_SYMBOL": "hub",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": lambda request: static("core/favicon.svg"),
        }
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": True,
    "SHOW_BACK_BUTTON": True,
    "DASHBOARD_CALLBACK": "core.admin.dashboard.dashboard",
    "STYLES": [lambda request: static("core/console.css")],
    "BORDER_RADIUS": "8px",
    "COLORS": {
        "primary": {
            "50": "oklch(97.7% .013 236.6)",
            "100": "oklch(95.1% .026 236.8)",
            "200": "oklch(90.1% .058 230.9)",
            "300": "oklch(82.8% .111 230.3)",
            "400": "oklch(74.6% .16 232.7)",
            "500": "oklch(63% .16 240)",
            "600": "oklch(54% .155 245)",
            "700": "oklch(46% .135 246)",
            "800": "oklch(40% .11 246)",
            "900": "oklch(35% .09 247)",
            "950": "oklch(26% .066 247)",
        },
    },
    "SIDEBAR": {
        "show_search": True,
        "show_all_applications": False,
        "navigation": [
            {
                "items": [
                    {"title": _("Overview"), "icon": "monitoring", "link": reverse_lazy("admin:index")},
                ],
            },
            {
                "title": _("Work"),
                "separator": True,
                "items": [
                    _page(_("Tasks"), "checklist", "core", "task"),
                    {
                        "title": _("Queues"),
                        "icon": "stacked_inbox",
                        "link": reverse_lazy("queues:queues"),
                        "permission": _may_view("core.view_task"),
                    },
                    {
                        "title": _("Dead letters"),
                        "icon": "unknown_document",
                        "link": reverse_lazy("queues:dead_letters"),
                        "permission": lambda request: request.user.is_superuser,
                    },
                    _page(_("Batches"), "stacks", "orchestrator", "batch"),
                    _page(_("Sessions"), "forum", "conversations", "session"),
                    _page(_("Webhooks"), "webhook", "orchestrator", "webhookendpoint"),
                    _page(_("Deliveries"), "outbox", "orchestrator", "delivery"),
                ],
            },
            {
                "title": _("Money"),
                "separator": True,
                "items": [
                    {
                        "title": _("Usage"),
                        "icon": "bar_chart_4_bars",
                        "link": reverse_lazy("usage:report"),
                        "permission": _may_view("core.view_usagerecord"),
                    },
                    _page(_("Provider calls"), "toll", "core", "usagerecord"),
                    _page(_("Budgets"), "savings", "core", "budget"),
                    _page(_("Prices"), "sell", "core", "modelprice"),
                ],
            },
            {
                "title": _("Agents"),
                "separator": True,
                "items": [
                    _page(_("Agents"), "smart_toy", "agents", "agent"),
                    _page(_("Templates"), "auto_awesome_mosaic", "agents", "agenttemplate"),
                ],
            },
            {
                "title": _("Customers"),
                "separator": True,
                "items": [
                    _page(_("Tenants"), "apartment", "core", "tenant"),
                    _page(_("Tiers"), "stacks", "core", "tier"),
                    _page(_("API keys"), "key", "core", "apikey"),
                    _page(_("End-user secrets"), "passkey", "core", "endusersecret"),
                    _page(_("Audit"), "history_edu", "core", "auditentry"),
                    _page(_("Providers"), "cloud_sync", "core", "providercredential"),
                ],
            },
            {
                "title": _("People"),
                "separator": True,
                "items": [
                    _page(_("People of tenants"), "badge", "core", "membership"),
                    _page(_("Users"), "person", "auth", "user"),
                    _page(_("Groups"), "group", "auth", "group"),
                ],
            },
        ],
    },
}
