"""Sweeps over the paper's networks: declared as cells, trained as trials, kept in a ledger, shown as tables."""
