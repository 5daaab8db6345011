"""Kommo: the Chats API, the CRM and the call budget that both share."""
