"""The sandbox's HTTP routes: Chats API, CRM and messenger."""
