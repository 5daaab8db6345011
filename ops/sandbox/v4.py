"""Every route of the CRM's v4 API."""

from ops.sandbox import accounts, chattemplates, contacts, leads, reviews, sources, subscriptions, talks

ROUTES = [
    *accounts.ROUTES,
    *sources.ROUTES,
    *contacts.ROUTES,
    *chattemplates.ROUTES,
    *reviews.ROUTES,
    *talks.ROUTES,
    *leads.ROUTES,
    *subscriptions.ROUTES,
]
