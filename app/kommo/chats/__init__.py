"""Kommo's Chats API (amojo): calls, payloads, signatures and hooks."""
