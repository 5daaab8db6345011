"""The widget of an integration as Kommo's developer page and its accounts treat it."""
