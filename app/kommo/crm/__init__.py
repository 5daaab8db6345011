"""Kommo's CRM, /api/v4: calls, OAuth and CRM webhooks."""
