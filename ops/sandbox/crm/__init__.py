"""The rules of Kommo's CRM as the sandbox plays them."""
