"""The commands of `chatledger`."""
