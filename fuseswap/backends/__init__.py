"""Where ordinary files live, behind one small protocol (`protocol.Backend`)."""
