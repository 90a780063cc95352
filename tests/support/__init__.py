"""What tests share: trials, sweeps, ledgers of analyses, pictures, servers, bad inputs. No tests stand here."""
