"""The projections in PostgreSQL: kept up to date and read."""
