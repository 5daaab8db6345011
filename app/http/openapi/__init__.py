"""The OpenAPI document, /schema."""
