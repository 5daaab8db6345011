"""What Kommo and messengers post."""
