"""PostgreSQL and NATS: private servers or the operator's."""
