"""The JetStream stream LEDGER: relay and consumers."""
