"""The production form on one machine: replicated servers, two services, what breaks, and what must hold."""
