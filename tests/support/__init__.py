"""What tests share: small data, tiny runs, ranks, hosts, a browser. No tests in here."""
