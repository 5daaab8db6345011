"""The rules of Kommo's Chats API as the sandbox plays them."""
