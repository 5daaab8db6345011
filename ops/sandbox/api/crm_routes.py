"""Every route of the CRM's v4 API."""

from ops.sandbox.api import accounts, contacts, leads, reviews, sources, subscriptions, talks, templates

ROUTES = [
    *accounts.ROUTES,
    *sources.ROUTES,
    *contacts.ROUTES,
    *templates.ROUTES,
    *reviews.ROUTES,
    *talks.ROUTES,
    *leads.ROUTES,
    *subscriptions.ROUTES,
]
