"""The console's look (django-unfold)."""

UNFOLD = {
    "SITE_TITLE": "Nooble",
    "SITE_HEADER": "Nooble",
}
