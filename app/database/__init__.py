"""PostgreSQL: tables, the append function, connections and locks."""
